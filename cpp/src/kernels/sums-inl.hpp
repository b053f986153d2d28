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

    Accumulators at(int64_t lane) const { return {first + lane, second + lane}; }
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

    void operator+=(const TwoSums& other) {
        first = first + other.first;
        second = second + other.second;
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

// Adds up some terms, a power of two, as accumulators are: the upper half of them to the lower one, and so on. What is
// left is the first one.
template <int count, class Terms>
[[gnu::always_inline]] inline void add_up(Terms* terms) {
    if constexpr (count > 1) {
#pragma GCC unroll 16
        for (int i = 0; i < count / 2; ++i) terms[i] += terms[i + count / 2];
        add_up<count / 2>(terms);
    }
}
// That of a vector's lanes.
template <class Lanes>
[[gnu::always_inline]] inline double total(const Lanes& lanes) {
    double numbers[sizeof lanes / sizeof(double)];
    lanes.store(numbers);
    add_up<sizeof numbers / sizeof(double)>(numbers);
    return numbers[0];
}

// Sums in float64 of the lanes of a vector of floats.
struct WideSums {
    Widened first, second;

    static WideSums zero() {
        constexpr double zeros[Vec<float>::width] = {};
        return {Widened::load(zeros), Widened::load(zeros)};
    }
    static WideSums load(Accumulators from) { return {Widened::load(from.first), Widened::load(from.second)}; }
    void store(Accumulators to) const {
        first.store(to.first);
        second.store(to.second);
    }
    void add(const TwoSums<float>& run) {
        first.add(run.first);
        second.add(run.second);
    }
};

// add(sums, row) for the rows of a run, or the vectors of one of a row. In float chains of so many are added up, and
// their sums in pairs: a term that outweighs all others is rounded with no more of them.
template <class T, int chain, int vectors, class Rows, class Add>
[[gnu::always_inline]] inline void add_run(TwoSums<Run<T>> (&sums)[vectors], int begin, Rows rows, const Add& add) {
    if constexpr (is_half<T> && known<Rows> > chain) {
        constexpr Count<known<Rows> / 2> half;
        add_run<T, chain>(sums, begin, half, add);
        TwoSums<float> others[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) others[v] = TwoSums<float>::zero();
        add_run<T, chain>(others, begin + half, half, add);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[v] += others[v];
    } else {
        for (int row = begin; row < begin + rows; ++row) add(sums, row);
    }
}

using RowSumsTo = batchnorm::kernels::RowSumsTo<2>;

inline Accumulators accumulators_of(const RowSumsTo& to, int64_t row) {
    constexpr int each = batchnorm::kernels::row_accumulators;
    double* const first = to.accumulators + (to.next_channel ? row * 2 * each : 0);
    return {first, first + each};
}

// Adds rows of a channel up in registers: the `row`-th one of a call, and others.
template <class T, int chain>
class RowOfSums {
  public:
    RowOfSums(const RowSumsTo& to, int64_t row) : to_(to), row_(row) {
        for (int k = 0; k < chains; ++k) sums_[k] = to.begins ? TwoSums<double>::zero() : TwoSums<double>::load(at(k));
    }

    // Elements of a row, from a multiple of row_alignment to another one, or to the row's end: add(sums, i) adds a
    // vector of them from the i-th on, add(sums, i, left) the `left` last ones; fetch(bytes) is called before each so
    // many of them.
    template <class Add, class Fetch>
    [[gnu::always_inline]] void add(int64_t begin, int64_t end, const Add& add, const Fetch& fetch) {
        // Unrolled, so that the sums stay in registers.
        int64_t i = begin;
        for (; i + chains * width <= end; i += chains * width) {
            fetch(Count<chains * width* static_cast<int>(sizeof(T))>{});
#pragma GCC unroll 8
            for (int k = 0; k < chains; ++k) add(sums_[k], i + k * width);
        }
#pragma GCC unroll 8
        for (int k = 0; k < chains; ++k) {
            const int64_t left = end - i - k * width;
            if (left >= width)
                add(sums_[k], i + k * width);
            else if (left > 0)
                add(sums_[k], i + k * width, static_cast<int>(left));
        }
    }

    void store() {
        if (!to_.ends) {
            for (int k = 0; k < chains; ++k) sums_[k].store(at(k));
            return;
        }
        add_up<chains>(sums_);
        to_.totals[0][row_] = total(sums_[0].first);
        to_.totals[1][row_] = total(sums_[0].second);
    }

  private:
    static constexpr int width = Vec<double>::width, chains = Vec<double>::chains;  // to cover an addition's latency
    static_assert(chains * width <= batchnorm::kernels::row_accumulators);

    Accumulators at(int k) const { return accumulators_of(to_, row_).at(k * width); }

    const RowSumsTo& to_;
    const int64_t row_;
    TwoSums<double> sums_[chains];
};

// The same in runs of a few vectors that are added up in float. What is left at a row's end are shorter ones.
template <class T, int chain>
    requires is_half<T>
class RowOfSums<T, chain> {
  public:
    RowOfSums(const RowSumsTo& to, int64_t row)
        : to_(to), row_(row), sums_(to.begins ? WideSums::zero() : WideSums::load(accumulators_of(to, row))) {}

    template <class Add, class Fetch>
    [[gnu::always_inline]] void add(int64_t begin, int64_t end, const Add& add, const Fetch& fetch) {
        int64_t i = begin;
        for (; i + run * width <= end; i += run * width) {
            fetch(Count<run * width* static_cast<int>(sizeof(T))>{});
            add_vectors(Count<run>{}, i, add);
        }
        add_rest(Count<run / 2>{}, i, end, add);
    }

    void store() const {
        if (!to_.ends) return sums_.store(accumulators_of(to_, row_));
        to_.totals[0][row_] = total(sums_.first);
        to_.totals[1][row_] = total(sums_.second);
    }

  private:
    static constexpr int width = Vec<float>::width, run = 8;
    static_assert(batchnorm::kernels::half_row_run % (run * width) == 0);

    template <int vectors, class Add>
    [[gnu::always_inline]] void add_vectors(Count<vectors> many, int64_t i, const Add& add) {
        TwoSums<float> sums[1] = {TwoSums<float>::zero()};
        add_run<T, chain>(sums, 0, many, [&](TwoSums<float>(&to)[1], int k) __attribute__((always_inline)) {
            add(to[0], i + k * width);
        });
        end_run(sums[0], i, i + vectors * width, add);
    }

    template <int vectors, class Add>
    [[gnu::always_inline]] void add_rest(Count<vectors> many, int64_t i, int64_t end, const Add& add) {
        if (i + vectors * width <= end) {
            add_vectors(many, i, add);
            i += vectors * width;
        }
        if constexpr (vectors > 1) {
            add_rest(Count<vectors / 2>{}, i, end, add);
        } else if (i < end) {
            auto sums = TwoSums<float>::zero();
            add(sums, i, static_cast<int>(end - i));
            end_run(sums, i, end, add);
        }
    }

    template <class Add>
    [[gnu::always_inline]] void end_run(const TwoSums<float>& sums, int64_t begin, int64_t end, const Add& add) {
        if ((sums.first + sums.second).finite())
            sums_.add(sums);
        else
            add_once_more(begin, end, add);
    }

    // A run whose sums in float have overflowed, or which met an infinity or a NaN.
    template <class Add>
    [[gnu::noinline]] void add_once_more(int64_t begin, int64_t end, const Add& add) {
        constexpr int wide = Vec<double>::width;
        const Accumulators memory = accumulators_of(to_, row_);
        sums_.store(memory);
        auto sums = TwoSums<double>::load(memory);
        for (int64_t i = begin; i < end; i += wide) {
            if (i + wide <= end)
                add(sums, i);
            else
                add(sums, i, static_cast<int>(end - i));
        }
        sums.store(memory);
        sums_ = WideSums::load(memory);
    }

    const RowSumsTo& to_;
    const int64_t row_;
    WideSums sums_;
};

// Lines that are fetched one after the other, from a number of bytes behind elements of a row on; 0: none.
class LinesAhead {
  public:
    template <class T>
    LinesAhead(const T* elements, int64_t ahead)
        : at_(fetches_ahead(ahead) ? reinterpret_cast<const char*>(elements) + ahead : nullptr) {}

    template <int bytes>
    [[gnu::always_inline]] void fetch() {
        if (!has_streams || !at_) return;
        for (int line = 0; line < bytes; line += 64) prefetch(at_ + line);
        at_ += bytes;
    }

  private:
    const char* at_;
};

// How much of a row is read before it is looked up once more what to fetch, or before another row is written.
template <class T>
constexpr int64_t turn_of = 1024 / static_cast<int>(sizeof(T));
static_assert(turn_of<double> % batchnorm::kernels::row_alignment == 0);
static_assert(turn_of<float> % batchnorm::kernels::row_alignment == 0);
static_assert(1024 / 2 % batchnorm::kernels::half_row_run == 0);

// What is done beside adding up, every so many bytes: nothing.
struct Nothing {
    template <class Bytes>
    void operator()(Bytes) const {}
};

// The kernel of a reader: Reader adds rows of a channel up.
template <class T, class Reader>
void reduce_rows(const typename Reader::Args& args) noexcept {
    const int64_t step = fetches_ahead(args.ahead) ? turn_of<T> : args.n;
    for (int64_t row = 0; row < args.rows;) {
        Reader reader(args, row);
        do {
            int64_t i = 0;
            do {
                const int64_t end = args.n - i < step ? args.n : i + step;
                reader.add(row, i, end);
                i = end;
            } while (has_streams && i < args.n);  // without, a row is one step
            ++row;
        } while (row < args.rows && !args.to.next_channel);
        reader.store();
    }
}

// step(begin, rows) for the runs of a block's rows: all of them, or of 16 bits so many. Those that are left of whole
// blocks are then runs of one: where there are few in all, no others would take off what a single rounding of their sum
// adds.
template <class T, int run, class Rows, class Step>
[[gnu::always_inline]] inline void for_each_run(Rows rows, const Step& step) {
    constexpr int most = known<Rows> ? run : 1;
    if constexpr (is_half<T>)
        for (int row = 0; row < rows; row += most) step(row, Count<most>{});
    else
        step(0, rows);
}

// The sums of lanes, some vectors or those that are left of one, while runs of rows are added to them. All loops over
// vectors are unrolled: what is looked up by a variable index cannot stay in registers.
template <class T, int vectors>
struct LaneSums {
    TwoSums<double> sums[vectors];

    static constexpr int width = Vec<double>::width;

    template <class... Left>
    [[gnu::always_inline]] void load(Accumulators from, Left... left) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[v] = TwoSums<double>::load(from.at(v * width), left...);
    }
    template <class... Left>
    [[gnu::always_inline]] void store(Accumulators to, Left... left) const {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[v].store(to.at(v * width), left...);
    }
    [[gnu::always_inline]] void begin_run(TwoSums<double> (&run)[vectors]) const {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) run[v] = sums[v];
    }
    template <class Exact, class... Left>
    [[gnu::always_inline]] void end_run(const TwoSums<double> (&run)[vectors], Accumulators, const Exact&, Left...) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[v] = run[v];
    }
};

template <class T, int vectors>
    requires is_half<T>
struct LaneSums<T, vectors> {
    WideSums sums[vectors];

    static constexpr int width = Vec<float>::width;

    [[gnu::always_inline]] void load(Accumulators from) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[v] = WideSums::load(from.at(v * width));
    }
    [[gnu::always_inline]] void store(Accumulators to) const {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sums[v].store(to.at(v * width));
    }
    // Those that are left stay in memory.
    void load(Accumulators, int) {}
    void store(Accumulators, int) const {}

    [[gnu::always_inline]] void begin_run(TwoSums<float> (&run)[vectors]) const {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) run[v] = TwoSums<float>::zero();
    }
    // Lanes whose sums in float have overflowed, or which met an infinity or a NaN, are added up once more, and they
    // alone: exact(sums, lane) adds that lane to the first one of sums.
    template <class Exact>
    [[gnu::always_inline]] void end_run(const TwoSums<float> (&run)[vectors], Accumulators to, const Exact& exact) {
        Vec<float> all = Vec<float>::all(0);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) all = all + (run[v].first + run[v].second);
        if (all.finite()) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sums[v].add(run[v]);
            return;
        }
        store(to);
        add_lanes(run, to, exact, vectors * width);
        load(to);
    }
    template <class Exact>
    [[gnu::always_inline]] void end_run(const TwoSums<float> (&run)[vectors], Accumulators to, const Exact& exact,
                                        int left) {
        add_lanes(run, to, exact, left);
    }

  private:
    template <class Exact>
    [[gnu::always_inline]] static void add_lanes(const TwoSums<float> (&run)[vectors], Accumulators to,
                                                 const Exact& exact, int lanes) {
        float first[vectors * width], second[vectors * width];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            run[v].first.store(first + v * width);
            run[v].second.store(second + v * width);
        }
        for (int lane = 0; lane < lanes; ++lane) {
            const Accumulators own = to.at(lane);
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
};

}  // namespace
