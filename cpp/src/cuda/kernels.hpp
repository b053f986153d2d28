// The kernels of one element type, as the launches see them.
#pragma once

#include "team.cuh"
#include "work.hpp"

namespace batchnorm::cuda {

// What one launch does with the tensor: reduce it, apply to it, or both, with what is read the first time kept in
// shared memory and the statistics finished in between.
struct Pass {
    bool reduces, applies;
    TeamOf team;           // that a block waits for in between
    int64_t blocks;        // of a team
    int64_t first, chunk;  // bytes of shared memory before the chunks that a block keeps, and of one

    constexpr bool keeps() const { return reduces && applies; }
};

struct PatternKernels {
    void (*forward)(Work, Pass);
    void (*backward)(Work, Pass);
    // Shared memory that keeps a chunk of one operand.
    int64_t (*chunk_bytes)(const Box& box, const Chunks& chunks);
};

struct TypeKernels {
    PatternKernels of[2];                     // by Pattern
    void (*finish)(Work);                     // of all statistics
    int64_t (*reduce_bytes)(const Box& box);  // shared memory that a reduction needs
};

extern const TypeKernels f32_kernels, f64_kernels, f16_kernels, bf16_kernels;

}  // namespace batchnorm::cuda
