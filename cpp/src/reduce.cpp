#include "reduce.hpp"

#include <cstring>

namespace batchnorm {
namespace {

// Adds up n values, always in the same order.
double total(const double* values, int64_t n) noexcept {
    double sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; ++k) sums[k] += values[i + k];
    for (int k = 0; k < n - i; ++k) sums[k] += values[i + k];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// From the sums of differences from a pivot, of n_of(c) values, to mean and m2, in place. Rounding must not make m2
// negative; a NaN stays.
template <class T, class CountOf>
void finish_moments(const void* pivots, int64_t step, int64_t channels, const CountOf& n_of, double* sums_to_means,
                    double* sums_sq_to_m2) noexcept {
    for (int64_t c = 0; c < channels; ++c) {
        T pivot;  // of x, which need not be aligned
        std::memcpy(&pivot, static_cast<const char*>(pivots) + c * step * static_cast<int64_t>(sizeof(T)), sizeof(T));
        const double shift = sums_to_means[c] / n_of(c);
        const double m2 = sums_sq_to_m2[c] - sums_to_means[c] * shift;
        sums_to_means[c] = static_cast<double>(pivot) + shift;
        sums_sq_to_m2[c] = m2 < 0 ? 0 : m2;
    }
}

// Copies a value of each channel to all its lanes, `fold` times over.
template <class T, class ValueAt>
void* expand(Range channels, int64_t plane, int64_t fold, void* memory, const ValueAt& value_at) noexcept {
    T *const first = static_cast<T*>(memory), *to = first;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        T value;  // of x, which need not be aligned
        std::memcpy(&value, value_at(c), sizeof value);
        for (int64_t i = 0; i < plane; ++i) *to++ = value;
    }
    const int64_t lanes = channels.size() * plane;
    for (int64_t f = 1; f < fold; ++f)
        std::memcpy(first + f * lanes, first, static_cast<std::size_t>(lanes) * sizeof(T));
    return memory;
}

// Adds up the sums of the lanes that share a statistic.
void gather(const double* sums, int64_t channels, int64_t plane, int64_t fold, double* totals) noexcept {
    for (int64_t c = 0; c < channels; ++c) totals[c] = 0;
    for (int64_t f = 0; f < fold; ++f, sums += channels * plane) {
        if (plane == 1)
            for (int64_t c = 0; c < channels; ++c) totals[c] += sums[c];
        else
            for (int64_t c = 0; c < channels; ++c) totals[c] += total(sums + c * plane, plane);
    }
}

template <class Terms>
void reduce_rows(const Terms& terms, const Region& chunk, int64_t k, const Tiles& tiles) noexcept {
    const Box& box = terms.stages.box;
    const Uses uses(box, Terms::access);
    for (int64_t c = chunk.channels.begin; c < chunk.channels.end; ++c) {
        RowSums sums;
        sums.clear();
        const void* around = terms.around(c);
        for_each_span(box, {chunk.group, {c, c + 1}, chunk.outers, chunk.inners}, uses, tiles,
                      [&](const Span& span) { terms.add(terms.row_args(span, around, sums)); });
        finish_row(terms, around, sums, chunk.group, k, c);
    }
}

// Sums by lane, in the slots themselves unless several lanes share one.
template <class Terms>
void reduce_lanes(const Terms& terms, const Region& chunk, int64_t k, const WorkerMemory& worker) noexcept {
    const Box& box = terms.stages.box;
    const Range channels = chunk.channels;
    const int64_t plane = box.plane, fold = box.fold(), lanes = channels.size() * plane;
    const bool shared = fold > 1 || plane > 1;
    Sums slots = {}, sums = {};
    for (int i = 0; i < Terms::sums; ++i) {
        slots[i] = terms.stages.memory.slot(i, chunk.group, k) + channels.begin;
        sums[i] = shared ? worker.sums + i * lanes * fold : slots[i];
        std::memset(sums[i], 0, static_cast<std::size_t>(lanes * fold) * sizeof *sums[i]);
    }

    const void* around = terms.around_lanes(channels, fold, worker.values);
    const Region region{chunk.group, {channels.begin * plane, channels.end * plane}, chunk.outers, chunk.inners};
    for_each_batch(box, region, Uses(box, Terms::access), fold, worker.tiles, *worker.lists, [&](const Batch& batch) {
        Sums to = {};
        for (int i = 0; i < Terms::sums; ++i) to[i] = sums[i] + batch.first;
        terms.add(batch, around, to);
    });

    for (int i = 0; i < Terms::sums && shared; ++i) gather(sums[i], channels.size(), plane, fold, slots[i]);
    terms.finish(around, plane, channels.size(), slots);
}

bool is_some(const char* weight, int64_t unit) noexcept {
    float narrow = 0;
    double wide = 0;
    std::memcpy(unit == 4 ? static_cast<void*>(&narrow) : &wide, weight, static_cast<std::size_t>(unit));
    return narrow != 0 || wide != 0;
}

// A channel's pivot for all its lanes.
template <class Terms>
const void* pivots_of_lanes(const Terms& terms, Range channels, int64_t fold, void* memory) noexcept {
    const Box& box = terms.stages.box;
    const auto pivot = [&](int64_t c) { return terms.around(c); };
    return box.dtype == DType::f32 ? expand<float>(channels, box.plane, fold, memory, pivot)
                                   : expand<double>(channels, box.plane, fold, memory, pivot);
}

}  // namespace

Pivots::Pivots(const Stages& stages_, int64_t g_, int64_t k_) noexcept : stages(stages_), g(g_), k(k_) {
    const Box& box = stages.box;
    const Operand& x = box.operand[role_x];
    first = x.data + x.offset(box.level[group], group, g) +
            x.offset(box.level[outer], outer, stages.chunks.outer_range(k).begin) +
            x.offset(box.level[inner], inner, stages.chunks.inner_range(k).begin);
}

const void* Pivots::of(int64_t c) const noexcept {
    return first + stages.box.operand[role_x].offset(stages.box.level[channel], channel, c * stages.box.plane);
}

const void* Pivots::of_some_weight(int64_t c) const noexcept {
    const Box& box = stages.box;
    const Operand &x = box.operand[role_x], &weights = box.operand[role_weights];
    const Range outers = stages.chunks.outer_range(k), inners = stages.chunks.inner_range(k);
    for (int64_t o = outers.begin; o < outers.end; ++o)
        for (int64_t lane = c * box.plane; lane < (c + 1) * box.plane; ++lane)
            for (int64_t i = inners.begin; i < inners.end; ++i) {
                const auto offset = [&](const Operand& operand) {
                    return operand.offset(box.level[group], group, g) + operand.offset(box.level[outer], outer, o) +
                           operand.offset(box.level[channel], channel, lane) +
                           operand.offset(box.level[inner], inner, i);
                };
                if (is_some(weights.data + offset(weights), weights.unit)) return x.data + offset(x);
            }
    return of(c);
}

const void* MomentSums::around_lanes(Range channels, int64_t fold, void* memory) const noexcept {
    const Box& box = stages.box;
    if (fold == 1 && box.plane == 1 && box.operand[role_x].direct) return around(channels.begin);
    return pivots_of_lanes(*this, channels, fold, memory);
}

const void* WeightedMomentSums::around_lanes(Range channels, int64_t fold, void* memory) const noexcept {
    return pivots_of_lanes(*this, channels, fold, memory);
}

void MomentSums::finish(const void* around, int64_t step, int64_t channels, const Sums& sums) const noexcept {
    const auto values = [this](int64_t) { return n; };
    stages.box.dtype == DType::f32 ? finish_moments<float>(around, step, channels, values, sums[0], sums[1])
                                   : finish_moments<double>(around, step, channels, values, sums[0], sums[1]);
}

// What has no weight has no mean either, but 0 / 0.
void WeightedMomentSums::finish(const void* around, int64_t step, int64_t channels, const Sums& sums) const noexcept {
    const auto weight = [&](int64_t c) { return sums[2][c]; };
    stages.box.dtype == DType::f32 ? finish_moments<float>(around, step, channels, weight, sums[0], sums[1])
                                   : finish_moments<double>(around, step, channels, weight, sums[0], sums[1]);
    for (int64_t c = 0; c < channels; ++c)
        if (sums[2][c] == 0) sums[0][c] = sums[1][c] = 0;
}

template <Role u, Role z>
const void* ProductSums<u, z>::around_lanes(Range channels, int64_t fold, void* memory) const noexcept {
    if (fold == 1 && stages.box.plane == 1) return around(channels.begin);
    return expand<double>(channels, stages.box.plane, fold, memory, [&](int64_t c) { return around(c); });
}

template <class Terms>
void reduce(const Stages& stages, int64_t g, int64_t k, Range channels, int worker) noexcept {
    const Region chunk{g, channels, stages.chunks.outer_range(k), stages.chunks.inner_range(k)};
    const WorkerMemory memory = stages.memory.worker(stages.box, worker);
    if (stages.box.pattern == Pattern::row)
        reduce_rows(Terms(stages, g, k), chunk, k, memory.tiles);
    else
        reduce_lanes(Terms(stages, g, k), chunk, k, memory);
}

template void reduce<MomentSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;
template void reduce<WeightedMomentSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;
template void reduce<GradientSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;
template void reduce<DirectionSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;
template void reduce<MixedSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;

}  // namespace batchnorm
