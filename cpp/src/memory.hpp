// The scratch memory of a call.
#pragma once

#include "arena.hpp"
#include "box.hpp"
#include "chunks.hpp"
#include "spans.hpp"

namespace batchnorm {

inline constexpr int coefficient_count = 8;

// Sums of a reduction, at most.
inline constexpr int sum_count = 3;

// What one worker needs for itself.
struct WorkerMemory {
    Tiles tiles;      // of operands that have to be packed
    RowLists* lists;  // pointers to rows
    // One value for each lane of a block:
    void* values;        // pivots of x's type, or means
    double* sums;        // sum_count, where lanes share a statistic
    void* coefficients;  // of the type of the arithmetic, where lanes share a statistic, each with padding
};

struct Memory {
    // One value for each statistic, in the box's order.
    double *mean, *spread, *inv_std, *gamma, *beta, *count, *sum_dy, *sum_dy_xmu;
    // Of higher derivatives: gamma's and beta's direction, v's sums as dy's, and sum(dy * (v - v's mean)).
    double *tgamma, *tbeta, *v_mean, *sum_v_xmu, *sum_dy_v;
    // What the kernels look up, of the type of their arithmetic: [group][channel and padding].
    void* coefficients[coefficient_count];

    // For a call with so many sums for each chunk and statistic: 0 if it does not reduce; and whose output is streamed,
    // or not.
    Memory(Arena& arena, const Box& box, const Chunks& chunks, int threads, int sums, bool stream) noexcept;

    // Coefficients of one group, with the padding that the kernels may read in Pattern::lane.
    static int64_t coefficient_pitch(const Box& box) noexcept {
        return box.channels() + (box.pattern == Pattern::lane ? kernels::lane_padding : 0);
    }

    static int64_t coefficient_size(const Box& box) noexcept { return item_size(arithmetic(box.dtype)); }

    // The i-th kind, of a group's channels from the c-th on.
    const char* coefficients_from(int i, const Box& box, int64_t g, int64_t c) const noexcept {
        return static_cast<const char*>(coefficients[i]) + (g * coefficient_pitch(box) + c) * coefficient_size(box);
    }

    // A chunk's mean (0) and m2 (1) and, of weighted elements, their weight (2), or its two gradient sums, of all
    // channels.
    double* slot(int which, int64_t g, int64_t k) const noexcept {
        return slots_[which] + (g * chunks_ + k) * channels_;
    }

    WorkerMemory worker(const Box& box, int index) const noexcept {
        Arena arena(workers_ + index * worker_bytes_);
        return take_worker(arena, box);
    }

  private:
    WorkerMemory take_worker(Arena& arena, const Box& box) const noexcept;

    double* slots_[sum_count] = {};
    int64_t chunks_, channels_;
    int64_t shift_;  // of coefficients, in bytes from the start of a line
    char* workers_;
    int64_t worker_bytes_;
};

}  // namespace batchnorm
