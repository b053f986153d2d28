// expand: each channel's value to all lanes of its plane.
#pragma once

#include "rows-inl.hpp"

namespace {

// Whole vectors are written, over what the next channel will write, and past the last one into padding.
template <class T>
void expand(const void* values, int64_t channels, int64_t plane, void* lanes) noexcept {
    static_assert(Vec<T>::width <= batchnorm::kernels::lane_padding);
    T* to = static_cast<T*>(lanes);
    for (int64_t c = 0; c < channels; ++c, to += plane) {
        const Vec<T> value = Vec<T>::all(scalar<T>(static_cast<const T*>(values) + c));
        for (int64_t i = 0; i < plane; i += Vec<T>::width) value.store(to + i);
    }
}

}  // namespace
