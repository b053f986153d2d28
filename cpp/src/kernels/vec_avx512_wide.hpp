// Vec for AVX-512 (F, VL): 16 floats or 8 doubles, for processors whose units of 512 bits are no two halves. Intel's
// have a unit less for instructions of 256 bits beside those of 512: forward within L2 takes up to 1.27 times as long
// with sums by these. Zen 5 has as many for either (docs/experiments.md).
#pragma once

#include "vec_avx512_floats.hpp"

namespace {

template <>
struct Vec<double> {
    static constexpr int width = 8, chains = 4;
    using Mask = __mmask8;
    __m512d r;

    static __mmask8 first_lanes(int n) { return static_cast<__mmask8>((1u << n) - 1u); }

    static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
    static Vec load(const double* p, int n) { return {_mm512_maskz_loadu_pd(first_lanes(n), p)}; }
    void store(double* p) const { _mm512_storeu_pd(p, r); }
    void store(double* p, int n) const { _mm512_mask_storeu_pd(p, first_lanes(n), r); }
    void stream(double* p) const { _mm512_stream_pd(p, r); }
    static Vec all(double value) { return {_mm512_set1_pd(value)}; }
    static Mask mask_of(unsigned bits) { return static_cast<Mask>(bits & 0xff); }
    // Zero past the first n lanes.
    Vec first(int n) const { return {_mm512_maskz_mov_pd(first_lanes(n), r)}; }
};

inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.r, b.r)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm512_sub_pd(a.r, b.r)}; }
inline Vec<double> difference(Vec<double> a, Vec<double> b) { return {_mm512_fmsub_pd(a.r, _mm512_set1_pd(1), b.r)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.r, b.r)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {_mm512_fmadd_pd(a.r, b.r, c.r)}; }
inline __mmask8 above_zero(Vec<double> v) { return _mm512_cmp_pd_mask(v.r, _mm512_setzero_pd(), _CMP_NLE_UQ); }
inline __mmask8 not_zero(Vec<double> v) { return _mm512_cmp_pd_mask(v.r, _mm512_setzero_pd(), _CMP_NEQ_UQ); }
inline Vec<double> select(__mmask8 mask, Vec<double> a, Vec<double> b) {
    return {_mm512_mask_blend_pd(mask, b.r, a.r)};
}

// As many elements as a Vec<double> holds, as doubles.
inline Vec<double> widen(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
inline Vec<double> widen(const float* p, int n) {
    return {_mm512_cvtps_pd(_mm256_maskz_loadu_ps(Vec<double>::first_lanes(n), p))};
}
inline Vec<double> widen(const double* p) { return Vec<double>::load(p); }
inline Vec<double> widen(const double* p, int n) { return Vec<double>::load(p, n); }

}  // namespace
