// The reductions: what they read, which kernel adds it up, around what, and what becomes of the sums.
#pragma once

#include "stages.hpp"

namespace batchnorm {

// The accumulators of one channel in Pattern::row.
struct RowSums {
    alignas(64) double sums[sum_count][kernels::row_accumulators];

    void clear() noexcept {
        for (double (&sum)[kernels::row_accumulators] : sums)
            for (double& accumulator : sum) accumulator = 0;
    }

    // The sum of one of the sets, which it uses up.
    double total(int which) noexcept {
        double* const sum = sums[which];
        for (int half = kernels::row_accumulators / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
        return sum[0];
    }
};

// Where the sums of some channels are, or those of their lanes.
using Sums = double* [sum_count];

// A chunk's first element of each channel: the pivot around which its differences are taken.
struct Pivots {
    const Stages& stages;
    const int64_t g, k;
    const char* first;  // x at the start of the chunk

    Pivots(const Stages& stages, int64_t g, int64_t k) noexcept;

    const void* of(int64_t c) const noexcept;
    // The same, of weight above 0 if there is one.
    const void* of_some_weight(int64_t c) const noexcept;
};

// The sums of a chunk's (x - pivot) and (x - pivot)^2, which become its mean and m2.
struct MomentSums {
    static constexpr Access access[roles] = {Access::read};
    static constexpr int sums = 2;
    static constexpr bool alternates = true;

    const Stages& stages;
    const Pivots pivots;
    const double n;  // how many values are behind each sum

    MomentSums(const Stages& stages_, int64_t g, int64_t k) noexcept
        : stages(stages_), pivots(stages_, g, k), n(static_cast<double>(stages_.chunks.values(k))) {}

    const void* around(int64_t c) const noexcept { return pivots.of(c); }
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowMomentsArgs row_args(const Span& span, const void* pivot, RowSums& to) const noexcept {
        return {span.data[role_x], span.stride[role_x], span.rows, span.n, pivot, to.sums[0], to.sums[1]};
    }
    void add(const kernels::RowMomentsArgs& args) const noexcept { stages.kernels.row_moments(args); }
    void add(const Batch& batch, const void* around, const Sums& to) const noexcept {
        const char* from = static_cast<const char*>(around) + batch.first * item_size(stages.box.dtype);
        stages.kernels.lane_moments({batch.at[role_x], batch.rows, batch.n, batch.listed, from, to[0], to[1]});
    }
    // `around` has an element for each of the `channels`, `step` elements apart.
    void finish(const void* around, int64_t step, int64_t channels, const Sums& sums) const noexcept;
};

// The same with weights w: the sums of w * (x - pivot), w * (x - pivot)^2 and w.
struct WeightedMomentSums {
    static constexpr Access access[roles] = {Access::read, Access::none, Access::none, Access::none,
                                             Access::none, Access::none, Access::read};
    static constexpr int sums = 3;
    static constexpr bool alternates = false;

    const Stages& stages;
    const Pivots pivots;

    WeightedMomentSums(const Stages& stages_, int64_t g, int64_t k) noexcept : stages(stages_), pivots(stages_, g, k) {}

    const void* around(int64_t c) const noexcept { return pivots.of_some_weight(c); }
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowWeightedMomentsArgs row_args(const Span& span, const void* pivot, RowSums& to) const noexcept {
        return {span.data[role_x],
                span.stride[role_x],
                span.data[role_weights],
                span.stride[role_weights],
                span.rows,
                span.n,
                pivot,
                to.sums[2],
                to.sums[0],
                to.sums[1]};
    }
    void add(const kernels::RowWeightedMomentsArgs& args) const noexcept { stages.kernels.row_weighted_moments(args); }
    void add(const Batch& batch, const void* around, const Sums& to) const noexcept {
        const char* from = static_cast<const char*>(around) + batch.first * item_size(stages.box.dtype);
        stages.kernels.lane_weighted_moments(
            {batch.at[role_x], batch.at[role_weights], batch.rows, batch.n, from, to[2], to[0], to[1]});
    }
    void finish(const void* around, int64_t step, int64_t channels, const Sums& sums) const noexcept;
};

// The sums of a chunk's u and u * (z - mean of z), of dy and x as an activation let dy through.
template <Role u, Role z>
struct ProductSums {
    static constexpr Access access[roles] = {z == role_x ? Access::read : Access::none,
                                             u == role_dy ? Access::read : Access::none,
                                             Access::none,
                                             Access::none,
                                             Access::read,
                                             u == role_v || z == role_v ? Access::read : Access::none};
    static constexpr int sums = 2;
    static constexpr bool alternates = true;

    const Stages& stages;
    const double* means;  // of the group

    ProductSums(const Stages& stages_, int64_t g, int64_t) noexcept
        : stages(stages_),
          means((z == role_v ? stages_.memory.v_mean : stages_.memory.mean) + g * stages_.box.channels()) {}

    const void* around(int64_t c) const noexcept { return means + c; }
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowGradSumsArgs row_args(const Span& span, const void* mean, RowSums& to) const noexcept {
        return {span.data[u],
                span.stride[u],
                span.data[z],
                span.stride[z],
                span.rows,
                span.n,
                static_cast<const double*>(mean),
                to.sums[0],
                to.sums[1],
                stages.epilogue.activated(),
                span.data[role_y],
                span.stride[role_y],
                span.mask,
                span.mask_stride,
                stages.epilogue.zeros_count_nothing};
    }
    void add(const kernels::RowGradSumsArgs& args) const noexcept { stages.flavour.row_grad_sums(args); }
    void add(const Batch& batch, const void* around, const Sums& to) const noexcept {
        const double* from = static_cast<const double*>(around) + batch.first;
        stages.flavour.lane_grad_sums({batch.at[u], batch.at[z], batch.rows, batch.n, batch.listed, from, to[0], to[1],
                                       stages.epilogue.activated(), batch.at[role_y], batch.mask,
                                       stages.epilogue.zeros_count_nothing});
    }
    void finish(const void*, int64_t, int64_t, const Sums&) const noexcept {}
};

using GradientSums = ProductSums<role_dy, role_x>;
using DirectionSums = ProductSums<role_v, role_x>;
using MixedSums = ProductSums<role_dy, role_v>;

// A chunk of some channels, into its slots.
template <class Terms>
void reduce(const Stages& stages, int64_t g, int64_t k, Range channels, int worker) noexcept;

// From a channel's accumulators to its slots of chunk k.
template <class Terms>
void finish_row(const Terms& terms, const void* around, RowSums& sums, int64_t g, int64_t k, int64_t c) noexcept {
    Sums to = {};
    for (int i = 0; i < Terms::sums; ++i) {
        to[i] = terms.stages.memory.slot(i, g, k) + c;
        *to[i] = sums.total(i);
    }
    terms.finish(around, 1, 1, to);
}

}  // namespace batchnorm
