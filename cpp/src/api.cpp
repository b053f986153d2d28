// The public functions of core.hpp, on the CPU.
#include "execute.hpp"
#include "functions.hpp"
#include "status.hpp"

namespace batchnorm {

Status core::batch_norm(const View& x, const Axes& axes, const Param& gamma, const Param& beta, const MutView& out,
                        const MutStats& saved, const Options& options) noexcept {
    return functions::batch_norm(cpu(), x, axes, gamma, beta, out, saved, options);
}

Status core::batch_norm_inplace(const MutView& x, const Axes& axes, const Param& gamma, const Param& beta,
                                const MutStats& saved, const Options& options) noexcept {
    return functions::batch_norm_inplace(cpu(), x, axes, gamma, beta, saved, options);
}

Status core::moments(const View& x, const Axes& axes, const MutMoments& out, const Options& options) noexcept {
    return functions::moments(cpu(), x, axes, out, options);
}

Status core::normalize(const View& x, const Axes& axes, const Moments& moments, const Param& gamma, const Param& beta,
                       const MutView& out, const MutStats& saved, const Options& options) noexcept {
    return functions::normalize(cpu(), x, axes, moments, gamma, beta, out, saved, options);
}

Status core::batch_norm_inference(const View& x, const Axes& axes, const Param& mean, const Param& var,
                                  const Param& gamma, const Param& beta, const MutView& out,
                                  const Options& options) noexcept {
    return functions::batch_norm_inference(cpu(), x, axes, mean, var, gamma, beta, out, options);
}

Status core::batch_norm_backward(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                                 const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                                 const Options& options) noexcept {
    return functions::batch_norm_backward(cpu(), dy, x, axes, saved, gamma, dx, dgamma, dbeta, options);
}

Status core::batch_norm_backward_from_output(const View& dy, const View& y, const Axes& axes, const Stats& saved,
                                             const Param& gamma, const Param& beta, const MutView& dx,
                                             const MutParam& dgamma, const MutParam& dbeta,
                                             const Options& options) noexcept {
    return functions::batch_norm_backward_from_output(cpu(), dy, y, axes, saved, gamma, beta, dx, dgamma, dbeta,
                                                      options);
}

Status core::grad_sums(const View& dy, const View& x, const Axes& axes, const Stats& saved, const MutGradSums& out,
                       const Options& options) noexcept {
    return functions::grad_sums(cpu(), dy, x, axes, saved, out, options);
}

Status core::input_grad(const View& dy, const View& x, const Axes& axes, const Stats& saved, const GradSums& sums,
                        const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                        const Options& options) noexcept {
    return functions::input_grad(cpu(), dy, x, axes, saved, sums, gamma, dx, dgamma, dbeta, options);
}

Status core::batch_norm_inference_backward(const View& dy, const View& x, const Axes& axes, const Param& mean,
                                           const Param& var, const Param& gamma, const MutView& dx,
                                           const MutParam& dgamma, const MutParam& dbeta,
                                           const Options& options) noexcept {
    return functions::batch_norm_inference_backward(cpu(), dy, x, axes, mean, var, gamma, dx, dgamma, dbeta, options);
}

Status core::workspace_bytes(Op op, const View& x, const Axes& axes, const Options& options,
                             std::size_t& bytes) noexcept {
    bytes = 0;
    Validator valid("workspace_bytes");
    valid.shapes_alone();
    valid.x(x, axes);
    valid.known(op);
    valid.options(options);
    valid.more_options(options, ~0u);
    if (!valid.ok() || valid.statistics() == 0 || valid.no_groups()) return valid.status();
    const View read = functions::to_measure(x, valid);
    bytes = measure_any({op, valid, options, {&read}});
    return {};
}

Status core::mask_bytes(const View& x, const Axes& axes, const Options& options, std::size_t& bytes) noexcept {
    bytes = 0;
    Validator valid("mask_bytes");
    valid.shapes_alone();
    valid.x(x, axes);
    valid.more_options(options, ~0u);
    if (!valid.ok() || valid.empty()) return valid.status();
    const View read = functions::to_measure(x, valid);
    const Problem problem{Op::batch_norm, valid, options, {&read}};
    const Parts parts = problem.parts();
    for (int i = 0; i < parts.count; ++i) bytes += static_cast<std::size_t>(problem.box_of(parts.at[i]).mask_bytes());
    return {};
}

const char* version() noexcept { return BATCHNORM_VERSION; }

}  // namespace batchnorm
