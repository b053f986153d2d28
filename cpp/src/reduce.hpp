// The two reductions: what they read, which kernel adds it up, around what, and what becomes of the sums.
#pragma once

#include "stages.hpp"

namespace batchnorm {

// The accumulators of one channel in Pattern::row.
struct RowSums {
    alignas(64) double sums[2][kernels::row_accumulators];

    void clear() noexcept {
        for (double (&sum)[kernels::row_accumulators] : sums)
            for (double& accumulator : sum) accumulator = 0;
    }

    // The sum of one of the two sets, which it uses up.
    double total(int which) noexcept {
        double* const sum = sums[which];
        for (int half = kernels::row_accumulators / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
        return sum[0];
    }
};

// The sums of a chunk's (x - pivot) and (x - pivot)^2, which become its mean and m2. The pivot of a channel is the
// chunk's first element of it.
struct MomentSums {
    static constexpr Access access[roles] = {Access::read, Access::none, Access::none};

    const Stages& stages;
    const int64_t g;
    const char* first;  // x at the start of the chunk
    const double n;     // how many values are behind each sum

    MomentSums(const Stages& stages, int64_t g, int64_t k) noexcept;

    const void* around(int64_t c) const noexcept;
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowMomentsArgs row_args(const Span& span, const void* pivot, RowSums& to) const noexcept {
        return {span.data[role_x], span.stride[role_x], span.rows, span.n, pivot, to.sums[0], to.sums[1]};
    }
    void add(const kernels::RowMomentsArgs& args) const noexcept { stages.kernels.row_moments(args); }
    void add(const Batch& batch, const void* pivots, double* sum, double* sum_sq) const noexcept {
        const char* from = static_cast<const char*>(pivots) + batch.first * item_size(stages.box.dtype);
        stages.kernels.lane_moments({batch.at[role_x], batch.rows, batch.n, batch.listed, from, sum, sum_sq});
    }
    // `around` has an element for each of the `channels`, `step` elements apart.
    void finish(const void* around, int64_t step, int64_t channels, double* sums_to_means,
                double* sums_sq_to_m2) const noexcept;
};

// The sums of a chunk's dy and dy * (x - mean).
struct GradientSums {
    static constexpr Access access[roles] = {Access::read, Access::read, Access::none};

    const Stages& stages;
    const double* means;  // of the group

    GradientSums(const Stages& stages_, int64_t g, int64_t) noexcept
        : stages(stages_), means(stages_.memory.mean + g * stages_.box.channels()) {}

    const void* around(int64_t c) const noexcept { return means + c; }
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowGradSumsArgs row_args(const Span& span, const void* mean, RowSums& to) const noexcept {
        return {span.data[role_dy],
                span.stride[role_dy],
                span.data[role_x],
                span.stride[role_x],
                span.rows,
                span.n,
                static_cast<const double*>(mean),
                to.sums[0],
                to.sums[1]};
    }
    void add(const kernels::RowGradSumsArgs& args) const noexcept { stages.kernels.row_grad_sums(args); }
    void add(const Batch& batch, const void* means_, double* sum_dy, double* sum_dy_xmu) const noexcept {
        const double* from = static_cast<const double*>(means_) + batch.first;
        stages.kernels.lane_grad_sums(
            {batch.at[role_dy], batch.at[role_x], batch.rows, batch.n, batch.listed, from, sum_dy, sum_dy_xmu});
    }
    void finish(const void*, int64_t, int64_t, double*, double*) const noexcept {}
};

// A chunk of some channels, into its slots.
template <class Terms>
void reduce(const Stages& stages, int64_t g, int64_t k, Range channels, int worker) noexcept;

// From a channel's accumulators to its slots of chunk k.
template <class Terms>
void finish_row(const Terms& terms, RowSums& sums, int64_t g, int64_t k, int64_t c) noexcept {
    double &first = terms.stages.memory.slot(0, g, k)[c], &second = terms.stages.memory.slot(1, g, k)[c];
    first = sums.total(0);
    second = sums.total(1);
    terms.finish(terms.around(c), 1, 1, &first, &second);
}

}  // namespace batchnorm
