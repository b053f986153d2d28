// Vec for 64-bit NEON: 4 floats or 2 doubles. NEON has no masked access: the n-element forms go through a small array,
// so that they touch no memory past n; loaded lanes past n are 0.
#pragma once

#include <arm_neon.h>

#include "half.hpp"

namespace {

template <class T>
struct Vec;

template <>
struct Vec<float> {
    static constexpr int width = 4;
    using Mask = uint32x4_t;
    float32x4_t r;

    static Vec load(const float* p) { return {vld1q_f32(p)}; }
    static Vec load(const float* p, int n) {
        float lanes[width] = {};
        __builtin_memcpy(lanes, p, static_cast<unsigned>(n) * sizeof(float));
        return load(lanes);
    }
    void store(float* p) const { vst1q_f32(p, r); }
    void store(float* p, int n) const {
        float lanes[width];
        store(lanes);
        __builtin_memcpy(p, lanes, static_cast<unsigned>(n) * sizeof(float));
    }
    void stream(float* p) const { store(p); }
    static Vec all(float value) { return {vdupq_n_f32(value)}; }
    // Zero past the first n lanes.
    Vec first(int n) const {
        float lanes[width];
        store(lanes);
        return load(lanes, n);
    }
    // Whether all lanes are: what is not leaves a NaN when multiplied by 0.
    bool finite() const {
        const float32x4_t zero = vmulq_n_f32(r, 0);
        return vminvq_u32(vceqq_f32(zero, zero)) != 0;
    }
    static Mask mask_of(unsigned bits) {
        const uint32x4_t bit = {1, 2, 4, 8};
        return vtstq_u32(vdupq_n_u32(bits), bit);
    }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {vaddq_f32(a.r, b.r)}; }
inline Vec<float> operator-(Vec<float> a, Vec<float> b) { return {vsubq_f32(a.r, b.r)}; }
inline Vec<float> difference(Vec<float> a, Vec<float> b) { return a - b; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {vmulq_f32(a.r, b.r)}; }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {vfmaq_f32(c.r, a.r, b.r)}; }
inline uint32x4_t above_zero(Vec<float> v) { return vmvnq_u32(vclezq_f32(v.r)); }
inline uint32x4_t not_zero(Vec<float> v) { return vmvnq_u32(vceqzq_f32(v.r)); }
inline Vec<float> select(uint32x4_t mask, Vec<float> a, Vec<float> b) { return {vbslq_f32(mask, a.r, b.r)}; }

template <>
struct Vec<double> {
    static constexpr int width = 2, chains = 4;
    using Mask = uint64x2_t;
    float64x2_t r;

    static Vec load(const double* p) { return {vld1q_f64(p)}; }
    static Vec load(const double* p, int n) {
        double lanes[width] = {};
        __builtin_memcpy(lanes, p, static_cast<unsigned>(n) * sizeof(double));
        return load(lanes);
    }
    void store(double* p) const { vst1q_f64(p, r); }
    void store(double* p, int n) const {
        double lanes[width];
        store(lanes);
        __builtin_memcpy(p, lanes, static_cast<unsigned>(n) * sizeof(double));
    }
    void stream(double* p) const { store(p); }
    static Vec all(double value) { return {vdupq_n_f64(value)}; }
    static Mask mask_of(unsigned bits) {
        const uint64x2_t bit = {1, 2};
        return vtstq_u64(vdupq_n_u64(bits), bit);
    }
    // Zero past the first n lanes.
    Vec first(int n) const {
        double lanes[width];
        store(lanes);
        return load(lanes, n);
    }
};

inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {vaddq_f64(a.r, b.r)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {vsubq_f64(a.r, b.r)}; }
inline Vec<double> difference(Vec<double> a, Vec<double> b) { return a - b; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {vmulq_f64(a.r, b.r)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {vfmaq_f64(c.r, a.r, b.r)}; }
inline uint64x2_t above_zero(Vec<double> v) { return veorq_u64(vclezq_f64(v.r), vdupq_n_u64(~0ull)); }
inline uint64x2_t not_zero(Vec<double> v) { return veorq_u64(vceqzq_f64(v.r), vdupq_n_u64(~0ull)); }
inline Vec<double> select(uint64x2_t mask, Vec<double> a, Vec<double> b) { return {vbslq_f64(mask, a.r, b.r)}; }

// The first element's bit is the lowest.
inline unsigned bits_of(uint32x4_t mask) {
    const uint32x4_t bit = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(mask, bit));
}
inline unsigned bits_of(uint64x2_t mask) {
    const uint64x2_t bit = {1, 2};
    return static_cast<unsigned>(vaddvq_u64(vandq_u64(mask, bit)));
}

// All stores go through the caches.
constexpr bool has_streams = false;
inline void finish_streams() noexcept {}

// As many elements as a Vec<double> holds, as doubles.
inline Vec<double> widen(const float* p) { return {vcvt_f64_f32(vld1_f32(p))}; }
inline Vec<double> widen(const float* p, int n) {
    float lanes[2] = {};
    __builtin_memcpy(lanes, p, static_cast<unsigned>(n) * sizeof(float));
    return widen(lanes);
}
inline Vec<double> widen(const double* p) { return Vec<double>::load(p); }
inline Vec<double> widen(const double* p, int n) { return Vec<double>::load(p, n); }

// As many doubles as a Vec<float> has lanes.
struct Widened {
    float64x2_t low, high;

    static Widened load(const double* p) { return {vld1q_f64(p), vld1q_f64(p + 2)}; }
    void store(double* p) const {
        vst1q_f64(p, low);
        vst1q_f64(p + 2, high);
    }
    void add(Vec<float> v) {
        low = vaddq_f64(low, vcvt_f64_f32(vget_low_f32(v.r)));
        high = vaddq_f64(high, vcvt_high_f64_f32(v.r));
    }
};

// Elements of 16 bits, as floats, and back: as half.hpp does it.
inline uint16x4_t load_halves(const void* p) {
    uint16x4_t bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return bits;
}
inline Vec<float> load(const Half* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(load_halves(p)))}; }
inline Vec<float> load(const BFloat16* p) { return {vreinterpretq_f32_u32(vshll_n_u16(load_halves(p), 16))}; }
inline void store(Vec<float> v, Half* p) {
    const uint16x4_t bits = vreinterpret_u16_f16(vcvt_f16_f32(v.r));
    __builtin_memcpy(p, &bits, sizeof bits);
}
inline void store(Vec<float> v, BFloat16* p) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v.r), last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(last, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint16x4_t upper = vshrn_n_u32(vbslq_u32(vceqq_f32(v.r, v.r), rounded, quiet), 16);
    __builtin_memcpy(p, &upper, sizeof upper);
}
inline void stream(Vec<float> v, Half* p) { store(v, p); }
inline void stream(Vec<float> v, BFloat16* p) { store(v, p); }

}  // namespace
