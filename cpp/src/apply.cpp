#include "apply.hpp"

#include <cstring>

namespace batchnorm {
namespace {

using kernels::RowOrder;

// What kernels may look up, for L1 to hold it beside the rows that it is for.
constexpr int64_t looked_up_in_l1 = 24 << 10;

// What the kernels look up for channels of a group, from the first one on.
template <class Terms>
struct Coefficients {
    const int count;
    const int64_t unit;
    const char* at[coefficient_count] = {};

    Coefficients(const Stages& stages, int64_t g, Range channels, int worker) noexcept
        : count(Terms::coefficients(stages.box)), unit(Memory::coefficient_size(stages.box)) {
        const Box& box = stages.box;
        for (int i = 0; i < count; ++i) at[i] = stages.memory.coefficients_from(i, box, g, channels.begin);
        if (box.plane > 1) expand(stages, channels.size(), stages.memory.worker(box, worker));
    }

    // Whether looking so many lanes up takes longer than reading what they are for: many values, or more than L1 holds
    // beside rows.
    bool slow(int64_t lanes) const noexcept { return count > 3 || lanes * count * unit > looked_up_in_l1; }

  private:
    // Where lanes share a statistic: one for each of them. The arrays follow each other closely: at a distance of whole
    // pages they would take each other's place in L1.
    void expand(const Stages& stages, int64_t channels, const WorkerMemory& worker) noexcept {
        const int64_t lanes = channels * stages.box.plane;
        char* to = static_cast<char*>(worker.coefficients);
        for (int i = 0; i < count; ++i) {
            stages.kernels.expand(at[i], channels, stages.box.plane, to);
            // Rows that are joined go on with the first lanes.
            for (int64_t lane = 0, some; lane < kernels::lane_padding; lane += some) {
                some = kernels::lane_padding - lane < lanes ? kernels::lane_padding - lane : lanes;
                std::memcpy(to + (lanes + lane) * unit, to, static_cast<std::size_t>(some * unit));
            }
            at[i] = to;
            to += (lanes + kernels::lane_padding) * unit;
        }
    }
};

// How rows of lanes are written. Joined ones are all that follow each other without a gap; slow is it to look up for
// each what it is multiplied by. Of large tensors, what comes from memory is fetched ahead, which rows written whole
// are not.
RowOrder order_of(const Stages& stages, const Span& span, bool joined, bool slow) noexcept {
    constexpr int64_t line = 64, long_piece = 3072;
    const int64_t row_bytes = span.n * item_size(stages.box.dtype);
    const bool whole = row_bytes % line == 0 && !stages.stream && stages.ahead.writes == 0;
    if (whole && stages.looks_up_quickly && (joined || row_bytes >= long_piece)) return RowOrder::whole;
    if (slow && goes_across(stages, span)) return RowOrder::across;
    return whole && (joined || stages.looks_up_quickly) ? RowOrder::whole : RowOrder::each;
}

}  // namespace

// Rows of all channels that follow each other without a gap become one row, if they are written one by one.
template <class Terms>
void apply(const Stages& stages, const Region& region, int worker) noexcept {
    const Box& box = stages.box;
    const auto [g, channels, outers, inners] = region;
    const Coefficients<Terms> coefficients(stages, g, channels, worker);
    const WorkerMemory memory = stages.memory.worker(box, worker);
    const Tiles& tiles = memory.tiles;
    const Uses uses(box, Terms::access);

    const auto write = [&](const Span& span, int64_t first, RowOrder order = RowOrder::each) {
        Looked at = {};
        for (int i = 0; i < coefficients.count; ++i) at[i] = coefficients.at[i] + first * coefficients.unit;
        auto args = Terms::args(stages, span, at, order == RowOrder::each && streams(stages, span), order);
        args.ahead = stages.ahead.writes;
        Terms::write(stages, args);
    };
    if (box.pattern == Pattern::lane) {
        const Region lanes{g, {channels.begin * box.plane, channels.end * box.plane}, outers, inners};
        for_each_span(box, lanes, uses, tiles, [&](Span span) {
            const bool joined = span.n == box.lanes() && gapless(box, span, uses);
            const RowOrder order = order_of(stages, span, joined, coefficients.slow(span.n));
            if (order == RowOrder::each && joined) {
                span.n *= span.rows;
                span.rows = 1;
            }
            write(span, span.first, order);
        });
    } else if (box.direct() && box.channels_follow()) {
        for_each_direct_span(box, region, uses,
                             [&](const Span& span, int64_t, int64_t c) { write(span, c - region.channels.begin); });
    } else {
        for (int64_t c = channels.begin; c < channels.end; ++c)
            for_each_span(box, {g, {c, c + 1}, outers, inners}, uses, tiles,
                          [&](const Span& span) { write(span, c - channels.begin); });
    }
    if (stages.stream) stages.kernels.finish_streams();
}

template void apply<Normalize>(const Stages&, const Region&, int) noexcept;
template void apply<Scale>(const Stages&, const Region&, int) noexcept;
template void apply<ScaleActivated>(const Stages&, const Region&, int) noexcept;
template void apply<InputGrad>(const Stages&, const Region&, int) noexcept;

}  // namespace batchnorm
