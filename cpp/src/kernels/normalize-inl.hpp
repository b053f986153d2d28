// normalize: y = (x - hi) * scale + shift; full: a residual is added to that, and an activation follows.
//
// The mean comes as hi + lo, hi of the arithmetic's type: x - hi is exact near the mean, and lo went into the shift.
#pragma once

#include "epilogue-inl.hpp"

namespace {

template <class T, Pattern pattern, Flavour of>
class Normalizer {
  public:
    using Args = NormalizeArgs;
    static constexpr Flavour flavour = of;
    static constexpr int in_step = RowWriter<T, flavour>::in_step;

    Normalizer(const NormalizeArgs& args, int64_t row, const Ends<T>& ends)
        : args_(args),
          row_(row),
          ends_(ends),
          hi_(args.hi, args, row),
          scale_(args.scale, args, row),
          shift_(args.shift, args, row) {}

    static auto seams(const NormalizeArgs& args) {
        return Seams<T>(args.y, args.y_stride, args.n, args.rows, flavour != Flavour::plain && args.stream);
    }

    const T* out() const { return row_at<T>(args_.y, args_.y_stride, row_); }

    // Elements of the row, in Pattern::lane all of them.
    [[gnu::always_inline]] void write(int64_t begin, int64_t end, Fetches fetches) const {
        Place place(args_, row_, begin, begin, ends_);
        const int64_t ahead = fetches.rows ? args_.x_stride * row_distance : args_.ahead;
        int64_t residual_ahead = 0;
        if (is_full(flavour) && place.residual && fetches_ahead(args_.ahead)) {
            const RowsRead<T> rows = {args_.residual, args_.residual_stride, args_.rows, args_.n, args_.residual_then};
            residual_ahead = rows.distance(args_.ahead, row_, begin);
        }
        const OutputAhead output(args_, row_, 1);
        const auto step = [&](int64_t i, int64_t channel, auto... left) __attribute__((always_inline)) {
            if (ahead) prefetch(reinterpret_cast<const char*>(place.x + i) + ahead);
            if (residual_ahead) prefetch(reinterpret_cast<const char*>(place.residual + i) + residual_ahead);
            if (fetches.output) output.fetch(place.y.row, i);
            write_vectors(place, look_up(channel, left...), i, begin + i, left...);
        };
        const int head = place.y.template head<pattern>(begin, end - begin, 8 * line_of<T>);
        for_each_vector<Row::width, Row::line, Row::in_step>(end - begin, head, args_.period, step);
    }

    // This row and those after it, so many, in Pattern::lane.
    [[gnu::always_inline]] void write_across(int64_t rows) const {
        const NormalizeArgs args = args_;  // which is not in memory that the rows may overwrite
        const OutputAhead output(args, row_ + rows - 1, rows);
        const auto step = [&](int64_t i, int64_t, auto... left) __attribute__((always_inline)) {
            const auto looked = look_up(i, left...);
            for (int64_t r = row_; r < row_ + rows; ++r) {
                Place place(args, r, 0, i);
                output.fetch(place.y.row, i);
                write_vectors(place, looked, i, i, left...);
            }
        };
        for_each_vector<Row::width, Row::in_step, Row::in_step>(args.n, 0, args.n, step);
    }

    // This row, in Pattern::lane.
    [[gnu::always_inline]] void write_whole() const {
        Place place(args_, row_, 0, 0);
        const int64_t ahead = fetches_whole() ? args_.output_ahead : 0;
        for (int64_t i = 0; i < args_.n; i += Row::in_step) {
            if (ahead) prefetch_to_write(reinterpret_cast<const char*>(place.y.row + i) + ahead);
            write_vectors(place, look_up(i), i, i);
        }
    }

  private:
    friend Steps<Normalizer>;
    using A = Arithmetic<T>;
    using Row = RowWriter<T, flavour>;

    // A row from its begin-th element on, of which those from `bit` on are written.
    struct Place {
        const T *x, *residual = nullptr;
        Row y;
        MaskWriter mask;

        Place(const NormalizeArgs& args, int64_t row, int64_t begin, int64_t bit, const Ends<T>& ends = {})
            : x(row_at<T>(args.x, args.x_stride, row) + begin),
              y{row_at<T>(args.y, args.y_stride, row) + begin, args.stream, ends} {
            if constexpr (!is_full(flavour)) return;
            if (args.residual) residual = row_at<T>(args.residual, args.residual_stride, row) + begin;
            if (args.mask) mask = {args.mask + args.mask_stride * row, bit};
        }
    };

    // Fetches what is written, where a vector is a line: stores of some take longer. Past the end of a row of lanes, or
    // of `step` rows that end with the last-th, those lines that come next: what lies in a gap between rows may be
    // another thread's, which would wait for it (docs/experiments.md).
    class OutputAhead {
      public:
        OutputAhead(const NormalizeArgs& args, int64_t last, int64_t step) : distance_(args.output_ahead) {
            if constexpr (pattern == Pattern::lane) {
                const int64_t unit = static_cast<int64_t>(sizeof(T)), row_bytes = args.n * unit;
                if (row_bytes < distance_) distance_ = row_bytes;
                turn_ = args.n - distance_ / unit;
                const int64_t gap = step * args.y_stride - row_bytes;
                behind_ = args.y_stride == row_bytes ? distance_ : last + step < args.rows ? distance_ + gap : 0;
            }
        }
        void fetch(const T* row, int64_t i) const {
            if (Row::width < line_of<T> || !distance_) return;
            const bool within = pattern == Pattern::row || i < turn_;
            prefetch_to_write(reinterpret_cast<const char*>(row + i) + (within ? distance_ : behind_));
        }

      private:
        int64_t distance_, turn_ = 0, behind_ = 0;
    };

    // Whether what lies output_ahead of a row that is written whole are rows that follow it without a gap.
    bool fetches_whole() const {
        const int64_t row_bytes = args_.n * static_cast<int64_t>(sizeof(T));
        return Row::width == line_of<T> && args_.y_stride == row_bytes &&
               (args_.rows - 1 - row_) * row_bytes >= args_.output_ahead;
    }

    // What is looked up for one vector, or for two.
    template <int vectors>
    struct Looked {
        Vec<A> hi[vectors], scale[vectors], shift[vectors];
    };
    template <class... Left>
    auto look_up(int64_t channel, Left... left) const {
        constexpr int vectors = Row::template vectors<Left...>;
        Looked<vectors> looked;
        for (int v = 0; v < vectors; ++v) {
            looked.hi[v] = hi_.at(channel + v * Row::width, left...);
            looked.scale[v] = scale_.at(channel + v * Row::width, left...);
            looked.shift[v] = shift_.at(channel + v * Row::width, left...);
        }
        return looked;
    }

    // The i-th elements of a place on; `bit` is that of the first one.
    template <int vectors, class... Left>
    [[gnu::always_inline]] void write_vectors(Place& place, const Looked<vectors>& looked, int64_t i, int64_t bit,
                                              Left... left) const {
        const auto value_of = [&](Vec<A> x, int v) __attribute__((always_inline)) {
            const int64_t ahead = v * Row::width;
            return finish(place, fma(x - looked.hi[v], looked.scale[v], looked.shift[v]), i + ahead, bit + ahead,
                          left...);
        };
        if constexpr (vectors == 2) {
            Vec<A> a, b;
            Row::template load_both<pattern>(place.x + i, a, b);
            const Vec<A> first = value_of(a, 0), second = value_of(b, 1);  // in order, as the mask is written
            place.y.template write_both<pattern>(first, second, i);
        } else {
            place.y.write(value_of(load(place.x + i, left...), 0), i, left...);
        }
    }

    // What the full flavour does besides.
    template <class... Left>
    [[gnu::always_inline]] Vec<A> finish(Place& place, Vec<A> v, int64_t i, int64_t bit, Left... left) const {
        if constexpr (!is_full(flavour)) return v;
        if (place.residual) v = v + load(place.residual + i, left...);
        if (flavour != Flavour::masked && !args_.activates) return v;
        const typename Vec<A>::Mask through = above_zero(v);
        if (flavour == Flavour::masked || place.mask.row) place.mask.template write<Vec<A>>(through, bit, left...);
        return select(through, v, flavour == Flavour::masked ? Vec<A>::all(0) : scaled(v, args_.slope));
    }

    const NormalizeArgs& args_;
    const int64_t row_;
    const Ends<T> ends_;
    const PerChannel<A, pattern> hi_, scale_, shift_;
};

}  // namespace
