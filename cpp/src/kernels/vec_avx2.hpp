// Vec for AVX2 with FMA and F16C: 8 floats or 4 doubles. The n-element forms touch no memory past n; loaded lanes past
// n are 0. stream() writes past the caches, to whole aligned vectors.
#pragma once

#include <immintrin.h>

#include "half.hpp"

namespace {

template <class T>
struct Vec;

inline __m256i first_lanes32(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_lanes64(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

template <>
struct Vec<float> {
    static constexpr int width = 8;
    using Mask = __m256;
    __m256 r;

    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, first_lanes32(n))}; }
    void store(float* p) const { _mm256_storeu_ps(p, r); }
    void store(float* p, int n) const { _mm256_maskstore_ps(p, first_lanes32(n), r); }
    void stream(float* p) const { _mm256_stream_ps(p, r); }
    static Vec all(float value) { return {_mm256_set1_ps(value)}; }
    // Zero past the first n lanes.
    Vec first(int n) const { return {_mm256_and_ps(r, _mm256_castsi256_ps(first_lanes32(n)))}; }
    // Whether all lanes are: what is not leaves a NaN when multiplied by 0.
    bool finite() const {
        const __m256 zero = _mm256_mul_ps(r, _mm256_setzero_ps());
        return _mm256_movemask_ps(_mm256_cmp_ps(zero, zero, _CMP_UNORD_Q)) == 0;
    }
    static Mask mask_of(unsigned bits) {
        const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i own = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit);
        return _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, bit));
    }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.r, b.r)}; }
inline Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm256_sub_ps(a.r, b.r)}; }
// a - b, by the units that do not convert, where there are such (AMD's).
inline Vec<float> difference(Vec<float> a, Vec<float> b) { return {_mm256_fmsub_ps(a.r, _mm256_set1_ps(1), b.r)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.r, b.r)}; }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {_mm256_fmadd_ps(a.r, b.r, c.r)}; }
inline __m256 above_zero(Vec<float> v) { return _mm256_cmp_ps(v.r, _mm256_setzero_ps(), _CMP_NLE_UQ); }
inline __m256 not_zero(Vec<float> v) { return _mm256_cmp_ps(v.r, _mm256_setzero_ps(), _CMP_NEQ_UQ); }
inline Vec<float> select(__m256 mask, Vec<float> a, Vec<float> b) { return {_mm256_blendv_ps(b.r, a.r, mask)}; }

template <>
struct Vec<double> {
    static constexpr int width = 4, chains = 4;
    using Mask = __m256d;
    __m256d r;

    static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
    static Vec load(const double* p, int n) { return {_mm256_maskload_pd(p, first_lanes64(n))}; }
    void store(double* p) const { _mm256_storeu_pd(p, r); }
    void store(double* p, int n) const { _mm256_maskstore_pd(p, first_lanes64(n), r); }
    void stream(double* p) const { _mm256_stream_pd(p, r); }
    static Vec all(double value) { return {_mm256_set1_pd(value)}; }
    static Mask mask_of(unsigned bits) {
        const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
        const __m256i own = _mm256_and_si256(_mm256_set1_epi64x(bits), bit);
        return _mm256_castsi256_pd(_mm256_cmpeq_epi64(own, bit));
    }
    // Zero past the first n lanes.
    Vec first(int n) const { return {_mm256_and_pd(r, _mm256_castsi256_pd(first_lanes64(n)))}; }
};

inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.r, b.r)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm256_sub_pd(a.r, b.r)}; }
inline Vec<double> difference(Vec<double> a, Vec<double> b) { return {_mm256_fmsub_pd(a.r, _mm256_set1_pd(1), b.r)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.r, b.r)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm256_fmadd_pd(a.r, b.r, c.r)}; }
inline __m256d above_zero(Vec<double> v) { return _mm256_cmp_pd(v.r, _mm256_setzero_pd(), _CMP_NLE_UQ); }
inline __m256d not_zero(Vec<double> v) { return _mm256_cmp_pd(v.r, _mm256_setzero_pd(), _CMP_NEQ_UQ); }
inline Vec<double> select(__m256d mask, Vec<double> a, Vec<double> b) { return {_mm256_blendv_pd(b.r, a.r, mask)}; }

// The first element's bit is the lowest.
inline unsigned bits_of(__m256 mask) { return static_cast<unsigned>(_mm256_movemask_ps(mask)); }
inline unsigned bits_of(__m256d mask) { return static_cast<unsigned>(_mm256_movemask_pd(mask)); }

// Stores past the caches become visible in no order of their own.
constexpr bool has_streams = true;
inline void finish_streams() noexcept { _mm_sfence(); }

// As many elements as a Vec<double> holds, as doubles.
inline Vec<double> widen(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
inline Vec<double> widen(const float* p, int n) {
    __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32(n), _mm_setr_epi32(0, 1, 2, 3));
    return {_mm256_cvtps_pd(_mm_maskload_ps(p, mask))};
}
inline Vec<double> widen(const double* p) { return Vec<double>::load(p); }
inline Vec<double> widen(const double* p, int n) { return Vec<double>::load(p, n); }

// As many doubles as a Vec<float> has lanes.
struct Widened {
    __m256d low, high;

    static Widened load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
    void store(double* p) const {
        _mm256_storeu_pd(p, low);
        _mm256_storeu_pd(p + 4, high);
    }
    void add(Vec<float> v) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(v.r)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(v.r, 1)));
    }
};

// Elements of 16 bits, as floats, and back: as half.hpp does it.
inline __m128i halves(Vec<float> v, const Half*) {
    return _mm256_cvtps_ph(v.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// To the upper 16 bits; a NaN may overflow.
inline __m256i rounded(__m256i bits) {
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
}
inline __m128i halves(Vec<float> v, const BFloat16*) {
    const __m256i bits = _mm256_castps_si256(v.r);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v.r, v.r, _CMP_UNORD_Q));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded(bits), quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}

inline __m128i load_halves(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Vec<float> load(const Half* p) { return {_mm256_cvtph_ps(load_halves(p))}; }
inline Vec<float> load(const BFloat16* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(p)), 16))};
}
template <class T>
void store_halves(Vec<float> v, T* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves(v, p));
}
inline void store(Vec<float> v, Half* p) { store_halves(v, p); }
inline void store(Vec<float> v, BFloat16* p) { store_halves(v, p); }
template <class T>
void stream_halves(Vec<float> v, T* p) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), halves(v, p));
}
inline void stream(Vec<float> v, Half* p) { stream_halves(v, p); }
inline void stream(Vec<float> v, BFloat16* p) { stream_halves(v, p); }

// As many of 16 bits as a Vec<double> holds, as doubles.
inline Vec<double> widen(const Half* p) {
    return {_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline Vec<double> widen(const BFloat16* p) {
    const __m128i words = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(words, 16)))};
}

// Two vectors, which are half a line.
template <class T>
    requires(sizeof(T) == 2)
void load_two(const T* p, Vec<float>& a, Vec<float>& b) {
    a = load(p);
    b = load(p + Vec<float>::width);
}

inline __m256i together(Vec<float> a, Vec<float> b, const Half* p) {
    return _mm256_set_m128i(halves(b, p), halves(a, p));
}
// A NaN is not looked for: one that came from 16 bits, or that an operation made, has no bits to round.
inline __m256i together(Vec<float> a, Vec<float> b, const BFloat16*) {
    const __m256i first = _mm256_srli_epi32(rounded(_mm256_castps_si256(a.r)), 16);
    const __m256i second = _mm256_srli_epi32(rounded(_mm256_castps_si256(b.r)), 16);
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), _MM_SHUFFLE(3, 1, 2, 0));
}
template <class T>
    requires(sizeof(T) == 2)
void store_two(Vec<float> a, Vec<float> b, T* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), together(a, b, p));
}
template <class T>
void stream_two(Vec<float> a, Vec<float> b, T* p) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), together(a, b, p));
}

}  // namespace
