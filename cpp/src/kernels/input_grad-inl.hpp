// input_grad: dx = a * (dy - dy_hi) + b * xhat + c with xhat = (x - hi) * inv_std; full: dy comes through an
// activation, elements have weights, and a further tensor is added.
//
// All means come as hi + lo, the parts hi of the arithmetic's type, the parts lo folded into c: what is subtracted
// from dy, x and v is then exact near their means. xhat comes first and b after, because b * inv_std underflows for
// values near 1e30.
#pragma once

#include "epilogue-inl.hpp"

namespace {

template <class T, Pattern pattern, Flavour of>
class InputGradient {
  public:
    using Args = InputGradArgs;
    static constexpr Flavour flavour = of;
    static constexpr int in_step = RowWriter<T, flavour>::in_step;

    InputGradient(const InputGradArgs& args, int64_t row, const Ends<T>& ends)
        : args_(args),
          row_(row),
          ends_(ends),
          hi_(args.hi, args, row),
          inv_std_(args.inv_std, args, row),
          dy_hi_(args.dy_hi, args, row),
          a_(args.a, args, row),
          b_(args.b, args, row),
          c_(args.c, args, row) {}

    static auto seams(const InputGradArgs& args) {
        return Seams<T>(args.dx, args.dx_stride, args.n, args.rows, flavour != Flavour::plain && args.stream);
    }

    const T* out() const { return row_at<T>(args_.dx, args_.dx_stride, row_); }

    // As Normalizer's.
    [[gnu::always_inline]] void write(int64_t begin, int64_t end, Fetches fetches) const {
        const Place place(args_, row_, begin, ends_);
        const int64_t dy_ahead = fetches.rows ? args_.dy_stride * row_distance : args_.ahead;
        const int64_t x_ahead = fetches.rows ? args_.x_stride * row_distance : args_.ahead;
        const auto step = [&](int64_t i, int64_t channel, auto... left) __attribute__((always_inline)) {
            if (dy_ahead) {
                prefetch(reinterpret_cast<const char*>(place.dy + i) + dy_ahead);
                prefetch(reinterpret_cast<const char*>(place.x + i) + x_ahead);
            }
            write_vectors(place, look_up(channel, left...), i, channel, left...);
        };
        const int head = place.dx.template head<pattern>(begin, end - begin, 0);
        for_each_vector<Row::width, Row::line, Row::in_step>(end - begin, head, args_.period, step);
    }
    [[gnu::always_inline]] void write_across(int64_t rows) const {
        const InputGradArgs args = args_;  // which is not in memory that the rows may overwrite
        const auto step = [&](int64_t i, int64_t, auto... left) __attribute__((always_inline)) {
            const auto looked = look_up(i, left...);
            for (int64_t r = row_; r < row_ + rows; ++r) write_vectors(Place(args, r, 0), looked, i, i, left...);
        };
        for_each_vector<Row::width, Row::in_step, Row::in_step>(args.n, 0, args.n, step);
    }

    [[gnu::always_inline]] void write_whole() const {
        const Place place(args_, row_, 0);
        for (int64_t i = 0; i < args_.n; i += Row::in_step) write_vectors(place, look_up(i), i, i);
    }

  private:
    friend Steps<InputGradient>;
    using A = Arithmetic<T>;
    using Row = RowWriter<T, flavour>;

    // What the full flavour does besides, in a row.
    struct More {
        const InputGradArgs& args;
        const int64_t row, begin;
        const T *y = nullptr, *v = nullptr;
        const A* weights = nullptr;
        const std::uint8_t* mask = nullptr;
        const Leak<A> leak;
        Row dresidual{nullptr, false};

        More(const InputGradArgs& args_, int64_t row_, int64_t begin_)
            : args(args_), row(row_), begin(begin_), leak(args_.activated) {
            if constexpr (!is_full(flavour)) return;
            if (args.y) y = row_at<T>(args.y, args.y_stride, row) + begin;
            if (args.v) v = row_at<T>(args.v, args.v_stride, row) + begin;
            if (args.weights) weights = row_at<A>(args.weights, args.weights_stride, row) + (args.uniform ? 0 : begin);
            if (args.mask) mask = args.mask + args.mask_stride * row;
            if (!args.dresidual) return;
            // Lines are those of dx, and of another row only if that lies alike.
            dresidual.row = row_at<T>(args.dresidual, args.dresidual_stride, row) + begin;
            const T* dx = row_at<T>(args.dx, args.dx_stride, row) + begin;
            dresidual.streams = args.stream && aligned_alike(dresidual.row, dx);
        }

        template <class... Left>
        void pass_back(Vec<A>& dy, Vec<A>& x, int64_t i, Left... left) const {
            if constexpr (!is_full(flavour)) return;
            if constexpr (flavour == Flavour::masked)
                ::pass_back<pattern>(mask, dy, begin + i, left...);
            else if constexpr (flavour == Flavour::leaky)
                leak.pass_back(mask, dy, x, begin + i, left...);
            else
                ::pass_back(args.activated, y, mask, dy, x, i, begin + i, left...);
            if (dresidual.row) dresidual.write(dy, i, left...);
        }

        // An element of weight 0 is left out, whatever x is there.
        template <class... Left>
        void weigh(Vec<A>& dy_hi, Vec<A>& rest, int64_t i, Left... left) const {
            if (flavour != Flavour::full || !weights) return;
            const Vec<A> w = args.uniform ? Vec<A>::all(scalar<A>(weights)) : load(weights + i, left...);
            dy_hi = w * dy_hi;
            rest = select(not_zero(w), w * rest, Vec<A>::all(0));
        }

        template <class... Left>
        void add(Vec<A>& rest, int64_t i, int64_t channel, Left... left) const {
            if (flavour != Flavour::full || !v) return;
            const PerChannel<A, pattern> v_hi(args.v_hi, args, row), d(args.d, args, row);
            rest = fma(d.at(channel, left...), load(v + i, left...) - v_hi.at(channel, left...), rest);
        }
    };

    // A row from its begin-th element on.
    struct Place {
        const T *dy, *x;
        const Row dx;
        const More more;

        Place(const InputGradArgs& args, int64_t row, int64_t begin, const Ends<T>& ends = {})
            : dy(row_at<T>(args.dy, args.dy_stride, row) + begin),
              x(row_at<T>(args.x, args.x_stride, row) + begin),
              dx{row_at<T>(args.dx, args.dx_stride, row) + begin, args.stream, ends},
              more(args, row, begin) {}
    };

    template <int vectors>
    struct Looked {
        Vec<A> hi[vectors], inv_std[vectors], dy_hi[vectors], a[vectors], b[vectors], c[vectors];
    };
    template <class... Left>
    auto look_up(int64_t channel, Left... left) const {
        constexpr int vectors = Row::template vectors<Left...>;
        Looked<vectors> looked;
        for (int v = 0; v < vectors; ++v) {
            const int64_t at = channel + v * Row::width;
            looked.hi[v] = hi_.at(at, left...);
            looked.inv_std[v] = inv_std_.at(at, left...);
            looked.dy_hi[v] = dy_hi_.at(at, left...);
            looked.a[v] = a_.at(at, left...);
            looked.b[v] = b_.at(at, left...);
            looked.c[v] = c_.at(at, left...);
        }
        return looked;
    }

    template <int vectors, class... Left>
    [[gnu::always_inline]] void write_vectors(const Place& place, const Looked<vectors>& looked, int64_t i,
                                              int64_t channel, Left... left) const {
        const auto value_of = [&](Vec<A> dy, Vec<A> x, int v) __attribute__((always_inline)) {
            const int64_t at = i + v * Row::width;
            place.more.pass_back(dy, x, at, left...);
            const Vec<A> xhat = (x - looked.hi[v]) * looked.inv_std[v];
            Vec<A> dy_hi = looked.dy_hi[v], rest = fma(looked.b[v], xhat, looked.c[v]);
            if (flavour == Flavour::full && args_.ignores_x) rest = looked.c[v];
            place.more.weigh(dy_hi, rest, at, left...);
            place.more.add(rest, at, channel + v * Row::width, left...);
            return fma(looked.a[v], dy - dy_hi, rest);
        };
        if constexpr (vectors == 2) {
            Vec<A> dy_a, dy_b, x_a, x_b;
            Row::template load_both<pattern>(place.dy + i, dy_a, dy_b);
            Row::template load_both<pattern>(place.x + i, x_a, x_b);
            place.dx.template write_both<pattern>(value_of(dy_a, x_a, 0), value_of(dy_b, x_b, 1), i);
        } else {
            place.dx.write(value_of(load(place.dy + i, left...), load(place.x + i, left...), 0), i, left...);
        }
    }

    const InputGradArgs& args_;
    const int64_t row_;
    const Ends<T> ends_;
    const PerChannel<A, pattern> hi_, inv_std_, dy_hi_, a_, b_, c_;
};

}  // namespace
