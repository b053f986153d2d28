#include "reduce.hpp"

#include <cmath>
#include <cstring>

#include "kernels/half.hpp"

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

template <class T>
T load(const void* p) noexcept {
    T value;  // of x, which need not be aligned
    std::memcpy(&value, p, sizeof value);
    return value;
}

// From the sums of differences from a pivot, of n_of(c) values, to mean and m2, in place. Rounding must not make m2
// negative; a NaN stays.
template <class T, class CountOf>
void finish_moments(const void* pivots, int64_t step, int64_t channels, const CountOf& n_of, double* sums_to_means,
                    double* sums_sq_to_m2) noexcept {
    for (int64_t c = 0; c < channels; ++c) {
        const T pivot = load<T>(static_cast<const char*>(pivots) + c * step);
        const double shift = sums_to_means[c] / n_of(c);
        const double m2 = sums_sq_to_m2[c] - sums_to_means[c] * shift;
        sums_to_means[c] = static_cast<double>(pivot) + shift;
        sums_sq_to_m2[c] = m2 < 0 ? 0 : m2;
    }
}

// A mean as runs of 16-bit elements take it: rounded to their type. Differences from it, and products of them with
// elements, then seldom need more bits than a float has. A mean that is not theirs may be too large for the type.
float mean_of_half(double mean, DType dtype) noexcept {
    const float hi = dtype == DType::f16 ? to_float(from_double<Half>(mean)) : to_float(from_double<BFloat16>(mean));
    return std::isfinite(hi) ? hi : static_cast<float>(mean);
}

// Further than this many standard deviations from the mean a pivot is far: sums of squares are then this much, squared,
// larger than what remains of them, and so is what they lose to rounding. Sums in float: along rows, whose pivots are
// near the mean as a rule, and of lanes, whose first elements they are; of normal numbers none in a million is so far.
// And weighted sums in double, where only an element of next to no weight can be so far.
constexpr double far_in_rows = 1.5, far_in_lanes = 5, far_of_weighted = 1000;

// A pivot as runs of 16-bit elements take it: with no finer bits than those elements have that are about as large as
// `scale`. Finer ones would be the same in all differences, and be rounded off in the same direction by all sums.
double coarse(double pivot, double scale) noexcept {
    const double large = 0x1.8p41 * scale;  // its last bit is one of half precision's 11 bits of scale, or half of it
    return (pivot + large) - large;
}

// Puts pivots that lie too far from their means where pivot_of(mean, deviation) is, for all lanes. Whether there were
// any: their sums must be added up once more.
template <class T, class WeightOf, class PivotOf>
bool move_far(void* around, Range channels, int64_t plane, int64_t fold, const Sums& finished, double far,
              const WeightOf& weight_of, const PivotOf& pivot_of) noexcept {
    auto* const pivots = static_cast<T*>(around);
    bool any = false;
    for (int64_t c = 0; c < channels.size(); ++c) {
        const double mean = finished[0][c], m2 = finished[1][c], weight = weight_of(c);
        const double shift = mean - static_cast<double>(pivots[c * plane]);
        if (!(shift * shift * weight > far * far * m2)) continue;
        any = true;
        const T pivot = static_cast<T>(pivot_of(mean, std::sqrt(m2 / weight)));
        for (int64_t f = 0; f < fold; ++f)
            for (int64_t i = 0; i < plane; ++i) pivots[(f * channels.size() + c) * plane + i] = pivot;
    }
    return any;
}

// Copies a value of each channel to all its lanes, `fold` times over.
template <class T, class ValueAt>
void* expand(Range channels, int64_t plane, int64_t fold, void* memory, const ValueAt& value_at) noexcept {
    T *const first = static_cast<T*>(memory), *to = first;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const T value = static_cast<T>(value_at(c));
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

// A second round around the means is enough.
constexpr int rounds = 2;

// All rows of a channel.
template <class Terms>
void reduce_channel(const Terms& terms, const Region& chunk, int64_t k, int64_t c, const Tiles& tiles) noexcept {
    const Box& box = terms.stages.box;
    const int64_t all = chunk.outers.size() * chunk.inners.size();
    BlockSums<Terms> sums(terms, chunk.group, k, {c, c + 1});
    bool again = true;
    for (int round = 0; round < rounds && again; ++round) {
        int64_t left = all;
        for_each_span(box, {chunk.group, {c, c + 1}, chunk.outers, chunk.inners}, Uses(box, Terms::access), tiles,
                      [&](const Span& span) {
                          const bool begin = left == all;
                          left -= span.rows * span.n;
                          terms.add(sums.args(span, 0, begin, left == 0));
                      });
        again = false;
        sums.finish([&](int64_t) { again = true; });
    }
}

// A row of each channel at a time.
template <class Terms>
void reduce_block(const Terms& terms, const Region& chunk, int64_t k, const Tiles& tiles) noexcept {
    const Box& box = terms.stages.box;
    const auto [g, channels, outers, inners] = chunk;
    BlockSums<Terms> sums(terms, g, k, channels);
    for_each_direct_span(box, chunk, Uses(box, Terms::access), [&](const Span& span, int64_t o, int64_t c) {
        terms.add(sums.args(span, c - channels.begin, o == outers.begin, o + 1 == outers.end));
    });
    sums.finish([&](int64_t c) { reduce_channel(terms, chunk, k, c, tiles); });
}

// Where channels have few rows each, a call of the kernel for each of them costs more than to look their sums up anew
// for every row; and from memory channels that follow each other are read in one go, where the rows of one lie apart.
constexpr int64_t few_rows = 8;

template <class Terms>
void reduce_rows(const Terms& terms, const Region& chunk, int64_t k, const Tiles& tiles) noexcept {
    const Box& box = terms.stages.box;
    const auto [g, channels, outers, inners] = chunk;
    if constexpr (Terms::takes_channels)
        if (box.direct() && box.channels_follow() &&
            (outers.size() < few_rows || terms.stages.reading != kernels::Reading::cached)) {
            for (int64_t c = channels.begin, end; c < channels.end; c = end) {
                end = channels.end - c < most_row_block ? channels.end : c + most_row_block;
                reduce_block(terms, {g, {c, end}, outers, inners}, k, tiles);
            }
            return;
        }
    for (int64_t c = channels.begin; c < channels.end; ++c) reduce_channel(terms, chunk, k, c, tiles);
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
    }
    const void* around = terms.around_lanes(channels, fold, worker.values);
    const Region region{chunk.group, {channels.begin * plane, channels.end * plane}, chunk.outers, chunk.inners};

    for (int round = 0; round < rounds; ++round) {
        for (int i = 0; i < Terms::sums; ++i)
            std::memset(sums[i], 0, static_cast<std::size_t>(lanes * fold) * sizeof *sums[i]);
        for_each_batch(box, region, Uses(box, Terms::access), fold, worker.tiles, *worker.lists,
                       [&](const Batch& batch) {
                           Sums to = {};
                           for (int i = 0; i < Terms::sums; ++i) to[i] = sums[i] + batch.first;
                           terms.add(batch, around, to);
                       });
        for (int i = 0; i < Terms::sums && shared; ++i) gather(sums[i], channels.size(), plane, fold, slots[i]);
        terms.finish(around, plane * item_size(arithmetic(box.dtype)), channels, slots);
        if (!terms.recentre(worker.values, channels, plane, fold, slots)) break;
    }
}

bool is_some(const char* weight, int64_t unit) noexcept {
    float narrow = 0;
    double wide = 0;
    std::memcpy(unit == 4 ? static_cast<void*>(&narrow) : &wide, weight, static_cast<std::size_t>(unit));
    return narrow != 0 || wide != 0;
}

// The channels' pivots for all their lanes.
template <class Terms>
const void* expand_pivots(const Terms& terms, Range channels, int64_t plane, int64_t fold, void* memory) noexcept {
    const auto pivot = [&](int64_t c) { return terms.pivot(c); };
    return arithmetic(terms.stages.box.dtype) == DType::f32 ? expand<float>(channels, plane, fold, memory, pivot)
                                                            : expand<double>(channels, plane, fold, memory, pivot);
}

}  // namespace

Pivots::Pivots(const Stages& stages_, int64_t g_, int64_t k_) noexcept : stages(stages_), g(g_), k(k_) {
    const Box& box = stages.box;
    const Operand& x = box.operand[role_x];
    first = x.data + x.offset(box.level[group], group, g) +
            x.offset(box.level[outer], outer, stages.chunks.outer_range(k).begin) +
            x.offset(box.level[inner], inner, stages.chunks.inner_range(k).begin);
}

const char* Pivots::of(int64_t c) const noexcept {
    return first + stages.box.operand[role_x].offset(stages.box.level[channel], channel, c * stages.box.plane);
}

const char* Pivots::of_some_weight(int64_t c) const noexcept {
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

double Pivots::among(int64_t c) const noexcept {
    constexpr int some = 4;
    const Box& box = stages.box;
    const Operand& x = box.operand[role_x];
    const Range outers = stages.chunks.outer_range(k), inners = stages.chunks.inner_range(k);
    const char* const channel_of =
        x.data + x.offset(box.level[group], group, g) + x.offset(box.level[channel], channel, c);
    double sum = 0, largest = 0;
    for (int i = 0; i < some; ++i) {
        const int64_t o = outers.begin + outers.size() * i / some, at = inners.end - 1 - inners.size() * i / some;
        const double element =
            value(channel_of + x.offset(box.level[outer], outer, o) + x.offset(box.level[inner], inner, at));
        sum += element;
        largest = std::fmax(largest, std::fabs(element));
    }
    return std::isfinite(sum) ? coarse(sum / some, largest) : value(of(c));
}

double Pivots::value(const char* element) const noexcept {
    switch (stages.box.dtype) {
        case DType::f64: return load<double>(element);
        case DType::f16: return static_cast<double>(to_float(load<Half>(element)));
        case DType::bf16: return static_cast<double>(to_float(load<BFloat16>(element)));
        case DType::f32: break;
    }
    return static_cast<double>(load<float>(element));
}

double MomentSums::pivot(int64_t c) const noexcept {
    const bool sums_in_float_rows = is_half(stages.box.dtype) && stages.box.pattern == Pattern::row;
    return sums_in_float_rows ? pivots.among(c) : pivots.value(pivots.of(c));
}

kernels::Around MomentSums::around_rows(Range channels, void* memory) const noexcept {
    const Box& box = stages.box;
    const Level& level = box.level[channel];
    if (is_half(box.dtype) || level.rank > 1)
        return {expand_pivots(*this, channels, 1, 1, memory), item_size(arithmetic(box.dtype))};
    return {pivots.of(channels.begin), level.rank == 0 ? 0 : box.operand[role_x].stride[channel][0]};
}

const void* MomentSums::around_lanes(Range channels, int64_t fold, void* memory) const noexcept {
    const Box& box = stages.box;
    if (fold == 1 && box.plane == 1 && box.operand[role_x].direct && !is_half(box.dtype))
        return pivots.of(channels.begin);
    return expand_pivots(*this, channels, box.plane, fold, memory);
}

kernels::Around WeightedMomentSums::around_rows(Range channels, void* memory) const noexcept {
    return {expand_pivots(*this, channels, 1, 1, memory), item_size(arithmetic(stages.box.dtype))};
}

const void* WeightedMomentSums::around_lanes(Range channels, int64_t fold, void* memory) const noexcept {
    return expand_pivots(*this, channels, stages.box.plane, fold, memory);
}

void MomentSums::finish(const void* around, int64_t step, Range channels, const Sums& sums) const noexcept {
    const auto values = [this](int64_t) { return n; };
    arithmetic(stages.box.dtype) == DType::f32
        ? finish_moments<float>(around, step, channels.size(), values, sums[0], sums[1])
        : finish_moments<double>(around, step, channels.size(), values, sums[0], sums[1]);
}

// What has no weight has no mean either, but 0 / 0.
void WeightedMomentSums::finish(const void* around, int64_t step, Range channels, const Sums& sums) const noexcept {
    const auto weight = [&](int64_t c) { return sums[2][c]; };
    arithmetic(stages.box.dtype) == DType::f32
        ? finish_moments<float>(around, step, channels.size(), weight, sums[0], sums[1])
        : finish_moments<double>(around, step, channels.size(), weight, sums[0], sums[1]);
    for (int64_t c = 0; c < channels.size(); ++c)
        if (sums[2][c] == 0) sums[0][c] = sums[1][c] = 0;
}

bool MomentSums::recentre(void* around, Range channels, int64_t plane, int64_t fold,
                          const Sums& finished) const noexcept {
    if (!is_half(stages.box.dtype)) return false;
    const double far = stages.box.pattern == Pattern::row ? far_in_rows : far_in_lanes;
    return move_far<float>(
        around, channels, plane, fold, finished, far, [this](int64_t) { return n; },
        [](double mean, double spread) { return coarse(mean, std::fabs(mean) + spread); });
}

bool WeightedMomentSums::recentre(void* around, Range channels, int64_t plane, int64_t fold,
                                  const Sums& finished) const noexcept {
    const auto weight = [&](int64_t c) { return finished[2][c]; };
    const auto to_mean = [](double mean, double) { return mean; };
    return arithmetic(stages.box.dtype) == DType::f32
               ? move_far<float>(around, channels, plane, fold, finished, far_of_weighted, weight, to_mean)
               : move_far<double>(around, channels, plane, fold, finished, far_of_weighted, weight, to_mean);
}

template <Role u, Role z>
kernels::Around ProductSums<u, z>::around_rows(Range channels, void* memory) const noexcept {
    if (is_half(stages.box.dtype)) return {expanded(channels, 1, 1, memory), mean_size()};
    return {means + channels.begin, mean_size()};
}

template <Role u, Role z>
const void* ProductSums<u, z>::around_lanes(Range channels, int64_t fold, void* memory) const noexcept {
    const int64_t plane = stages.box.plane;
    if (fold == 1 && plane == 1 && !is_half(stages.box.dtype)) return means + channels.begin;
    return expanded(channels, plane, fold, memory);
}

template <Role u, Role z>
const void* ProductSums<u, z>::expanded(Range channels, int64_t plane, int64_t fold, void* memory) const noexcept {
    const DType dtype = stages.box.dtype;
    return is_half(dtype)
               ? expand<float>(channels, plane, fold, memory, [&](int64_t c) { return mean_of_half(means[c], dtype); })
               : expand<double>(channels, plane, fold, memory, [&](int64_t c) { return means[c]; });
}

// What mean_of_half left out of the means.
template <Role u, Role z>
void ProductSums<u, z>::finish(const void*, int64_t, Range channels, const Sums& sums) const noexcept {
    if (!is_half(stages.box.dtype)) return;
    for (int64_t c = 0; c < channels.size(); ++c) {
        const double mean = means[channels.begin + c];
        const double rest = mean - static_cast<double>(mean_of_half(mean, stages.box.dtype));
        if (rest != 0) sums[1][c] -= rest * sums[0][c];
    }
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

template struct ProductSums<role_dy, role_x>;
template struct ProductSums<role_v, role_x>;
template struct ProductSums<role_dy, role_v>;

template void reduce<MomentSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;
template void reduce<WeightedMomentSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;
template void reduce<GradientSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;
template void reduce<DirectionSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;
template void reduce<MixedSums>(const Stages&, int64_t, int64_t, Range, int) noexcept;

}  // namespace batchnorm
