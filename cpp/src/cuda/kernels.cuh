// The kernels: forward and backward, each in two passes or with what it reads kept on chip, and what comes in between.
#pragma once

#include "apply.cuh"
#include "finish.cuh"
#include "kernels.hpp"

namespace batchnorm::cuda {

// So many registers, at most, let two blocks share a multiprocessor; doubles take twice as many.
template <class T>
inline constexpr int least_blocks = sizeof(T) == 8 ? 1 : 2;

// A warp for each statistic.
template <class A>
__global__ void __launch_bounds__(block_threads) finish_statistics(const __grid_constant__ Work work) {
    const int64_t count = work.box.statistics(), step = static_cast<int64_t>(gridDim.x) * block_warps;
    for (int64_t s = blockIdx.x * static_cast<int64_t>(block_warps) + threadIdx.x / warp_threads; s < count; s += step)
        finish<A>(work, s / work.box.channels(), s % work.box.channels());
}

// The statistics of a unit, by all warps of a block. Blocks of a team that find the same write the same.
template <class A, Pattern pattern>
__device__ void finish_unit(const Work& work, const Piece& piece) {
    const Range channels = channels_of<pattern>(work, piece);
    for (int64_t c = channels.begin + threadIdx.x / warp_threads; c < channels.end; c += block_warps)
        finish<A>(work, piece.g, c);
    __syncthreads();
}

// Each team takes one unit after the other, or one team all of them; each block of it takes some of their chunks.
template <class A, Pattern pattern, class Reduce, class Apply>
__device__ void run(const Work& work, const Pass& pass, const Reduce& reduce, const Apply& apply) {
    const Team team(pass.team, pass.blocks);
    const int64_t all = pieces(work.box, work.chunks);
    const int64_t span = pass.team == TeamOf::grid ? all : work.chunks.count();
    const auto piece_at = [&](int64_t i) { return pass.keeps() ? piece_by_unit(work, i) : piece_by_chunk(work, i); };
    for (int64_t begin = team.index * span; begin < all; begin += team.count * span) {
        if (pass.reduces) {
            int kept = 0;
            for (int64_t i = begin + team.rank; i < begin + span; i += team.size) reduce(piece_at(i), kept++);
        }
        if (pass.keeps()) team.wait();
        if (pass.applies) {
            int kept = 0;
            int64_t finished = -1;
            for (int64_t i = begin + team.rank; i < begin + span; i += team.size) {
                const Piece piece = piece_at(i);
                const int64_t unit = i / work.chunks.count();
                if (pass.keeps() && unit != finished) finish_unit<A, pattern>(work, piece);
                finished = unit;
                apply(piece, kept++);
            }
        }
    }
}

template <class T, Pattern pattern>
__global__ void __launch_bounds__(block_threads, least_blocks<T>)
    forward(const __grid_constant__ Work work, const __grid_constant__ Pass pass) {
    const auto stash = [&](int kept) {
        return Stash<T>(pass.keeps() ? shared_memory() + pass.first + kept * pass.chunk : nullptr);
    };
    run<Arithmetic<T>, pattern>(
        work, pass,
        [&](const Piece& piece, int kept) {
            if (work.weighted || !reduce_moments<T, pattern>(work, piece, stash(kept)))
                reduce_weighted_moments<T, pattern>(work, piece, stash(kept), !work.weighted);
        },
        [&](const Piece& piece, int kept) { normalize<T, pattern>(work, piece, stash(kept)); });
}

template <class T, Pattern pattern>
__global__ void __launch_bounds__(block_threads, least_blocks<T>)
    backward(const __grid_constant__ Work work, const __grid_constant__ Pass pass) {
    const auto stash = [&](int which, int kept) {
        return Stash<T>(pass.keeps() ? shared_memory() + pass.first + (2 * kept + which) * pass.chunk : nullptr);
    };
    run<Arithmetic<T>, pattern>(
        work, pass,
        [&](const Piece& piece, int kept) {
            reduce_gradients<T, pattern>(work, piece, stash(0, kept), stash(1, kept));
        },
        [&](const Piece& piece, int kept) { input_grad<T, pattern>(work, piece, stash(0, kept), stash(1, kept)); });
}

template <class T, Pattern pattern>
constexpr PatternKernels kernels_of_pattern() {
    return {forward<T, pattern>, backward<T, pattern>,
            [](const Box& box, const Chunks& chunks) { return Stash<T>::bytes(Walk<pattern>::steps(box, chunks)); }};
}

template <class T>
constexpr TypeKernels kernels_of_type() {
    return {{kernels_of_pattern<T, Pattern::row>(), kernels_of_pattern<T, Pattern::lane>()},
            finish_statistics<Arithmetic<T>>,
            reduce_bytes};
}

}  // namespace batchnorm::cuda
