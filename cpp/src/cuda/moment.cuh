// Mean and m2 = sum(w * (x - mean)^2) of values of weight n, and how they merge.
#pragma once

#include "element.cuh"

namespace batchnorm::cuda {

struct Moment {
    double n, mean, m2;
};

// Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
__device__ inline Moment merge(const Moment& a, const Moment& b) {
    if (b.n == 0) return a;
    if (a.n == 0) return b;
    // From the heavier mean: the way from the other one is nearly all of delta, which may be much larger. A division
    // takes longer than all the rest, and most that merge have as many values.
    const bool b_is_heavier = b.n > a.n;
    const double heavier = b_is_heavier ? b.mean : a.mean, delta = (b_is_heavier ? a.mean : b.mean) - heavier;
    const double n = a.n + b.n, share = a.n == b.n ? 0.5 : fmin(a.n, b.n) / n;
    return {n, fma(delta, share, heavier), a.m2 + fma(delta * delta, fmax(a.n, b.n) * share, b.m2)};
}

// Whether it was not to be had, or the values are not numbers.
__device__ inline bool is_odd(const Moment& m) { return m.m2 != m.m2; }

// Sums of two things, which merge by adding.
struct Sums {
    double of_dy, of_product;
};
__device__ inline bool is_odd(const Sums& s) { return s.of_product != s.of_product; }
__device__ inline Sums merge(const Sums& a, const Sums& b) { return {a.of_dy + b.of_dy, a.of_product + b.of_product}; }

// term(begin) + ... + term(begin + count - 1), pairwise: an error of a few roundings, and no chain of additions.
template <int begin, int count, class Term>
__device__ auto pairwise(const Term& term) {
    if constexpr (count == 1)
        return term(begin);
    else
        return pairwise<begin, count / 2>(term) + pairwise<begin + count / 2, count - count / 2>(term);
}

// The same of products: a(i) * b(i).
template <int begin, int count, class A, class B>
__device__ auto pairwise_products(const A& a, const B& b) {
    if constexpr (count == 1)
        return a(begin) * b(begin);
    else if constexpr (count == 2)
        return fused(a(begin), b(begin), a(begin + 1) * b(begin + 1));
    else
        return pairwise_products<begin, count / 2>(a, b) +
               pairwise_products<begin + count / 2, count - count / 2>(a, b);
}

// Beyond these a float has lost some of a sum of squares, or all: below, to numbers that it does not have.
__device__ inline bool keeps_squares(float squares) { return squares > 1e-26f && squares < 3e38f; }
__device__ inline bool keeps_squares(double) { return true; }

// The moment of values(0) to values(count - 1), so far as there(i): in registers, twice over, around one of them and
// then around their mean. If the type A of the arithmetic has not the numbers for it, m2 is NaN.
template <class A, int count, class Values, class There>
__device__ Moment moment_of(const Values& values, const There& there) {
    A pivot = values(0);
    int n = 0;
#pragma unroll
    for (int i = count - 1; i >= 0; --i)
        if (there(i)) {
            pivot = values(i);
            ++n;
        }
    if (n == 0) return {};
    const auto from = [&](A centre) { return [&, centre](int i) { return there(i) ? values(i) - centre : A(0); }; };
    const double size = n,
                 mean = static_cast<double>(pivot) + static_cast<double>(pairwise<0, count>(from(pivot))) / size;
    // The mean as A has it, and what that makes of the squares.
    const A centre = static_cast<A>(mean);
    const double off = mean - static_cast<double>(centre);
    const A squares = pairwise_products<0, count>(from(centre), from(centre));
    if (!keeps_squares(squares)) {
        bool constant = true;
#pragma unroll
        for (int i = 0; i < count; ++i) constant = constant && (!there(i) || values(i) == pivot);
        if (constant) return {size, static_cast<double>(pivot), 0};
        return {size, mean, nan("")};
    }
    const double m2 = fma(-size * off, off, static_cast<double>(squares));
    return {size, mean, m2 < 0 ? 0 : m2};
}

// The same in double, of values with weights, around the one that has the most: those of weight 0 are left out.
template <int count, class Values, class Weights>
__device__ Moment weighted_moment_of(const Values& values, const Weights& weights) {
    double n = 0, sum = 0, pivot = 0, most = 0, m2 = 0;
#pragma unroll
    for (int i = 0; i < count; ++i)
        if (const double w = static_cast<double>(weights(i)); w > most) {
            most = w;
            pivot = static_cast<double>(values(i));
        }
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const double w = static_cast<double>(weights(i));
        if (w > 0) {
            n += w;
            sum = fma(w, static_cast<double>(values(i)) - pivot, sum);
        }
    }
    if (n == 0) return {};
    const double shift = sum / n;
#pragma unroll
    for (int i = 0; i < count; ++i) {
        const double w = static_cast<double>(weights(i)), difference = static_cast<double>(values(i)) - pivot - shift;
        if (w > 0) m2 = fma(w * difference, difference, m2);
    }
    return {n, pivot + shift, m2};
}

}  // namespace batchnorm::cuda
