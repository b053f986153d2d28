// The two reductions: what they read, which kernel adds it up, around what, and what becomes of the sums.
#pragma once

#include "stages.hpp"

namespace batchnorm {

// The accumulators of one channel in Pattern::row, and what differences are taken from, in the kernel's type for it.
struct RowSums {
    alignas(64) double sums[2][kernels::row_accumulators];
    alignas(double) char around[sizeof(double)];

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
// chunk's first element of it. Runs of 16-bit elements, added up in float, lose more to a pivot that lies far from the
// mean: then that mean is the pivot, and the chunk is read again.
struct MomentSums {
    static constexpr Access access[roles] = {Access::read, Access::none, Access::none};

    const Stages& stages;
    const int64_t g;
    const char* first;  // x at the start of the chunk
    const double n;     // how many values are behind each sum

    MomentSums(const Stages& stages, int64_t g, int64_t k) noexcept;

    // What differences of channel c are taken from, to memory.
    void around(int64_t c, void* to) const noexcept;
    // The same of each lane of some channels, `fold` times over: in memory, unless they lie so in x.
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowMomentsArgs row_args(const Span& span, RowSums& to) const noexcept {
        return {span.data[role_x], span.stride[role_x], span.rows, span.n, to.around, to.sums[0], to.sums[1]};
    }
    void add(const kernels::RowMomentsArgs& args) const noexcept { stages.kernels.row_moments(args); }
    void add(const Batch& batch, const void* pivots, double* sum, double* sum_sq) const noexcept {
        const char* from = static_cast<const char*>(pivots) + batch.first * item_size(arithmetic(stages.box.dtype));
        stages.kernels.lane_moments({batch.at[role_x], batch.rows, batch.n, batch.listed, from, sum, sum_sq});
    }
    // `around` has an element for each of the channels, `step` elements apart.
    void finish(const void* around, int64_t step, Range channels, double* sums_to_means,
                double* sums_sq_to_m2) const noexcept;
    // Whether channels must be added up once more: `around`, with an element for each of their lanes, then has their
    // means.
    bool recentre(void* around, Range channels, int64_t plane, int64_t fold, const double* means,
                  const double* m2) const noexcept;

  private:
    const char* first_of(int64_t c) const noexcept;
    double pivot(int64_t c) const noexcept;
    const void* expanded(Range channels, int64_t plane, int64_t fold, void* memory) const noexcept;
};

// The sums of a chunk's dy and dy * (x - mean).
struct GradientSums {
    static constexpr Access access[roles] = {Access::read, Access::read, Access::none};

    const Stages& stages;
    const double* means;  // of the group

    GradientSums(const Stages& stages_, int64_t g, int64_t) noexcept
        : stages(stages_), means(stages_.memory.mean + g * stages_.box.channels()) {}

    void around(int64_t c, void* to) const noexcept;
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowGradSumsArgs row_args(const Span& span, RowSums& to) const noexcept {
        return {span.data[role_dy], span.stride[role_dy], span.data[role_x], span.stride[role_x], span.rows, span.n,
                to.around,          to.sums[0],           to.sums[1]};
    }
    void add(const kernels::RowGradSumsArgs& args) const noexcept { stages.kernels.row_grad_sums(args); }
    void add(const Batch& batch, const void* means_, double* sum_dy, double* sum_dy_xmu) const noexcept {
        const char* from = static_cast<const char*>(means_) + batch.first * mean_size();
        stages.kernels.lane_grad_sums(
            {batch.at[role_dy], batch.at[role_x], batch.rows, batch.n, batch.listed, from, sum_dy, sum_dy_xmu});
    }
    void finish(const void*, int64_t, Range channels, double* sums_dy, double* sums_dy_xmu) const noexcept;
    bool recentre(void*, Range, int64_t, int64_t, const double*, const double*) const noexcept { return false; }

  private:
    const void* expanded(Range channels, int64_t plane, int64_t fold, void* memory) const noexcept;
    int64_t mean_size() const noexcept { return is_half(stages.box.dtype) ? sizeof(float) : sizeof(double); }
};

// A chunk of some channels, into its slots.
template <class Terms>
void reduce(const Stages& stages, int64_t g, int64_t k, Range channels, int worker) noexcept;

// From a channel's accumulators to its slots of chunk k. Whether they must be added up once more, around its mean.
template <class Terms>
bool finish_row(const Terms& terms, RowSums& sums, int64_t g, int64_t k, int64_t c) noexcept {
    double &first = terms.stages.memory.slot(0, g, k)[c], &second = terms.stages.memory.slot(1, g, k)[c];
    first = sums.total(0);
    second = sums.total(1);
    terms.finish(sums.around, 1, {c, c + 1}, &first, &second);
    return terms.recentre(sums.around, {c, c + 1}, 1, 1, &first, &second);
}

}  // namespace batchnorm
