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
    Value value = {};
    for (int64_t i = threadIdx.x % warp_threads; i < count; i += warp_threads) value = merge(value, at(i));
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

// A moment that was not to be had has an m2 that is NaN; `mends`: of a second try, for those alone.
__device__ inline void store_slots(const Work& work, const Piece& piece, int64_t c, const Moment& m,
                                   bool mends = false) {
    const double before = work.slot(1, piece.g, piece.k)[c];
    if (mends && before == before) return;
    work.slot(0, piece.g, piece.k)[c] = m.mean;
    work.slot(1, piece.g, piece.k)[c] = m.m2;
    if (work.weighted) work.slot(2, piece.g, piece.k)[c] = m.n;
}
__device__ inline void store_slots(const Work& work, const Piece& piece, int64_t c, const Sums& s, bool = false) {
    work.slot(0, piece.g, piece.k)[c] = s.of_dy;
    work.slot(1, piece.g, piece.k)[c] = s.of_product;
}

// A thread's values, of its pack of lanes, for merge_columns().
template <class Value>
__device__ void share_columns(const Walk<Pattern::lane>& walk, const Value (&values)[pack_size]) {
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
__device__ __noinline__ void merge_columns(const Work& work, const Piece& piece, bool mends = false) {
    auto* const shared = reinterpret_cast<Value*>(shared_memory());
    const Tiling tile(work.box);
    const unsigned columns = static_cast<unsigned>(tile.packs), rows = block_threads / columns,
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

// The shared memory that a reduction needs, at its start.
inline int64_t reduce_bytes(const Box& box) {
    constexpr int64_t size = sizeof(Moment);  // the larger of the two
    return (box.pattern == Pattern::row ? block_warps : block_threads * pack_size) * size;
}

// ---------------------------------------------------------------------------------------------------------- moments

template <class T, Pattern pattern>
__device__ void store_moments(const Work& work, const Piece& piece, const Walk<pattern>& walk,
                              const Moment (&moments)[pattern == Pattern::row ? 1 : pack_size], bool mends) {
    if constexpr (pattern == Pattern::row) {
        const Moment merged = merge_block(moments[0]);
        if (threadIdx.x == 0) store_slots(work, piece, piece.unit, merged, mends);
    } else {
        share_columns(walk, moments);
        merge_columns<Moment>(work, piece, mends);
    }
}

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
            mean[i] = n == 0 ? m.mean : fma(delta, share, mean[i]);
            m2[i] = n == 0 ? m.m2 : m2[i] + fma(delta * delta, weight, m.m2);
        }
        n += other_n;
    }
};

// Around pivots and means of some packs at a time. Whether all moments were to be had so.
template <class T, Pattern pattern>
__device__ bool reduce_moments(const Work& work, const Piece& piece, const Stash<T>& stash) {
    using A = Arithmetic<T>;
    constexpr int batch = batch_packs<T>;
    const Walk<pattern> walk(work, piece);
    const Rows x = walk.rows(role_x);
    Moment moment = {};
    LaneMoments lanes;
    bool odd = false;
    for (int step = 0; step < walk.steps(); step += batch) {
        Pack<T> packs[batch];
        int counts[batch];
        bool all = true;
#pragma unroll
        for (int j = 0; j < batch; ++j) {
            const auto at = walk.at(step + j);
            counts[j] = at.count;
            packs[j] = load_pack<T>(walk.place(x, at));
            if (stash && at.count > 0) stash.keep(step + j, packs[j]);
            all = all && at.count > (pattern == Pattern::row ? pack_size - 1 : 0);
        }
        if constexpr (pattern == Pattern::row) {
            const auto values = [&](int i) { return packs[i / pack_size][i % pack_size]; };
            constexpr int count = batch * pack_size;
            const Moment own =
                all ? moment_of<A, count>(
                          values, [](int) { return true; }, odd)
                    : moment_of<A, count>(values, [&](int i) { return i % pack_size < counts[i / pack_size]; }, odd);
            moment = merge(moment, own);
        } else if (all) {
            lanes.add(batch, [&](int i) {
                return moment_of<A, batch>([&](int j) { return packs[j][i]; }, [](int) { return true; }, odd);
            });
        } else {
#pragma unroll
            for (int j = 0; j < batch; ++j)
                if (counts[j] > 0) lanes.add(1, [&](int i) { return Moment{1, static_cast<double>(packs[j][i]), 0}; });
        }
    }
    if constexpr (pattern == Pattern::row) {
        store_moments<T, pattern>(work, piece, walk, {moment}, false);
    } else {
        Moment moments[pack_size];
#pragma unroll
        for (int i = 0; i < pack_size; ++i) moments[i] = {lanes.n, lanes.mean[i], lanes.m2[i]};
        store_moments<T, pattern>(work, piece, walk, moments, false);
    }
    return !__syncthreads_or(odd);
}

// In double, with weights if there are some; or to mend what reduce_moments() left.
template <class T, Pattern pattern>
__device__ void reduce_weighted_moments(const Work& work, const Piece& piece, const Stash<T>& stash, bool mends) {
    using A = Arithmetic<T>;
    const Walk<pattern> walk(work, piece);
    const Rows x_rows = walk.rows(role_x), weights = walk.rows(role_weights);
    Moment moments[pattern == Pattern::row ? 1 : pack_size] = {};
#pragma unroll 1
    for (int step = 0; step < walk.steps(); ++step) {
        const auto at = walk.at(step);
        if (at.count == 0) continue;
        const Pack<T> x = load_pack<T>(walk.place(x_rows, at));
        if (stash) stash.keep(step, x);
        Pack<A> w;
#pragma unroll
        for (int i = 0; i < pack_size; ++i) w.at[i] = i < at.count ? A(1) : A(0);
        if (weights.exist()) w = load_pack<A>(walk.place(weights, at));  // 0 where there is no element
        if constexpr (pattern == Pattern::row) {
            moments[0] = merge(moments[0],
                               weighted_moment_of<pack_size>([&](int i) { return x[i]; }, [&](int i) { return w[i]; }));
        } else {
#pragma unroll
            for (int i = 0; i < pack_size; ++i)
                if (w[i] > 0) moments[i] = merge(moments[i], {static_cast<double>(w[i]), static_cast<double>(x[i]), 0});
        }
    }
    store_moments<T, pattern>(work, piece, walk, moments, mends);
}

// --------------------------------------------------------------------------------------------------- gradient sums

// A pack of dy, as far as the activation let it through, and of x, where that is restored. What told so is told by
// forward's output or by bits.
template <class T, Pattern pattern>
struct Gradient {
    using A = Arithmetic<T>;
    A dy[pack_size], x[pack_size];

    __device__ Gradient(const Work& work, const Walk<pattern>& walk, const Rows& outputs,
                        const typename Walk<pattern>::At& at, const Pack<T>& dy_pack, const Pack<T>& x_pack) {
#pragma unroll
        for (int i = 0; i < pack_size; ++i) {
            dy[i] = dy_pack[i];
            x[i] = x_pack[i];
        }
        const Epilogue& epilogue = work.epilogue;
        if (!epilogue.activates || at.count == 0) return;
        unsigned through = 0;
        if (outputs.exist()) {
            const Pack<T> y = load_pack<T>(walk.place(outputs, at));
#pragma unroll
            for (int i = 0; i < pack_size; ++i) through |= !(y[i] <= 0) ? 1u << i : 0u;
        } else {
            through = *walk.mask(at);
        }
        const A slope = static_cast<A>(epilogue.slope), back = static_cast<A>(1 / epilogue.slope);
#pragma unroll
        for (int i = 0; i < pack_size; ++i) {
            if (through >> i & 1) continue;
            dy[i] = slope == 0 ? A(0) : dy[i] * slope;
            if (epilogue.restores) x[i] = x[i] * back;
        }
    }
};

// Whether a sum of some of these is far from what a float has.
__device__ inline bool fits_run(float product) { return fabsf(product) < 1e37f; }
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

template <class T, Pattern pattern>
__device__ void reduce_gradients(const Work& work, const Piece& piece, const Stash<T>& stash_dy,
                                 const Stash<T>& stash_x) {
    using A = Arithmetic<T>;
    constexpr int batch = batch_pairs<T>, in_a_row = pattern == Pattern::row ? 1 : pack_size;
    const Walk<pattern> walk(work, piece);
    const Rows dy_rows = walk.rows(role_dy), x_rows = walk.rows(role_x), outputs = walk.rows(role_y);
    A means[in_a_row];
#pragma unroll
    for (int i = 0; i < in_a_row; ++i)
        means[i] = static_cast<A>(centre_of(work.box.dtype, mean_of(work, piece.g, walk.channel_of(i))));
    Sums sums[in_a_row] = {};
    for (int step = 0; step < walk.steps(); step += batch) {
        A dy_run[in_a_row] = {}, product_run[in_a_row] = {};
        Pack<T> dy_packs[batch], x_packs[batch];
#pragma unroll
        for (int j = 0; j < batch; ++j) {
            const auto at = walk.at(step + j);
            dy_packs[j] = load_pack<T>(walk.place(dy_rows, at));
            x_packs[j] = load_pack<T>(walk.place(x_rows, at));
        }
#pragma unroll
        for (int j = 0; j < batch; ++j) {
            const auto at = walk.at(step + j);
            if (at.count == 0) continue;
            if (stash_x) {
                stash_dy.keep(step + j, dy_packs[j]);
                stash_x.keep(step + j, x_packs[j]);
            }
            const Gradient<T, pattern> pack(work, walk, outputs, at, dy_packs[j], x_packs[j]);
            const auto dy = [&](int i) { return pack.dy[i]; };
            const auto difference = [&](int i) {
                if (i >= at.count || (work.epilogue.zeros_count_nothing && pack.dy[i] == 0)) return A(0);
                return pack.x[i] - means[pattern == Pattern::row ? 0 : i];
            };
            if constexpr (pattern == Pattern::row) {
                dy_run[0] += pairwise<0, pack_size>(dy);
                const A products = pairwise_products<0, pack_size>(dy, difference);
                if (fits_run(products))
                    product_run[0] += products;
                else
                    sums[0].of_product +=
                        pairwise_products<0, pack_size>([&](int i) { return static_cast<double>(dy(i)); },
                                                        [&](int i) { return static_cast<double>(difference(i)); });
            } else {
#pragma unroll
                for (int i = 0; i < pack_size; ++i) {
                    dy_run[i] += dy(i);
                    const A product = dy(i) * difference(i);
                    if (fits_run(product))
                        product_run[i] += product;
                    else
                        sums[i].of_product += static_cast<double>(dy(i)) * static_cast<double>(difference(i));
                }
            }
        }
#pragma unroll
        for (int i = 0; i < in_a_row; ++i)
            sums[i] = merge(sums[i], {static_cast<double>(dy_run[i]), static_cast<double>(product_run[i])});
    }
    if constexpr (pattern == Pattern::row) {
        const Sums merged = merge_block(sums[0]);
        if (threadIdx.x == 0) store_slots(work, piece, piece.unit, merged);
    } else {
        share_columns(walk, sums);
        merge_columns<Sums>(work, piece);
    }
}

}  // namespace batchnorm::cuda
