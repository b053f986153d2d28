#include "plan.hpp"

namespace batchnorm {
namespace {

// What a thread may expect to find in its caches on the second reading.
constexpr int64_t cached_bytes = 4 << 20;
// Work of a task of the two passes, and memory that it should read in one go.
constexpr int64_t task_elements = 32768;
constexpr int64_t contiguous_bytes = 4096;

constexpr int64_t ceil_div(int64_t a, int64_t b) noexcept { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) noexcept { return a < b ? a : b; }

}  // namespace

Plan make_plan(const Box& box, const Chunks& chunks, int tensors, int threads) noexcept {
    const int64_t channel_bytes = box.values() * item_size(box.dtype) * tensors;
    if (box.pattern == Pattern::row) {
        const int64_t block = min(ceil_div(contiguous_bytes, box.inners() * item_size(box.dtype)), box.channels());
        const int64_t slabs = box.groups() * ceil_div(box.channels(), block);
        if (channel_bytes * block <= cached_bytes && slabs >= threads) return {Traversal::slabs, block};
        const int64_t chunk_elements = chunks.values(0);
        return {Traversal::two_passes, min(ceil_div(task_elements, chunk_elements), box.channels())};
    }
    const int64_t block = min(box.channels(), most_lanes);
    const bool groups_suffice = box.groups() >= threads && channel_bytes * block <= cached_bytes;
    return {groups_suffice ? Traversal::slabs : Traversal::two_passes, block};
}

}  // namespace batchnorm
