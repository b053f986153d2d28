// grad_sums: sums of dy and dy * (x - mean) in float64.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::GradSumsArgs;

struct GradientSums {
    Vec<double> dy, dy_xmu;

    void add(Vec<double> gradient, Vec<double> difference) {
        dy = dy + gradient;
        dy_xmu = fma(gradient, difference, dy_xmu);
    }
};

template <class T>
void grad_sums_row(const GradSumsArgs& args) noexcept {
    constexpr int width = Vec<double>::width;
    constexpr int chains = 4;  // as in moments_row
    static_assert(chains * width <= batchnorm::kernels::row_accumulators);

    const Vec<double> mean = Vec<double>::all(*args.mean);
    GradientSums sums[chains];
    for (int k = 0; k < chains; ++k)
        sums[k] = {Vec<double>::load(args.sum_dy + k * width), Vec<double>::load(args.sum_dy_xmu + k * width)};

    for (int64_t row = 0; row < args.rows; ++row) {
        const T* dy = row_at<T>(args.dy, args.dy_stride, row);
        const T* x = row_at<T>(args.x, args.x_stride, row);
        int64_t i = 0;
        for (; i + chains * width <= args.n; i += chains * width)
            for (int k = 0; k < chains; ++k) sums[k].add(widen(dy + i + k * width), widen(x + i + k * width) - mean);
#pragma GCC unroll 4
        for (int k = 0; k < chains; ++k) {
            const int64_t left = args.n - i - k * width;
            const int64_t at = i + k * width;
            if (left >= width)
                sums[k].add(widen(dy + at), widen(x + at) - mean);
            else if (left > 0)
                // dy is 0 past the end of the row, and so are the products.
                sums[k].add(widen(dy + at, static_cast<int>(left)), widen(x + at, static_cast<int>(left)) - mean);
        }
    }

    for (int k = 0; k < chains; ++k) {
        sums[k].dy.store(args.sum_dy + k * width);
        sums[k].dy_xmu.store(args.sum_dy_xmu + k * width);
    }
}

template <class T>
void grad_sums_lane(const GradSumsArgs& args) noexcept {
    constexpr int64_t block = 4;  // two operands: this block and the next fit L1

    constexpr int vector_bytes = Vec<double>::width * static_cast<int>(sizeof(T));
    const int64_t row_bytes = args.n * static_cast<int64_t>(sizeof(T));
    for (int64_t row = 0; row < args.rows; row += block) {
        const int64_t end = row + block < args.rows ? row + block : args.rows;
        RowPrefetcher next_dy(args.dy, args.dy_stride, end, row_bytes);
        RowPrefetcher next_x(args.x, args.x_stride, end, row_bytes);
        for_each_vector<Vec<double>::width>(args.n, [&](int64_t i, auto... left) {
            const Vec<double> mean = Vec<double>::load(args.mean + i, left...);
            GradientSums sums{Vec<double>::load(args.sum_dy + i, left...),
                              Vec<double>::load(args.sum_dy_xmu + i, left...)};
            for (int64_t r = row; r < end; ++r) {
                next_dy.step(vector_bytes);
                next_x.step(vector_bytes);
                sums.add(widen(row_at<T>(args.dy, args.dy_stride, r) + i, left...),
                         widen(row_at<T>(args.x, args.x_stride, r) + i, left...) - mean);
            }
            sums.dy.store(args.sum_dy + i, left...);
            sums.dy_xmu.store(args.sum_dy_xmu + i, left...);
        });
    }
}

}  // namespace
