#include "plan.hpp"

namespace batchnorm {
namespace {

// What a thread may expect to find in its caches on the second reading.
constexpr int64_t cached_bytes = 4 << 20;
// An output of this size would push out of the caches more than what of it would stay in them.
constexpr int64_t streamed_bytes = 16 << 20;
// Work of a task of the two passes, and memory that it should read in one go.
constexpr int64_t task_elements = 32768;
constexpr int64_t contiguous_bytes = 49152;

// Channels-last, and small planes.
constexpr int64_t slab_bytes = 512 << 10;
constexpr int64_t most_column_lanes = 1024;
constexpr int64_t least_column_lanes = 256;

constexpr int64_t ceil_div(int64_t a, int64_t b) noexcept { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) noexcept { return a < b ? a : b; }

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
        if (reduces && channel_bytes * block <= cached_bytes && slabs >= threads)
            return {Traversal::slabs, block, stream};
        const int64_t task = min(ceil_div(task_elements, chunks.values(0)), box.channels());
        return {Traversal::two_passes, task > block ? task : block, stream};
    }
    // Columns: blocks of lanes over all rows, if they still are a KB and more of each row.
    int64_t lanes = slab_bytes / (box.outers() * item_size(box.dtype) * tensors);
    if (lanes > most_column_lanes) lanes = most_column_lanes;
    while (lanes > least_column_lanes && box.groups() * box.lanes() < lanes * threads) lanes /= 2;
    if (reduces && lanes >= least_column_lanes && box.groups() * box.lanes() >= lanes * threads)
        return {Traversal::slabs, min(box.channels(), ceil_div(ceil_div(lanes, box.plane), 16) * 16), stream};
    const int64_t block = min(box.channels(), most_lanes / box.plane);
    return {Traversal::two_passes, block, stream};
}

}  // namespace batchnorm
