// grad_sums: sums of dy and dy * (x - mean) in float64; full: of dy as an activation let it through.
#pragma once

#include "epilogue-inl.hpp"

namespace {

using batchnorm::kernels::LaneGradSumsArgs;
using batchnorm::kernels::RowGradSumsArgs;

struct GradientSums {
    Vec<double> dy, dy_xmu;

    void add(Vec<double> gradient, Vec<double> difference) {
        dy = dy + gradient;
        dy_xmu = fma(gradient, difference, dy_xmu);
    }
};

// Where a row of each operand is; y and mask are null unless an activation asks for them.
template <class T>
struct GradientRow {
    const T *dy, *x, *y;
    const std::uint8_t* mask;
};

// Adds the i-th elements on of a row.
template <Flavour flavour, class Args, class T, class... Left>
[[gnu::always_inline]] inline void add_gradients(const Args& args, const GradientRow<T>& row, Vec<double> mean,
                                                 GradientSums& sums, int64_t i, Left... left) {
    Vec<double> dy = widen(row.dy + i, left...), x = widen(row.x + i, left...);
    if constexpr (flavour == Flavour::full) pass_back(args.activated, row.y, row.mask, dy, x, i, i, left...);
    Vec<double> difference = x - mean;
    if (flavour == Flavour::full && args.zeros_count_nothing)
        difference = select(not_zero(dy), difference, Vec<double>::all(0));
    sums.add(dy, difference);
}

// Adds rows up in registers.
template <class T, Flavour flavour>
class RowGradSums {
  public:
    using Args = RowGradSumsArgs;

    explicit RowGradSums(const RowGradSumsArgs& args) : args_(args), mean_(Vec<double>::all(*args.mean)) {
        for (int k = 0; k < chains; ++k)
            sums_[k] = {Vec<double>::load(args.sum_dy + k * width), Vec<double>::load(args.sum_dy_xmu + k * width)};
    }

    // As RowMoments::add.
    [[gnu::always_inline]] void add(int64_t row, int64_t begin, int64_t end) {
        const GradientRow<T> at = {row_at<T>(args_.dy, args_.dy_stride, row), row_at<T>(args_.x, args_.x_stride, row),
                                   args_.y ? row_at<T>(args_.y, args_.y_stride, row) : nullptr,
                                   args_.mask ? args_.mask + args_.mask_stride * row : nullptr};
        int64_t i = begin;
        for (; i + chains * width <= end; i += chains * width) {
            for (int k = 0; k < chains; ++k) add_gradients<flavour>(args_, at, mean_, sums_[k], i + k * width);
        }
#pragma GCC unroll 4
        for (int k = 0; k < chains; ++k) {
            const int64_t left = end - i - k * width;
            if (left >= width)
                add_gradients<flavour>(args_, at, mean_, sums_[k], i + k * width);
            else if (left > 0)
                add_gradients<flavour>(args_, at, mean_, sums_[k], i + k * width, static_cast<int>(left));
        }
    }

    void store() const {
        for (int k = 0; k < chains; ++k) {
            sums_[k].dy.store(args_.sum_dy + k * width);
            sums_[k].dy_xmu.store(args_.sum_dy_xmu + k * width);
        }
    }

  private:
    static constexpr int width = Vec<double>::width;
    static constexpr int chains = 4;  // as in RowMoments
    static_assert(chains * width <= batchnorm::kernels::row_accumulators);

    const RowGradSumsArgs& args_;
    const Vec<double> mean_;
    GradientSums sums_[chains];
};

template <class T, Flavour flavour>
void grad_sums_row(const RowGradSumsArgs& args) noexcept {
    RowGradSums<T, flavour> sums(args);
    for (int64_t row = 0; row < args.rows; ++row) sums.add(row, 0, args.n);
    sums.store();
}

template <class T, Flavour flavour>
void grad_sums_lane(const LaneGradSumsArgs& args) noexcept {
    constexpr int block = 4, width = Vec<double>::width;  // two operands, and L1 should hold a block
    const int64_t row_bytes = args.n * static_cast<int64_t>(sizeof(T));
    for_each_block<block>(args.rows, [&](int64_t row, auto rows) __attribute__((always_inline)) {
        RowsAhead dy_ahead(args.dy, row, args.listed, row_bytes);
        RowsAhead x_ahead(args.x, row, args.listed, row_bytes);
        for_each_column<width>(args.n, [&](auto count, int64_t i, auto... left) __attribute__((always_inline)) {
            constexpr int vectors = decltype(count)::value;
            constexpr int bytes = vectors * width * static_cast<int>(sizeof(T));
            const char *const dy_fetched = dy_ahead.take(block * bytes), *const x_fetched = x_ahead.take(block * bytes);
            Vec<double> mean[vectors];
            GradientSums sums[vectors];
            for (int v = 0; v < vectors; ++v) {
                const int64_t at = i + v * width;
                mean[v] = Vec<double>::load(args.mean + at, left...);
                sums[v] = {Vec<double>::load(args.sum_dy + at, left...),
                           Vec<double>::load(args.sum_dy_xmu + at, left...)};
            }
            for (int r = 0; r < rows; ++r) {
                const GradientRow<T> at = {static_cast<const T*>(args.dy[row + r]),
                                           static_cast<const T*>(args.x[row + r]),
                                           args.y ? static_cast<const T*>(args.y[row + r]) : nullptr,
                                           args.mask ? static_cast<const std::uint8_t*>(args.mask[row + r]) : nullptr};
                prefetch(dy_fetched + r * bytes);
                prefetch(x_fetched + r * bytes);
                for (int v = 0; v < vectors; ++v)
                    add_gradients<flavour>(args, at, mean[v], sums[v], i + v * width, left...);
            }
            for (int v = 0; v < vectors; ++v) {
                sums[v].dy.store(args.sum_dy + i + v * width, left...);
                sums[v].dy_xmu.store(args.sum_dy_xmu + i + v * width, left...);
            }
        });
    });
}

}  // namespace
