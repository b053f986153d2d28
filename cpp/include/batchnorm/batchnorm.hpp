// batchnorm/batchnorm.hpp - the functions of <batchnorm/core.hpp>, throwing instead of returning a Status.
//
// A failed check throws std::invalid_argument with the status' message, memory that cannot be had std::bad_alloc, and
// an instruction set that cannot be had std::runtime_error. Nothing was written then. What a device reports is a
// std::runtime_error too.
#pragma once

#include <batchnorm/core.hpp>

#include <new>
#include <stdexcept>

namespace batchnorm {

// Throws what the status says, if it is not ok.
inline void check(const Status& status) {
    switch (status.code) {
        case Code::ok: return;
        case Code::out_of_memory: throw std::bad_alloc();
        case Code::unavailable:
        case Code::device_error: throw std::runtime_error(status.message);
        case Code::invalid_value:
        case Code::invalid_type: break;
    }
    throw std::invalid_argument(status.message);
}

inline std::size_t workspace_bytes(Op op, const View& x, const Axes& axes, const Options& options = {}) {
    std::size_t bytes = 0;
    check(core::workspace_bytes(op, x, axes, options, bytes));
    return bytes;
}

inline void batch_norm(const View& x, const Axes& axes, const Param& gamma, const Param& beta, const MutView& out,
                       const MutStats& saved, const Options& options = {}) {
    check(core::batch_norm(x, axes, gamma, beta, out, saved, options));
}

inline void batch_norm_backward(const View& dy, const View& x, const Axes& axes, const Stats& saved, const Param& gamma,
                                const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                                const Options& options = {}) {
    check(core::batch_norm_backward(dy, x, axes, saved, gamma, dx, dgamma, dbeta, options));
}

inline void batch_norm_inference(const View& x, const Axes& axes, const Param& mean, const Param& var,
                                 const Param& gamma, const Param& beta, const MutView& out,
                                 const Options& options = {}) {
    check(core::batch_norm_inference(x, axes, mean, var, gamma, beta, out, options));
}

inline void batch_norm_inference_backward(const View& dy, const View& x, const Axes& axes, const Param& mean,
                                          const Param& var, const Param& gamma, const MutView& dx,
                                          const MutParam& dgamma, const MutParam& dbeta, const Options& options = {}) {
    check(core::batch_norm_inference_backward(dy, x, axes, mean, var, gamma, dx, dgamma, dbeta, options));
}

inline std::size_t mask_bytes(const View& x, const Axes& axes, const Options& options = {}) {
    std::size_t bytes = 0;
    check(core::mask_bytes(x, axes, options, bytes));
    return bytes;
}

inline void batch_norm_inplace(const MutView& x, const Axes& axes, const Param& gamma, const Param& beta,
                               const MutStats& saved, const Options& options = {}) {
    check(core::batch_norm_inplace(x, axes, gamma, beta, saved, options));
}

inline void batch_norm_backward_from_output(const View& dy, const View& y, const Axes& axes, const Stats& saved,
                                            const Param& gamma, const Param& beta, const MutView& dx,
                                            const MutParam& dgamma, const MutParam& dbeta,
                                            const Options& options = {}) {
    check(core::batch_norm_backward_from_output(dy, y, axes, saved, gamma, beta, dx, dgamma, dbeta, options));
}

inline void batch_norm_jvp(const View& tx, const View& x, const Axes& axes, const Stats& saved, const Param& gamma,
                           const Param& tgamma, const Param& tbeta, const MutView& out, const Options& options = {}) {
    check(core::batch_norm_jvp(tx, x, axes, saved, gamma, tgamma, tbeta, out, options));
}

inline void batch_norm_double_backward(const View& ddx, const View& dy, const View& x, const Axes& axes,
                                       const Stats& saved, const Param& gamma, const Param& ddgamma,
                                       const Param& ddbeta, const MutView& ddy, const MutView& dx,
                                       const MutParam& dgamma, const Options& options = {}) {
    check(core::batch_norm_double_backward(ddx, dy, x, axes, saved, gamma, ddgamma, ddbeta, ddy, dx, dgamma, options));
}

inline void moments(const View& x, const Axes& axes, const MutMoments& out, const Options& options = {}) {
    check(core::moments(x, axes, out, options));
}

inline void normalize(const View& x, const Axes& axes, const Moments& moments, const Param& gamma, const Param& beta,
                      const MutView& out, const MutStats& saved, const Options& options = {}) {
    check(core::normalize(x, axes, moments, gamma, beta, out, saved, options));
}

inline void grad_sums(const View& dy, const View& x, const Axes& axes, const Stats& saved, const MutGradSums& out,
                      const Options& options = {}) {
    check(core::grad_sums(dy, x, axes, saved, out, options));
}

inline void input_grad(const View& dy, const View& x, const Axes& axes, const Stats& saved, const GradSums& sums,
                       const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                       const Options& options = {}) {
    check(core::input_grad(dy, x, axes, saved, sums, gamma, dx, dgamma, dbeta, options));
}

inline void update_running(const MutParam& running_mean, const MutParam& running_var, const Param& mean,
                           const Param& var, const Param& count, double momentum = 0.1, bool unbiased = true) {
    check(core::update_running(running_mean, running_var, mean, var, count, momentum, unbiased));
}

inline void set_num_threads(int threads) { check(core::set_num_threads(threads)); }

}  // namespace batchnorm
