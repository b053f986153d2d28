// A piece's partial results: what its threads find in registers, merged in a fixed order into the piece's slots.
#pragma once

#include "moment.cuh"
#include "pieces.cuh"
#include "shared_memory.cuh"
#include "values.cuh"

namespace batchnorm::cuda {

// Packs that a thread has under way at once: 32 elements, or 16 doubles; and of each of two operands.
template <class T>
inline constexpr int batch_packs = sizeof(T) == 8 ? 2 : 4;
template <class T>
inline constexpr int batch_pairs = sizeof(T) == 2 ? 2 : 1;

__device__ inline double from_lane(double v, int distance) { return __shfl_down_sync(0xffffffffu, v, distance); }
__device__ inline Moment from_lane(const Moment& m, int distance) {
    return {from_lane(m.n, distance), from_lane(m.mean, distance), from_lane(m.m2, distance)};
}
__device__ inline Sums from_lane(const Sums& s, int distance) {
    return {from_lane(s.of_dy, distance), from_lane(s.of_product, distance)};
}

// All of a warp's values merged, in its first thread.
template <class Value>
__device__ Value merge_warp(Value value) {
#pragma unroll
    for (int distance = warp_threads / 2; distance > 0; distance /= 2) value = merge(value, from_lane(value, distance));
    return value;
}

// The same of `count` values, value(0) to value(count - 1).
template <class Value, class At>
__device__ Value merge_by_warp(int64_t count, const At& at) {
    constexpr int together = 4;  // in flight: each takes as long as merging them
    Value value = {};
    int64_t i = threadIdx.x % warp_threads;
    for (; i + (together - 1) * warp_threads < count; i += together * warp_threads) {
        Value next[together];
#pragma unroll
        for (int j = 0; j < together; ++j) next[j] = at(i + j * warp_threads);
#pragma unroll
        for (int j = 0; j < together; ++j) value = merge(value, next[j]);
    }
    for (; i < count; i += warp_threads) value = merge(value, at(i));
    return merge_warp(value);
}

// All of a block's values merged, in its first thread.
template <class Value>
__device__ Value merge_block(Value value) {
    auto* const of_warps = reinterpret_cast<Value*>(shared_memory());
    value = merge_warp(value);
    __syncthreads();  // what was there before has been read
    if (threadIdx.x % warp_threads == 0) of_warps[threadIdx.x / warp_threads] = value;
    __syncthreads();
    if (threadIdx.x >= warp_threads) return value;
    return merge_warp(threadIdx.x < block_warps ? of_warps[threadIdx.x] : Value{});
}

// What was not to be had is NaN in slot 1. `mends`: of a second try, for what is NaN alone.
__device__ inline bool leaves_slot(const Work& work, const Piece& piece, int64_t c, bool mends) {
    if (!mends) return false;
    const double before = work.slot(1, piece.g, piece.k)[c];
    return before == before;
}
__device__ inline void store_slots(const Work& work, const Piece& piece, int64_t c, const Moment& m, bool mends) {
    if (leaves_slot(work, piece, c, mends)) return;
    work.slot(0, piece.g, piece.k)[c] = m.mean;
    work.slot(1, piece.g, piece.k)[c] = m.m2;
    if (work.weighted) work.slot(2, piece.g, piece.k)[c] = m.n;
}
__device__ inline void store_slots(const Work& work, const Piece& piece, int64_t c, const Sums& s, bool mends) {
    if (leaves_slot(work, piece, c, mends)) return;
    work.slot(0, piece.g, piece.k)[c] = s.of_dy;
    work.slot(1, piece.g, piece.k)[c] = s.of_product;
}

// Whether any thread of the block has found what must be done again.
template <class Value, int count>
__device__ bool any_is_odd(const Value (&values)[count]) {
    bool odd = false;
#pragma unroll
    for (int i = 0; i < count; ++i) odd = odd || is_odd(values[i]);
    return __syncthreads_or(odd);
}

// A thread's values, of its pack of lanes, for merge_columns().
template <class Value, bool packed>
__device__ void share_columns(const Walk<Pattern::lane, packed>& walk, const Value (&values)[pack_size]) {
    auto* const shared = reinterpret_cast<Value*>(shared_memory());
    __syncthreads();  // what was there before has been read
    if (walk.row() < walk.rows_at_once())
#pragma unroll
        for (int i = 0; i < pack_size; ++i)
            shared[(walk.row() * walk.columns() + walk.column()) * pack_size + i] = values[i];
    __syncthreads();
}

// Merges what the threads share: by lane, then the lanes of a statistic; into the slots.
template <class Value>
__device__ __noinline__ void merge_columns(const Work& work, const Piece& piece, bool mends) {
    auto* const shared = reinterpret_cast<Value*>(shared_memory());
    const unsigned columns = static_cast<unsigned>(work.tile.packs), rows = block_threads / columns,
                   lanes = columns * pack_size;
    unsigned step = 1;
    while (2 * step < rows) step *= 2;
    for (; step > 0; step /= 2) {
        for (unsigned i = threadIdx.x; i < step * lanes; i += block_threads)
            if (i / lanes + step < rows) shared[i] = merge(shared[i], shared[i + step * lanes]);
        __syncthreads();
    }
    const Range channels = channels_of<Pattern::lane>(work, piece);
    const int64_t plane = work.box.plane;
    for (int64_t i = threadIdx.x / warp_threads; i < channels.size() && plane > 1; i += block_warps) {
        const Value value = merge_by_warp<Value>(plane, [&](int64_t j) { return shared[i * plane + j]; });
        if (threadIdx.x % warp_threads == 0) store_slots(work, piece, channels.begin + i, value, mends);
    }
    for (int64_t i = threadIdx.x; i < channels.size() && plane == 1; i += block_threads)
        store_slots(work, piece, channels.begin + i, shared[i], mends);
}

// What each thread has found, of its channel or of its pack of lanes, merged and in the piece's slots.
template <class Value, Pattern pattern, bool packed>
__device__ void store_merged(const Work& work, const Piece& piece, const Walk<pattern, packed>& walk,
                             const Value (&values)[pattern == Pattern::row ? 1 : pack_size], bool mends) {
    if constexpr (pattern == Pattern::row) {
        const Value merged = merge_block(values[0]);
        if (threadIdx.x == 0) store_slots(work, piece, piece.unit, merged, mends);
    } else {
        share_columns(walk, values);
        merge_columns<Value>(work, piece, mends);
    }
}

// The shared memory that a reduction needs, at its start.
inline int64_t reduce_bytes(const Box& box) {
    constexpr int64_t size = sizeof(Moment);  // the larger of the two
    return (box.pattern == Pattern::row ? block_warps : block_threads * pack_size) * size;
}

// ---------------------------------------------------------------------------------------------------------- moments

// A pack of lanes' moments, of which all have the same weight behind them.
struct LaneMoments {
    double n = 0, mean[pack_size] = {}, m2[pack_size] = {};

    // other(i): of lane i, each of weight n.
    template <class Other>
    __device__ void add(double other_n, const Other& other) {
        const double share = other_n / (n + other_n), weight = n * share;
#pragma unroll
        for (int i = 0; i < pack_size; ++i) {
            const Moment m = other(i);
            const double delta = m.mean - mean[i];
            mean[i] = fma(delta, share, mean[i]);
            m2[i] += fma(delta * weight, delta, m.m2);  // in this order 0 of weight 0, whatever delta is
        }
        n += other_n;
    }
};

// Around pivots and means of some packs at a time. Whether all moments were to be had so.
template <class T, Pattern pattern, bool packed>
__device__ bool reduce_moments(const Work& work, const Piece& piece, const Stash<T>& stash) {
    using A = Arithmetic<T>;
    constexpr int batch = batch_packs<T>;
    const Walk<pattern, packed> walk(work, piece);
    const Rows x = walk.rows(role_x);
    Moment moment = {};
    LaneMoments lanes;
    const int steps = walk.steps();
    for (int step = 0; step < steps; step += batch) {
        Pack<T> packs[batch];
        int counts[batch];
        bool all = step + batch <= steps;
#pragma unroll
        for (int j = 0; j < batch; ++j) {
            const auto at = walk.at(step + j);
            packs[j] = load_pack<T>(walk.template place<T>(x, at));
            counts[j] = at.count;
            if constexpr (pattern == Pattern::row && !packed) all = all && at.count == pack_size;
        }
        // Only now: storing the first would wait for it before the others are on their way.
#pragma unroll
        for (int j = 0; j < batch; ++j)
            if (stash && step + j < steps) stash.keep(step + j, packs[j]);
        if constexpr (pattern == Pattern::row) {
            constexpr int count = batch * pack_size;
            A elements[count];
#pragma unroll
            for (int i = 0; i < count; ++i) elements[i] = packs[i / pack_size][i % pack_size];
            const auto values = [&](int i) { return elements[i]; };
            const auto there = [&](int i) { return i % pack_size < counts[i / pack_size]; };
            moment = merge(moment, all ? moment_of<A, count>(values, [](int) { return true; })
                                       : moment_of<A, count>(values, there));
        } else if (all) {
            lanes.add(batch, [&](int i) {
                A elements[batch];
#pragma unroll
                for (int j = 0; j < batch; ++j) elements[j] = packs[j][i];
                return moment_of<A, batch>([&](int j) { return elements[j]; }, [](int) { return true; });
            });
        } else {
#pragma unroll
            for (int j = 0; j < batch; ++j)
                if (step + j < steps)
                    lanes.add(1, [&](int i) { return Moment{1, static_cast<double>(packs[j][i]), 0}; });
        }
    }
    Moment moments[pattern == Pattern::row ? 1 : pack_size];
    if constexpr (pattern == Pattern::row) {
        moments[0] = moment;
    } else {
#pragma unroll
        for (int i = 0; i < pack_size; ++i) moments[i] = {lanes.n, lanes.mean[i], lanes.m2[i]};
    }
    store_merged<Moment, pattern, packed>(work, piece, walk, moments, false);
    return !any_is_odd(moments);
}

// In double, with weights if there are some; or to mend what reduce_moments() left.
template <class T, Pattern pattern, bool packed>
__device__ void reduce_weighted_moments(const Work& work, const Piece& piece, const Stash<T>& stash, bool mends) {
    using A = Arithmetic<T>;
    const Walk<pattern, packed> walk(work, piece);
    const Rows x_rows = walk.rows(role_x), weights = walk.rows(role_weights);
    Moment moments[pattern == Pattern::row ? 1 : pack_size] = {};
#pragma unroll 1
    for (int step = 0; step < walk.steps(); ++step) {
        const auto at = walk.at(step);
        if (at.count == 0) continue;
        const Pack<T> x = load_pack<T>(walk.template place<T>(x_rows, at));
        if (stash) stash.keep(step, x);
        Pack<A> w;
#pragma unroll
        for (int i = 0; i < pack_size; ++i) w.at[i] = i < at.count ? A(1) : A(0);
        if (!packed && weights.exist())
            w = load_pack<A>(walk.template place<A>(weights, at));  // 0 where there is no element
        if constexpr (pattern == Pattern::row) {
            moments[0] = merge(moments[0],
                               weighted_moment_of<pack_size>([&](int i) { return x[i]; }, [&](int i) { return w[i]; }));
        } else {
#pragma unroll
            for (int i = 0; i < pack_size; ++i)
                if (w[i] > 0) moments[i] = merge(moments[i], {static_cast<double>(w[i]), static_cast<double>(x[i]), 0});
        }
    }
    store_merged<Moment, pattern, packed>(work, piece, walk, moments, mends);
}

// --------------------------------------------------------------------------------------------------- gradient sums

// A pack of dy, as far as the activation let it through, and of x, where that is restored. What let it through is told
// by the sign of forward's output or by bits.
template <class T, Pattern pattern, bool packed>
struct Gradient {
    using A = Arithmetic<T>;
    A dy[pack_size], x[pack_size];

    __device__ Gradient(const Work& work, const Walk<pattern, packed>& walk, const Rows& outputs,
                        const typename Walk<pattern, packed>::At& at, const Pack<T>& dy_pack, const Pack<T>& x_pack) {
#pragma unroll
        for (int i = 0; i < pack_size; ++i) {
            dy[i] = dy_pack[i];
            x[i] = x_pack[i];
        }
        if (!work.epilogue.activates) return;
        unsigned through = 0;
        if (outputs.exist()) {
            const Pack<T> y = load_pack<T>(walk.template place<T>(outputs, at));
#pragma unroll
            for (int i = 0; i < pack_size; ++i) through |= !(y[i] <= 0) ? 1u << i : 0u;
        } else {
            through = *walk.mask(at);
        }
        if (work.epilogue.slope == 0) {
#pragma unroll
            for (int i = 0; i < pack_size; ++i) dy[i] = through >> i & 1 ? dy[i] : A(0);
        } else {
            const A slope = static_cast<A>(work.epilogue.slope);
            const A back = work.epilogue.restores ? static_cast<A>(1 / work.epilogue.slope) : A(1);
#pragma unroll
            for (int i = 0; i < pack_size; ++i) {
                dy[i] = through >> i & 1 ? dy[i] : dy[i] * slope;
                x[i] = through >> i & 1 ? x[i] : x[i] * back;
            }
        }
    }

    // x becomes what is to be multiplied with dy.
    template <class Centres>
    __device__ void centre(const Work& work, const Centres& centres, int count) {
#pragma unroll
        for (int i = 0; i < pack_size; ++i) x[i] = packed || i < count ? x[i] - centres[i] : A(0);
        if constexpr (!packed) {
#pragma unroll
            for (int i = 0; i < pack_size; ++i) x[i] = work.epilogue.zeros_count_nothing && dy[i] == 0 ? A(0) : x[i];
        }
    }
};

// Whether a sum of products is far from what a float has.
__device__ inline bool fits_run(float products) { return fabsf(products) < 1e37f; }
__device__ inline bool fits_run(double) { return true; }

// What x is less where gradient sums are taken: its mean in the arithmetic's type, and of 16-bit elements in theirs.
// Products of those differences with dy then seldom need more bits than a float has. finish.cuh makes up for the rest.
__device__ inline double centre_of(DType dtype, double mean) {
    const float nearest = static_cast<float>(mean);
    float centre = nearest;
    if (dtype == DType::f64) return mean;
    if (dtype == DType::f16) centre = widen(narrow<Half>(nearest));
    if (dtype == DType::bf16) centre = widen(narrow<BFloat16>(nearest));
    return isfinite(centre) ? static_cast<double>(centre) : static_cast<double>(nearest);
}

__device__ inline double mean_of(const Work& work, int64_t g, int64_t c) {
    const bool from_output = work.op == Op::batch_norm_backward_from_output;
    return load_value(from_output ? work.beta : work.mean, work.box, g, c, 0);
}

// What x's elements are less in gradient sums.
template <class T, Pattern pattern, bool packed>
struct Centres {
    Arithmetic<T> of[pattern == Pattern::row ? 1 : pack_size];

    __device__ Centres(const Work& work, const Piece& piece, const Walk<pattern, packed>& walk) {
#pragma unroll
        for (int i = 0; i < (pattern == Pattern::row ? 1 : pack_size); ++i) {
            const double mean = mean_of(work, piece.g, walk.channel_of(i));
            of[i] = static_cast<Arithmetic<T>>(centre_of(work.box.dtype, mean));
        }
    }
    __device__ Arithmetic<T> operator[](int i) const { return of[pattern == Pattern::row ? 0 : i]; }
};

// In the arithmetic's type first, over the packs of a step or two. Whether it had the numbers for it: a sum for which
// it has not is left as NaN.
template <class T, Pattern pattern, bool packed>
__device__ bool reduce_gradients(const Work& work, const Piece& piece, const Stash<T>& stash_dy,
                                 const Stash<T>& stash_x) {
    using A = Arithmetic<T>;
    constexpr int batch = pattern == Pattern::row ? batch_pairs<T> : 1,
                  in_a_row = pattern == Pattern::row ? 1 : pack_size;
    const Walk<pattern, packed> walk(work, piece);
    const Rows dy_rows = walk.rows(role_dy), x_rows = walk.rows(role_x), outputs = walk.rows(role_y);
    const Centres<T, pattern, packed> centres(work, piece, walk);
    const auto add = [](Sums& sum, A dy, A product) {
        sum.of_dy += static_cast<double>(dy);
        sum.of_product += fits_run(product) ? static_cast<double>(product) : nan("");
    };
    Sums sums[in_a_row] = {};
    const int steps = walk.steps();
    for (int step = 0; step < steps; step += batch) {
        Pack<T> dy_packs[batch], x_packs[batch];
#pragma unroll
        for (int j = 0; j < batch; ++j) {
            const auto at = walk.at(step + j);
            dy_packs[j] = load_pack<T>(walk.template place<T>(dy_rows, at));
            x_packs[j] = load_pack<T>(walk.template place<T>(x_rows, at));
        }
#pragma unroll
        for (int j = 0; j < batch; ++j) {
            if (!stash_x || step + j >= steps) continue;
            stash_dy.keep(step + j, dy_packs[j]);
            stash_x.keep(step + j, x_packs[j]);
        }
        A dy_run = 0, product_run = 0;
#pragma unroll
        for (int j = 0; j < batch; ++j) {
            const auto at = walk.at(step + j);
            if (at.count == 0) break;
            Gradient<T, pattern, packed> pack(work, walk, outputs, at, dy_packs[j], x_packs[j]);
            pack.centre(work, centres, at.count);
            const auto dy = [&](int i) { return pack.dy[i]; };
            const auto x = [&](int i) { return pack.x[i]; };
            if constexpr (pattern == Pattern::row) {
                dy_run += pairwise<0, pack_size>(dy);
                product_run += pairwise_products<0, pack_size>(dy, x);
            } else {
#pragma unroll
                for (int i = 0; i < pack_size; ++i) add(sums[i], dy(i), dy(i) * x(i));
            }
        }
        if constexpr (pattern == Pattern::row) add(sums[0], dy_run, product_run);
    }
    store_merged<Sums, pattern, packed>(work, piece, walk, sums, false);
    return !any_is_odd(sums);
}

// In double, to mend what that left.
template <class T, Pattern pattern, bool packed>
__device__ void mend_gradients(const Work& work, const Piece& piece) {
    const Walk<pattern, packed> walk(work, piece);
    const Rows dy_rows = walk.rows(role_dy), x_rows = walk.rows(role_x), outputs = walk.rows(role_y);
    const Centres<T, pattern, packed> centres(work, piece, walk);
    Sums sums[pattern == Pattern::row ? 1 : pack_size] = {};
#pragma unroll 1
    for (int step = 0; step < walk.steps(); ++step) {
        const auto at = walk.at(step);
        if (at.count == 0) continue;
        Gradient<T, pattern, packed> pack(work, walk, outputs, at, load_pack<T>(walk.template place<T>(dy_rows, at)),
                                          load_pack<T>(walk.template place<T>(x_rows, at)));
        pack.centre(work, centres, at.count);
#pragma unroll
        for (int i = 0; i < pack_size; ++i) {
            Sums& sum = sums[pattern == Pattern::row ? 0 : i];
            const double dy = static_cast<double>(pack.dy[i]);
            sum.of_dy += dy;
            sum.of_product = fma(dy, static_cast<double>(pack.x[i]), sum.of_product);
        }
    }
    store_merged<Sums, pattern, packed>(work, piece, walk, sums, true);
}

}  // namespace batchnorm::cuda
