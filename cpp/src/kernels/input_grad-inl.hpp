// input_grad: dx = a * (dy - dy_hi) + b * xhat + c with xhat = (x - hi) * inv_std; full: dy comes through an
// activation, elements have weights, and a further tensor is added.
//
// All means come as hi + lo, the parts hi of the arithmetic's type, the parts lo folded into c: what is subtracted
// from dy, x and v is then exact near their means. xhat comes first and b after, because b * inv_std underflows for
// values near 1e30.
#pragma once

#include "epilogue-inl.hpp"

namespace {

template <class T, Pattern pattern, Flavour flavour>
class InputGradient {
  public:
    using Args = InputGradArgs;

    explicit InputGradient(const InputGradArgs& args)
        : args_(args), hi_(args.hi), inv_std_(args.inv_std), dy_hi_(args.dy_hi), a_(args.a), b_(args.b), c_(args.c) {}

    const T* out(int64_t row) const { return row_at<T>(args_.dx, args_.dx_stride, row); }

    // As Normalizer::write.
    [[gnu::always_inline]] void write(int64_t row, int64_t begin, int64_t end) const {
        const T* dy = row_at<T>(args_.dy, args_.dy_stride, row) + begin;
        const T* x = row_at<T>(args_.x, args_.x_stride, row) + begin;
        const More more(args_, row, begin);
        const Row dx{row_at<T>(args_.dx, args_.dx_stride, row) + begin, args_.stream};
        const bool goes_on = row + row_distance < args_.rows;
        const auto value_of = [&](Vec<A> gradient, Vec<A> input, int64_t i, int64_t channel,
                                  auto... left) __attribute__((always_inline)) {
            more.pass_back(gradient, input, i, left...);
            const Vec<A> xhat = (input - hi_.at(channel, left...)) * inv_std_.at(channel, left...);
            Vec<A> dy_hi = dy_hi_.at(channel, left...);
            Vec<A> rest = fma(b_.at(channel, left...), xhat, c_.at(channel, left...));
            if (flavour == Flavour::full && args_.ignores_x) rest = c_.at(channel, left...);
            more.weigh(dy_hi, rest, i, left...);
            more.add(rest, i, channel, left...);
            return fma(a_.at(channel, left...), gradient - dy_hi, rest);
        };
        const auto step = [&](int64_t i, int64_t channel, auto... left) __attribute__((always_inline)) {
            if (goes_on) {
                prefetch(reinterpret_cast<const char*>(dy + i) + args_.dy_stride * row_distance);
                prefetch(reinterpret_cast<const char*>(x + i) + args_.x_stride * row_distance);
            }
            if constexpr (Row::in_twos) {
                if constexpr (sizeof...(left) == 0) {
                    constexpr int width = Row::width;
                    Vec<A> dy_a, dy_b, x_a, x_b;
                    load_two(dy + i, dy_a, dy_b);
                    load_two(x + i, x_a, x_b);
                    dx.write(value_of(dy_a, x_a, i, channel), value_of(dy_b, x_b, i + width, channel + width), i);
                    return;
                }
            }
            dx.write(value_of(load(dy + i, left...), load(x + i, left...), i, channel, left...), i, left...);
        };
        for_each_vector<Row::width, Row::line, Row::in_step>(end - begin, dx.head(end - begin), args_.period, step);
    }

  private:
    using A = Arithmetic<T>;
    using Row = RowWriter<T, flavour>;

    // What the full flavour does besides, in a row.
    struct More {
        const InputGradArgs& args;
        int64_t begin;
        const T *y = nullptr, *v = nullptr;
        const A* weights = nullptr;
        const std::uint8_t* mask = nullptr;
        Row dresidual{nullptr, false};

        More(const InputGradArgs& args_, int64_t row, int64_t begin_) : args(args_), begin(begin_) {
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
                ::pass_back(mask, dy, begin + i, left...);
            else
                ::pass_back(args.activated, y, mask, dy, x, i, begin + i, left...);
            if (dresidual.row) dresidual.write(dy, i, left...);
        }

        // An element of weight 0 is left out, whatever x is there.
        template <class... Left>
        void weigh(Vec<A>& dy_hi, Vec<A>& rest, int64_t i, Left... left) const {
            if (flavour != Flavour::full || !weights) return;
            const Vec<A> w = args.uniform ? Vec<A>::all(*weights) : load(weights + i, left...);
            dy_hi = w * dy_hi;
            rest = select(not_zero(w), w * rest, Vec<A>::all(0));
        }

        template <class... Left>
        void add(Vec<A>& rest, int64_t i, int64_t channel, Left... left) const {
            if (flavour != Flavour::full || !v) return;
            const Vec<A> difference = load(v + i, left...) - PerChannel<A, pattern>(args.v_hi).at(channel, left...);
            rest = fma(PerChannel<A, pattern>(args.d).at(channel, left...), difference, rest);
        }
    };

    const InputGradArgs& args_;
    const PerChannel<A, pattern> hi_, inv_std_, dy_hi_, a_, b_, c_;
};

}  // namespace
