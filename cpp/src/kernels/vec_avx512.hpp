// Vec for AVX-512 (F, VL): 16 floats or 4 doubles.
#pragma once

#include "vec_avx512_floats.hpp"

namespace {

// Doubles of 256 bits: a processor that splits wider instructions in two (Zen 4) converts them from floats in 4 / 5 of
// the time, and one that subtracts by fma beside that takes 2 / 3 for a sum (docs/performance.md).
template <>
struct Vec<double> {
    static constexpr int width = 4, chains = 8;
    using Mask = __mmask8;
    __m256d r;

    static __mmask8 first_lanes(int n) { return static_cast<__mmask8>((1u << n) - 1u); }

    static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
    static Vec load(const double* p, int n) { return {_mm256_maskz_loadu_pd(first_lanes(n), p)}; }
    void store(double* p) const { _mm256_storeu_pd(p, r); }
    void store(double* p, int n) const { _mm256_mask_storeu_pd(p, first_lanes(n), r); }
    void stream(double* p) const { _mm256_stream_pd(p, r); }
    static Vec all(double value) { return {_mm256_set1_pd(value)}; }
    static Mask mask_of(unsigned bits) { return static_cast<Mask>(bits & 0xf); }
    // Zero past the first n lanes.
    Vec first(int n) const { return {_mm256_maskz_mov_pd(first_lanes(n), r)}; }
};

inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.r, b.r)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm256_sub_pd(a.r, b.r)}; }
inline Vec<double> difference(Vec<double> a, Vec<double> b) { return {_mm256_fmsub_pd(a.r, _mm256_set1_pd(1), b.r)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.r, b.r)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm256_fmadd_pd(a.r, b.r, c.r)}; }
inline __mmask8 above_zero(Vec<double> v) { return _mm256_cmp_pd_mask(v.r, _mm256_setzero_pd(), _CMP_NLE_UQ); }
inline __mmask8 not_zero(Vec<double> v) { return _mm256_cmp_pd_mask(v.r, _mm256_setzero_pd(), _CMP_NEQ_UQ); }
inline Vec<double> select(__mmask8 mask, Vec<double> a, Vec<double> b) {
    return {_mm256_mask_blend_pd(mask, b.r, a.r)};
}

// As many elements as a Vec<double> holds, as doubles.
inline Vec<double> widen(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
inline Vec<double> widen(const float* p, int n) {
    return {_mm256_cvtps_pd(_mm_maskz_loadu_ps(Vec<double>::first_lanes(n), p))};
}
inline Vec<double> widen(const double* p) { return Vec<double>::load(p); }
inline Vec<double> widen(const double* p, int n) { return Vec<double>::load(p, n); }

// Elements of 16 bits, as floats, and back: as half.hpp does it.
inline __m256i halves(Vec<float> v, const Half*) {
    return _mm512_cvtps_ph(v.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// To the upper 16 bits; a NaN may overflow.
inline __m512i rounded(__m512i bits) {
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
}
inline __m256i halves(Vec<float> v, const BFloat16*) {
    const __m512i bits = _mm512_castps_si512(v.r);
    const __mmask16 nan = _mm512_cmp_ps_mask(v.r, v.r, _CMP_UNORD_Q);
    const __m512i chosen = _mm512_mask_or_epi32(rounded(bits), nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}

inline __m256i load_halves(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i load_halves(const void* p, int n) { return _mm256_maskz_loadu_epi16(Vec<float>::first_lanes(n), p); }
inline Vec<float> widened(__m256i elements, const Half*) { return {_mm512_cvtph_ps(elements)}; }
// Each to the upper half of a float; the lower one is 0.
inline __m512i spread() {
    return _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1,
                            0, 0, 0);
}
inline Vec<float> widened(__m256i elements, const BFloat16*) {
    const __m512i words = _mm512_castsi256_si512(elements);
    return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, spread(), words))};
}
inline Vec<float> load(const Half* p) { return widened(load_halves(p), p); }
inline Vec<float> load(const Half* p, int n) { return widened(load_halves(p, n), p); }
inline Vec<float> load(const BFloat16* p) { return widened(load_halves(p), p); }
inline Vec<float> load(const BFloat16* p, int n) { return widened(load_halves(p, n), p); }
template <class T>
void store_halves(Vec<float> v, T* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves(v, p));
}
template <class T>
void store_halves(Vec<float> v, T* p, int n) {
    _mm256_mask_storeu_epi16(p, Vec<float>::first_lanes(n), halves(v, p));
}
inline void store(Vec<float> v, Half* p) { store_halves(v, p); }
inline void store(Vec<float> v, Half* p, int n) { store_halves(v, p, n); }
inline void store(Vec<float> v, BFloat16* p) { store_halves(v, p); }
inline void store(Vec<float> v, BFloat16* p, int n) { store_halves(v, p, n); }
template <class T>
void stream_halves(Vec<float> v, T* p) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), halves(v, p));
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

// Two vectors, which are a line.
inline void load_two(const Half* p, Vec<float>& a, Vec<float>& b) {
    a = load(p);
    b = load(p + Vec<float>::width);
}
inline void load_two(const BFloat16* p, Vec<float>& a, Vec<float>& b) {
    const __m512i both = _mm512_loadu_si512(p), next = _mm512_add_epi16(spread(), _mm512_set1_epi16(16));
    a.r = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, spread(), both));
    b.r = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, next, both));
}

inline __m512i together(Vec<float> a, Vec<float> b, const Half* p) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(halves(a, p)), halves(b, p), 1);
}
// A NaN is not looked for: one that came from 16 bits, or that an operation made, has no bits to round.
inline __m512i together(Vec<float> a, Vec<float> b, const BFloat16*) {
    const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                                           25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(rounded(_mm512_castps_si512(a.r)), upper, rounded(_mm512_castps_si512(b.r)));
}
template <class T>
    requires(sizeof(T) == 2)
void store_two(Vec<float> a, Vec<float> b, T* p) {
    _mm512_storeu_si512(p, together(a, b, p));
}
template <class T>
void stream_two(Vec<float> a, Vec<float> b, T* p) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), together(a, b, p));
}

// The same of those in even places, and in odd ones, which takes no permutation.
inline void load_apart(const BFloat16* p, Vec<float>& even, Vec<float>& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even.r = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd.r = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-0x10000)));
}
inline __m512i interleaved(Vec<float> even, Vec<float> odd) {
    const __m512i lower = _mm512_srli_epi32(rounded(_mm512_castps_si512(even.r)), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, lower, rounded(_mm512_castps_si512(odd.r)));
}
inline void store_apart(Vec<float> even, Vec<float> odd, BFloat16* p) {
    _mm512_storeu_si512(p, interleaved(even, odd));
}
inline void stream_apart(Vec<float> even, Vec<float> odd, BFloat16* p) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), interleaved(even, odd));
}

}  // namespace
