// The kernel table of one instruction set: include its Vec first, then this. Everything but the table has internal
// linkage, and no shared inline function is used: one compiled with these flags, merged by the linker with the same
// function compiled without them, would crash older processors.
#pragma once

#include "alternate-inl.hpp"
#include "expand-inl.hpp"
#include "grad_sums-inl.hpp"
#include "input_grad-inl.hpp"
#include "moments-inl.hpp"
#include "normalize-inl.hpp"
#include "table.hpp"

namespace {

template <class T>
constexpr batchnorm::kernels::TypeKernels type_kernels = {
    moments_row<T>,
    moments_lane<T>,
    grad_sums_row<T>,
    grad_sums_lane<T>,
    {write<T, Pattern::row, Normalizer>, write<T, Pattern::lane, Normalizer>},
    {write<T, Pattern::row, InputGradient>, write<T, Pattern::lane, InputGradient>},
    alternate<T, RowMoments<T>, Normalizer>,
    alternate<T, RowGradSums<T>, Normalizer>,
    alternate<T, RowGradSums<T>, InputGradient>,
    expand<Arithmetic<T>>,
    finish_streams,
};

constexpr batchnorm::kernels::KernelTable table = {type_kernels<float>, type_kernels<double>, type_kernels<Half>,
                                                   type_kernels<BFloat16>};

}  // namespace
