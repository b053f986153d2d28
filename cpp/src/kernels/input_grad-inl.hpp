// input_grad: dx = a * (dy - dy_hi) + b * xhat + c with xhat = (x - hi) * inv_std.
//
// Both means come as hi + lo, the parts hi of x's type, the parts lo folded into c: what is subtracted from dy and x is
// then exact near their means. xhat comes first and b after, because b * inv_std underflows for values near 1e30.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::InputGradArgs;

template <class T, Pattern pattern, bool stream>
void input_grad_rows(const InputGradArgs& args) noexcept {
    using Coefficient = PerChannel<T, pattern>;
    const Coefficient hi(args.hi), inv_std(args.inv_std), dy_hi(args.dy_hi), a(args.a), b(args.b), c(args.c);

    for (int64_t row = 0; row < args.rows; ++row) {
        const T* dy = row_at<T>(args.dy, args.dy_stride, row);
        const T* x = row_at<T>(args.x, args.x_stride, row);
        const RowWriter<T, stream> dx{row_at<T>(args.dx, args.dx_stride, row)};
        const bool goes_on = row + row_distance < args.rows;
        const auto step = [&](int64_t i, int64_t channel, auto... left) {
            if (goes_on) {
                prefetch(reinterpret_cast<const char*>(dy + i) + args.dy_stride * row_distance);
                prefetch(reinterpret_cast<const char*>(x + i) + args.x_stride * row_distance);
            }
            const Vec<T> xhat = (Vec<T>::load(x + i, left...) - hi.at(channel, left...)) * inv_std.at(channel, left...);
            const Vec<T> u = Vec<T>::load(dy + i, left...) - dy_hi.at(channel, left...);
            dx.write(fma(a.at(channel, left...), u, fma(b.at(channel, left...), xhat, c.at(channel, left...))), i,
                     left...);
        };
        for_each_vector<Vec<T>::width>(args.n, dx.head(args.n), args.period, step);
    }
}

template <class T, Pattern pattern>
void input_grad(const InputGradArgs& args) noexcept {
    if (args.stream)
        input_grad_rows<T, pattern, true>(args);
    else
        input_grad_rows<T, pattern, false>(args);
}

}  // namespace
