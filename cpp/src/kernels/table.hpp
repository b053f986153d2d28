// The contract between the library and one instruction set: the functions of TypeKernels for each element type.
//
// Each comes in two flavours: plain, and full, which does what an activation, a residual and weights ask for as well,
// so far as a call has them. The arguments of the full flavour come last in each struct; the plain one does not look.
//
// A kernel is serial, allocates nothing, never fails and sees rows of n contiguous elements, `rows` of them: each
// operand's rows its own number of bytes apart, or, where lanes are reduced, wherever pointers say. A per-channel value
// is either one for the whole row (Pattern::row, channels-first: a row lies inside one channel) or one for each element
// of it (Pattern::lane, channels-last). In Pattern::row the rows of a call are those of one channel, or of channels
// that follow each other, one of each.
#pragma once

#include <cstdint>

namespace batchnorm::kernels {

enum Pattern : std::uint8_t { row, lane };

// The reductions add to accumulators, so that the bits of a sum depend on the order of the elements alone and not on
// how many of them a call was given. Pattern::lane: n sums in memory, which the caller sets to zero. Pattern::row: k
// partial sums, element i of a row in the (i mod k)-th of them, with a k of each instruction set. Between calls they
// are in memory. In the end they are added up: the upper half of them to the lower one, and so on.
inline constexpr int row_accumulators = 32;  // k at most

// Inner ranges that are cut at multiples of this keep each element in its accumulator.
inline constexpr int row_alignment = 32;

// Sums of 16-bit elements start in float, at 0, over short runs, and are then added to the accumulators. In
// Pattern::row a run ends where a multiple of this many elements of a row does, and at its end; a row that is taken in
// parts must be cut there. In Pattern::lane a run has a few rows; those of a region must be cut at multiples of
// half_lane_rows. A run whose sums are not finite is added up once more, in float64.
inline constexpr int half_row_run = 128;
inline constexpr int half_lane_rows = 16;

// What differences of rows are taken from: that of the first row's channel, which need not be aligned, and how many
// bytes behind it the next one's is.
struct Around {
    const void* first;
    std::int64_t next;
};

// Where `count` sums of rows go.
template <int count>
struct RowSumsTo {
    double* accumulators;        // row_accumulators for each, and behind them those of the next channel
    bool next_channel;           // each row is of the channel after that of the row before; or they are of the same
    bool begins = false;         // its first row is among these: accumulators count as 0
    bool ends = false;           // its last one is: they are added up, and need not be kept
    double* totals[count] = {};  // to these, of channels that follow each other
};

struct RowMomentsArgs {
    const void* x;
    std::int64_t x_stride;
    std::int64_t rows, n;
    Around pivot;                  // of the type of the arithmetic
    RowSumsTo<2> to;               // x - pivot, (x - pivot)^2
    std::int64_t ahead = 0;        // how many bytes ahead of their reading rows are fetched,
    const void* x_then = nullptr;  // and what is read after them; null: what lies behind them
};

// How rows of lanes are reduced: some at a time, column by column, while those so many rows ahead are fetched in memory
// order; the same of what the caches have, without that; two, while the next two are fetched to the first level; or
// each row by itself. The last two if a kernel can, and otherwise fetched.
enum class Reading : std::uint8_t { fetched, cached, paired, alone };
inline constexpr int rows_ahead = 16;

struct LaneMomentsArgs {
    const void* const* x;  // where the rows are
    std::int64_t rows, n;
    std::int64_t listed;  // at least `rows`, at most rows_ahead more: what x has past them is read next
    Reading reading;
    const void* pivot;  // a row of them
    double *sum, *sum_sq;
};

// How backward goes through an activation. What it let through is told by bits of a mask, or by the sign of its output
// y; dy counts there as it is, and elsewhere times slope. If `back` is not 0, x is y itself, from which what went into
// the activation is found again: x times back where it is not above 0.
struct Activated {
    bool some = false;
    double slope = 0;
    double back = 0;
};

struct RowGradSumsArgs {
    const void* dy;
    std::int64_t dy_stride;
    const void* x;
    std::int64_t x_stride;
    std::int64_t rows, n;
    Around mean;             // float64; for 16-bit elements float
    RowSumsTo<2> to;         // dy, dy * (x - mean)
    std::int64_t ahead = 0;  // as in RowMomentsArgs
    const void *dy_then = nullptr, *x_then = nullptr;
    Activated activated{};
    const void* y = nullptr;
    std::int64_t y_stride = 0;
    const std::uint8_t* mask = nullptr;
    std::int64_t mask_stride = 0;
    bool zeros_count_nothing = false;  // where dy is 0, also if x is not finite
};

struct LaneGradSumsArgs {
    const void *const *dy, *const *x;
    std::int64_t rows, n, listed;
    Reading reading;
    const void* mean;  // a row of them
    double *sum_dy, *sum_dy_xmu;
    Activated activated{};
    const void* const* y = nullptr;
    const void* const* mask = nullptr;
    bool zeros_count_nothing = false;
};

// moments of weighted elements; those of weight 0 are left out, whatever they are. weights are of the type of the
// arithmetic.
struct RowWeightedMomentsArgs {
    const void* x;
    std::int64_t x_stride;
    const void* weights;
    std::int64_t weights_stride;
    bool uniform;  // one weight for each row
    std::int64_t rows, n;
    const void* pivot;
    RowSumsTo<3> to;  // w * (x - pivot), w * (x - pivot)^2, w; the rows are those of one channel
};

struct LaneWeightedMomentsArgs {
    const void *const *x, *const *weights;
    bool uniform;
    std::int64_t rows, n, listed;
    const void* pivot;
    double *sum_w, *sum, *sum_sq;
};

// How the writers go through rows of lanes; all but `each` take rows that were not joined and are not streamed.
enum class RowOrder : std::uint8_t {
    each,    // one by one
    whole,   // so, of a multiple of 64 bytes, and with as little as possible around the arithmetic
    across,  // of what caches hold, some at a time, so that less is looked up
};

// The writers may take rows that follow each other as one: then n is a multiple of the number of channels, `period`,
// element i has the per-channel value i mod period, and those arrays go on, repeating, for lane_padding more elements.
inline constexpr int lane_padding = 32;

// y = (x - hi) * scale + shift, and full: y = activation((x - hi) * scale + shift + residual)
struct NormalizeArgs {
    const void* x;
    std::int64_t x_stride;
    void* y;
    std::int64_t y_stride;
    std::int64_t rows, n;
    const void *hi, *scale, *shift;  // of the type of the arithmetic
    bool next_channel;               // Pattern::row: each row's are those after the row's before; or they are the same
    std::int64_t period;
    bool stream;     // write past the caches, which y would only sweep
    RowOrder order;  // Pattern::lane
    bool activates = false;
    double slope = 0;  // of what is not above 0
    const void* residual = nullptr;
    std::int64_t residual_stride = 0;
    std::uint8_t* mask = nullptr;
    std::int64_t mask_stride = 0;
    std::int64_t output_ahead = 0;  // how many bytes ahead y is fetched, unless it is streamed or written in turns
    bool fetches_rows = false;      // some rows ahead
    std::int64_t ahead = 0;         // how many bytes ahead of its stores a row is fetched, unless rows to come are
    std::int64_t page_ahead = 0;    // and a line of its output, where another row is read in turns
    const void* residual_then = nullptr;  // as x_then in RowMomentsArgs
};

// dx = a * (dy - dy_hi) + b * xhat + c   with   xhat = (x - hi) * inv_std, and full, with weights w:
// dx = a * (dy - w * dy_hi) + w * (b * xhat + c) + d * (v - v_hi)
struct InputGradArgs {
    const void* dy;
    std::int64_t dy_stride;
    const void* x;
    std::int64_t x_stride;
    void* dx;
    std::int64_t dx_stride;
    std::int64_t rows, n;
    const void *hi, *inv_std, *dy_hi, *a, *b, *c;  // of the type of the arithmetic
    bool next_channel;                             // as in NormalizeArgs
    std::int64_t period;
    bool stream;
    RowOrder order;
    bool ignores_x = false;  // as if b were 0, whatever x is
    Activated activated{};
    const void* y = nullptr;
    std::int64_t y_stride = 0;
    const std::uint8_t* mask = nullptr;
    std::int64_t mask_stride = 0;
    const void* weights = nullptr;  // null: 1
    std::int64_t weights_stride = 0;
    bool uniform = false;  // one weight for each row
    const void* v = nullptr;
    std::int64_t v_stride = 0;
    const void *d = nullptr, *v_hi = nullptr;
    void* dresidual = nullptr;  // where dy goes that the activation let through
    std::int64_t dresidual_stride = 0;
    bool fetches_rows = false;  // as in NormalizeArgs
    std::int64_t ahead = 0, page_ahead = 0;
};

// The kernels of one flavour.
struct FlavourKernels {
    void (*row_grad_sums)(const RowGradSumsArgs&) noexcept;
    void (*lane_grad_sums)(const LaneGradSumsArgs&) noexcept;
    void (*normalize[2])(const NormalizeArgs&) noexcept;  // by Pattern
    void (*input_grad[2])(const InputGradArgs&) noexcept;
    // Both, of one row each, in turns (Pattern::row).
    void (*moments_and_normalize)(const RowMomentsArgs&, const NormalizeArgs&) noexcept;
    void (*grad_sums_and_normalize)(const RowGradSumsArgs&, const NormalizeArgs&) noexcept;
    void (*grad_sums_and_input_grad)(const RowGradSumsArgs&, const InputGradArgs&) noexcept;
};

// The kernels of one element type.
struct TypeKernels {
    void (*row_moments)(const RowMomentsArgs&) noexcept;
    void (*lane_moments)(const LaneMomentsArgs&) noexcept;
    void (*row_weighted_moments)(const RowWeightedMomentsArgs&) noexcept;
    void (*lane_weighted_moments)(const LaneWeightedMomentsArgs&) noexcept;
    FlavourKernels plain, full;
    // Each of `channels` values `plane` times, to lanes with lane_padding more.
    void (*expand)(const void* values, std::int64_t channels, std::int64_t plane, void* lanes) noexcept;
    void (*finish_streams)() noexcept;  // after streaming, before another thread may read what was written
};

struct KernelTable {
    TypeKernels f32, f64, f16, bf16;
};

// One table for each instruction set, the only symbol that its object file exports.
extern const KernelTable scalar_table, avx2_table, avx512_table, neon_table;

// With the same bits, where AVX-512's doubles are quicker eight at a time than four.
struct WideTable {
    TypeKernels f32, f64;
};
extern const WideTable avx512_wide_table;

// The kernels of each type that a processor uses.
struct KernelSet {
    const TypeKernels *f32, *f64, *f16, *bf16;
};
constexpr KernelSet all_of(const KernelTable& table) noexcept {
    return {&table.f32, &table.f64, &table.f16, &table.bf16};
}

}  // namespace batchnorm::kernels
