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

// From the sums of n differences from a pivot to mean and m2, in place. Rounding must not make m2 negative; a NaN
// stays.
template <class T>
void finish_moments(const void* pivots, int64_t step, int64_t channels, double n, double* sums_to_means,
                    double* sums_sq_to_m2) noexcept {
    for (int64_t c = 0; c < channels; ++c) {
        T pivot;  // of x, which need not be aligned
        std::memcpy(&pivot, static_cast<const char*>(pivots) + c * step * static_cast<int64_t>(sizeof(T)), sizeof(T));
        const double shift = sums_to_means[c] / n;
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
void reduce_rows(const Terms& terms, const Region& chunk, int64_t k, char* tiles) noexcept {
    for (int64_t c = chunk.channels.begin; c < chunk.channels.end; ++c) {
        RowSums sums;
        sums.clear();
        for_each_span(terms.stages.box, {chunk.group, {c, c + 1}, chunk.outers, chunk.inners}, Terms::access, tiles,
                      [&](const Span& span) { terms.add(terms.row_args(span, terms.around(c), sums)); });
        finish_row(terms, sums, chunk.group, k, c);
    }
}

// Sums by lane, in the slots themselves unless several lanes share one.
template <class Terms>
void reduce_lanes(const Terms& terms, const Region& chunk, int64_t k, const WorkerMemory& worker) noexcept {
    const Box& box = terms.stages.box;
    const Range channels = chunk.channels;
    const int64_t plane = box.plane, fold = box.fold(), lanes = channels.size() * plane;
    double* const first = terms.stages.memory.slot(0, chunk.group, k) + channels.begin;
    double* const second = terms.stages.memory.slot(1, chunk.group, k) + channels.begin;
    const bool shared = fold > 1 || plane > 1;
    double* const sums[2] = {shared ? worker.sums : first, shared ? worker.sums + lanes * fold : second};
    for (double* sum : sums) std::memset(sum, 0, static_cast<std::size_t>(lanes * fold) * sizeof *sum);

    const void* around = terms.around_lanes(channels, fold, worker.values);
    const Region region{chunk.group, {channels.begin * plane, channels.end * plane}, chunk.outers, chunk.inners};
    for_each_batch(box, region, Terms::access, fold, worker.tiles, *worker.lists,
                   [&](const Batch& batch) { terms.add(batch, around, sums[0] + batch.first, sums[1] + batch.first); });

    if (shared) {
        gather(sums[0], channels.size(), plane, fold, first);
        gather(sums[1], channels.size(), plane, fold, second);
    }
    terms.finish(around, plane, channels.size(), first, second);
}

}  // namespace

MomentSums::MomentSums(const Stages& stages_, int64_t g_, int64_t k) noexcept
    : stages(stages_), g(g_), n(static_cast<double>(stages_.chunks.values(k))) {
    const Box& box = stages.box;
    const Operand& x = box.operand[role_x];
    first = x.data + x.offset(box.level[group], group, g) +
            x.offset(box.level[outer], outer, stages.chunks.outer_range(k).begin) +
            x.offset(box.level[inner], inner, stages.chunks.inner_range(k).begin);
}

const void* MomentSums::around(int64_t c) const noexcept {
    return first + stages.box.operand[role_x].offset(stages.box.level[channel], channel, c * stages.box.plane);
}

const void* MomentSums::around_lanes(Range channels, int64_t fold, void* memory) const noexcept {
    const Box& box = stages.box;
    if (fold == 1 && box.plane == 1 && box.operand[role_x].direct) return around(channels.begin);
    const auto pivot = [&](int64_t c) { return around(c); };
    return box.dtype == DType::f32 ? expand<float>(channels, box.plane, fold, memory, pivot)
                                   : expand<double>(channels, box.plane, fold, memory, pivot);
}

void MomentSums::finish(const void* around, int64_t step, int64_t channels, double* sums_to_means,
                        double* sums_sq_to_m2) const noexcept {
    const auto finish = stages.box.dtype == DType::f32 ? finish_moments<float> : finish_moments<double>;
    finish(around, step, channels, n, sums_to_means, sums_sq_to_m2);
}

const void* GradientSums::around_lanes(Range channels, int64_t fold, void* memory) const noexcept {
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
template void reduce<GradientSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;

}  // namespace batchnorm
