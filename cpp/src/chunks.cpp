#include "chunks.hpp"

namespace batchnorm {
namespace {

// Elements of a chunk: enough that a slot (16 bytes for each statistic) costs nothing, few enough to share the work.
constexpr int64_t target_elements = 32768;
// Channels-last: rows of a chunk, so that its row of slots stays a few per cent of what is read, and chunks at most.
constexpr int64_t least_chunk_rows = 128;
constexpr int64_t most_lane_chunks = 256;
// Of each thread, to write them in columns.
constexpr int64_t many_lanes = 8192;
// So many that it does not matter how they share out among threads.
constexpr int64_t most_uneven_chunks = 32;

constexpr int64_t max(int64_t a, int64_t b) noexcept { return a > b ? a : b; }
constexpr int64_t min(int64_t a, int64_t b) noexcept { return a < b ? a : b; }

}  // namespace

Chunks::Chunks(const Box& box) noexcept
    : Chunks(box, {target_elements, box.lanes(), least_chunk_rows, most_lane_chunks}) {
    if (box.pattern != Pattern::lane || outer_count >= most_uneven_chunks) return;
    // Of few chunks threads get as many each: an even number of them, or a multiple of 4.
    const int64_t multiple = outer_count >= 8 ? 4 : outer_count > 1 ? 2 : 1;
    cut_outers(ceil_div(outer_count, multiple) * multiple);
}

Chunks Chunks::to_write(const Box& box, int threads) noexcept {
    if (box.pattern == Pattern::lane) {
        // Rows for every thread: those that write columns of a row take lines from each other. But of small planes,
        // with many columns, each column's coefficients are then written out once, not once for each part of its rows.
        Chunks chunks(box);
        const bool many_columns = box.plane > 1 && box.lanes() >= many_lanes * threads;
        const int64_t each = ceil_div(threads, box.groups());
        if (chunks.outer_count < each && !many_columns) chunks.cut_outers(each);
        return chunks;
    }
    if (!box.channels_follow()) return Chunks(box);
    // All channels of an outer index before the next one.
    const int64_t outers = even_share(box.outers(), max(1, target_elements / (box.channels() * box.inners())), threads);
    return Chunks(box, {min(target_elements, outers * box.inners()), 0, 0, 0});
}

Chunks::Chunks(const Box& box, const Grain& grain) noexcept
    : outer_step(1),
      inner_step(box.inners()),
      outer_count(1),
      inner_count(1),
      outers(box.outers()),
      inners(box.inners()),
      plane(box.plane) {
    if (box.pattern == Pattern::row && inners > grain.elements) {
        // Cut at multiples of row_alignment, which keep each element in its accumulator.
        const int64_t even = ceil_div(inners, ceil_div(inners, grain.elements));
        inner_step = ceil_div(even, kernels::row_alignment) * kernels::row_alignment;
    } else if (box.pattern == Pattern::row) {
        outer_step = max(1, grain.elements / inners);
    } else {
        outer_step = max(max(grain.least_rows, grain.elements / grain.lanes), ceil_div(outers, grain.most_lane_chunks));
    }
    inner_count = ceil_div(inners, inner_step);
    cut_outers(ceil_div(outers, outer_step));
}

void Chunks::cut_outers(int64_t parts) noexcept {
    outer_step = ceil_div(outers, parts);
    outer_count = ceil_div(outers, outer_step);
}

}  // namespace batchnorm
