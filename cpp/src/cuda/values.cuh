// Per-statistic values as the user has them: of any type and strides, on the device.
#pragma once

#include "pack.cuh"

namespace batchnorm::cuda {

__device__ inline double load_double(const char* p, DType dtype) {
    switch (dtype) {
        case DType::f32: return static_cast<double>(load_element<float>(p));
        case DType::f64: return load_element<double>(p);
        case DType::f16: return static_cast<double>(widen(load_element<Half>(p)));
        case DType::bf16: return static_cast<double>(widen(load_element<BFloat16>(p)));
    }
    return 0;
}

// To the float beside it with an odd last bit, which lies on no tie of a 16-bit type: rounded twice, it is as if once.
__device__ inline float round_to_odd(double value) {
    const float nearest = static_cast<float>(value);
    const double back = static_cast<double>(nearest);
    unsigned bits;
    memcpy(&bits, &nearest, sizeof bits);
    if (back != value && value == value && bits % 2 == 0) bits += (back < value) == (bits >> 31 == 0) ? 1u : ~0u;
    float odd;
    memcpy(&odd, &bits, sizeof odd);
    return odd;
}

__device__ inline void store_double(char* p, DType dtype, double value) {
    switch (dtype) {
        case DType::f32: return store_element(p, static_cast<float>(value));
        case DType::f64: return store_element(p, value);
        case DType::f16: return store_element(p, narrow<Half>(round_to_odd(value)));
        case DType::bf16: return store_element(p, narrow<BFloat16>(round_to_odd(value)));
    }
}

// Of a statistic: its place in the kept axes' order.
__device__ __noinline__ inline int64_t place_of(const Box& box, int64_t g, int64_t c) {
    if (box.in_order) return g * box.channels() + c;
    const Level &groups = box.level[group], &channels = box.level[channel];
    return odometer(groups.size, box.kept_stride[0], groups.rank, g) +
           odometer(channels.size, box.kept_stride[1], channels.rank, c * box.plane);
}

// Where the value at a place is, in an array of this shape.
__device__ inline char* address_of(const Values& values, const int64_t (&shape)[max_rank], int rank, int64_t place) {
    return values.one_for_all ? values.data : values.data + odometer(shape, values.stride, rank, place);
}

__device__ __noinline__ inline double load_value(const Values& values, const Box& box, int64_t g, int64_t c,
                                                 double otherwise) {
    if (!values.data) return otherwise;
    return load_double(address_of(values, box.kept_shape, box.kept_rank, place_of(box, g, c)), values.dtype);
}

__device__ __noinline__ inline void store_value(const Values& values, const Box& box, int64_t g, int64_t c,
                                                double value) {
    if (!values.data || (values.one_for_all && (g != 0 || c != 0))) return;
    store_double(address_of(values, box.kept_shape, box.kept_rank, place_of(box, g, c)), values.dtype, value);
}

}  // namespace batchnorm::cuda
