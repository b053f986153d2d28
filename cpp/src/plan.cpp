#include "plan.hpp"

#include <limits>

#include "thread_count.hpp"

namespace batchnorm {
namespace {

// What a thread may expect to find in its caches on the second reading.
constexpr int64_t cached_bytes = 4 << 20;
// What a channel may have at most, for blocks of channels that are reduced and written.
constexpr int64_t most_channel_bytes = 2 * cached_bytes;
// A second-level cache larger than this goes with a third level so slow that a block of channels should stay in the
// former, beside the block that is read meanwhile; but not in pieces shorter than that.
constexpr int64_t small_own_cache = 1 << 20, least_contiguous_bytes = 12288;
// A first-level cache larger than this goes with so many reads in flight (Zen 5, Intel's) that the processor is to
// fetch so far ahead what large outputs are made of; and what is reduced, if it is so much that it may come from
// memory, but not two tensors of it where the third level is quick, unless they come through a mask and nothing is
// written meanwhile.
constexpr int64_t usual_first_cache = 32 << 10, large_ahead = 6144, least_read_ahead = 12 << 20;
// Other processors wait for a page's address when they stream to it; such a one waits for the line that it was asked
// by.
constexpr int64_t page_bytes = 4096;
// Outputs of this size are large, and written past the caches unless these have what is overwritten, or all that there
// is of lanes: of calls that only apply, that go over x twice, and over dy as well. The more a call reads, the sooner
// its output pushes out what it reads again (docs/experiments.md).
constexpr int64_t large_bytes[] = {24 << 20, 16 << 20, 8 << 20};
// What all operands of a call may have together, to stay in the caches that threads share. Of more than the latter, two
// that are reduced together come from memory in the end, and there quickest one row after the other, where the
// third level is quick.
constexpr int64_t shared_cache_bytes = 24 << 20, least_alone_bytes = 32 << 20;
// Of one tensor so large, where two are reduced, the third level has next to nothing.
constexpr int64_t least_uncached_bytes = 24 << 20;
// Work of a task of the two passes, and memory that a block of channels should read in one go: half as much of large
// tensors where the third level is quick. There two passes in memory order are quicker than blocks that, of many
// samples, must be so narrow that they read less than this.
constexpr int64_t task_elements = 32768;
constexpr int64_t contiguous_bytes = 98304, least_in_one_go = 24576;

// Of each row, a task should read so much; and a thread so much, or its writing takes lines from its neighbour's
// caches.
constexpr int64_t least_row_bytes = 1024, least_share_bytes = 4096;
// Outputs are fetched so far ahead, to be written; but not where a thread's share of a row is so short that much of
// what is fetched is its neighbour's; and of two passes, where the third level is quick, only if it has them and no
// mask goes with them.
constexpr int64_t output_ahead = 1024, least_fetched_share_bytes = 16384;
// Shorter rows are too short to be read and written in turns; or to be written one by one, where they could be lanes.
constexpr int64_t least_alternate_row_bytes = 256, least_written_row_bytes = 64;
// And these, where nothing is added up, long enough not to be lanes.
constexpr int64_t most_written_plane = 100;
// Pattern::lane. A block of columns, in L2, where the third level is slow of no more rows than these, and of a large
// tensor no more than those; and of it, rows of all operands and their coefficients, in 7/8 of L1.
// (Lanes that share statistics gain nothing by a larger one, where the third level is slow; and one larger still would
// hold more than most_lanes.)
constexpr int64_t slab_bytes = 1 << 20, most_slab_rows = 256, most_large_slab_rows = 384;
constexpr int64_t most_first_cache = 64 << 10;

constexpr int64_t min(int64_t a, int64_t b) noexcept { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) noexcept { return a > b ? a : b; }

// Whether threads that share so many channels, `block` of them at a time, are idle for more than a fifth of the time,
// or another share of it.
constexpr bool uneven(int64_t channels, int64_t block, int threads, int64_t share = 5) noexcept {
    const int64_t longest = min(ceil_div(ceil_div(channels, block), threads) * block, channels);
    return share * (longest * threads - channels) > longest * threads;
}

constexpr bool second_is_large(const Caches& own) noexcept { return own.second > small_own_cache; }
constexpr bool reads_far_ahead(const Caches& own) noexcept { return own.first > usual_first_cache; }
// Zen 5, of the processors that were measured.
constexpr bool third_is_quick(const Caches& own) noexcept {
    return reads_far_ahead(own) && own.second > 0 && !second_is_large(own);
}

// How many channels together have a multiple of so many lanes, a power of two.
int64_t whole_channels(int64_t lanes, const Box& box) noexcept {
    for (int64_t plane = box.plane; plane % 2 == 0 && lanes > 1; plane /= 2) lanes /= 2;
    return lanes;
}

// About so many channels, in multiples of `step`; all of them if they are no more.
constexpr int64_t in_steps(int64_t channels, int64_t step, const Box& box) noexcept {
    if (channels >= box.channels()) return box.channels();
    return min(box.channels(), max(channels / step * step, step));
}

// All channels, or as many as make a task.
Plan plan_written_rows(const Box& box, int threads) noexcept {
    const Chunks chunks = Chunks::to_write(box, threads);
    const int64_t most = ceil_div(task_elements, chunks.values(0));
    const bool all = most >= box.channels() && chunks.count() * box.groups() >= threads;
    return {Traversal::two_passes, all ? box.channels() : even_share(box.channels(), most, threads)};
}

// Of blocks of channels: what the caches have room for; what one reads of each sample in one go, if that has room, but
// not less than so much. Blocks up to most_in_slabs are written before the next one is read, not meanwhile; of few
// samples they then read more in one go, half of what the second-level cache holds.
struct BlockBytes {
    int64_t most, in_one_go, least_in_one_go, most_in_slabs, half_of_second;
};

Plan plan_rows(const Box& box, const Chunks& chunks, int tensors, int threads, const BlockBytes& bytes) noexcept {
    // Channels that together are contiguous for long, if they still fit the caches; and as many for each thread.
    const int64_t row_bytes = box.inners() * item_size(box.dtype);
    const int64_t channel_bytes = box.values() * item_size(box.dtype) * tensors;
    const auto block_of = [&](int64_t most) {
        if (!box.channels_follow()) return int64_t{1};
        const int64_t fitting = max(bytes.most / channel_bytes, ceil_div(least_contiguous_bytes, row_bytes));
        most = min(min(most, box.statistics() / (4 * threads)), min(fitting, cached_bytes / channel_bytes));
        return even_share(box.channels(), max(most, 1), box.groups() > 1 ? 1 : threads);
    };
    const int64_t contiguous = ceil_div(bytes.in_one_go, row_bytes);

    // Few channels may share out badly, where their chunks do not.
    if (uneven(box.statistics(), 1, threads) && !uneven(box.statistics() * chunks.count(), 1, threads))
        return {Traversal::two_passes, 1};

    // Weighted elements are not reduced in turns.
    if (box.direct() && !box.operand[role_weights].data && row_bytes >= least_alternate_row_bytes &&
        channel_bytes <= most_channel_bytes && box.statistics() >= 2 * threads) {
        const int64_t slab = block_of(max(contiguous, bytes.half_of_second / channel_bytes));
        const bool in_turns = slab * channel_bytes > bytes.most_in_slabs;
        const int64_t block = in_turns ? block_of(min(contiguous, most_row_block)) : slab;
        // With v there are more reductions than one, each a pass of its own.
        const bool long_enough = block * row_bytes >= bytes.least_in_one_go || box.operand[role_v].data;
        if (long_enough || !box.channels_follow()) return {in_turns ? Traversal::alternate : Traversal::slabs, block};
        return {Traversal::two_passes, even_share(box.channels(), most_row_block, 1)};
    }

    const int64_t block = block_of(contiguous), slabs = box.groups() * ceil_div(box.channels(), block);
    if (channel_bytes * block <= cached_bytes && slabs >= threads) return {Traversal::slabs, block};
    const int64_t task = min(ceil_div(task_elements, chunks.values(0)), box.channels());
    return {Traversal::two_passes, task > block ? task : block};
}

// Not in turns, where a channel has one row and rows of all operands are so short that L1 holds some.
void go_row_by_row(Plan& plan, const Box& box, const Chunks& chunks, int operands, const Caches& own) noexcept {
    if (plan.traversal != Traversal::alternate || box.level[channel].rank > 1) return;
    if (box.outers() > 1 || chunks.count() > 1) return;
    const int64_t rows = own.first * 7 / 8 / (box.inners() * item_size(box.dtype) * operands);
    if (rows == 0) return;
    plan.traversal = Traversal::row_by_row;
    plan.rows_at_once = min(rows, plan.channel_block);
}

Plan plan_lanes(const Box& box, const Chunks& chunks, int tensors, bool reduces, int threads, bool large,
                const Caches& own) noexcept {
    const bool uses_first = own.first > 0 && (box.plane == 1 || third_is_quick(own));
    const int64_t first_cache = uses_first ? min(own.first, most_first_cache) : usual_first_cache;
    const int64_t unit = item_size(box.dtype), all = box.lanes();
    // Blocks of even shares of at most so many lanes, of each of so many parts. They end where a cache line does (of
    // 16-bit elements half a line: whole ones of large planes would be more lanes than a block may have), or a half of
    // one, and so on, if whole ones would be more; unless threads then have uneven shares; of a mask, where a byte
    // does.
    const auto blocks_of = [&](int64_t lanes, int sharers, int64_t parts) {
        if (box.fold() > 1) return box.channels();  // rows are folded as a whole
        const int64_t most = ceil_div(even_share(all, lanes, sharers), box.plane);
        const int64_t least_step = box.mask ? whole_channels(8, box) : 1;
        const int64_t whole_lines = whole_channels(min(64 / unit, most_lanes / most_plane_lanes), box);
        int64_t step = whole_lines;
        while (step > ceil_div(lanes, box.plane) && step > least_step) step /= 2;
        // Even shares rounded up, if that fits and leaves them even: rounded down there would be a block more.
        const int64_t up = ceil_div(most, step) * step;
        const bool fits = up * box.plane <= lanes && !uneven(parts * box.channels(), up, threads, 10);
        const int64_t block = in_steps(fits ? up : most, step, box);
        if (!uneven(parts * box.channels(), block, threads, step < whole_lines ? 10 : 5)) return block;
        return in_steps(even_share(box.channels(), most, threads), least_step, box);
    };
    // Rows of all operands and what the kernels look up for them, at most three values for each operand.
    const int64_t in_l1 = first_cache * 7 / 8 / (unit * (tensors + 1) + item_size(arithmetic(box.dtype)) * 3 * tensors);

    // Columns, all rows of them: if they stay in cache and are long enough in each row. Even parts, as many for each
    // thread.
    const int64_t fitting = min(slab_bytes / (box.outers() * unit * tensors), in_l1);
    const bool few_rows = !second_is_large(own) || box.outers() <= (large ? most_large_slab_rows : most_slab_rows);
    if (reduces && few_rows && fitting * unit >= least_row_bytes &&
        box.groups() * all * unit >= least_share_bytes * threads)
        return {Traversal::slabs, blocks_of(fitting, threads, box.groups())};
    // What is only written is cut into parts by outer indices, but for many columns (Chunks::to_write).
    return {Traversal::two_passes, blocks_of(in_l1, 1, reduces ? box.groups() * chunks.count() : box.outers())};
}

}  // namespace

// Rows look up one value of each kind, where lanes look up as many as they have elements. But past the caches the
// rows of lanes are joined, and those of rows have lines in common. Lanes are written in blocks of columns; what comes
// from a slow third level comes faster in memory order, if rows are not all ends.
PlaneLimits written_planes(DType dtype, int64_t bytes, const Caches& own) noexcept {
    const int64_t unit = item_size(dtype);
    PlaneLimits limits{most_written_plane, dtype == DType::f64 ? 2 : 4, std::numeric_limits<int64_t>::max()};
    if (bytes >= large_bytes[0])
        limits.elements = min(least_joined_row_bytes / unit - 1, most_plane_lanes);
    else if (second_is_large(own) && bytes > own.second && !is_half(dtype))
        limits.elements = least_written_row_bytes / unit - 1;
    return limits;
}

// Where a channel has few elements next to each other, or in all, much is done for channels that threads do not share
// as well.
int64_t elements_per_thread(const Box& box, bool reduces) noexcept {
    constexpr int64_t of_planes = 16384, fewer = 24576, many_values = 256;
    const bool planes = box.pattern == Pattern::row || box.plane > 1;
    if (planes) return reduces ? of_planes : fewer;
    return box.values() >= many_values ? fewer : most_elements_per_thread;
}

Plan make_plan(const Box& box, const Chunks& chunks, int tensors, bool reduces, int threads, int more,
               const Caches& own) noexcept {
    const int64_t bytes = box.elements() * item_size(box.dtype);
    // The block that is read, the one that is written and its output share the cache with what comes next.
    const bool cached = bytes * (tensors + 1 + more) <= shared_cache_bytes;
    // Lanes go through caches that have all; of backward 8 MB are both.
    const bool large = bytes >= large_bytes[reduces ? tensors : 0] && !(cached && box.pattern == Pattern::lane);
    // Where the third level is quick, two tensors from memory take longer beside an output than before it; if it has a
    // part of them, only blocks do that the second level has.
    int64_t most_in_slabs = 0;
    if (tensors == 2 && !cached && third_is_quick(own))
        most_in_slabs = bytes >= least_uncached_bytes ? most_channel_bytes : own.second;
    const BlockBytes blocks{second_is_large(own) ? own.second * (large ? 2 : 1) / 5 : cached_bytes,
                            contiguous_bytes / (large && third_is_quick(own) ? 2 : 1),
                            !cached && third_is_quick(own) ? least_in_one_go : 0, most_in_slabs, own.second / 2};
    Plan plan = box.pattern == Pattern::lane ? plan_lanes(box, chunks, tensors + more, reduces, threads, large, own)
                : reduces                    ? plan_rows(box, chunks, tensors + more, threads, blocks)
                                             : plan_written_rows(box, threads);
    // More than a thread's second level holds beside other things comes from the third: twice, in turns; once, if rows
    // stay in the first.
    const bool plain_backward = tensors == 2 && more == 0 && !box.mask && !is_half(box.dtype);
    if (plain_backward && cached && bytes * (tensors + 1) > own.second * 3 / 4 * threads && third_is_quick(own))
        go_row_by_row(plan, box, chunks, tensors + 1, own);
    if (cached)
        plan.reading = kernels::Reading::cached;
    else if (bytes * tensors > least_alone_bytes && third_is_quick(own))
        plan.reading = kernels::Reading::alone;
    plan.stream = large && !box.overwrites();
    plan.looks_up_quickly = third_is_quick(own);
    // Of two passes; or of blocks in turns, if they are so large that the second-level cache has only their ends.
    const int64_t block_size = plan.channel_block * box.values() * item_size(box.dtype) * (tensors + more);
    if (plan.traversal == Traversal::two_passes) plan.from_end = !plan.stream || second_is_large(own);
    if (plan.traversal == Traversal::alternate) plan.from_end = reads_far_ahead(own) && 2 * block_size > own.second;
    const bool masked = box.mask && !cached && plan.traversal != Traversal::alternate;
    const bool follows = tensors == 2 && third_is_quick(own) && !masked;
    const bool reads_ahead = bytes * tensors >= least_read_ahead && !follows;
    if (reads_far_ahead(own))
        plan.ahead = {reads_ahead ? large_ahead : 0, large ? large_ahead : 0};
    else
        plan.ahead.page = page_bytes;
    // Hardware goes on fetching where a block of columns ends.
    const bool shared_rows = box.pattern == Pattern::lane && plan.traversal == Traversal::slabs && threads > 1;
    const bool narrow = box.lanes() * item_size(box.dtype) <= least_fetched_share_bytes * threads;
    const bool comes_by_itself = third_is_quick(own) && plan.traversal == Traversal::two_passes &&
                                 (box.mask || plan.reading != kernels::Reading::cached);
    plan.ahead.output = (shared_rows && narrow) || comes_by_itself ? 0 : output_ahead;
    // From a quick third level rows come as they are asked for, if hardware follows them; not so from memory, nor short
    // ones of lanes.
    plan.ahead.rows = large || box.pattern == Pattern::lane || !third_is_quick(own);
    return plan;
}

Plan to_reduce_alone(Plan plan, const Box& box, int threads) noexcept {
    if (plan.reading == kernels::Reading::cached || plan.traversal == Traversal::two_passes) return plan;
    if (box.pattern == Pattern::lane || !box.direct() || !box.channels_follow()) return plan;
    const int64_t row_bytes = box.inners() * item_size(box.dtype);
    const int64_t in_one_go = min(ceil_div(contiguous_bytes, row_bytes), most_row_block);
    const int64_t most = max(min(in_one_go, box.statistics() / threads), 1);
    plan.channel_block = even_share(box.channels(), most, box.groups() > 1 ? 1 : threads);
    return plan;
}

}  // namespace batchnorm
