// weighted_moments: sums of w, w * (x - pivot) and w * (x - pivot)^2 in float64.
#pragma once

#include "epilogue-inl.hpp"

namespace {

using batchnorm::kernels::LaneWeightedMomentsArgs;
using batchnorm::kernels::RowWeightedMomentsArgs;

// The sums of a vector of accumulators.
struct WeightedSums {
    double *sum_w, *sum, *sum_sq;

    // Elements of weight 0 are left out by selection: x may be NaN there.
    template <class T, class A, class... Left>
    [[gnu::always_inline]] void add(const T* x, const A* weights, Vec<double> pivot, Left... left) const {
        const Vec<double> w = widen(weights, left...);
        const Vec<double> difference = select(not_zero(w), widen(x, left...) - pivot, Vec<double>::all(0));
        const Vec<double> weighted = w * difference;
        (Vec<double>::load(sum_w, left...) + w).store(sum_w, left...);
        (Vec<double>::load(sum, left...) + weighted).store(sum, left...);
        fma(weighted, difference, Vec<double>::load(sum_sq, left...)).store(sum_sq, left...);
    }
};

template <class T>
void weighted_moments_row(const RowWeightedMomentsArgs& args) noexcept {
    constexpr int width = Vec<double>::width, chains = batchnorm::kernels::row_accumulators / width;
    const Vec<double> pivot = Vec<double>::all(static_cast<double>(scalar<Arithmetic<T>>(args.pivot)));
    for (int64_t row = 0; row < args.rows; ++row) {
        const T* x = row_at<T>(args.x, args.x_stride, row);
        const auto* weights = row_at<Arithmetic<T>>(args.weights, args.weights_stride, row);
        for_each_vector<width>(args.n, [&](int64_t i, auto... left) __attribute__((always_inline)) {
            const int64_t k = i / width % chains * width;
            WeightedSums{args.sum_w + k, args.sum + k, args.sum_sq + k}.add(x + i, weights + i, pivot, left...);
        });
    }
}

template <class T>
void weighted_moments_lane(const LaneWeightedMomentsArgs& args) noexcept {
    const auto* pivots = static_cast<const Arithmetic<T>*>(args.pivot);
    for (int64_t row = 0; row < args.rows; ++row) {
        const T* x = static_cast<const T*>(args.x[row]);
        const auto* weights = static_cast<const Arithmetic<T>*>(args.weights[row]);
        for_each_vector<Vec<double>::width>(args.n, [&](int64_t i, auto... left) __attribute__((always_inline)) {
            WeightedSums{args.sum_w + i, args.sum + i, args.sum_sq + i}.add(x + i, weights + i,
                                                                            widen(pivots + i, left...), left...);
        });
    }
}

}  // namespace
