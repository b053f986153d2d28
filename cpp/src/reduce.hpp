// The reductions: what they read, which kernel adds it up, around what, and what becomes of the sums.
#pragma once

#include <cstring>

#include "stages.hpp"

namespace batchnorm {

// The accumulators of one channel in Pattern::row, and what differences are taken from, in the kernel's type for it.
// No larger than need be: those of a block that alternates fill half of L1 as it is. Kernels that take a row of several
// channels find those of the next one behind these.
template <int count>
struct RowSums {
    alignas(64) double sums[count][kernels::row_accumulators];
    alignas(double) char around[sizeof(double)];

    void clear() noexcept {
        for (double (&sum)[kernels::row_accumulators] : sums)
            for (double& accumulator : sum) accumulator = 0;
    }

    // The sum of one of the sets, which it uses up.
    double total(int which) noexcept {
        add_halves<kernels::row_accumulators / 2>(sums[which]);
        return sums[which][0];
    }

  private:
    template <int half>
    static void add_halves(double* sum) noexcept {
        for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
        if constexpr (half > 1) add_halves<half / 2>(sum);
    }
};

// From a row's sums to the next row's.
template <int count>
int64_t next_channel(const Span& span, const RowSums<count>&) noexcept {
    return span.next_channel ? static_cast<int64_t>(sizeof(RowSums<count>)) : 0;
}

// Where the sums of some channels are, or those of their lanes.
using Sums = double* [sum_count];

// The pivots around which a chunk's differences are taken, in each channel: its first element, or a number near some of
// its elements. Kernels get them in the type of the arithmetic.
struct Pivots {
    const Stages& stages;
    const int64_t g, k;
    const char* first;  // x at the start of the chunk

    Pivots(const Stages& stages, int64_t g, int64_t k) noexcept;

    const char* of(int64_t c) const noexcept;
    // The same, of weight above 0 if there is one.
    const char* of_some_weight(int64_t c) const noexcept;
    // Pattern::row: the mean of a few elements from all over the chunk, which sums in float lose less to.
    double among(int64_t c) const noexcept;
    // An element's value.
    double value(const char* element) const noexcept;
};

// The sums of a chunk's (x - pivot) and (x - pivot)^2, which become its mean and m2. Runs of 16-bit elements, added up
// in float, lose more to a pivot that lies far from the mean, and weighted sums to one of next to no weight: then that
// mean is the pivot, and the chunk is read again.
struct MomentSums {
    static constexpr Access access[roles] = {Access::read};
    static constexpr int sums = 2;
    static constexpr bool takes_channels = true;  // its kernel, a row of each in one call

    const Stages& stages;
    const Pivots pivots;
    const double n;  // how many values are behind each sum

    MomentSums(const Stages& stages_, int64_t g, int64_t k) noexcept
        : stages(stages_), pivots(stages_, g, k), n(static_cast<double>(stages_.chunks.values(k))) {}

    double pivot(int64_t c) const noexcept;
    // What differences of channel c are taken from, to memory.
    void around(int64_t c, void* to) const noexcept;
    // The same of each lane of some channels, `fold` times over: in memory, unless they lie so in x.
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowMomentsArgs row_args(const Span& span, RowSums<sums>& to) const noexcept {
        return {span.data[role_x], span.stride[role_x],    span.rows,         span.n, to.around, to.sums[0],
                to.sums[1],        next_channel(span, to), stages.ahead.reads};
    }
    static void read_then(kernels::RowMomentsArgs& args, const Span& rows) noexcept { args.x_then = rows.data[role_x]; }
    static void move(kernels::RowMomentsArgs& args, const RowSteps& steps) noexcept {
        RowSteps::move(args.x, steps.of[role_x]);
    }
    void add(const kernels::RowMomentsArgs& args) const noexcept { stages.kernels.row_moments(args); }
    void add(const Batch& batch, const void* around, const Sums& to) const noexcept {
        const char* from = static_cast<const char*>(around) + batch.first * item_size(arithmetic(stages.box.dtype));
        stages.kernels.lane_moments(
            {batch.at[role_x], batch.rows, batch.n, batch.listed, stages.reading, from, to[0], to[1]});
    }
    // `around` has an element for each of the `channels`, `step` elements apart.
    void finish(const void* around, int64_t step, Range channels, const Sums& sums) const noexcept;
    // Whether channels must be added up once more: `around`, with an element for each of their lanes, then has their
    // means.
    bool recentre(void* around, Range channels, int64_t plane, int64_t fold, const Sums& finished) const noexcept;
};

// The same with weights w: the sums of w * (x - pivot), w * (x - pivot)^2 and w.
struct WeightedMomentSums {
    static constexpr Access access[roles] = {Access::read, Access::none, Access::none, Access::none,
                                             Access::none, Access::none, Access::read};
    static constexpr int sums = 3;
    static constexpr bool takes_channels = false;

    const Stages& stages;
    const Pivots pivots;

    WeightedMomentSums(const Stages& stages_, int64_t g, int64_t k) noexcept : stages(stages_), pivots(stages_, g, k) {}

    double pivot(int64_t c) const noexcept { return pivots.value(pivots.of_some_weight(c)); }
    void around(int64_t c, void* to) const noexcept;
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowWeightedMomentsArgs row_args(const Span& span, RowSums<sums>& to) const noexcept {
        return {span.data[role_x],
                span.stride[role_x],
                span.data[role_weights],
                span.stride[role_weights],
                stages.box.operand[role_weights].uniform,
                span.rows,
                span.n,
                to.around,
                to.sums[2],
                to.sums[0],
                to.sums[1]};
    }
    void add(const kernels::RowWeightedMomentsArgs& args) const noexcept { stages.kernels.row_weighted_moments(args); }
    void add(const Batch& batch, const void* around, const Sums& to) const noexcept {
        const char* from = static_cast<const char*>(around) + batch.first * item_size(arithmetic(stages.box.dtype));
        stages.kernels.lane_weighted_moments({batch.at[role_x], batch.at[role_weights],
                                              stages.box.operand[role_weights].uniform, batch.rows, batch.n,
                                              batch.listed, from, to[2], to[0], to[1]});
    }
    void finish(const void* around, int64_t step, Range channels, const Sums& sums) const noexcept;
    bool recentre(void* around, Range channels, int64_t plane, int64_t fold, const Sums& finished) const noexcept;
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
    static constexpr bool takes_channels = true;

    const Stages& stages;
    const double* means;  // of the group

    ProductSums(const Stages& stages_, int64_t g, int64_t) noexcept
        : stages(stages_),
          means((z == role_v ? stages_.memory.v_mean : stages_.memory.mean) + g * stages_.box.channels()) {}

    void around(int64_t c, void* to) const noexcept;
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowGradSumsArgs row_args(const Span& span, RowSums<sums>& to) const noexcept {
        return {span.data[u],
                span.stride[u],
                span.data[z],
                span.stride[z],
                span.rows,
                span.n,
                to.around,
                to.sums[0],
                to.sums[1],
                next_channel(span, to),
                stages.ahead.reads,
                nullptr,
                nullptr,
                stages.activated(),
                span.data[role_y],
                span.stride[role_y],
                span.mask,
                span.mask_stride,
                stages.epilogue.zeros_count_nothing};
    }
    static void read_then(kernels::RowGradSumsArgs& args, const Span& rows) noexcept {
        args.dy_then = rows.data[u];
        args.x_then = rows.data[z];
    }
    static void move(kernels::RowGradSumsArgs& args, const RowSteps& steps) noexcept {
        RowSteps::move(args.dy, steps.of[u]);
        RowSteps::move(args.x, steps.of[z]);
        RowSteps::move(args.y, steps.of[role_y]);
        RowSteps::move(args.mask, steps.mask);
    }
    void add(const kernels::RowGradSumsArgs& args) const noexcept { stages.flavour.row_grad_sums(args); }
    void add(const Batch& batch, const void* around, const Sums& to) const noexcept {
        const char* from = static_cast<const char*>(around) + batch.first * mean_size();
        stages.flavour.lane_grad_sums({batch.at[u], batch.at[z], batch.rows, batch.n, batch.listed, stages.reading,
                                       from, to[0], to[1], stages.activated(), batch.at[role_y], batch.mask,
                                       stages.epilogue.zeros_count_nothing});
    }
    void finish(const void*, int64_t, Range channels, const Sums& sums) const noexcept;
    bool recentre(void*, Range, int64_t, int64_t, const Sums&) const noexcept { return false; }

  private:
    const void* expanded(Range channels, int64_t plane, int64_t fold, void* memory) const noexcept;
    int64_t mean_size() const noexcept { return is_half(stages.box.dtype) ? sizeof(float) : sizeof(double); }
};

using GradientSums = ProductSums<role_dy, role_x>;
using DirectionSums = ProductSums<role_v, role_x>;
using MixedSums = ProductSums<role_dy, role_v>;

// A chunk of some channels, into its slots.
template <class Terms>
void reduce(const Stages& stages, int64_t g, int64_t k, Range channels, int worker) noexcept;

// From a channel's accumulators to its slots of chunk k. Whether they must be added up once more, around its mean.
template <class Terms>
bool finish_row(const Terms& terms, RowSums<Terms::sums>& sums, int64_t g, int64_t k, int64_t c) noexcept {
    Sums to = {};
    for (int i = 0; i < Terms::sums; ++i) {
        to[i] = terms.stages.memory.slot(i, g, k) + c;
        *to[i] = sums.total(i);
    }
    terms.finish(sums.around, 1, {c, c + 1}, to);
    return terms.recentre(sums.around, {c, c + 1}, 1, 1, to);
}

// The accumulators of channels that follow each other, of which kernels take a row each.
template <class Terms>
class BlockSums {
  public:
    BlockSums(const Terms& terms, Range channels) noexcept : terms_(terms), channels_(channels) {
        std::memset(sums_, 0, static_cast<std::size_t>(channels.size()) * sizeof *sums_);
        for (int64_t i = 0; i < channels.size(); ++i) terms.around(channels.begin + i, sums_[i].around);
    }

    RowSums<Terms::sums>& operator[](int64_t i) noexcept { return sums_[i]; }

    // again(c) for those that must be added up once more.
    template <class Again>
    void finish(int64_t g, int64_t k, const Again& again) noexcept {
        for (int64_t c = channels_.begin; c < channels_.end; ++c)
            if (finish_row(terms_, sums_[c - channels_.begin], g, k, c)) again(c);
    }

  private:
    const Terms& terms_;
    const Range channels_;
    RowSums<Terms::sums> sums_[most_row_block];
};

}  // namespace batchnorm
