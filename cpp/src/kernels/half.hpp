// The 16-bit types of memory: IEEE half precision and bfloat16, the upper half of a float. They are computed in float.
//
// Internal linkage, as all that kernels include: each instruction set compiles its own copy.
#pragma once

#include <cstdint>

namespace {

struct Half {
    std::uint16_t bits;
};

struct BFloat16 {
    std::uint16_t bits;
};

inline std::uint32_t float_bits(float value) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// Shifts right, rounding to nearest, ties to even.
inline std::uint32_t round_shift(std::uint32_t bits, int shift) {
    return (bits + ((1u << (shift - 1)) - 1) + (bits >> shift & 1)) >> shift;
}

inline float to_float(BFloat16 value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }

inline float to_float(Half value) {
    const std::uint32_t sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
    // Subnormals too are whole numbers of 2^-24.
    if (magnitude < 0x0400u) return float_of(float_bits(static_cast<float>(magnitude) * 0x1p-24f) | sign);
    if (magnitude < 0x7c00u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
    return float_of(sign | 0x7f800000u | (magnitude << 13 & 0x7fffffu) | (magnitude > 0x7c00u ? 0x400000u : 0));
}

// To nearest, ties to even; a NaN stays one, and is quiet.
template <class T>
T from_float(float value);

template <>
[[maybe_unused]] inline BFloat16 from_float(float value) {
    const std::uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<std::uint16_t>(round_shift(bits, 16))};
}

template <>
[[maybe_unused]] inline Half from_float(float value) {
    const std::uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    std::uint32_t half;
    if (magnitude > 0x7f800000u)
        half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    else if (magnitude >= 0x47800000u)  // 2^16; what rounds to it from below carries into infinity by itself
        half = 0x7c00u;
    else if (magnitude >= 0x38800000u)  // 2^-14, the least normal number
        half = round_shift(magnitude - (112u << 23), 13);
    else  // The addition rounds to a whole number of 2^-24, the last bit of 0.5.
        half = float_bits(float_of(magnitude) + 0.5f) - float_bits(0.5f);
    return {static_cast<std::uint16_t>(half | sign)};
}

// The same from a double, rounded once: to the float beside it with an odd last bit, which lies on no half's tie.
template <class T>
[[maybe_unused]] T from_double(double value) {
    const float nearest = static_cast<float>(value);
    const double back = static_cast<double>(nearest);
    std::uint32_t bits = float_bits(nearest);
    if (back != value && value == value && bits % 2 == 0) bits += (back < value) == (bits >> 31 == 0) ? 1u : ~0u;
    return from_float<T>(float_of(bits));
}

}  // namespace
