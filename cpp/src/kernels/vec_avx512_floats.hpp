// Vec for AVX-512 (F, VL): 16 floats. The n-element forms touch no memory past n; loaded lanes past n are 0. What holds
// doubles, vec_avx512.hpp and vec_avx512_wide.hpp add.
#pragma once

#include <immintrin.h>

#include "half.hpp"

namespace {

template <class T>
struct Vec;

template <>
struct Vec<float> {
    static constexpr int width = 16;
    using Mask = __mmask16;
    __m512 r;

    static __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
    void store(float* p) const { _mm512_storeu_ps(p, r); }
    void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first_lanes(n), r); }
    void stream(float* p) const { _mm512_stream_ps(p, r); }
    static Vec all(float value) { return {_mm512_set1_ps(value)}; }
    // Zero past the first n lanes.
    Vec first(int n) const { return {_mm512_maskz_mov_ps(first_lanes(n), r)}; }
    // Whether all lanes are: what is not leaves a NaN when multiplied by 0.
    bool finite() const {
        const __m512 zero = _mm512_mul_ps(r, _mm512_setzero_ps());
        return _mm512_cmp_ps_mask(zero, zero, _CMP_UNORD_Q) == 0;
    }
    static Mask mask_of(unsigned bits) { return static_cast<Mask>(bits); }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.r, b.r)}; }
inline Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.r, b.r)}; }
// a - b, by the units that do not convert.
inline Vec<float> difference(Vec<float> a, Vec<float> b) { return {_mm512_fmsub_ps(a.r, _mm512_set1_ps(1), b.r)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.r, b.r)}; }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm512_fmadd_ps(a.r, b.r, c.r)}; }
inline __mmask16 above_zero(Vec<float> v) { return _mm512_cmp_ps_mask(v.r, _mm512_setzero_ps(), _CMP_NLE_UQ); }
inline __mmask16 not_zero(Vec<float> v) { return _mm512_cmp_ps_mask(v.r, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
inline Vec<float> select(__mmask16 mask, Vec<float> a, Vec<float> b) { return {_mm512_mask_blend_ps(mask, b.r, a.r)}; }

// Nothing, but the compiler cannot know.
template <class T>
Vec<T> whole(Vec<T> v) {
    __asm__("" : "+v"(v.r));
    return v;
}

// The first element's bit is the lowest.
inline unsigned bits_of(__mmask16 mask) { return mask; }
inline unsigned bits_of(__mmask8 mask) { return mask; }

// Stores past the caches become visible in no order of their own.
constexpr bool has_streams = true;
inline void finish_streams() noexcept { _mm_sfence(); }

// As many doubles as a Vec<float> has lanes.
struct Widened {
    __m512d low, high;

    static Widened load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
    void store(double* p) const {
        _mm512_storeu_pd(p, low);
        _mm512_storeu_pd(p + 8, high);
    }
    void add(Vec<float> v) {
        low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(v.r)));
        high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v.r), 1))));
    }
};

}  // namespace
