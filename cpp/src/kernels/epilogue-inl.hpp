// What the full flavours of the kernels share: activations and their masks.
//
// A mask has one bit for each element, set where the activation let it through, the first element of a byte in the
// lowest bit; a row of it starts at a whole byte. A NaN passes.
#pragma once

#include "rows-inl.hpp"

namespace {

using batchnorm::kernels::Activated;
using batchnorm::kernels::InputGradArgs;
using batchnorm::kernels::LaneGradSumsArgs;
using batchnorm::kernels::NormalizeArgs;
using batchnorm::kernels::RowGradSumsArgs;

// How many bytes hold the bits of a vector, or of its first `left` elements, whose first bit is the shift-th of a byte.
template <class V, class... Left>
constexpr unsigned bytes_of_bits(unsigned shift, Left... left) {
    const auto bits = static_cast<unsigned>((V::width + ... + (left - V::width)));
    return (shift + bits + 7) / 8;
}

// The mask of a vector: its first element is the i-th of the row.
template <class V, class... Left>
typename V::Mask read_mask(const std::uint8_t* row, int64_t i, Left... left) {
    const auto bit = static_cast<std::uint64_t>(i);
    const std::uint8_t* at = row + bit / 8;
    const auto shift = static_cast<unsigned>(bit % 8);
    unsigned bits = 0;
    if (sizeof...(left) == 0 && shift == 0)
        __builtin_memcpy(&bits, at, bytes_of_bits<V>(0));
    else
        for (unsigned byte = 0; byte < bytes_of_bits<V>(shift, left...); ++byte)
            bits |= static_cast<unsigned>(at[byte]) << (8 * byte);
    return V::mask_of(bits >> shift);
}

// Writes a row's mask in order. Vectors that end within a byte leave its bits to those that follow, which do not read
// them again: each would wait for the one before.
struct MaskWriter {
    std::uint8_t* row = nullptr;
    unsigned begun = 0;  // the bits of the byte that the next vector starts in

    MaskWriter() = default;
    MaskWriter(std::uint8_t* row_, int64_t begin) : row(row_) {
        if (begin % 8 != 0) begun = row[begin / 8] & ((1u << begin % 8) - 1);
    }

    // The mask of a vector, whose first element is the i-th of the row.
    template <class V, class... Left>
    [[gnu::always_inline]] void write(typename V::Mask mask, int64_t i, Left... left) {
        const auto bit = static_cast<std::uint64_t>(i);
        const auto shift = static_cast<unsigned>(bit % 8),
                   count = static_cast<unsigned>((V::width + ... + (left - V::width)));
        std::uint8_t* at = row + bit / 8;
        unsigned bits = bits_of(mask);
        if constexpr (sizeof...(left) == 1) bits &= (1u << count) - 1;
        if (sizeof...(left) == 0 && shift == 0) {
            __builtin_memcpy(at, &bits, bytes_of_bits<V>(0));
            if constexpr (V::width % 8 != 0) begun = bits;
            return;
        }
        bits = begun | bits << shift;
        for (unsigned byte = 0; byte < bytes_of_bits<V>(shift, left...); ++byte)
            at[byte] = static_cast<std::uint8_t>(bits >> (8 * byte));
        begun = bits >> (shift + count) / 8 * 8;
    }
};

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

// Whether the masked flavour does what a call asks of the full one.
inline bool only_masks(const NormalizeArgs& args) { return args.activates && args.mask && args.slope == 0; }
inline bool only_masks(const Activated& activated, const void* mask) {
    return activated.some && mask && activated.slope == 0;
}
// Whether the leaky one does.
inline bool only_leaks(const Activated& activated, const void* mask) {
    return activated.some && (mask || activated.back != 0) && activated.slope != 0;
}
// What else backward has to do takes the full one.
inline bool only_activates(const InputGradArgs& args) { return !args.weights && !args.v && !args.ignores_x; }
inline bool only_activates(const RowGradSumsArgs& args) { return !args.zeros_count_nothing; }
inline bool only_activates(const LaneGradSumsArgs& args) { return !args.zeros_count_nothing; }
template <class Args>
bool only_masks(const Args& args) {
    return only_activates(args) && only_masks(args.activated, args.mask);
}
template <class Args>
    requires requires(const Args& args) { only_activates(args); }
bool only_leaks(const Args& args) {
    return only_activates(args) && only_leaks(args.activated, args.mask);
}

// run(flavour) in the one of these three flavours that does what a call asks for. All of them are much code, which
// scalar kernels are not worth; the leaky one is that of backward, of float.
template <class T, class Args, class Run>
[[gnu::always_inline]] inline void in_flavour(const Args& args, const Run& run) {
    if constexpr (Vec<float>::width > 1) {
        if (only_masks(args)) return run.template operator()<Flavour::masked>();
        if constexpr (__is_same(T, float) && requires { only_leaks(args); })
            if (only_leaks(args)) return run.template operator()<Flavour::leaky>();
    }
    run.template operator()<Flavour::full>();
}

template <class T, Pattern pattern, template <class, Pattern, Flavour> class Writer>
void write_full(const typename Writer<T, pattern, Flavour::full>::Args& args) noexcept {
    in_flavour<T>(args, [&]<Flavour flavour> { write_in_order<Writer<T, pattern, flavour>, pattern>(args); });
}

// Backward through relu by its mask, whose first bit for dy is the bit-th.
template <Pattern pattern, class V, class... Left>
[[gnu::always_inline]] inline void pass_back(const std::uint8_t* mask, V& dy, int64_t bit, Left... left) {
    if constexpr (pattern == Pattern::row) dy = whole(dy);
    dy = select(read_mask<V>(mask, bit, left...), dy, V::all(0));
}

// Backward through leaky_relu, by its mask or, if that is what x is, by its output. The bit-th bits on of the mask.
template <class T>
struct Leak {
    const Vec<T> slope, back;
    const bool restores;

    explicit Leak(const Activated& activated)
        : slope(Vec<T>::all(static_cast<T>(activated.slope))),
          back(Vec<T>::all(static_cast<T>(activated.back))),
          restores(activated.back != 0) {}

    template <class... Left>
    [[gnu::always_inline]] void pass_back(const std::uint8_t* mask, Vec<T>& dy, Vec<T>& x, int64_t bit,
                                          Left... left) const {
        const typename Vec<T>::Mask through = restores ? above_zero(x) : read_mask<Vec<T>>(mask, bit, left...);
        dy = select(through, dy, dy * slope);
        if (restores) x = select(through, x, x * back);
    }
};

// Backward through an activation: dy as far as it counts, and x, where it is restored. They are the i-th elements on
// from y, and have the bit-th bits on of the mask.
template <class V, class T, class... Left>
[[gnu::always_inline]] inline void pass_back(const Activated& activated, const T* y, const std::uint8_t* mask, V& dy,
                                             V& x, int64_t i, int64_t bit, Left... left) {
    if (!activated.some) return;
    const typename V::Mask through = y ? above_zero(elements<V>(y + i, left...)) : read_mask<V>(mask, bit, left...);
    dy = select(through, dy, scaled(dy, activated.slope));
    if (activated.back != 0) x = select(through, x, scaled(x, activated.back));
}

}  // namespace
