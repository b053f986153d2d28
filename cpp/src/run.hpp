// Going through all of the box, as the plan says.
#pragma once

#include "alternate.hpp"
#include "apply.hpp"
#include "parallel.hpp"
#include "plan.hpp"
#include "reduce.hpp"
#include "row_by_row.hpp"
#include "thread_count.hpp"

namespace batchnorm {

// A reduction, and what merges its results: merge(g, channels).
template <class Terms_, class Merge>
struct Reduction {
    using Terms = Terms_;
    Merge merge;
};
template <class Terms, class Merge>
Reduction<Terms, Merge> reduction(const Merge& merge) noexcept {
    return {merge};
}

struct Run {
    const Stages& stages;
    const Plan& plan;
    const Team& team;

    // reduce, merge(g, channels) and apply.
    template <class Reduce, class Apply, class Merge>
    void traverse(const Merge& merge) const noexcept {
        switch (plan.traversal) {
            case Traversal::alternate:
                if constexpr (Reduce::takes_channels) each_alternately<Reduce, Apply>(merge);
                return;
            case Traversal::row_by_row:
                if constexpr (requires { &Reduce::skip; })
                    each_block(team, plan.channel_block, [&](int64_t g, Range channels, int) {
                        row_by_row<Reduce, Apply>(stages, plan.rows_at_once, g, channels, merge);
                    });
                return;
            case Traversal::slabs:
                return each_slab<Reduce>(
                    merge, [&](int64_t g, Range channels, int worker) { apply_slab<Apply>(g, channels, worker); });
            case Traversal::two_passes: reduce<Reduce>(merge); return apply_again<Apply>();
        }
    }

    // The same with several reductions, each of which needs what the ones before it found.
    template <class Apply, class... Reductions>
    void traverse_after(const Reductions&... reductions) const noexcept {
        if (plan.traversal == Traversal::two_passes) {
            (reduce<typename Reductions::Terms>(reductions.merge), ...);
            return apply_again<Apply>();
        }
        each_block(team, plan.channel_block, [&](int64_t g, Range channels, int worker) {
            (reduce_slab(reductions, g, channels, worker), ...);
            apply_slab<Apply>(g, channels, worker);
        });
    }

    template <class Reduce, class Merge>
    void reduce(const Merge& merge) const noexcept {
        if (plan.traversal != Traversal::two_passes) return each_slab<Reduce>(merge, [](int64_t, Range, int) {});
        each_piece(stages.chunks, Order::forwards, [&](int64_t g, int64_t k, Range channels, int worker) {
            batchnorm::reduce<Reduce>(stages, g, k, channels, worker);
        });
        each_statistic(stages.chunks.count(), merge);
    }

    template <class Apply>
    void apply() const noexcept {
        apply_in<Apply>(Order::forwards);
    }

    // body(g, channels) for all statistics, with as many threads as `work` operations on each of them are worth.
    template <class Body>
    void each_statistic(int64_t work, const Body& body) const noexcept {
        const Team few = smaller_team(team, work * stages.box.statistics());
        each_block(few, few.threads == 1 ? stages.box.channels() : statistic_block,
                   [&](int64_t g, Range channels, int) { body(g, channels); });
    }

  private:
    // Whole cache lines of slots.
    static constexpr int64_t statistic_block = 64;

    // What was read before: of its end the caches have most (docs/experiments.md).
    template <class Apply>
    void apply_again() const noexcept {
        apply_in<Apply>(plan.from_end ? Order::backwards : Order::forwards);
    }

    template <class Apply>
    void apply_in(Order order) const noexcept {
        const Chunks chunks = Chunks::to_write(stages.box, team.threads);
        each_piece(chunks, order, [&](int64_t g, int64_t k, Range channels, int worker) {
            batchnorm::apply<Apply>(stages, {g, channels, chunks.outer_range(k), chunks.inner_range(k)}, worker);
        });
    }

    // body(g, channels, worker) for every block of channels.
    template <class Body>
    void each_block(const Team& threads, int64_t block, const Body& body) const noexcept {
        const int64_t blocks = count_blocks(block);
        parallel_for(threads, stages.box.groups() * blocks,
                     [&](int64_t task, int worker) { body(task / blocks, block_range(task % blocks, block), worker); });
    }

    // body(g, k, channels, worker) for every chunk of every block of channels, in memory order or against it: of long
    // rows all pieces before the next channel. A worker has the same share of them either way.
    template <class Body>
    void each_piece(const Chunks& chunks, Order order, const Body& body) const noexcept {
        const int64_t outers = chunks.outer_count, inners = chunks.inner_count;
        const int64_t blocks = count_blocks(plan.channel_block);
        parallel_for(team, stages.box.groups() * outers * blocks * inners, order, [&](int64_t task, int worker) {
            const int64_t row = task / inners, block = row % blocks, outer = row / blocks % outers;
            body(row / (blocks * outers), outer * inners + task % inners, block_range(block, plan.channel_block),
                 worker);
        });
    }

    template <class Terms, class Merge>
    void reduce_slab(const Reduction<Terms, Merge>& reduction, int64_t g, Range channels, int worker) const noexcept {
        for (int64_t k = 0; k < stages.chunks.count(); ++k) batchnorm::reduce<Terms>(stages, g, k, channels, worker);
        reduction.merge(g, channels);
    }
    template <class Apply>
    void apply_slab(int64_t g, Range channels, int worker) const noexcept {
        const Range outers{0, stages.box.outers()}, inners{0, stages.box.inners()};
        batchnorm::apply<Apply>(stages, {g, channels, outers, inners}, worker);
    }

    // Block by block: reduce, merge and then(g, channels, worker).
    template <class Reduce, class Merge, class Then>
    void each_slab(const Merge& merge, const Then& then) const noexcept {
        each_block(team, plan.channel_block, [&](int64_t g, Range channels, int worker) {
            reduce_slab(reduction<Reduce>(merge), g, channels, worker);
            then(g, channels, worker);
        });
    }

    template <class Reduce, class Apply, class Merge>
    void each_alternately(const Merge& merge) const noexcept {
        parallel_ranges(team, stages.box.groups() * count_blocks(plan.channel_block),
                        [&](Range slabs, int) { alternate<Reduce, Apply>(stages, plan, slabs, merge); });
    }

    int64_t count_blocks(int64_t block) const noexcept { return (stages.box.channels() + block - 1) / block; }
    Range block_range(int64_t i, int64_t block) const noexcept {
        const int64_t begin = i * block, end = begin + block;
        return {begin, end < stages.box.channels() ? end : stages.box.channels()};
    }
};

}  // namespace batchnorm
