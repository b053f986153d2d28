// The stages of a call: reduce (reduce.hpp) -> merge -> coefficients -> apply (apply.hpp).
#pragma once

#include "epilogue.hpp"
#include "memory.hpp"
#include "params.hpp"
#include "plan.hpp"

namespace batchnorm {

struct Stages {
    const Box& box;
    const Chunks& chunks;
    const kernels::TypeKernels& kernels;
    const kernels::FlavourKernels& flavour;
    const Epilogue& epilogue;
    const Memory& memory;
    kernels::Reading reading;  // as in Plan
    bool stream, looks_up_quickly;
    const Ahead& ahead;

    kernels::Activated activated() const noexcept {
        return {epilogue.activates, epilogue.slope, epilogue.restores ? 1 / epilogue.slope : 0};
    }

    // merge.cpp: all chunks' slots, in order, into memory.mean and memory.spread (then m2) and, of weighted elements,
    // memory.count; or into sum_dy and sum_dy_xmu.
    void merge_moments(int64_t g, Range channels) const noexcept;
    void merge_weighted_moments(int64_t g, Range channels) const noexcept;
    void merge_gradients(int64_t g, Range channels) const noexcept;
    // The same of v, into v_mean and sum_v_xmu; and the second of dy and v, into sum_dy_v.
    void merge_v(int64_t g, Range channels) const noexcept;
    void merge_dy_v(int64_t g, Range channels) const noexcept;

    // coefficients.cpp: memory.spread from m2 to the biased variance, and memory.inv_std; or the latter alone.
    void variance_from_m2(int64_t g, Range channels, const Column& count) const noexcept;
    void inv_std_from_variance(int64_t g, Range channels, double eps) const noexcept;
    // What the kernels look up.
    void normalize_coefficients(int64_t g, Range channels, const Column& gamma, const Column& beta) const noexcept;
    void input_grad_coefficients(int64_t g, Range channels, const Column& gamma, const Column& count) const noexcept;
    // The same for a direction in the place of dy, in which gamma and beta go as well.
    void jvp_coefficients(int64_t g, Range channels, const Column& gamma, const Column& tgamma,
                          const Column& tbeta) const noexcept;
    // For the derivative of dx and dgamma in direction (v, tgamma) with respect to x; also that with respect to gamma,
    // into memory.sum_dy_v.
    void double_backward_coefficients(int64_t g, Range channels, const Column& gamma,
                                      const Column& tgamma) const noexcept;
    // For an output in the place of x: memory.mean has beta, and memory.spread 1 / gamma.
    void from_output_coefficients(int64_t g, Range channels, const Column& count) const noexcept;
    // For constant statistics, dx = gamma * inv_std * dy: by Scale, or by ScaleActivated.
    void scale_coefficients(int64_t g, Range channels, const Column& gamma) const noexcept;
    void scale_activated_coefficients(int64_t g, Range channels, const Column& gamma) const noexcept;
};

}  // namespace batchnorm
