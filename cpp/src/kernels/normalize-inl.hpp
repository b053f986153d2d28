// normalize: y = (x - hi) * scale + shift.
//
// The mean comes as hi + lo, hi of x's type: x - hi is exact near the mean, and lo went into the shift.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::NormalizeArgs;

template <class T, Pattern pattern, bool stream>
void normalize_rows(const NormalizeArgs& args) noexcept {
    using Coefficient = PerChannel<T, pattern>;
    const Coefficient hi(args.hi), scale(args.scale), shift(args.shift);

    for (int64_t row = 0; row < args.rows; ++row) {
        const T* x = row_at<T>(args.x, args.x_stride, row);
        const RowWriter<T, stream> y{row_at<T>(args.y, args.y_stride, row)};
        const bool goes_on = row + row_distance < args.rows;
        const auto step = [&](int64_t i, int64_t channel, auto... left) {
            if (goes_on) prefetch(reinterpret_cast<const char*>(x + i) + args.x_stride * row_distance);
            const Vec<T> difference = Vec<T>::load(x + i, left...) - hi.at(channel, left...);
            y.write(fma(difference, scale.at(channel, left...), shift.at(channel, left...)), i, left...);
        };
        for_each_vector<Vec<T>::width>(args.n, y.head(args.n), args.period, step);
    }
}

template <class T, Pattern pattern>
void normalize(const NormalizeArgs& args) noexcept {
    if (args.stream)
        normalize_rows<T, pattern, true>(args);
    else
        normalize_rows<T, pattern, false>(args);
}

}  // namespace
