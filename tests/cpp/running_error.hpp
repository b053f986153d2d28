// Formulas that tell how far the library's results may be from theirs, by running error analysis.
#pragma once

#include "reference.hpp"

#include <cmath>
#include <vector>

// A number and how far the library's may be from it: each operation of a formula rounds, and the terms of a sum may be
// added in any order. u is half a unit in the last place of the arithmetic in use: float64 for sums and coefficients,
// the elements' for the rest.
inline double u = reference::u64;
struct Number {
    double value = 0, error = 0;
};
using Numbers = std::vector<Number>;
inline Number exact(double value) { return {value, 0}; }
inline Number rounded(Number a) { return {a.value, a.error + u * std::fabs(a.value)}; }
inline Number operator+(Number a, Number b) {
    return {a.value + b.value, a.error + b.error + u * (std::fabs(a.value) + std::fabs(b.value))};
}
inline Number operator*(Number a, Number b) {
    const double error = std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error;
    return rounded({a.value * b.value, error});
}
inline Number operator-(Number a) { return {-a.value, a.error}; }
inline Number operator-(Number a, Number b) { return a + -b; }
inline Number operator/(Number a, double b) { return a * Number{1 / b, reference::u64 / std::fabs(b)}; }
// A difference from a mean, of which the library has as many digits as of two numbers: it is rounded, the mean is not.
inline Number centred(Number x, Number mean) {
    const double d = x.value - mean.value;
    return {d, x.error + mean.error + u * std::fabs(d) + 2 * u * u * std::fabs(mean.value)};
}

// A sum's error is a share of the sizes of its terms. Terms may be larger than they are here, by `apart`: those around
// a mean of 16 bits are.
struct Sum {
    double value = 0, error = 0, size = 0;
    void add(Number term, double apart = 0) {
        value += term.value;
        error += term.error;
        size += std::fabs(term.value) + apart;
    }
    Number total(double sum_error) const { return {value, error + sum_error * size}; }
};
