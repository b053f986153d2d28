// Conversions to nearest, ties to even. In runtime.cpp, so that the CPU kernels' names do not get into .cu files.
#pragma once

struct __half {
    unsigned short bits;
};

float __half2float(__half value);
__half __float2half_rn(float value);
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
