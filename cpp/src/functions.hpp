// The public functions (core.hpp), on any backend: they check their arguments and make the problem of them.
#pragma once

#include "problem.hpp"

namespace batchnorm::functions {

Status batch_norm(const Backend& backend, const View& x, const Axes& axes, const Param& gamma, const Param& beta,
                  const MutView& out, const MutStats& saved, const Options& options) noexcept;

Status batch_norm_inplace(const Backend& backend, const MutView& x, const Axes& axes, const Param& gamma,
                          const Param& beta, const MutStats& saved, const Options& options) noexcept;

Status moments(const Backend& backend, const View& x, const Axes& axes, const MutMoments& out,
               const Options& options) noexcept;

Status normalize(const Backend& backend, const View& x, const Axes& axes, const Moments& moments, const Param& gamma,
                 const Param& beta, const MutView& out, const MutStats& saved, const Options& options) noexcept;

Status batch_norm_inference(const Backend& backend, const View& x, const Axes& axes, const Param& mean,
                            const Param& var, const Param& gamma, const Param& beta, const MutView& out,
                            const Options& options) noexcept;

Status batch_norm_backward(const Backend& backend, const View& dy, const View& x, const Axes& axes, const Stats& saved,
                           const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                           const Options& options) noexcept;

Status batch_norm_backward_from_output(const Backend& backend, const View& dy, const View& y, const Axes& axes,
                                       const Stats& saved, const Param& gamma, const Param& beta, const MutView& dx,
                                       const MutParam& dgamma, const MutParam& dbeta, const Options& options) noexcept;

Status grad_sums(const Backend& backend, const View& dy, const View& x, const Axes& axes, const Stats& saved,
                 const MutGradSums& out, const Options& options) noexcept;

Status input_grad(const Backend& backend, const View& dy, const View& x, const Axes& axes, const Stats& saved,
                  const GradSums& sums, const Param& gamma, const MutView& dx, const MutParam& dgamma,
                  const MutParam& dbeta, const Options& options) noexcept;

Status batch_norm_inference_backward(const Backend& backend, const View& dy, const View& x, const Axes& axes,
                                     const Param& mean, const Param& var, const Param& gamma, const MutView& dx,
                                     const MutParam& dgamma, const MutParam& dbeta, const Options& options) noexcept;

// What backward takes from forward. normalizes: by the statistics of all of x, which then has a variance.
void check_statistics(Validator& valid, const Stats& saved, const Options& options, bool normalizes,
                      bool counts = true) noexcept;

// x with one value for each statistic, or one sample of each: what has x's statistics where x itself is empty.
View one_value_each(const View& x, const Validator& valid) noexcept;
// That, or x, whether or not it has memory yet, for a size to be told.
View to_measure(const View& x, const Validator& valid) noexcept;

}  // namespace batchnorm::functions
