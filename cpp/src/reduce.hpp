// The reductions: what they read, which kernel adds it up, around what, and what becomes of the sums.
#pragma once

#include "stages.hpp"

namespace batchnorm {

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
    // What differences are taken from in the rows of some channels: in memory, unless they lie so in x.
    kernels::Around around_rows(Range channels, void* memory) const noexcept;
    // The same of each of their lanes, `fold` times over.
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowMomentsArgs row_args(const Span& span, const kernels::Around& around,
                                     const kernels::RowSumsTo<sums>& to) const noexcept {
        return {span.data[role_x], span.stride[role_x], span.rows, span.n, around, to, stages.ahead.reads};
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
    // `around` has an element for each of the `channels`, `step` bytes apart.
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
    kernels::Around around_rows(Range channels, void* memory) const noexcept;
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowWeightedMomentsArgs row_args(const Span& span, const kernels::Around& around,
                                             const kernels::RowSumsTo<sums>& to) const noexcept {
        return {span.data[role_x],
                span.stride[role_x],
                span.data[role_weights],
                span.stride[role_weights],
                stages.box.operand[role_weights].uniform,
                span.rows,
                span.n,
                around.first,
                to};
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

    kernels::Around around_rows(Range channels, void* memory) const noexcept;
    const void* around_lanes(Range channels, int64_t fold, void* memory) const noexcept;
    kernels::RowGradSumsArgs row_args(const Span& span, const kernels::Around& around,
                                      const kernels::RowSumsTo<sums>& to) const noexcept {
        return {span.data[u],
                span.stride[u],
                span.data[z],
                span.stride[z],
                span.rows,
                span.n,
                around,
                to,
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
    // To channels so many further on (row_by_row.hpp).
    static void skip(kernels::RowGradSumsArgs& args, int64_t channels) noexcept {
        RowSteps::move(args.mean.first, channels * args.mean.next);
        for (double*& total : args.to.totals) total += channels;
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

// The sums in chunk k of channels that follow each other, of which kernels take a row each; or of one, and all its
// rows. No larger than need be: those of a block that alternates fill half of L1 as it is.
template <class Terms>
class BlockSums {
  public:
    BlockSums(const Terms& terms, int64_t g, int64_t k, Range channels) noexcept
        : terms_(terms), channels_(channels), around_(terms.around_rows(channels, memory_)) {
        for (int i = 0; i < Terms::sums; ++i) slots_[i] = terms.stages.memory.slot(i, g, k) + channels.begin;
    }

    // To add up rows from the i-th channel on, whether or not they begin and end those of the chunk.
    auto args(const Span& span, int64_t i, bool begin, bool end) noexcept {
        kernels::RowSumsTo<Terms::sums> to{accumulators_[i][0], span.next_channel, begin, end};
        for (int which = 0; which < Terms::sums; ++which) to.totals[which] = slots_[which] + i;
        return terms_.row_args(span, {around_of(i), around_.next}, to);
    }

    // When all are added up; again(c) for channels that must be so once more, around another number.
    template <class Again>
    void finish(const Again& again) noexcept {
        terms_.finish(around_.first, around_.next, channels_, slots_);
        if (around_.first != memory_) return;  // what may lie too far from a mean is there
        for (int64_t i = 0; i < channels_.size(); ++i) {
            const int64_t c = channels_.begin + i;
            Sums own = {};
            for (int which = 0; which < Terms::sums; ++which) own[which] = slots_[which] + i;
            if (terms_.recentre(memory_ + i * around_.next, {c, c + 1}, 1, 1, own)) again(c);
        }
    }

  private:
    const char* around_of(int64_t i) const noexcept {
        return static_cast<const char*>(around_.first) + i * around_.next;
    }

    const Terms& terms_;
    const Range channels_;
    alignas(double) char memory_[most_row_block * sizeof(double)];
    const kernels::Around around_;
    Sums slots_ = {};
    alignas(64) double accumulators_[most_row_block][Terms::sums][kernels::row_accumulators];
};

}  // namespace batchnorm
