// The stages of a call: reduce (reduce.hpp) -> merge -> coefficients -> apply (apply.hpp).
#pragma once

#include "memory.hpp"
#include "params.hpp"

namespace batchnorm {

struct Stages {
    const Box& box;
    const Chunks& chunks;
    const kernels::TypeKernels& kernels;
    const Memory& memory;
    bool stream;  // whether outputs are written past the caches

    // merge.cpp: all chunks' slots, in order, into memory.mean and memory.spread (then m2), or sum_dy and sum_dy_xmu.
    void merge_moments(int64_t g, Range channels) const noexcept;
    void merge_gradients(int64_t g, Range channels) const noexcept;

    // coefficients.cpp: memory.spread from m2 to the biased variance, and memory.inv_std; or the latter alone.
    void variance_from_m2(int64_t g, Range channels, const Column& count) const noexcept;
    void inv_std_from_variance(int64_t g, Range channels, double eps) const noexcept;
    // What the kernels look up.
    void normalize_coefficients(int64_t g, Range channels, const Column& gamma, const Column& beta) const noexcept;
    void input_grad_coefficients(int64_t g, Range channels, const Column& gamma, const Column& count) const noexcept;
    // For constant statistics: dx = gamma * inv_std * dy.
    void scale_coefficients(int64_t g, Range channels, const Column& gamma) const noexcept;
};

}  // namespace batchnorm
