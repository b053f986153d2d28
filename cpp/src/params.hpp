// Per-statistic values: the user's, of the kept axes' shape in x's order, and ours, float64 in the box's order.
#pragma once

#include "box.hpp"

namespace batchnorm {

// One value for each statistic, or one for all.
struct Column {
    const double* data = nullptr;
    double same = 0;
    double operator[](int64_t statistic) const noexcept { return data ? data[statistic] : same; }
};

inline bool absent(const Param& param) noexcept { return !param.data && param.rank == 0; }
inline bool absent(const MutParam& param) noexcept { return !param.data && param.rank == 0; }

// param's values, into memory for box.statistics() of them, if it has more than one; `otherwise` where it is absent.
Column load_column(const Box& box, const Param& param, double otherwise, double* memory) noexcept;

// The same as an array.
const double* load_array(const Box& box, const Param& param, double* memory) noexcept;

// Writes param, unless it is absent. A param of rank 0 gets the first value.
void store_column(const Box& box, const Column& values, const MutParam& param) noexcept;

// n values of a param in C order, from the first-th on, and back; a param of rank 0 is all of them.
void load_values(const Param& param, int64_t first, int64_t n, double* values) noexcept;
void store_values(const MutParam& param, int64_t first, int64_t n, const double* values) noexcept;

// Writes values in C order, unless param is absent.
void copy_out(const double* values, const MutParam& param) noexcept;

// Writes one value everywhere, unless param is absent.
void fill(const MutParam& param, double value) noexcept;

// A number as it is in the arithmetic of elements of this type.
double in_arithmetic(DType dtype, double value) noexcept;

// That of rank 0.
double only_value(const Param& param) noexcept;
// The least value, if any is below 0, or 0 where all must be positive; else 1. A NaN is passed over.
double least_value(const Param& param, bool positive) noexcept;
// A value that is not finite, else the least one below 0, else 0.
double unfit_weight(const Param& param) noexcept;
// Whether the inverse of each value is finite in this type.
bool all_invertible(const Param& param, DType dtype) noexcept;

}  // namespace batchnorm
