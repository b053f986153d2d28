// The contract between the library and one instruction set: the functions of TypeKernels for each element type.
//
// A kernel is serial, allocates nothing, never fails and sees rows of n contiguous elements, `rows` of them: each
// operand's rows its own number of bytes apart, or, where lanes are reduced, wherever pointers say. A per-channel value
// is either one for the whole row (Pattern::row, channels-first: a row lies inside one channel) or one for each element
// of it (Pattern::lane, channels-last).
#pragma once

#include <cstdint>

namespace batchnorm::kernels {

enum Pattern : std::uint8_t { row, lane };

// The reductions add to accumulators in memory, so that the bits of a sum depend on the order of the elements alone and
// not on how many of them a call was given. Pattern::row: row_accumulators partial sums, element i of a row in the
// (i mod 4 vectors)-th of them; the caller sets all to zero, and adds them up in the end. Pattern::lane: n sums.
inline constexpr int row_accumulators = 32;

// Inner ranges that are cut at multiples of this keep each element in its accumulator.
inline constexpr int row_alignment = 32;

// Sums of 16-bit elements start in float, at 0, over short runs, and are then added to the accumulators. In
// Pattern::row a run ends where a multiple of this many elements of a row does, and at its end; a row that is taken in
// parts must be cut there. In Pattern::lane a run has a few rows; those of a region must be cut at multiples of
// half_lane_rows. A run whose sums are not finite is added up once more, in float64.
inline constexpr int half_row_run = 512;
inline constexpr int half_lane_rows = 16;

struct RowMomentsArgs {
    const void* x;
    std::int64_t x_stride;
    std::int64_t rows, n;
    const void* pivot;  // of the type of the arithmetic
    double* sum;        // += x - pivot
    double* sum_sq;     // += (x - pivot)^2
};

// How far ahead of their reading rows of lanes are fetched.
inline constexpr int rows_ahead = 16;

struct LaneMomentsArgs {
    const void* const* x;  // where the rows are
    std::int64_t rows, n;
    std::int64_t listed;  // at least `rows`, at most rows_ahead more: what x has past them is read next
    const void* pivot;    // a row of them
    double *sum, *sum_sq;
};

struct RowGradSumsArgs {
    const void* dy;
    std::int64_t dy_stride;
    const void* x;
    std::int64_t x_stride;
    std::int64_t rows, n;
    const void* mean;    // float64; for 16-bit elements float
    double* sum_dy;      // += dy
    double* sum_dy_xmu;  // += dy * (x - mean)
};

struct LaneGradSumsArgs {
    const void *const *dy, *const *x;
    std::int64_t rows, n, listed;
    const void* mean;  // a row of them
    double *sum_dy, *sum_dy_xmu;
};

// The writers may take rows that follow each other as one: then n is a multiple of the number of channels, `period`,
// element i has the per-channel value i mod period, and those arrays go on, repeating, for lane_padding more elements.
inline constexpr int lane_padding = 16;

// y = (x - hi) * scale + shift
struct NormalizeArgs {
    const void* x;
    std::int64_t x_stride;
    void* y;
    std::int64_t y_stride;
    std::int64_t rows, n;
    const void *hi, *scale, *shift;  // of the type of the arithmetic
    std::int64_t period;
    bool stream;  // write past the caches, which y would only sweep
};

// dx = a * (dy - dy_hi) + b * xhat + c   with   xhat = (x - hi) * inv_std
struct InputGradArgs {
    const void* dy;
    std::int64_t dy_stride;
    const void* x;
    std::int64_t x_stride;
    void* dx;
    std::int64_t dx_stride;
    std::int64_t rows, n;
    const void *hi, *inv_std, *dy_hi, *a, *b, *c;  // of the type of the arithmetic
    std::int64_t period;
    bool stream;  // as in NormalizeArgs
};

// The kernels of one element type.
struct TypeKernels {
    void (*row_moments)(const RowMomentsArgs&) noexcept;
    void (*lane_moments)(const LaneMomentsArgs&) noexcept;
    void (*row_grad_sums)(const RowGradSumsArgs&) noexcept;
    void (*lane_grad_sums)(const LaneGradSumsArgs&) noexcept;
    void (*normalize[2])(const NormalizeArgs&) noexcept;  // by Pattern
    void (*input_grad[2])(const InputGradArgs&) noexcept;
    // Both, of one row each, in turns (Pattern::row).
    void (*moments_and_normalize)(const RowMomentsArgs&, const NormalizeArgs&) noexcept;
    void (*grad_sums_and_normalize)(const RowGradSumsArgs&, const NormalizeArgs&) noexcept;
    void (*grad_sums_and_input_grad)(const RowGradSumsArgs&, const InputGradArgs&) noexcept;
    // Each of `channels` values `plane` times, to lanes with lane_padding more.
    void (*expand)(const void* values, std::int64_t channels, std::int64_t plane, void* lanes) noexcept;
    void (*finish_streams)() noexcept;  // after streaming, before another thread may read what was written
};

struct KernelTable {
    TypeKernels f32, f64, f16, bf16;
};

// One table for each instruction set, the only symbol that its object file exports.
extern const KernelTable scalar_table, avx2_table, avx512_table, neon_table;

}  // namespace batchnorm::kernels
