// grad_sums: sums of dy and dy * (x - mean); full: of dy as an activation let it through.
//
// For 16-bit elements the mean is a number near it; what that leaves out, times the sum of dy, is for the caller to
// take off.
#pragma once

#include "epilogue-inl.hpp"
#include "sums-inl.hpp"

namespace {

// Where a row of each operand is; y and mask are null unless an activation asks for them.
template <class T>
struct GradientRow {
    const T *dy, *x, *y;
    const std::uint8_t* mask;
};

// Adds the i-th elements on of a row.
template <Flavour flavour, class R, class Args, class T, class... Left>
[[gnu::always_inline]] inline void add_gradients(const Args& args, const GradientRow<T>& row, Vec<R> mean,
                                                 TwoSums<R>& sums, int64_t i, Left... left) {
    Vec<R> dy = summand<R>(row.dy + i, left...), x = summand<R>(row.x + i, left...);
    if constexpr (flavour == Flavour::full) pass_back(args.activated, row.y, row.mask, dy, x, i, i, left...);
    if constexpr (flavour == Flavour::masked)
        pass_back<__is_same(Args, RowGradSumsArgs) ? Pattern::row : Pattern::lane>(row.mask, dy, i, left...);
    if constexpr (flavour == Flavour::leaky) Leak<R>(args.activated).pass_back(row.mask, dy, x, i, left...);
    Vec<R> apart = difference(x, mean);
    if (flavour == Flavour::full && args.zeros_count_nothing) apart = select(not_zero(dy), apart, Vec<R>::all(0));
    sums.add_product(dy, apart);
}

template <class T, Flavour flavour>
class RowGradSums {
  public:
    using Args = RowGradSumsArgs;

    RowGradSums(const RowGradSumsArgs& args, int64_t row)
        : args_(args), mean_(scalar<Run<T>>(row_at<char>(args.mean.first, args.mean.next, row))), sums_(args.to, row) {}

    // As RowMoments'.
    template <class Beside = Nothing>
    [[gnu::always_inline]] void add(int64_t row, int64_t begin, int64_t end, const Beside& beside = {}) {
        const GradientRow<T> at = {row_at<T>(args_.dy, args_.dy_stride, row), row_at<T>(args_.x, args_.x_stride, row),
                                   args_.y ? row_at<T>(args_.y, args_.y_stride, row) : nullptr,
                                   args_.mask ? args_.mask + args_.mask_stride * row : nullptr};
        int64_t dy_ahead = 0, x_ahead = 0;
        if (fetches_ahead(args_.ahead)) {
            dy_ahead = RowsRead<T>{args_.dy, args_.dy_stride, args_.rows, args_.n, args_.dy_then}.distance(args_.ahead,
                                                                                                           row, begin);
            x_ahead = RowsRead<T>{args_.x, args_.x_stride, args_.rows, args_.n, args_.x_then}.distance(args_.ahead, row,
                                                                                                       begin);
        }
        LinesAhead dy_lines(at.dy + begin, dy_ahead), x_lines(at.x + begin, x_ahead);
        sums_.add(
            begin, end,
            [=, this]<class R>(TwoSums<R>& sums, int64_t i, auto... left) __attribute__((always_inline)) {
                const auto mean = Vec<R>::all(static_cast<R>(mean_));
                add_gradients<flavour>(args_, at, mean, sums, i, left...);
            },
            [&](auto bytes) __attribute__((always_inline)) {
                dy_lines.template fetch<bytes>();
                x_lines.template fetch<bytes>();
                beside(bytes);
            });
    }

    void store() { sums_.store(); }

  private:
    const RowGradSumsArgs& args_;
    const Run<T> mean_;
    RowOfSums<T, 2> sums_;
};

template <class T, Flavour flavour, Reading reading>
void grad_sums_lane_of(const LaneGradSumsArgs args) noexcept {  // not in memory that sums may overwrite
    constexpr bool cached = reading == Reading::cached, paired = reading == Reading::paired;
    constexpr bool alone = reading == Reading::alone;
    // Two operands: past the caches half as many rows as of one, or fewer (docs/experiments.md).
    constexpr int uncached = paired ? 2 : alone ? 1 : 4, block = is_half<T> ? 16 : cached ? 8 : uncached;
    constexpr int run = 8, chain = 2, width = Vec<Run<T>>::width;
    static_assert(batchnorm::kernels::half_lane_rows % block == 0);
    const auto* means = static_cast<const Run<T>*>(args.mean);
    const int64_t row_bytes = args.n * static_cast<int64_t>(sizeof(T));
    const auto row_of = [&](int64_t row) __attribute__((always_inline)) {
        return GradientRow<T>{static_cast<const T*>(args.dy[row]), static_cast<const T*>(args.x[row]),
                              args.y ? static_cast<const T*>(args.y[row]) : nullptr,
                              args.mask ? static_cast<const std::uint8_t*>(args.mask[row]) : nullptr};
    };
    for_each_block<block>(args.rows, [&](int64_t row, auto rows) __attribute__((always_inline)) {
        constexpr int ahead = paired ? block : batchnorm::kernels::rows_ahead;
        RowsAhead dy_ahead(args.dy, row, args.listed, row_bytes, ahead);
        RowsAhead x_ahead(args.x, row, args.listed, row_bytes, ahead);
        for_each_column<width, column_of<T, decltype(rows)>>(
            args.n, [&](auto count, int64_t i, auto... left) __attribute__((always_inline)) {
                constexpr int vectors = decltype(count)::value;
                constexpr int bytes = vectors * width * static_cast<int>(sizeof(T));
                const char *const dy_fetched = cached ? nullptr : dy_ahead.take(block * bytes),
                                  *const x_fetched = cached ? nullptr : x_ahead.take(block * bytes);
                Vec<Run<T>> mean[vectors];
                for (int v = 0; v < vectors; ++v) mean[v] = Vec<Run<T>>::load(means + i + v * width, left...);
                const Accumulators to = Accumulators{args.sum_dy, args.sum_dy_xmu}.at(i);
                LaneSums<T, vectors> lanes;
                lanes.load(to, left...);
                for_each_run<T, run>(rows, [&](int begin, auto many) __attribute__((always_inline)) {
                    TwoSums<Run<T>> sums[vectors];
                    lanes.begin_run(sums);
                    add_run<T, chain>(sums, begin, many, [&](auto& to, int r) __attribute__((always_inline)) {
                        const GradientRow<T> at = row_of(row + r);
                        if (cached) {
                            prefetch_next(at.dy + i + 2 * vectors * width);
                            prefetch_next(at.x + i + 2 * vectors * width);
                        } else if (paired || alone) {
                            prefetch_next(dy_fetched + r * bytes);
                            prefetch_next(x_fetched + r * bytes);
                        } else {
                            prefetch(dy_fetched + r * bytes);
                            prefetch(x_fetched + r * bytes);
                        }
                        for (int v = 0; v < vectors; ++v)
                            add_gradients<flavour>(args, at, mean[v], to[v], i + v * width, left...);
                    });
                    const auto exact = [&](TwoSums<double>& one, int lane) {
                        const auto own = Vec<double>::all(static_cast<double>(means[i + lane]));
                        for (int r = begin; r < begin + many; ++r)
                            add_gradients<flavour>(args, row_of(row + r), own, one, i + lane, 1);
                    };
                    lanes.end_run(sums, to, exact, left...);
                });
                lanes.store(to, left...);
            });
    });
}

template <class T, Flavour flavour>
void grad_sums_lane(const LaneGradSumsArgs& args) noexcept {
    // The full flavour and 16 bits have too much else to do.
    if constexpr (flavour != Flavour::full && !is_half<T>)
        if (args.reading == Reading::cached) return grad_sums_lane_of<T, flavour, Reading::cached>(args);
    // Sums are loaded and stored for each row's elements, or two rows', which takes the widest vectors.
    if constexpr (flavour != Flavour::full && __is_same(T, float) && Vec<double>::width == line_of<double>) {
        if constexpr (flavour != Flavour::masked)  // whose bits take longer than its rows
            if (args.reading == Reading::paired) return grad_sums_lane_of<T, flavour, Reading::paired>(args);
        if (args.reading == Reading::alone) return grad_sums_lane_of<T, flavour, Reading::alone>(args);
    }
    grad_sums_lane_of<T, flavour, Reading::fetched>(args);
}

template <class T>
void row_grad_sums_full(const RowGradSumsArgs& args) noexcept {
    in_flavour<T>(args, [&]<Flavour flavour> { reduce_rows<T, RowGradSums<T, flavour>>(args); });
}
template <class T>
void lane_grad_sums_full(const LaneGradSumsArgs& args) noexcept {
    in_flavour<T>(args, [&]<Flavour flavour> { grad_sums_lane<T, flavour>(args); });
}

}  // namespace
