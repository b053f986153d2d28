// grad_sums: sums of dy and dy * (x - mean).
//
// For 16-bit elements the mean is a number near it; what that leaves out, times the sum of dy, is for the caller to
// take off.
#pragma once

#include "sums-inl.hpp"

namespace {

using batchnorm::kernels::LaneGradSumsArgs;
using batchnorm::kernels::RowGradSumsArgs;

template <class T>
class RowGradSums {
  public:
    using Args = RowGradSumsArgs;

    explicit RowGradSums(const RowGradSumsArgs& args)
        : args_(args), mean_(*static_cast<const Run<T>*>(args.mean)), sums_({args.sum_dy, args.sum_dy_xmu}) {}

    // As RowOfSums::add.
    [[gnu::always_inline]] void add(int64_t row, int64_t begin, int64_t end) {
        const T* dy = row_at<T>(args_.dy, args_.dy_stride, row);
        const T* x = row_at<T>(args_.x, args_.x_stride, row);
        const auto mean = Vec<Run<T>>::all(mean_);
        sums_.add(
            begin, end,
            [=](TwoSums<Run<T>>& sums, int64_t i, auto... left) __attribute__((always_inline)) {
                sums.add_product(summand(dy + i, left...), summand(x + i, left...) - mean);
            },
            [=, this](int64_t i, Accumulators to) {
                const double gradient = exactly(dy + i);
                to.add(gradient, gradient * (exactly(x + i) - static_cast<double>(mean_)));
            });
    }

    void store() const { sums_.store(); }

  private:
    const RowGradSumsArgs& args_;
    const Run<T> mean_;
    RowOfSums<T> sums_;
};

template <class T>
void grad_sums_row(const RowGradSumsArgs& args) noexcept {
    RowGradSums<T> sums(args);
    for (int64_t row = 0; row < args.rows; ++row) sums.add(row, 0, args.n);
    sums.store();
}

template <class T>
void grad_sums_lane(const LaneGradSumsArgs& args) noexcept {
    // Two operands, and L1 should hold a block. The rest as in moments_lane.
    constexpr int block = is_half<T> ? 8 : 4, run = 4, width = Vec<Run<T>>::width;
    static_assert(batchnorm::kernels::half_lane_rows % block == 0);
    const auto* means = static_cast<const Run<T>*>(args.mean);
    const int64_t row_bytes = args.n * static_cast<int64_t>(sizeof(T));
    for_each_block<block>(args.rows, [&](int64_t row, auto rows) __attribute__((always_inline)) {
        RowsAhead dy_ahead(args.dy, row, args.listed, row_bytes);
        RowsAhead x_ahead(args.x, row, args.listed, row_bytes);
        for_each_column<width>(args.n, [&](auto count, int64_t i, auto... left) __attribute__((always_inline)) {
            constexpr int vectors = decltype(count)::value;
            constexpr int bytes = vectors * width * static_cast<int>(sizeof(T));
            const char *const dy_fetched = dy_ahead.take(block * bytes), *const x_fetched = x_ahead.take(block * bytes);
            Vec<Run<T>> mean[vectors];
            for (int v = 0; v < vectors; ++v) mean[v] = Vec<Run<T>>::load(means + i + v * width, left...);
            for_each_run<T, run>(rows, [&](int begin, int end) __attribute__((always_inline)) {
                TwoSums<Run<T>> sums[vectors];
                for (int v = 0; v < vectors; ++v)
                    sums[v] = begin_run<T>({args.sum_dy + i + v * width, args.sum_dy_xmu + i + v * width}, left...);
                for (int r = begin; r < end; ++r) {
                    const T* dy = static_cast<const T*>(args.dy[row + r]) + i;
                    const T* x = static_cast<const T*>(args.x[row + r]) + i;
                    prefetch(dy_fetched + r * bytes);
                    prefetch(x_fetched + r * bytes);
                    for (int v = 0; v < vectors; ++v)
                        sums[v].add_product(summand(dy + v * width, left...),
                                            summand(x + v * width, left...) - mean[v]);
                }
                for (int v = 0; v < vectors; ++v) {
                    const int64_t at = i + v * width;
                    const auto exact = [&](int lane, Accumulators to) {
                        for (int r = begin; r < end; ++r) {
                            const double gradient = exactly(static_cast<const T*>(args.dy[row + r]) + at + lane);
                            const double x = exactly(static_cast<const T*>(args.x[row + r]) + at + lane);
                            to.add(gradient, gradient * (x - static_cast<double>(means[at + lane])));
                        }
                    };
                    end_run<T>(sums[v], {args.sum_dy + at, args.sum_dy_xmu + at}, exact, left...);
                }
            });
        });
    });
}

}  // namespace
