// What the full flavours of the kernels share: activations and their masks.
//
// A mask has one bit for each element, set where the activation let it through, the first element of a byte in the
// lowest bit; a row of it starts at a whole byte. A NaN passes.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::Activated;

// The mask of a vector: its first element is the i-th of the row, a multiple of the vector's width.
template <class V, class... Left>
typename V::Mask read_mask(const std::uint8_t* row, int64_t i, Left... left) {
    const std::uint8_t* at = row + i / 8;
    if constexpr (V::width <= 8) {
        return V::mask_of(static_cast<unsigned>(*at) >> (i % 8));
    } else {
        std::uint16_t bits = 0;
        if constexpr (sizeof...(left) == 0)
            __builtin_memcpy(&bits, at, sizeof bits);
        else
            __builtin_memcpy(&bits, at, static_cast<unsigned>((left + ... + 7) / 8));
        return V::mask_of(bits);
    }
}

template <class V, class... Left>
void write_mask(typename V::Mask mask, std::uint8_t* row, int64_t i, Left... left) {
    unsigned bits = bits_of(mask);
    if constexpr (sizeof...(left) == 1) bits &= (1u << (left + ...)) - 1;
    std::uint8_t* at = row + i / 8;
    if constexpr (V::width > 8) {
        const auto both = static_cast<std::uint16_t>(bits);
        if constexpr (sizeof...(left) == 0)
            __builtin_memcpy(at, &both, sizeof both);
        else
            __builtin_memcpy(at, &both, static_cast<unsigned>((left + ... + 7) / 8));
    } else {
        const unsigned before = i % 8 == 0 ? 0u : *at;
        *at = static_cast<std::uint8_t>(before | bits << (i % 8));
    }
}

// Times slope; exactly 0 where that is 0, also for infinities.
template <class T>
Vec<T> scaled(Vec<T> v, double slope) {
    return slope == 0 ? Vec<T>::all(0) : v * Vec<T>::all(static_cast<T>(slope));
}

// Elements of memory as a V, which may be wider than what they are otherwise computed in.
template <class V, class T, class... Left>
V elements(const T* p, Left... left) {
    if constexpr (__is_same(V, Vec<Arithmetic<T>>))
        return load(p, left...);
    else
        return widen(p, left...);
}

// Backward through an activation, the i-th elements on of a row: dy as far as it counts, and x, where it is restored.
template <class V, class T, class... Left>
[[gnu::always_inline]] inline void pass_back(const Activated& activated, const T* y, const std::uint8_t* mask, V& dy,
                                             V& x, int64_t i, Left... left) {
    if (!activated.some) return;
    const typename V::Mask through = y ? above_zero(elements<V>(y + i, left...)) : read_mask<V>(mask, i, left...);
    dy = select(through, dy, scaled(dy, activated.slope));
    if (activated.restores) x = select(through, x, scaled(x, 1 / activated.slope));
}

}  // namespace
