// normalize: y = (x - hi) * scale + shift.
//
// The mean comes as hi + lo, hi of x's type: x - hi is exact near the mean, and lo went into the shift.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::NormalizeArgs;

template <class T, Pattern pattern>
void normalize(const NormalizeArgs& args) noexcept {
    using Coefficient = PerChannel<T, pattern>;
    const Coefficient hi(args.hi), scale(args.scale), shift(args.shift);

    for (int64_t row = 0; row < args.rows; ++row) {
        const T* x = row_at<T>(args.x, args.x_stride, row);
        T* y = row_at<T>(args.y, args.y_stride, row);
        for_each_vector<Vec<T>::width>(args.n, [&](int64_t i, auto... left) {
            const Vec<T> difference = Vec<T>::load(x + i, left...) - hi.at(i, left...);
            fma(difference, scale.at(i, left...), shift.at(i, left...)).store(y + i, left...);
        });
    }
}

}  // namespace
