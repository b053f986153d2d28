// moments: sums of (x - pivot) and (x - pivot)^2 in float64, the pivot being an element of the channel.
//
// The difference from an element is of the order of the standard deviation, so that its square loses nothing to the
// size of the mean, which a sum of x^2 would.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::LaneMomentsArgs;
using batchnorm::kernels::RowMomentsArgs;

struct MomentsSums {
    Vec<double> sum, sum_sq;

    void add(Vec<double> difference) {
        sum = sum + difference;
        sum_sq = fma(difference, difference, sum_sq);
    }
};

// Adds rows up in registers.
template <class T>
class RowMoments {
  public:
    using Args = RowMomentsArgs;

    explicit RowMoments(const RowMomentsArgs& args)
        : args_(args), pivot_(Vec<double>::all(static_cast<double>(scalar<T>(args.pivot)))) {
        for (int k = 0; k < chains; ++k)
            sums_[k] = {Vec<double>::load(args.sum + k * width), Vec<double>::load(args.sum_sq + k * width)};
    }

    // Elements of a row, from a multiple of row_alignment to another one, or to the row's end.
    [[gnu::always_inline]] void add(int64_t row, int64_t begin, int64_t end) {
        const T* x = row_at<T>(args_.x, args_.x_stride, row);
        int64_t i = begin;
        for (; i + chains * width <= end; i += chains * width) {
            for (int k = 0; k < chains; ++k) sums_[k].add(widen(x + i + k * width) - pivot_);
        }
        // Unrolled, so that the sums stay in registers.
#pragma GCC unroll 4
        for (int k = 0; k < chains; ++k) {
            const int64_t left = end - i - k * width;
            if (left >= width)
                sums_[k].add(widen(x + i + k * width) - pivot_);
            else if (left > 0)
                sums_[k].add((widen(x + i + k * width, static_cast<int>(left)) - pivot_).first(static_cast<int>(left)));
        }
    }

    void store() const {
        for (int k = 0; k < chains; ++k) {
            sums_[k].sum.store(args_.sum + k * width);
            sums_[k].sum_sq.store(args_.sum_sq + k * width);
        }
    }

  private:
    static constexpr int width = Vec<double>::width;
    static constexpr int chains = 4;  // independent additions in flight, to cover their latency
    static_assert(chains * width <= batchnorm::kernels::row_accumulators);

    const RowMomentsArgs& args_;
    const Vec<double> pivot_;
    MomentsSums sums_[chains];
};

template <class T>
void moments_row(const RowMomentsArgs& args) noexcept {
    RowMoments<T> moments(args);
    for (int64_t row = 0; row < args.rows; ++row) moments.add(row, 0, args.n);
    moments.store();
}

template <class T>
void moments_lane(const LaneMomentsArgs& args) noexcept {
    constexpr int block = 8, width = Vec<double>::width;
    const T* pivots = static_cast<const T*>(args.pivot);
    const int64_t row_bytes = args.n * static_cast<int64_t>(sizeof(T));
    for_each_block<block>(args.rows, [&](int64_t row, auto rows) __attribute__((always_inline)) {
        RowsAhead ahead(args.x, row, args.listed, row_bytes);
        for_each_column<width>(args.n, [&](auto count, int64_t i, auto... left) __attribute__((always_inline)) {
            constexpr int vectors = decltype(count)::value;
            constexpr int bytes = vectors * width * static_cast<int>(sizeof(T));
            const char* fetched = ahead.take(block * bytes);
            Vec<double> pivot[vectors];
            MomentsSums sums[vectors];
            for (int v = 0; v < vectors; ++v) {
                const int64_t at = i + v * width;
                pivot[v] = widen(pivots + at, left...);
                sums[v] = {Vec<double>::load(args.sum + at, left...), Vec<double>::load(args.sum_sq + at, left...)};
            }
            for (int r = 0; r < rows; ++r) {
                const T* x = static_cast<const T*>(args.x[row + r]) + i;
                prefetch(fetched + r * bytes);
                for (int v = 0; v < vectors; ++v) sums[v].add(widen(x + v * width, left...) - pivot[v]);
            }
            for (int v = 0; v < vectors; ++v) {
                sums[v].sum.store(args.sum + i + v * width, left...);
                sums[v].sum_sq.store(args.sum_sq + i + v * width, left...);
            }
        });
    });
}

}  // namespace
