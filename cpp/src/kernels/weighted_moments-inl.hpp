// weighted_moments: sums of w, w * (x - pivot) and w * (x - pivot)^2 in float64.
#pragma once

#include "epilogue-inl.hpp"
#include "sums-inl.hpp"

namespace {

using batchnorm::kernels::LaneWeightedMomentsArgs;
using batchnorm::kernels::RowWeightedMomentsArgs;

struct WeightedSums {
    Vec<double> sum, sum_sq, w;

    static WeightedSums zero() { return {Vec<double>::all(0), Vec<double>::all(0), Vec<double>::all(0)}; }

    void operator+=(const WeightedSums& other) {
        sum = sum + other.sum;
        sum_sq = sum_sq + other.sum_sq;
        w = w + other.w;
    }
    void add(Vec<double> weight, Vec<double> difference) {
        const Vec<double> weighted = weight * difference;
        w = w + weight;
        sum = sum + weighted;
        sum_sq = fma(weighted, difference, sum_sq);
    }
    // Elements of weight 0 are left out by selection: x may be NaN there.
    void add_selected(Vec<double> weight, Vec<double> difference) {
        add(weight, select(not_zero(weight), difference, Vec<double>::all(0)));
    }
};

// Where the sums are in memory.
struct WeightedSumsAt {
    double *sum, *sum_sq, *w;

    template <class... Left>
    WeightedSums load(int64_t i, Left... left) const {
        return {Vec<double>::load(sum + i, left...), Vec<double>::load(sum_sq + i, left...),
                Vec<double>::load(w + i, left...)};
    }
    template <class... Left>
    void store(const WeightedSums& sums, int64_t i, Left... left) const {
        sums.sum.store(sum + i, left...);
        sums.sum_sq.store(sum_sq + i, left...);
        sums.w.store(w + i, left...);
    }
};

// The weights of the i-th elements on of a row; 0 past the trailing ones.
template <class A, class... Left>
Vec<double> weights_at(const A* weights, bool uniform, int64_t i, Left... left) {
    if (!uniform) return widen(weights + i, left...);
    const Vec<double> w = Vec<double>::all(static_cast<double>(scalar<A>(weights)));
    if constexpr (sizeof...(left) == 0)
        return w;
    else
        return w.first(left...);
}

template <class T>
void weighted_moments_row(const RowWeightedMomentsArgs& args) noexcept {
    constexpr int width = Vec<double>::width, chains = Vec<double>::chains;  // as in RowOfSums
    const Vec<double> pivot = Vec<double>::all(static_cast<double>(scalar<Arithmetic<T>>(args.pivot)));
    constexpr int each = batchnorm::kernels::row_accumulators;
    const WeightedSumsAt at = {args.to.accumulators, args.to.accumulators + each, args.to.accumulators + 2 * each};
    WeightedSums sums[chains];
    for (int k = 0; k < chains; ++k) sums[k] = args.to.begins ? WeightedSums::zero() : at.load(k * width);
    for (int64_t row = 0; row < args.rows; ++row) {
        const T* x = row_at<T>(args.x, args.x_stride, row);
        const auto* weights = row_at<Arithmetic<T>>(args.weights, args.weights_stride, row);
        if (args.uniform && scalar<Arithmetic<T>>(weights) == 0) continue;
        int64_t i = 0;
        for (; i + chains * width <= args.n; i += chains * width) {
#pragma GCC unroll 8
            for (int k = 0; k < chains; ++k)
                sums[k].add_selected(weights_at(weights, args.uniform, i + k * width),
                                     widen(x + i + k * width) - pivot);
        }
#pragma GCC unroll 8
        for (int k = 0; k < chains; ++k) {
            const int64_t j = i + k * width, left = args.n - j;
            if (left >= width)
                sums[k].add_selected(weights_at(weights, args.uniform, j), widen(x + j) - pivot);
            else if (left > 0)
                sums[k].add_selected(weights_at(weights, args.uniform, j, static_cast<int>(left)),
                                     widen(x + j, static_cast<int>(left)) - pivot);
        }
    }
    if (!args.to.ends) {
        for (int k = 0; k < chains; ++k) at.store(sums[k], k * width);
        return;
    }
    add_up<chains>(sums);
    *args.to.totals[0] = total(sums[0].sum);
    *args.to.totals[1] = total(sums[0].sum_sq);
    *args.to.totals[2] = total(sums[0].w);
}

// Where a row has one weight, rows of weight 0 are left out as a whole.
template <class T, bool uniform>
void add_weighted_lanes(const LaneWeightedMomentsArgs& args) noexcept {
    using A = Arithmetic<T>;
    constexpr int block = 8, width = Vec<double>::width;
    const auto* pivots = static_cast<const A*>(args.pivot);
    const WeightedSumsAt at = {args.sum, args.sum_sq, args.sum_w};
    const int64_t row_bytes = args.n * static_cast<int64_t>(sizeof(T));
    for (int64_t first = 0; first < args.rows; first += block) {
        RowsAhead ahead(args.x, first, args.listed, row_bytes);
        const T* x[block];
        const A* weights[block];
        int some = 0;
        for (int64_t row = first; row < args.rows && row < first + block; ++row) {
            x[some] = static_cast<const T*>(args.x[row]);
            weights[some] = static_cast<const A*>(args.weights[row]);
            some += !uniform || scalar<A>(weights[some]) != 0;
        }
        for_each_column<width, 2>(args.n, [&](auto vectors, int64_t i, auto... left) __attribute__((always_inline)) {
            constexpr int bytes = vectors * width * static_cast<int>(sizeof(T));
            const char* fetched = ahead.take(block * bytes);
            for (int r = 0; r < block; ++r) prefetch(fetched + r * bytes);
            Vec<double> pivot[vectors];
            WeightedSums sums[vectors];
            for (int v = 0; v < vectors; ++v) {
                pivot[v] = widen(pivots + i + v * width, left...);
                sums[v] = at.load(i + v * width, left...);
            }
#pragma GCC unroll 1
            for (int r = 0; r < some; ++r) {
                for (int v = 0; v < vectors; ++v) {
                    const int64_t j = i + v * width;
                    const Vec<double> apart = widen(x[r] + j, left...) - pivot[v];
                    if constexpr (uniform)
                        sums[v].add(Vec<double>::all(static_cast<double>(scalar<A>(weights[r]))), apart);
                    else
                        sums[v].add_selected(widen(weights[r] + j, left...), apart);
                }
            }
            for (int v = 0; v < vectors; ++v) at.store(sums[v], i + v * width, left...);
        });
    }
}

template <class T>
void weighted_moments_lane(const LaneWeightedMomentsArgs& args) noexcept {
    args.uniform ? add_weighted_lanes<T, true>(args) : add_weighted_lanes<T, false>(args);
}

}  // namespace
