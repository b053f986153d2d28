// Elements of memory, and what they are computed in.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "work.hpp"

namespace batchnorm::cuda {

struct Half {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};

template <class T>
struct ArithmeticOf {
    using type = float;
};
template <>
struct ArithmeticOf<double> {
    using type = double;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(Half v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ inline float widen(BFloat16 v) { return __bfloat162float(__ushort_as_bfloat16(v.bits)); }

template <class T>
__device__ T narrow(Arithmetic<T> v) {
    if constexpr (sizeof(T) > 2)
        return v;
    else if constexpr (std::is_same_v<T, Half>)
        return {__half_as_ushort(__float2half_rn(v))};
    else
        return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}

__device__ inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return fma(a, b, c); }

// An element that need not be aligned, as NumPy's may not be.
template <class T>
__device__ T load_element(const char* p) {
    if (reinterpret_cast<unsigned long long>(p) % sizeof(T) == 0) return *reinterpret_cast<const T*>(p);
    T value;
    char* const to = reinterpret_cast<char*>(&value);
    for (unsigned i = 0; i < sizeof(T); ++i) to[i] = p[i];
    return value;
}

template <class T>
__device__ void store_element(char* p, T value) {
    if (reinterpret_cast<unsigned long long>(p) % sizeof(T) == 0) {
        *reinterpret_cast<T*>(p) = value;
        return;
    }
    const char* const from = reinterpret_cast<const char*>(&value);
    for (unsigned i = 0; i < sizeof(T); ++i) p[i] = from[i];
}

}  // namespace batchnorm::cuda
