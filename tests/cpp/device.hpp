// The functions of core.hpp on the device that BATCHNORM_TEST_DEVICE names: "cpu", or "cuda", whose memory is the
// host's where CUDA is emulated.
#pragma once

#include <batchnorm/core.hpp>
#include <batchnorm/cuda.hpp>

#include <cstdlib>
#include <cstring>
#include <vector>

namespace device {

using namespace batchnorm;

inline bool is_cuda() {
    const char* const name = std::getenv("BATCHNORM_TEST_DEVICE");
    return name && std::strcmp(name, "cuda") == 0;
}

// What a function of cuda.hpp takes in the place of the CPU's options: a workspace of its own, unless there is one, and
// no threads.
class OnCuda {
  public:
    OnCuda(Op op, const View& x, const Axes& axes, const Options& given) : options(given) {
        options.threads = 0;
        options.executor = {};
        std::size_t bytes = 0;
        if (options.workspace.data || !cuda::workspace_bytes(op, x, axes, options, bytes).ok()) return;
        memory_.assign(bytes + 1, 0xa5);
        options.workspace = {memory_.data(), bytes};
    }
    Options options;

  private:
    std::vector<unsigned char> memory_;
};

inline constexpr cuda::Stream stream = nullptr;

inline Status batch_norm(const View& x, const Axes& axes, const Param& gamma, const Param& beta, const MutView& out,
                         const MutStats& saved, const Options& options = {}) {
    if (!is_cuda()) return core::batch_norm(x, axes, gamma, beta, out, saved, options);
    const OnCuda on(Op::batch_norm, x, axes, options);
    return cuda::batch_norm(x, axes, gamma, beta, out, saved, stream, on.options);
}

inline Status batch_norm_backward(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                                  const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                                  const Options& options = {}) {
    if (!is_cuda()) return core::batch_norm_backward(dy, x, axes, saved, gamma, dx, dgamma, dbeta, options);
    const OnCuda on(Op::batch_norm_backward, x, axes, options);
    return cuda::batch_norm_backward(dy, x, axes, saved, gamma, dx, dgamma, dbeta, stream, on.options);
}

inline Status batch_norm_inference(const View& x, const Axes& axes, const Param& mean, const Param& var,
                                   const Param& gamma, const Param& beta, const MutView& out,
                                   const Options& options = {}) {
    if (!is_cuda()) return core::batch_norm_inference(x, axes, mean, var, gamma, beta, out, options);
    const OnCuda on(Op::batch_norm_inference, x, axes, options);
    return cuda::batch_norm_inference(x, axes, mean, var, gamma, beta, out, stream, on.options);
}

inline Status batch_norm_inference_backward(const View& dy, const View& x, const Axes& axes, const Param& mean,
                                            const Param& var, const Param& gamma, const MutView& dx,
                                            const MutParam& dgamma, const MutParam& dbeta,
                                            const Options& options = {}) {
    if (!is_cuda())
        return core::batch_norm_inference_backward(dy, x, axes, mean, var, gamma, dx, dgamma, dbeta, options);
    const OnCuda on(Op::batch_norm_inference_backward, x, axes, options);
    return cuda::batch_norm_inference_backward(dy, x, axes, mean, var, gamma, dx, dgamma, dbeta, stream, on.options);
}

inline Status batch_norm_inplace(const MutView& x, const Axes& axes, const Param& gamma, const Param& beta,
                                 const MutStats& saved, const Options& options = {}) {
    if (!is_cuda()) return core::batch_norm_inplace(x, axes, gamma, beta, saved, options);
    const OnCuda on(Op::batch_norm, x, axes, options);
    return cuda::batch_norm_inplace(x, axes, gamma, beta, saved, stream, on.options);
}

inline Status batch_norm_backward_from_output(const View& dy, const View& y, const Axes& axes, const Stats& saved,
                                              const Param& gamma, const Param& beta, const MutView& dx,
                                              const MutParam& dgamma, const MutParam& dbeta,
                                              const Options& options = {}) {
    if (!is_cuda())
        return core::batch_norm_backward_from_output(dy, y, axes, saved, gamma, beta, dx, dgamma, dbeta, options);
    const OnCuda on(Op::batch_norm_backward_from_output, y, axes, options);
    return cuda::batch_norm_backward_from_output(dy, y, axes, saved, gamma, beta, dx, dgamma, dbeta, stream,
                                                 on.options);
}

inline Status moments(const View& x, const Axes& axes, const MutMoments& out, const Options& options = {}) {
    if (!is_cuda()) return core::moments(x, axes, out, options);
    const OnCuda on(Op::moments, x, axes, options);
    return cuda::moments(x, axes, out, stream, on.options);
}

inline Status normalize(const View& x, const Axes& axes, const Moments& moments, const Param& gamma, const Param& beta,
                        const MutView& out, const MutStats& saved, const Options& options = {}) {
    if (!is_cuda()) return core::normalize(x, axes, moments, gamma, beta, out, saved, options);
    const OnCuda on(Op::normalize, x, axes, options);
    return cuda::normalize(x, axes, moments, gamma, beta, out, saved, stream, on.options);
}

inline Status grad_sums(const View& dy, const View& x, const Axes& axes, const Stats& saved, const MutGradSums& out,
                        const Options& options = {}) {
    if (!is_cuda()) return core::grad_sums(dy, x, axes, saved, out, options);
    const OnCuda on(Op::grad_sums, x, axes, options);
    return cuda::grad_sums(dy, x, axes, saved, out, stream, on.options);
}

inline Status input_grad(const View& dy, const View& x, const Axes& axes, const Stats& saved, const GradSums& sums,
                         const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                         const Options& options = {}) {
    if (!is_cuda()) return core::input_grad(dy, x, axes, saved, sums, gamma, dx, dgamma, dbeta, options);
    const OnCuda on(Op::input_grad, x, axes, options);
    return cuda::input_grad(dy, x, axes, saved, sums, gamma, dx, dgamma, dbeta, stream, on.options);
}

inline Status workspace_bytes(Op op, const View& x, const Axes& axes, const Options& options, std::size_t& bytes) {
    if (!is_cuda()) return core::workspace_bytes(op, x, axes, options, bytes);
    Options without_threads = options;
    without_threads.threads = 0;
    return cuda::workspace_bytes(op, x, axes, without_threads, bytes);
}

// On the CPU alone, or the same for both.
using core::batch_norm_double_backward;
using core::batch_norm_jvp;
using core::mask_bytes;
using core::set_num_threads;

}  // namespace device
