// normalize: y = (x - hi) * scale + shift; full: a residual is added to that, and an activation follows.
//
// The mean comes as hi + lo, hi of the arithmetic's type: x - hi is exact near the mean, and lo went into the shift.
#pragma once

#include "epilogue-inl.hpp"

namespace {

template <class T, Pattern pattern, Flavour flavour>
class Normalizer {
  public:
    using Args = NormalizeArgs;

    explicit Normalizer(const NormalizeArgs& args)
        : args_(args), hi_(args.hi), scale_(args.scale), shift_(args.shift) {}

    const T* out(int64_t row) const { return row_at<T>(args_.y, args_.y_stride, row); }

    // Elements of a row; in Pattern::lane all of them.
    [[gnu::always_inline]] void write(int64_t row, int64_t begin, int64_t end) const {
        const T* x = row_at<T>(args_.x, args_.x_stride, row) + begin;
        const T* residual = nullptr;
        MaskWriter mask;
        if constexpr (is_full(flavour)) {
            if (args_.residual) residual = row_at<T>(args_.residual, args_.residual_stride, row) + begin;
            if (args_.mask) mask = {args_.mask + args_.mask_stride * row, begin};
        }
        const Row y{row_at<T>(args_.y, args_.y_stride, row) + begin, args_.stream};
        const bool goes_on = row + row_distance < args_.rows;
        const auto value_of = [&](Vec<A> v, int64_t i, int64_t channel, auto... left) __attribute__((always_inline)) {
            v = fma(v - hi_.at(channel, left...), scale_.at(channel, left...), shift_.at(channel, left...));
            if constexpr (is_full(flavour)) {
                if (residual) v = v + load(residual + i, left...);
                if (flavour == Flavour::masked || args_.activates) {
                    const typename Vec<A>::Mask through = above_zero(v);
                    if (flavour == Flavour::masked || mask.row)
                        mask.template write<Vec<A>>(through, begin + i, left...);
                    v = select(through, v, flavour == Flavour::masked ? Vec<A>::all(0) : scaled(v, args_.slope));
                }
            }
            return v;
        };
        const auto step = [&](int64_t i, int64_t channel, auto... left) __attribute__((always_inline)) {
            if (goes_on) prefetch(reinterpret_cast<const char*>(x + i) + args_.x_stride * row_distance);
            if constexpr (Row::in_twos) {
                if constexpr (sizeof...(left) == 0) {
                    Vec<A> a, b;
                    load_two(x + i, a, b);
                    y.write(value_of(a, i, channel), value_of(b, i + Row::width, channel + Row::width), i);
                    return;
                }
            }
            y.write(value_of(load(x + i, left...), i, channel, left...), i, left...);
        };
        for_each_vector<Row::width, Row::line, Row::in_step>(end - begin, y.head(end - begin), args_.period, step);
    }

  private:
    using A = Arithmetic<T>;
    using Row = RowWriter<T, flavour>;

    const NormalizeArgs& args_;
    const PerChannel<A, pattern> hi_, scale_, shift_;
};

}  // namespace
