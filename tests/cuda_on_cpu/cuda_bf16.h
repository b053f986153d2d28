// Conversions to nearest, ties to even. In runtime.cpp, so that the CPU kernels' names do not get into .cu files.
#pragma once

struct __nv_bfloat16 {
    unsigned short bits;
};

float __bfloat162float(__nv_bfloat16 value);
__nv_bfloat16 __float2bfloat16_rn(float value);
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
