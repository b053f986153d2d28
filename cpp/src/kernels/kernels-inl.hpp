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
#include "weighted_moments-inl.hpp"

namespace {

template <class T>
constexpr batchnorm::kernels::FlavourKernels plain_kernels = {
    reduce_rows<T, RowGradSums<T, Flavour::plain>>,
    grad_sums_lane<T, Flavour::plain>,
    {write_plain<T, Pattern::row, Normalizer>, write_plain<T, Pattern::lane, Normalizer>},
    {write_plain<T, Pattern::row, InputGradient>, write_plain<T, Pattern::lane, InputGradient>},
    alternate_plain<T, RowMoments<T>, Normalizer>,
    alternate_plain<T, RowGradSums<T, Flavour::plain>, Normalizer>,
    alternate_plain<T, RowGradSums<T, Flavour::plain>, InputGradient>,
};

template <class T>
constexpr batchnorm::kernels::FlavourKernels full_kernels = {
    row_grad_sums_full<T>,
    lane_grad_sums_full<T>,
    {write_full<T, Pattern::row, Normalizer>, write_full<T, Pattern::lane, Normalizer>},
    {write_full<T, Pattern::row, InputGradient>, write_full<T, Pattern::lane, InputGradient>},
    alternate_full<T, MomentsOf, Normalizer>,
    nullptr,  // no call scales alone in the full flavour
    alternate_full<T, RowGradSums, InputGradient>,
};

template <class T>
constexpr batchnorm::kernels::TypeKernels type_kernels = {
    reduce_rows<T, RowMoments<T>>, moments_lane<T>,  weighted_moments_row<T>,
    weighted_moments_lane<T>,      plain_kernels<T>, full_kernels<T>,
    expand<Arithmetic<T>>,         finish_streams,
};

// Of float, double, Half and BFloat16.
template <class... T>
constexpr batchnorm::kernels::KernelTable table_of = {type_kernels<T>...};

}  // namespace
