// Two sums over the same elements, which is what both reductions are.
//
// float and double elements are added up in float64. What is loaded of 16 bits is float, and is added up in float over
// short runs: its sums lose little there, and take half the instructions (docs/numerics.md).
#pragma once

#include "rows-inl.hpp"

namespace {

// The type that elements of type T are added up in first.
template <class T>
struct RunOf {
    using type = double;
};
template <class T>
    requires is_half<T>
struct RunOf<T> {
    using type = float;
};
template <class T>
using Run = typename RunOf<T>::type;

// Elements as numbers of type R, as many as its vector holds.
template <class R, class T, class... Left>
Vec<R> summand(const T* p, Left... left) {
    if constexpr (__is_same(R, double))
        return widen(p, left...);
    else
        return load(p, left...);
}

// Where sums go: an accumulator for each lane.
struct Accumulators {
    double *first, *second;
};

template <class R>
struct TwoSums {
    Vec<R> first, second;

    static TwoSums zero() { return {Vec<R>::all(0), Vec<R>::all(0)}; }
    template <class... Left>
    static TwoSums load(Accumulators from, Left... left) {
        return {Vec<R>::load(from.first, left...), Vec<R>::load(from.second, left...)};
    }
    template <class... Left>
    void store(Accumulators to, Left... left) const {
        first.store(to.first, left...);
        second.store(to.second, left...);
    }

    void add_difference(Vec<R> difference) {
        first = first + difference;
        second = fma(difference, difference, second);
    }
    void add_product(Vec<R> gradient, Vec<R> difference) {
        first = first + gradient;
        second = fma(gradient, difference, second);
    }
};

inline void add_to(Accumulators to, const TwoSums<float>& sums) {
    constexpr int width = Vec<float>::width;
    float first[width], second[width];
    sums.first.store(first);
    sums.second.store(second);
    for (int lane = 0; lane < width; ++lane) to.first[lane] += static_cast<double>(first[lane]);
    for (int lane = 0; lane < width; ++lane) to.second[lane] += static_cast<double>(second[lane]);
}

// Adds rows up in registers, runs of them in Run<T>.
template <class T>
class RowOfSums {
  public:
    explicit RowOfSums(Accumulators to) : to_(to) {
        if constexpr (!is_half<T>)
            for (int k = 0; k < chains; ++k) sums_[k] = TwoSums<double>::load(at(k));
    }

    // Elements of a row, from a multiple of row_alignment to another one, or to the row's end: add(sums, i) adds a
    // vector of them from the i-th on, add(sums, i, left) the `left` last ones.
    template <class Add>
    [[gnu::always_inline]] void add(int64_t begin, int64_t end, const Add& add) {
        if constexpr (is_half<T>) {
            for (int64_t i = begin; i < end; i += batchnorm::kernels::half_row_run) {
                const int64_t next = i + batchnorm::kernels::half_row_run, until = next < end ? next : end;
                TwoSums<float> sums[chains];
                for (TwoSums<float>& sum : sums) sum = TwoSums<float>::zero();
                add_vectors(sums, i, until, add);
                Vec<float> all = Vec<float>::all(0);
                for (int k = 0; k < ends; ++k) {
                    for (int other = k + ends; other < chains; other += ends)
                        sums[k] = {sums[k].first + sums[other].first, sums[k].second + sums[other].second};
                    all = all + (sums[k].first + sums[k].second);
                }
                if (all.finite())
                    for (int k = 0; k < ends; ++k) add_to(at(k), sums[k]);
                else
                    add_once_more(i, until, add);
            }
        } else {
            add_vectors(sums_, begin, end, add);
        }
    }

    void store() const {
        if constexpr (!is_half<T>)
            for (int k = 0; k < chains; ++k) sums_[k].store(at(k));
    }

  private:
    using R = Run<T>;
    static constexpr int width = Vec<R>::width;
    static constexpr int accumulators = batchnorm::kernels::row_accumulators;
    // Independent additions in flight, to cover their latency; and so that few roundings of float follow each other.
    static constexpr int chains = is_half<T> && width == 1 ? accumulators : 4;
    static constexpr int ends = chains * width > accumulators ? accumulators / width : chains;  // of a run in float
    static_assert(is_half<T> || ends == chains);

    template <class Add>
    [[gnu::always_inline]] static void add_vectors(TwoSums<R> (&sums)[chains], int64_t begin, int64_t end,
                                                   const Add& add) {
        int64_t i = begin;
        for (; i + chains * width <= end; i += chains * width) {
            for (int k = 0; k < chains; ++k) add(sums[k], i + k * width);
        }
        // Unrolled, so that the sums stay in registers.
#pragma GCC unroll 8
        for (int k = 0; k < chains; ++k) {
            const int64_t left = end - i - k * width;
            if (left >= width)
                add(sums[k], i + k * width);
            else if (left > 0)
                add(sums[k], i + k * width, static_cast<int>(left));
        }
    }

    // A run whose sums in float have overflowed, or which met an infinity or a NaN.
    template <class Add>
    [[gnu::noinline]] void add_once_more(int64_t begin, int64_t end, const Add& add) const {
        auto sums = TwoSums<double>::load(to_);
        for (int64_t i = begin; i < end; i += Vec<double>::width) {
            if (i + Vec<double>::width <= end)
                add(sums, i);
            else
                add(sums, i, static_cast<int>(end - i));
        }
        sums.store(to_);
    }

    Accumulators at(int k) const { return {to_.first + k * width, to_.second + k * width}; }

    const Accumulators to_;
    TwoSums<R> sums_[chains];
};

// Elements of a vector, or those that are left.
template <int width>
constexpr int lanes_of() {
    return width;
}
template <int width>
constexpr int lanes_of(int left) {
    return left;
}

// step(begin, end) for runs of a block's rows. The rows that are left of whole blocks are runs of one: where there are
// few in all, no others would take off what a single rounding of their sum adds.
template <class T, int run, class Rows, class Step>
[[gnu::always_inline]] inline void for_each_run(Rows rows, const Step& step) {
    constexpr int most = !is_half<T> || !__is_same(Rows, int) ? run : 1;
    for (int begin = 0; begin < rows; begin += most) step(begin, begin + most < rows ? begin + most : +rows);
}

// A run of lanes: the sums that it starts with, and the accumulators that they go to.
template <class T, class... Left>
TwoSums<Run<T>> begin_run(Accumulators from, Left... left) {
    if constexpr (is_half<T>)
        return TwoSums<float>::zero();
    else
        return TwoSums<double>::load(from, left...);
}

// A lane whose sums in float have overflowed, or which met an infinity or a NaN, is added up once more, and it alone:
// exact(sums, lane) adds it to the first lane of sums.
template <class T, class Exact, class... Left>
[[gnu::always_inline]] inline void end_run(const TwoSums<Run<T>>& sums, Accumulators to, const Exact& exact,
                                           Left... left) {
    if constexpr (!is_half<T>) {
        sums.store(to, left...);
    } else if (sizeof...(left) == 0 && (sums.first + sums.second).finite()) {
        add_to(to, sums);
    } else {
        constexpr int width = Vec<float>::width;
        float first[width], second[width];
        sums.first.store(first);
        sums.second.store(second);
        for (int lane = 0; lane < lanes_of<width>(left...); ++lane) {
            const Accumulators own{to.first + lane, to.second + lane};
            if (__builtin_isfinite(first[lane] + second[lane])) {
                *own.first += static_cast<double>(first[lane]);
                *own.second += static_cast<double>(second[lane]);
            } else {
                auto sums_of_lane = TwoSums<double>::load(own, 1);
                exact(sums_of_lane, lane);
                sums_of_lane.store(own, 1);
            }
        }
    }
}

}  // namespace
