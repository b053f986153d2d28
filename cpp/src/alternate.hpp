// Pattern::row, block by block of channels: while one block is written, the next one is read.
//
// A block that was just read is still in cache when it is written, and its channels follow each other in memory: short
// rows that lie far apart are slow to read, as each starts a page anew (docs/performance.md).
#pragma once

#include <utility>

#include "apply.hpp"
#include "plan.hpp"
#include "reduce.hpp"

namespace batchnorm {

// A block of channels of a group, or none.
struct Slab {
    int64_t group = 0;
    Range channels{0, 0};

    Slab() noexcept = default;
    Slab(const Box& box, int64_t block, int64_t index) noexcept {
        const int64_t blocks = ceil_div(box.channels(), block), i = index % blocks;
        group = index / blocks;
        channels = {box.channels() * i / blocks, box.channels() * (i + 1) / blocks};
    }
    bool none() const noexcept { return channels.size() == 0; }
};

inline void both(const kernels::FlavourKernels& flavour, const kernels::RowMomentsArgs& read,
                 const kernels::NormalizeArgs& write) noexcept {
    flavour.moments_and_normalize(read, write);
}
inline void both(const kernels::FlavourKernels& flavour, const kernels::RowGradSumsArgs& read,
                 const kernels::NormalizeArgs& write) noexcept {
    flavour.grad_sums_and_normalize(read, write);
}
inline void both(const kernels::FlavourKernels& flavour, const kernels::RowGradSumsArgs& read,
                 const kernels::InputGradArgs& write) noexcept {
    flavour.grad_sums_and_input_grad(read, write);
}

// The rows of a slab, one outer index after the other; backwards from the last one, where all rows are as long, as what
// is read is paired with what is written.
class SlabRows {
  public:
    SlabRows(const Stages& stages, const Uses& uses, const Slab& slab, bool backwards) noexcept
        : chunks_(stages.chunks),
          looks_ahead_(stages.ahead.reads || stages.ahead.writes),
          backwards_(backwards && chunks_.inners % chunks_.inner_step == 0),
          channels_(slab.channels),
          rows_(stages.box, uses, slab.group),
          next_(rows_) {}

    int64_t count() const noexcept { return channels_.size(); }

    // Whether all rows of an outer index come in one span, and those of the next one `steps` behind them.
    bool steady() const noexcept { return !looks_ahead_ && rows_.steady(); }
    RowSteps steps() const noexcept {
        RowSteps steps = rows_.steps();
        if (!backwards_) return steps;
        for (int64_t& step : steps.of) step = -step;
        steps.mask = -steps.mask;
        return steps;
    }

    void go_to(int64_t k, int64_t o) noexcept {
        place(rows_, k, o);
        if (!looks_ahead_) return;
        const bool last = o + 1 == chunks_.outer_range(k).end;
        goes_on_ = !last || k + 1 < chunks_.count();
        if (!goes_on_) return;
        if (last)
            place(next_, k + 1, chunks_.outer_range(k + 1).begin);
        else
            place(next_, k, o + 1);
    }

    // How many rows, from the i-th on, are at one distance from each other.
    int64_t evenly(int64_t i) const noexcept {
        return i < count() ? rows_.evenly({channels_.begin + i, channels_.end}) : 0;
    }
    Span span(int64_t i, int64_t rows) const noexcept { return rows_.span(channels_.begin + i, rows); }
    // What is read after those before the i-th: that one, or the first one of the outer index to come, if there is one.
    Span then(int64_t i) const noexcept {
        return i < count() ? span(i, 1) : goes_on_ ? next_.span(channels_.begin, 1) : Span();
    }

  private:
    void place(DirectRows& rows, int64_t k, int64_t o) const noexcept {
        if (backwards_)
            rows.go_to(chunks_.outers - 1 - o, chunks_.inner_range(chunks_.inner_count - 1 - k % chunks_.inner_count));
        else
            rows.go_to(o, chunks_.inner_range(k));
    }

    const Chunks& chunks_;
    const bool looks_ahead_, backwards_;
    const Range channels_;
    DirectRows rows_, next_;
    bool goes_on_ = false;
};

// Reduces one slab and applies to another, which may start from its end; either may be none.
template <class Reduce, class Apply>
class SlabTurns {
  public:
    SlabTurns(const Stages& stages, const Slab& read, const Slab& written, bool from_end) noexcept
        : stages_(stages),
          read_(read),
          written_(written),
          from_(stages, Uses(stages.box, Reduce::access), read, false),
          to_(stages, Uses(stages.box, Apply::access), written, from_end),
          from_steps_(from_.steps()),
          to_steps_(to_.steps()),
          steady_(from_.steady() && to_.steady() && !stages.stream) {}

    void run() noexcept {
        for (int64_t k = 0; k < stages_.chunks.count(); ++k) run_chunk(k);
        if (!written_.none() && stages_.stream) stages_.kernels.finish_streams();
    }

  private:
    using Block = BlockSums<Reduce>;
    using ReadArgs = decltype(std::declval<Block>().args({}, 0, false, false));
    using WriteArgs = decltype(Apply::args(std::declval<Stages>(), {}, {}, false, {}));

    // Rows of channels that follow each other, of one outer index: of both slabs, or what is left of one of them.
    struct Call {
        bool reads, writes;
        ReadArgs read;
        WriteArgs write;
    };

    void run_chunk(int64_t k) noexcept {
        const Range outers = stages_.chunks.outer_range(k);
        const Reduce terms(stages_, read_.group, k);
        Block sums(terms, read_.group, k, read_.channels);
        Call calls[2];
        int kept = 0;
        for (int64_t o = outers.begin; o < outers.end; ++o) {
            const bool begins = o == outers.begin, ends = o + 1 == outers.end;
            for (int i = 0; i < kept; ++i) {
                move(calls[i], begins, ends);
                make(terms, calls[i]);
            }
            if (kept > 0) continue;
            from_.go_to(k, o);
            to_.go_to(k, o);
            for (int64_t b = 0, some; b < from_.count() || b < to_.count(); b += some) {
                // To put a call together anew takes longer than a short row.
                Call& call = calls[steady_ ? kept++ : 0];
                const int64_t readable = from_.evenly(b), writable = to_.evenly(b);
                call.reads = readable > 0;
                call.writes = writable > 0;
                some = !call.reads ? writable : !call.writes || readable < writable ? readable : writable;
                if (call.reads) call.read = read_args(sums, b, some, begins, ends);
                if (call.writes) call.write = write_args(b, some);
                make(terms, call);
            }
        }
        // Once more, alone. What is direct needs no worker's memory.
        sums.finish([&](int64_t c) { reduce<Reduce>(stages_, read_.group, k, {c, c + 1}, 0); });
    }

    // Of `some` rows, from the b-th channel on. What makes a call is inlined: calls of 10 us take 2 % longer without.
    [[gnu::always_inline]] ReadArgs read_args(Block& sums, int64_t b, int64_t some, bool begins,
                                              bool ends) const noexcept {
        ReadArgs args = sums.args(from_.span(b, some), b, begins, ends);
        if (args.ahead) Reduce::read_then(args, from_.then(b + some));
        return args;
    }
    [[gnu::always_inline]] WriteArgs write_args(int64_t b, int64_t some) const noexcept {
        const Span span = to_.span(b, some);
        WriteArgs args = row_args<Apply>(stages_, span, written_.group, written_.channels.begin + b);
        args.page_ahead = stages_.ahead.page;
        // What was not read just before.
        if constexpr (Apply::access[role_residual] == Access::read) {
            if (span.data[role_residual]) args.ahead = stages_.ahead.writes;
            if (args.ahead) Apply::read_then(args, to_.then(b + some));
        }
        return args;
    }

    // To the next outer index.
    [[gnu::always_inline]] void move(Call& call, bool begins, bool ends) const noexcept {
        if (call.reads) {
            Reduce::move(call.read, from_steps_);
            call.read.to.begins = begins;
            call.read.to.ends = ends;
        }
        if (call.writes) Apply::move(call.write, to_steps_);
    }

    [[gnu::always_inline]] void make(const Reduce& terms, const Call& call) const noexcept {
        if (!call.writes)
            terms.add(call.read);
        else if (!call.reads)
            Apply::write(stages_, call.write);
        else
            both(stages_.flavour, call.read, call.write);
    }

    const Stages& stages_;
    const Slab &read_, &written_;
    SlabRows from_, to_;
    const RowSteps from_steps_, to_steps_;
    // Whether a call is the one of the outer index before, moved. What is streamed is written by lines, and where they
    // begin may differ from row to row.
    const bool steady_;
};

// Reduces, merges and applies to some slabs.
template <class Reduce, class Apply, class Merge>
void alternate(const Stages& stages, const Plan& plan, Range slabs, const Merge& merge) noexcept {
    Slab written;
    for (int64_t s = slabs.begin; s <= slabs.end; ++s) {
        const Slab read = s < slabs.end ? Slab(stages.box, plan.channel_block, s) : Slab();
        SlabTurns<Reduce, Apply>(stages, read, written, plan.from_end).run();
        if (!read.none()) merge(read.group, read.channels);
        written = read;
    }
}

}  // namespace batchnorm
