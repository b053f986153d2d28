#include "plan.hpp"

#include <limits>

#include "thread_count.hpp"

namespace batchnorm {
namespace {

constexpr int64_t min(int64_t a, int64_t b) noexcept { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) noexcept { return a > b ? a : b; }

// What a thread may expect to find in its caches on the second reading.
constexpr int64_t cached_bytes = 4 << 20;
// What a channel may have at most, for blocks of channels that are reduced and written.
constexpr int64_t most_channel_bytes = 2 * cached_bytes;
// What all operands of a call may have together, to stay in the caches that threads share.
constexpr int64_t shared_cache_bytes = 24 << 20;
// Work of a task of the two passes, and memory that a block of channels should read in one go.
constexpr int64_t task_elements = 32768;
constexpr int64_t contiguous_bytes = 98304;

// What the sizes of a processor's caches go with, on those that were measured.
struct Processor {
    Caches own;

    // So many reads in flight (Zen 5, Intel's) that the processor is to fetch far ahead. Others wait for a page's
    // address when they stream to it; such a one waits for the line that it was asked by.
    bool reads_far_ahead() const noexcept { return own.first > usual_first_cache; }
    // A third level so slow that a block of channels should stay in the second, beside the block that is read
    // meanwhile.
    bool third_is_slow() const noexcept { return own.second > small_own_cache; }
    // Zen 5.
    bool third_is_quick() const noexcept { return reads_far_ahead() && own.second > 0 && !third_is_slow(); }

    // Outputs of this size are large, and written past the caches unless these have what is overwritten, or all that
    // there is of lanes: of calls that only apply (0 tensors are read again), that go over x twice (1), and over dy as
    // well (2). The more a call reads, the sooner its output pushes out what it reads again; and where few reads are in
    // flight, what misses the third level costs more than to write past it, but not rows that are read in order twice
    // (docs/experiments.md).
    int64_t large_bytes(int read_again, bool planes) const noexcept {
        if (read_again == 2) return 8 << 20;
        if (reads_far_ahead()) return (read_again == 0 ? 24 : 16) << 20;
        return (read_again == 0 ? 17 : planes ? 12 : 16) << 20;
    }

    static constexpr int64_t usual_first_cache = 32 << 10, small_own_cache = 1 << 20;
};

constexpr bool has_planes(const Box& box) noexcept { return box.pattern == Pattern::row || box.plane > 1; }

// A call, as make_plan is told of it, and what follows.
struct Call {
    const Box& box;
    const Chunks& chunks;
    const int tensors;
    const bool reduces;
    const int threads, more;
    const Processor processor;

    const int64_t bytes, row_bytes;  // of one tensor, of a row of it
    const bool cached, large;

    Call(const Box& box_, const Chunks& chunks_, int tensors_, bool reduces_, int threads_, int more_,
         const Caches& own) noexcept
        : box(box_),
          chunks(chunks_),
          tensors(tensors_),
          reduces(reduces_),
          threads(threads_),
          more(more_),
          processor{own},
          bytes(box.elements() * item_size(box.dtype)),
          row_bytes(box.inners() * item_size(box.dtype)),
          // The block that is read, the one that is written and its output share the cache with what comes next.
          cached(bytes * (tensors + 1 + more) <= shared_cache_bytes),
          // Lanes go through caches that have all; of backward 8 MB are both.
          large(bytes >= processor.large_bytes(reduces ? tensors : 0, has_planes(box)) &&
                !(cached && box.pattern == Pattern::lane)) {}
};

// Whether threads that share so many channels, `block` of them at a time, are idle for more than a fifth of the time,
// or another share of it.
constexpr bool uneven(int64_t channels, int64_t block, int threads, int64_t share = 5) noexcept {
    const int64_t longest = min(ceil_div(ceil_div(channels, block), threads) * block, channels);
    return share * (longest * threads - channels) > longest * threads;
}

// ------------------------------------------------------------------------------------------------------------ rows

// All channels, or as many as make a task.
Plan plan_written_rows(const Call& call) noexcept {
    const Box& box = call.box;
    const Chunks chunks = Chunks::to_write(box, call.threads);
    const int64_t most = ceil_div(task_elements, chunks.values(0));
    const bool all = most >= box.channels() && chunks.count() * box.groups() >= call.threads;
    return {Traversal::two_passes, all ? box.channels() : even_share(box.channels(), most, call.threads)};
}

// Blocks up to so many bytes are written before the next one is read, not meanwhile. Where the third level is quick,
// two tensors from memory take longer beside an output than before it; if it has a part of them, only blocks do that
// the second level has.
int64_t most_in_slabs(const Call& call) noexcept {
    constexpr int64_t least_uncached_bytes = 24 << 20;  // of one tensor so large the third level has next to nothing
    if (call.tensors != 2 || call.cached || !call.processor.third_is_quick()) return 0;
    return call.bytes >= least_uncached_bytes ? most_channel_bytes : call.processor.own.second;
}

// Blocks of channels that are reduced and written.
Plan plan_rows(const Call& call) noexcept {
    // Shorter rows are too short to be read and written in turns.
    constexpr int64_t least_alternate_row_bytes = 256;
    // Not less than that is read in one go; of many samples, where the third level is quick and does not have all, two
    // passes in memory order are quicker than blocks so narrow that they read less than this.
    constexpr int64_t least_contiguous_bytes = 12288, least_in_one_go = 24576;

    const Box& box = call.box;
    const Processor& processor = call.processor;
    const int threads = call.threads;
    const int64_t row_bytes = call.row_bytes, second = processor.own.second;
    const int64_t channel_bytes = box.values() * item_size(box.dtype) * (call.tensors + call.more);
    // What the caches have room for.
    const int64_t room = processor.third_is_slow() ? second * (call.large ? 2 : 1) / 5 : cached_bytes;
    // Channels that together are contiguous for long, if they still fit the caches; and as many for each thread.
    const auto block_of = [&](int64_t most) {
        if (!box.channels_follow()) return int64_t{1};
        const int64_t fitting = max(room / channel_bytes, ceil_div(least_contiguous_bytes, row_bytes));
        most = min(min(most, box.statistics() / (4 * threads)), min(fitting, cached_bytes / channel_bytes));
        return even_share(box.channels(), max(most, 1), box.groups() > 1 ? 1 : threads);
    };
    const bool half_is_enough = call.large && processor.third_is_quick();
    const int64_t contiguous = ceil_div(contiguous_bytes / (half_is_enough ? 2 : 1), row_bytes);

    // Few channels may share out badly, where their chunks do not.
    if (uneven(box.statistics(), 1, threads) && !uneven(box.statistics() * call.chunks.count(), 1, threads))
        return {Traversal::two_passes, 1};

    // Weighted elements are not reduced in turns.
    if (box.direct() && !box.operand[role_weights].data && row_bytes >= least_alternate_row_bytes &&
        channel_bytes <= most_channel_bytes && box.statistics() >= 2 * threads) {
        // Of few samples a block that is not read in turns reads more in one go, half of what the second level holds.
        const int64_t slab = block_of(max(contiguous, second / 2 / channel_bytes));
        const bool in_turns = slab * channel_bytes > most_in_slabs(call);
        const int64_t block = in_turns ? block_of(min(contiguous, most_row_block)) : slab;
        const bool may_be_short = call.cached || !processor.third_is_quick();
        // With v there are more reductions than one, each a pass of its own.
        const bool long_enough = may_be_short || block * row_bytes >= least_in_one_go || box.operand[role_v].data;
        if (long_enough || !box.channels_follow()) return {in_turns ? Traversal::alternate : Traversal::slabs, block};
        return {Traversal::two_passes, even_share(box.channels(), most_row_block, 1)};
    }

    const int64_t block = block_of(contiguous), slabs = box.groups() * ceil_div(box.channels(), block);
    if (channel_bytes * block <= cached_bytes && slabs >= threads) return {Traversal::slabs, block};
    const int64_t task = min(ceil_div(task_elements, call.chunks.values(0)), box.channels());
    return {Traversal::two_passes, task > block ? task : block};
}

// How many rows of a block, instead of being read and written in turns, are reduced and then written while the first
// level has them: 0 but for a plain backward of channels of one row each, which a quick third level has and the second,
// beside other things, has not.
int64_t rows_at_once(const Call& call, const Plan& plan) noexcept {
    const Box& box = call.box;
    const Caches& own = call.processor.own;
    const int operands = call.tensors + 1;
    const bool plain_backward = call.tensors == 2 && call.more == 0 && !box.mask && !is_half(box.dtype);
    const bool from_third =
        call.processor.third_is_quick() && call.cached && call.bytes * operands > own.second * 3 / 4 * call.threads;
    const bool one_row = box.level[channel].rank <= 1 && box.outers() == 1 && call.chunks.count() == 1;
    if (plan.traversal != Traversal::alternate || !plain_backward || !from_third || !one_row) return 0;
    return min(own.first * 7 / 8 / (call.row_bytes * operands), plan.channel_block);
}

// ----------------------------------------------------------------------------------------------------------- lanes

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

Plan plan_lanes(const Call& call) noexcept {
    // Of each row, a task should read so much; and a thread so much, or its writing takes lines from its neighbour's
    // caches.
    constexpr int64_t least_row_bytes = 1024, least_share_bytes = 4096;
    // A block of columns, in L2, where the third level is slow of no more rows than these, and of a large tensor no
    // more than those; and of it, rows of all operands and their coefficients, in 7/8 of L1. (Lanes that share
    // statistics gain nothing by a larger one, where the third level is not quick; and one larger still would hold more
    // than most_lanes.)
    constexpr int64_t slab_bytes = 1 << 20, most_slab_rows = 256, most_large_slab_rows = 384;
    constexpr int64_t most_first_cache = 64 << 10;

    const Box& box = call.box;
    const Processor& processor = call.processor;
    const int tensors = call.tensors + call.more, threads = call.threads;
    const bool uses_first = processor.own.first > 0 && (box.plane == 1 || processor.third_is_quick());
    const int64_t first_cache = uses_first ? min(processor.own.first, most_first_cache) : Processor::usual_first_cache;
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
    const int64_t most_rows = call.large ? most_large_slab_rows : most_slab_rows;
    const bool few_rows = !processor.third_is_slow() || box.outers() <= most_rows;
    if (call.reduces && few_rows && fitting * unit >= least_row_bytes &&
        box.groups() * all * unit >= least_share_bytes * threads)
        return {Traversal::slabs, blocks_of(fitting, threads, box.groups())};
    // What is only written is cut into parts by outer indices, but for many columns (Chunks::to_write).
    return {Traversal::two_passes,
            blocks_of(in_l1, 1, call.reduces ? box.groups() * call.chunks.count() : box.outers())};
}

// ------------------------------------------------------------------------------------------------- reading and writing

kernels::Reading reading_of(const Call& call) noexcept {
    // Of more than that, two tensors that are reduced together come from memory in the end, and there quickest one row
    // after the other, where the third level is quick; if it has much of them, two rows at a time.
    constexpr int64_t least_alone_bytes = 32 << 20;
    if (call.cached) return kernels::Reading::cached;
    if (!call.processor.third_is_quick()) return kernels::Reading::fetched;
    return call.bytes * call.tensors > least_alone_bytes ? kernels::Reading::alone : kernels::Reading::paired;
}

// Of two passes; or of blocks in turns, if they are so large that the second level has only their ends.
bool goes_from_end(const Call& call, const Plan& plan) noexcept {
    const Box& box = call.box;
    if (plan.traversal == Traversal::two_passes) return !plan.stream || call.processor.third_is_slow();
    const int64_t block = plan.channel_block * box.values() * item_size(box.dtype) * (call.tensors + call.more);
    return plan.traversal == Traversal::alternate && call.processor.reads_far_ahead() &&
           2 * block > call.processor.own.second;
}

Ahead ahead_of(const Call& call, const Plan& plan) noexcept {
    constexpr int64_t page_bytes = 4096, far = 6144, output_ahead = 1024;
    const Box& box = call.box;
    const Processor& processor = call.processor;
    const bool quick = processor.third_is_quick(), two_passes = plan.traversal == Traversal::two_passes;
    Ahead ahead;

    // What large outputs are made of; and what is reduced, if it is so much that it may come from memory, but not two
    // tensors of it where the third level is quick, unless they come through a mask and nothing is written meanwhile.
    constexpr int64_t least_read_ahead = 12 << 20;
    const bool masked = box.mask && !call.cached && plan.traversal != Traversal::alternate;
    const bool two_follow = call.tensors == 2 && quick && !masked;
    const bool may_be_in_memory = call.bytes * call.tensors >= least_read_ahead;
    if (processor.reads_far_ahead()) {
        ahead.reads = may_be_in_memory && !two_follow ? far : 0;
        ahead.writes = call.large ? far : 0;
    } else {
        ahead.page = page_bytes;
    }

    // Outputs, to be written; but not where a thread's share of a row is so short that much of what is fetched is its
    // neighbour's, as hardware goes on fetching where a block of columns ends; and of two passes, where the third level
    // is quick, only if it has them and no mask goes with them.
    constexpr int64_t least_fetched_share_bytes = 16384;
    const bool shared_rows = box.pattern == Pattern::lane && plan.traversal == Traversal::slabs && call.threads > 1;
    const bool narrow = box.lanes() * item_size(box.dtype) <= least_fetched_share_bytes * call.threads;
    const bool comes_by_itself = quick && two_passes && (box.mask || plan.reading != kernels::Reading::cached);
    ahead.output = (shared_rows && narrow) || comes_by_itself ? 0 : output_ahead;

    // From a quick third level rows come as they are asked for, if hardware follows them; not so from memory, nor short
    // ones of lanes.
    ahead.rows = call.large || box.pattern == Pattern::lane || !quick;
    return ahead;
}

}  // namespace

// Rows look up one value of each kind, where lanes look up as many as they have elements. But past the caches the
// rows of lanes are joined, and those of rows have lines in common. Lanes are written in blocks of columns; what comes
// from a slow third level comes faster in memory order, if rows are not all ends.
PlaneLimits written_planes(DType dtype, int64_t bytes, const Caches& own) noexcept {
    // Shorter rows are too short to be written one by one, where they could be lanes; and these, where nothing is added
    // up, long enough not to be.
    constexpr int64_t least_written_row_bytes = 64, most_written_plane = 100;
    const int64_t unit = item_size(dtype);
    PlaneLimits limits{most_written_plane, dtype == DType::f64 ? 2 : 4, std::numeric_limits<int64_t>::max()};
    if (bytes >= Processor{own}.large_bytes(0, true))
        limits.elements = min(least_joined_row_bytes / unit - 1, most_plane_lanes);
    else if (Processor{own}.third_is_slow() && bytes > own.second && !is_half(dtype))
        limits.elements = least_written_row_bytes / unit - 1;
    return limits;
}

// Where a channel has few elements next to each other, or in all, much is done for channels that threads do not share
// as well.
int64_t elements_per_thread(const Box& box, bool reduces) noexcept {
    constexpr int64_t of_planes = 16384, fewer = 24576, many_values = 256;
    if (has_planes(box)) return reduces ? of_planes : fewer;
    return box.values() >= many_values ? fewer : most_elements_per_thread;
}

Plan make_plan(const Box& box, const Chunks& chunks, int tensors, bool reduces, int threads, int more,
               const Caches& own) noexcept {
    const Call call(box, chunks, tensors, reduces, threads, more, own);
    Plan plan = box.pattern == Pattern::lane ? plan_lanes(call) : reduces ? plan_rows(call) : plan_written_rows(call);
    plan.rows_at_once = rows_at_once(call, plan);
    if (plan.rows_at_once > 0) plan.traversal = Traversal::row_by_row;
    plan.reading = reading_of(call);
    plan.stream = call.large && !box.overwrites();
    plan.from_end = goes_from_end(call, plan);
    plan.ahead = ahead_of(call, plan);
    plan.looks_up_quickly = call.processor.third_is_quick();
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
