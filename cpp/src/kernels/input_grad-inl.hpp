// input_grad: dx = a * (dy - dy_hi) + b * xhat + c with xhat = (x - hi) * inv_std.
//
// Both means come as hi + lo, the parts hi of x's type, the parts lo folded into c: what is subtracted from dy and x is
// then exact near their means. xhat comes first and b after, because b * inv_std underflows for values near 1e30.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::InputGradArgs;

template <class T, Pattern pattern, bool stream>
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
        const RowWriter<T, stream> dx{row_at<T>(args_.dx, args_.dx_stride, row) + begin};
        const bool goes_on = row + row_distance < args_.rows;
        const auto step = [&](int64_t i, int64_t channel, auto... left) __attribute__((always_inline)) {
            if (goes_on) {
                prefetch(reinterpret_cast<const char*>(dy + i) + args_.dy_stride * row_distance);
                prefetch(reinterpret_cast<const char*>(x + i) + args_.x_stride * row_distance);
            }
            const Vec<A> xhat = (load(x + i, left...) - hi_.at(channel, left...)) * inv_std_.at(channel, left...);
            const Vec<A> u = load(dy + i, left...) - dy_hi_.at(channel, left...);
            dx.write(fma(a_.at(channel, left...), u, fma(b_.at(channel, left...), xhat, c_.at(channel, left...))), i,
                     left...);
        };
        for_each_vector<Vec<A>::width>(end - begin, dx.head(end - begin), args_.period, step);
    }

  private:
    using A = Arithmetic<T>;

    const InputGradArgs& args_;
    const PerChannel<A, pattern> hi_, inv_std_, dy_hi_, a_, b_, c_;
};

}  // namespace
