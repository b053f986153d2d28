// The stages of a call, each over one chunk or one range of channels: reduce -> merge -> coefficients -> apply.
#pragma once

#include "arena.hpp"
#include "box.hpp"
#include "chunks.hpp"
#include "params.hpp"
#include "spans.hpp"

namespace batchnorm {

// The scratch memory of a call.
struct Memory {
    // Partial results: [group][chunk][channel], mean and m2 of the chunk, or its two gradient sums.
    double* slots[2] = {};
    // One value for each statistic, in the box's order.
    double *mean, *spread, *inv_std, *gamma, *beta, *count, *sum_dy, *sum_dy_xmu;
    // What the kernels look up, of x's type.
    void* coefficients[6];
    // A worker's tiles and its row of pivots.
    char* workers;

    Memory(Arena& arena, const Box& box, const Chunks& chunks, int threads, bool reduces) noexcept;

    static constexpr int64_t worker_bytes() noexcept;
    char* tiles(int worker) const noexcept;
    char* pivots(int worker) const noexcept;
};

struct Stages {
    const Box& box;
    const Chunks& chunks;
    const kernels::TypeKernels& kernels;
    const Memory& memory;
    bool stream;  // whether outputs are written past the caches

    // A chunk's mean and m2, or its gradient sums, into its slots.
    void reduce_moments(int64_t g, int64_t k, Range channels, int worker) const noexcept;
    void reduce_gradients(int64_t g, int64_t k, Range channels, int worker) const noexcept;

    // All chunks' slots, in order, into memory.mean and memory.spread (then m2), or sum_dy and sum_dy_xmu.
    void merge_moments(int64_t g, Range channels) const noexcept;
    void merge_gradients(int64_t g, Range channels) const noexcept;

    // memory.spread from m2 to the biased variance, and memory.inv_std; or the latter alone.
    void variance_from_m2(int64_t g, Range channels, const Column& count) const noexcept;
    void inv_std_from_variance(int64_t g, Range channels, double eps) const noexcept;

    void normalize_coefficients(int64_t g, Range channels, const Column& gamma, const Column& beta) const noexcept;
    void input_grad_coefficients(int64_t g, Range channels, const Column& gamma, const Column& count) const noexcept;
    // For constant statistics: dx = gamma * inv_std * dy.
    void scale_coefficients(int64_t g, Range channels, const Column& gamma) const noexcept;

    void normalize(int64_t g, int64_t k, Range channels, int worker) const noexcept;
    void input_grad(int64_t g, int64_t k, Range channels, int worker) const noexcept;
    void scale(int64_t g, int64_t k, Range channels, int worker) const noexcept;

  private:
    double* slot(int which, int64_t g, int64_t k) const noexcept {
        return memory.slots[which] + (g * chunks.count() + k) * box.channels();
    }
    // A tile is read again at once, to unpack it.
    bool streams() const noexcept { return stream && box.operand[role_out].direct; }
    template <class Body>
    void for_each_region(int64_t g, int64_t k, Range channels, const Body& body) const noexcept;
    template <class Body>
    void apply(const Access (&access)[roles], int64_t g, int64_t k, Range channels, int worker,
               const Body& body) const noexcept;
    void apply_normalize(Role from, int64_t g, int64_t k, Range channels, int worker) const noexcept;
};

}  // namespace batchnorm
