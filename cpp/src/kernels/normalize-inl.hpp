// normalize: y = (x - hi) * scale + shift.
//
// The mean comes as hi + lo, hi of x's type: x - hi is exact near the mean, and lo went into the shift.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::NormalizeArgs;

template <class T, Pattern pattern, bool stream>
class Normalizer {
  public:
    using Args = NormalizeArgs;

    explicit Normalizer(const NormalizeArgs& args)
        : args_(args), hi_(args.hi), scale_(args.scale), shift_(args.shift) {}

    const T* out(int64_t row) const { return row_at<T>(args_.y, args_.y_stride, row); }

    // Elements of a row; in Pattern::lane all of them.
    [[gnu::always_inline]] void write(int64_t row, int64_t begin, int64_t end) const {
        const T* x = row_at<T>(args_.x, args_.x_stride, row) + begin;
        const RowWriter<T, stream> y{row_at<T>(args_.y, args_.y_stride, row) + begin};
        const bool goes_on = row + row_distance < args_.rows;
        const auto step = [&](int64_t i, int64_t channel, auto... left) __attribute__((always_inline)) {
            if (goes_on) prefetch(reinterpret_cast<const char*>(x + i) + args_.x_stride * row_distance);
            const Vec<A> difference = load(x + i, left...) - hi_.at(channel, left...);
            y.write(fma(difference, scale_.at(channel, left...), shift_.at(channel, left...)), i, left...);
        };
        for_each_vector<Vec<A>::width>(end - begin, y.head(end - begin), args_.period, step);
    }

  private:
    using A = Arithmetic<T>;

    const NormalizeArgs& args_;
    const PerChannel<A, pattern> hi_, scale_, shift_;
};

}  // namespace
