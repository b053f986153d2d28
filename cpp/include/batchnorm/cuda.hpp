// batchnorm/cuda.hpp - the functions of core.hpp on NVIDIA GPUs.
//
// Every pointer, of tensors, parameters, statistics (single values too), masks and the workspace, is to memory of the
// current device; views, shapes and strides are as on the CPU, and so are the checks, the messages and the formulas.
// The work is put on the stream that is given, and the function returns: nothing is allocated, nothing waits for the
// device, and calls may be captured into a CUDA graph. The memory must stay as it is until the stream is done.
//
// What differs from core.hpp:
// - options.workspace is required: workspace_bytes() of it. options.threads and options.executor are not taken.
// - Values on the device are not looked at: that would mean to wait for them. A negative variance gives NaN, as
//   arithmetic has it; weights that are negative or not finite, and a gamma of 0 in batch_norm_backward_from_output,
//   give results without meaning.
// - There are no batch_norm_jvp, batch_norm_double_backward and update_running. core::mask_bytes() tells the size of
// masks here too.
//
// For one GPU and one version of this library the same call gives the same bits, whatever else runs; on any GPU sums
// are cut and merged in the same order.
#pragma once

#include <batchnorm/core.hpp>

namespace batchnorm::cuda {

// A cudaStream_t; null is the default stream.
using Stream = void*;

// Whether there is a GPU to compute on: this library was built with its CUDA part, which it finds and loads on the
// first call, and there are a driver and a device.
BATCHNORM_API bool is_available() noexcept;
// What is missing, in words; null if nothing is.
BATCHNORM_API const char* unavailable_because() noexcept;

BATCHNORM_API int device_count() noexcept;
// "NVIDIA H200"; null if there is no such device.
BATCHNORM_API const char* device_name(int device) noexcept;
// The calling thread's current device, as CUDA has it, for all its work.
BATCHNORM_API Status get_device(int& device) noexcept;
BATCHNORM_API Status set_device(int device) noexcept;
// Waits until all work on a stream is done.
BATCHNORM_API Status synchronize(Stream stream) noexcept;

// The workspace that op needs for an x of this shape and these strides and any other operands, on any device. No
// memory is looked at: x and weights need no data yet.
BATCHNORM_API Status workspace_bytes(Op op, const View& x, const Axes& axes, const Options& options,
                                     std::size_t& bytes) noexcept;

BATCHNORM_API Status batch_norm(const View& x, const Axes& axes, const Param& gamma, const Param& beta,
                                const MutView& out, const MutStats& saved, Stream stream,
                                const Options& options) noexcept;

BATCHNORM_API Status batch_norm_backward(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                                         const Param& gamma, const MutView& dx, const MutParam& dgamma,
                                         const MutParam& dbeta, Stream stream, const Options& options) noexcept;

BATCHNORM_API Status batch_norm_inference(const View& x, const Axes& axes, const Param& mean, const Param& var,
                                          const Param& gamma, const Param& beta, const MutView& out, Stream stream,
                                          const Options& options) noexcept;

BATCHNORM_API Status batch_norm_inference_backward(const View& dy, const View& x, const Axes& axes, const Param& mean,
                                                   const Param& var, const Param& gamma, const MutView& dx,
                                                   const MutParam& dgamma, const MutParam& dbeta, Stream stream,
                                                   const Options& options) noexcept;

BATCHNORM_API Status batch_norm_inplace(const MutView& x, const Axes& axes, const Param& gamma, const Param& beta,
                                        const MutStats& saved, Stream stream, const Options& options) noexcept;

BATCHNORM_API Status batch_norm_backward_from_output(const View& dy, const View& y, const Axes& axes,
                                                     const Stats& saved, const Param& gamma, const Param& beta,
                                                     const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                                                     Stream stream, const Options& options) noexcept;

BATCHNORM_API Status moments(const View& x, const Axes& axes, const MutMoments& out, Stream stream,
                             const Options& options) noexcept;

BATCHNORM_API Status normalize(const View& x, const Axes& axes, const Moments& moments, const Param& gamma,
                               const Param& beta, const MutView& out, const MutStats& saved, Stream stream,
                               const Options& options) noexcept;

BATCHNORM_API Status grad_sums(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                               const MutGradSums& out, Stream stream, const Options& options) noexcept;

BATCHNORM_API Status input_grad(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                                const GradSums& sums, const Param& gamma, const MutView& dx, const MutParam& dgamma,
                                const MutParam& dbeta, Stream stream, const Options& options) noexcept;

}  // namespace batchnorm::cuda
