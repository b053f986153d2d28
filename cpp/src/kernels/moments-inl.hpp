// moments: sums of (x - pivot) and (x - pivot)^2, the pivot being an element of the channel or near its mean.
//
// Such a difference is of the order of the standard deviation, so that its square loses nothing to the size of the
// mean, which a sum of x^2 would.
#pragma once

#include "sums-inl.hpp"

namespace {

using batchnorm::kernels::LaneMomentsArgs;
using batchnorm::kernels::RowMomentsArgs;

template <class T>
class RowMoments {
  public:
    using Args = RowMomentsArgs;

    RowMoments(const RowMomentsArgs& args, int64_t row)
        : args_(args),
          pivot_(scalar<Arithmetic<T>>(row_at<char>(args.pivot.first, args.pivot.next, row))),
          sums_(args.to, row) {}

    // As RowOfSums::add, of a row of its channel; beside(bytes) is called before each so many bytes, if they are whole
    // vectors.
    template <class Beside = Nothing>
    [[gnu::always_inline]] void add(int64_t row, int64_t begin, int64_t end, const Beside& beside = {}) {
        const T* x = row_at<T>(args_.x, args_.x_stride, row);
        const RowsRead<T> rows = {args_.x, args_.x_stride, args_.rows, args_.n, args_.x_then};
        const int64_t ahead = fetches_ahead(args_.ahead) ? rows.distance(args_.ahead, row, begin) : 0;
        LinesAhead lines(x + begin, ahead);
        sums_.add(
            begin, end,
            [=, this]<class R>(TwoSums<R>& sums, int64_t i, auto... left) __attribute__((always_inline)) {
                const Vec<R> apart = difference(summand<R>(x + i, left...), Vec<R>::all(static_cast<R>(pivot_)));
                if constexpr (sizeof...(left) == 0)
                    sums.add_difference(apart);
                else
                    sums.add_difference(apart.first(left...));
            },
            [&](auto bytes) __attribute__((always_inline)) {
                lines.template fetch<bytes>();
                beside(bytes);
            });
    }

    void store() { sums_.store(); }

  private:
    const RowMomentsArgs& args_;
    const Arithmetic<T> pivot_;
    RowOfSums<T, 4> sums_;
};

template <class T, bool cached>
void moments_lane_of(const LaneMomentsArgs& args) noexcept {
    constexpr int block = is_half<T> ? 16 : 8, run = 16, chain = 8, width = Vec<Run<T>>::width;
    static_assert(batchnorm::kernels::half_lane_rows % block == 0);
    const auto* pivots = static_cast<const Arithmetic<T>*>(args.pivot);
    const int64_t row_bytes = args.n * static_cast<int64_t>(sizeof(T));
    for_each_block<block>(args.rows, [&](int64_t row, auto rows) __attribute__((always_inline)) {
        // Looked up once: the compiler would do so in each column, as sums that are stored may be anything.
        const T* row_of[block];
        for (int r = 0; r < rows; ++r) row_of[r] = static_cast<const T*>(args.x[row + r]);
        RowsAhead ahead(args.x, row, args.listed, row_bytes);
        for_each_column<width, column_of<T, decltype(rows)>>(
            args.n, [&](auto count, int64_t i, auto... left) __attribute__((always_inline)) {
                constexpr int vectors = decltype(count)::value;
                constexpr int bytes = vectors * width * static_cast<int>(sizeof(T));
                const char* fetched = cached ? nullptr : ahead.take(block * bytes);
                Vec<Run<T>> pivot[vectors];
                for (int v = 0; v < vectors; ++v) pivot[v] = summand<Run<T>>(pivots + i + v * width, left...);
                const Accumulators to = Accumulators{args.sum, args.sum_sq}.at(i);
                LaneSums<T, vectors> lanes;
                lanes.load(to, left...);
                for_each_run<T, run>(rows, [&](int begin, auto many) __attribute__((always_inline)) {
                    TwoSums<Run<T>> sums[vectors];
                    lanes.begin_run(sums);
                    add_run<T, chain>(sums, begin, many, [&](auto& to, int r) __attribute__((always_inline)) {
                        const T* x = row_of[r] + i;
                        if (cached)
                            prefetch_next(x + 2 * vectors * width);
                        else
                            prefetch(fetched + r * bytes);
                        for (int v = 0; v < vectors; ++v)
                            to[v].add_difference(difference(summand<Run<T>>(x + v * width, left...), pivot[v]));
                    });
                    const auto exact = [&](TwoSums<double>& one, int lane) {
                        const auto own = Vec<double>::all(static_cast<double>(pivots[i + lane]));
                        for (int r = begin; r < begin + many; ++r) {
                            const T* x = row_of[r] + i + lane;
                            one.add_difference(summand<double>(x, 1) - own);
                        }
                    };
                    lanes.end_run(sums, to, exact, left...);
                });
                lanes.store(to, left...);
            });
    });
}

template <class T>
void moments_lane(const LaneMomentsArgs& args) noexcept {
    // As gradient sums do; of 16 bits neither.
    if constexpr (!is_half<T>)
        if (args.reading == Reading::cached) return moments_lane_of<T, true>(args);
    moments_lane_of<T, false>(args);
}

}  // namespace
