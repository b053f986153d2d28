// moments: sums of (x - pivot) and (x - pivot)^2 in float64, the pivot being an element of the channel.
//
// The difference from an element is of the order of the standard deviation, so that its square loses nothing to the
// size of the mean, which a sum of x^2 would.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::MomentsArgs;

struct MomentsSums {
    Vec<double> sum, sum_sq;

    void add(Vec<double> difference) {
        sum = sum + difference;
        sum_sq = fma(difference, difference, sum_sq);
    }
};

template <class T>
void moments_row(const MomentsArgs& args) noexcept {
    constexpr int width = Vec<double>::width;
    constexpr int chains = 4;  // independent additions in flight, to cover their latency
    static_assert(chains * width <= batchnorm::kernels::row_accumulators);

    // The pivot is an element of x, which need not be aligned.
    T first;
    __builtin_memcpy(&first, args.pivot, sizeof(T));
    const Vec<double> pivot = Vec<double>::all(static_cast<double>(first));

    MomentsSums sums[chains];
    for (int k = 0; k < chains; ++k)
        sums[k] = {Vec<double>::load(args.sum + k * width), Vec<double>::load(args.sum_sq + k * width)};

    for (int64_t row = 0; row < args.rows; ++row) {
        const T* x = row_at<T>(args.x, args.x_stride, row);
        int64_t i = 0;
        for (; i + chains * width <= args.n; i += chains * width)
            for (int k = 0; k < chains; ++k) sums[k].add(widen(x + i + k * width) - pivot);
        // Unrolled, so that sums[] stays in registers.
#pragma GCC unroll 4
        for (int k = 0; k < chains; ++k) {
            const int64_t left = args.n - i - k * width;
            if (left >= width)
                sums[k].add(widen(x + i + k * width) - pivot);
            else if (left > 0)
                sums[k].add((widen(x + i + k * width, static_cast<int>(left)) - pivot).first(static_cast<int>(left)));
        }
    }

    for (int k = 0; k < chains; ++k) {
        sums[k].sum.store(args.sum + k * width);
        sums[k].sum_sq.store(args.sum_sq + k * width);
    }
}

template <class T>
void moments_lane(const MomentsArgs& args) noexcept {
    // The sums of one vector of lanes stay in registers over a block of rows.
    constexpr int64_t block = 8;
    const T* pivots = static_cast<const T*>(args.pivot);

    constexpr int vector_bytes = Vec<double>::width * static_cast<int>(sizeof(T));
    const int64_t row_bytes = args.n * static_cast<int64_t>(sizeof(T));
    for (int64_t row = 0; row < args.rows; row += block) {
        const int64_t end = row + block < args.rows ? row + block : args.rows;
        RowPrefetcher next_x(args.x, args.x_stride, end, row_bytes);
        for_each_vector<Vec<double>::width>(args.n, [&](int64_t i, auto... left) {
            const Vec<double> pivot = widen(pivots + i, left...);
            MomentsSums sums{Vec<double>::load(args.sum + i, left...), Vec<double>::load(args.sum_sq + i, left...)};
            for (int64_t r = row; r < end; ++r) {
                next_x.step(vector_bytes);
                sums.add(widen(row_at<T>(args.x, args.x_stride, r) + i, left...) - pivot);
            }
            sums.sum.store(args.sum + i, left...);
            sums.sum_sq.store(args.sum_sq + i, left...);
        });
    }
}

}  // namespace
