#include "plan.hpp"

namespace batchnorm {
namespace {

// What a thread may expect to find in its caches on the second reading.
constexpr int64_t cached_bytes = 4 << 20;
// An output of this size would push out of the caches more than what of it would stay in them.
constexpr int64_t streamed_bytes = 8 << 20;
// Work of a task of the two passes, and memory that it should read in one go.
constexpr int64_t task_elements = 32768;
constexpr int64_t contiguous_bytes = 98304;

// Pattern::lane. A block of columns, in L2; and of it, rows of all operands and their coefficients, in L1.
constexpr int64_t slab_bytes = 1 << 20;
constexpr int64_t row_bytes_in_l1 = 28 << 10;
constexpr int64_t least_column_bytes = 1024;
// A block has all lanes of rows that are folded: these are to follow each other without a gap.
static_assert(least_column_bytes / 8 >= most_folded_lanes / 2);

constexpr int64_t ceil_div(int64_t a, int64_t b) noexcept { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) noexcept { return a < b ? a : b; }

// About so many channels, which end where a cache line does; all of them if they are no more.
int64_t whole_lines(int64_t channels, const Box& box) noexcept {
    if (channels >= box.channels()) return box.channels();
    int64_t step = 64 / item_size(box.dtype);
    for (int64_t plane = box.plane; plane % 2 == 0 && step > 1; plane /= 2) step /= 2;
    return channels > step ? channels / step * step : step;
}

}  // namespace

Plan make_plan(const Box& box, const Chunks& chunks, int tensors, bool reduces, int threads) noexcept {
    const bool stream = box.elements() * item_size(box.dtype) >= streamed_bytes;
    const int64_t channel_bytes = box.values() * item_size(box.dtype) * tensors;
    if (box.pattern == Pattern::row) {
        // Channels that together are contiguous for long, if they still fit the cache and there is work for all.
        const int64_t row_bytes = box.inners() * item_size(box.dtype);
        int64_t block = min(ceil_div(contiguous_bytes, row_bytes), box.channels());
        while (block > 1 && (channel_bytes * block > cached_bytes || box.statistics() < 4 * block * threads))
            block /= 2;
        const int64_t slabs = box.groups() * ceil_div(box.channels(), block);
        bool in_place = true;
        for (const Operand& operand : box.operand) in_place &= operand.data == nullptr || operand.direct;
        const bool in_l2 = box.elements() * item_size(box.dtype) * tensors <= slab_bytes;
        if (reduces && in_place && !in_l2 && row_bytes >= 1024 && channel_bytes <= 2 * cached_bytes &&
            box.statistics() >= 2 * threads)
            return {Traversal::alternate, min(block, most_alternate_block), stream};
        if (reduces && channel_bytes * block <= cached_bytes && slabs >= threads)
            return {Traversal::slabs, block, stream};
        const int64_t task = min(ceil_div(task_elements, chunks.values(0)), box.channels());
        return {Traversal::two_passes, task > block ? task : block, stream};
    }
    // Columns: blocks of lanes over all rows, if what a block needs stays in cache and it is a KB and more of each row.
    const int64_t unit = item_size(box.dtype), fewest = least_column_bytes / unit;
    int64_t lanes = min(slab_bytes / (box.outers() * unit * tensors), row_bytes_in_l1 / (unit * (4 * tensors + 1)));
    while (lanes > fewest && box.groups() * box.lanes() < lanes * threads) lanes /= 2;
    if (reduces && lanes >= fewest && box.groups() * box.lanes() >= lanes * threads)
        return {Traversal::slabs, min(box.channels(), whole_lines(lanes / box.plane, box)), stream};
    lanes = row_bytes_in_l1 / (unit * (4 * tensors + 1));
    lanes = ceil_div(box.lanes(), ceil_div(box.lanes(), lanes));  // even parts
    return {Traversal::two_passes, min(box.channels(), whole_lines(ceil_div(lanes, box.plane), box)), stream};
}

}  // namespace batchnorm
