// Pattern::row, block by block of channels: while one block is written, the next one is read.
//
// A block that was just read is still in cache when it is written, and its channels follow each other in memory: short
// rows that lie far apart are slow to read, as each starts a page anew (docs/performance.md).
#pragma once

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
void alternate_slabs(const Stages& stages, const Slab& read, const Slab& written, bool from_end) noexcept {
    const Box& box = stages.box;
    SlabRows from(stages, Uses(box, Reduce::access), read, false),
        to(stages, Uses(box, Apply::access), written, from_end);
    const int64_t reads = from.count(), writes = to.count();
    const int64_t unit = Memory::coefficient_size(box),
                  first = written.group * Memory::coefficient_pitch(box) + written.channels.begin;

    // What is streamed is written by lines, and where they begin may differ from row to row.
    const bool steady = from.steady() && to.steady() && !stages.stream;
    const RowSteps from_steps = from.steps(), to_steps = to.steps();

    for (int64_t k = 0; k < stages.chunks.count(); ++k) {
        const Range outers = stages.chunks.outer_range(k);
        const Reduce terms(stages, read.group, k);
        BlockSums<Reduce> sums(terms, read.group, k, read.channels);
        const auto read_args = [&](int64_t b, int64_t some, int64_t o) {
            auto args = sums.args(from.span(b, some), b, o == outers.begin, o + 1 == outers.end);
            if (args.ahead) Reduce::read_then(args, from.then(b + some));
            return args;
        };
        const auto write_args = [&](int64_t b, int64_t some) {
            const Span span = to.span(b, some);
            Looked at = {};
            for (int i = 0; i < Apply::coefficients(box); ++i)
                at[i] = static_cast<const char*>(stages.memory.coefficients[i]) + (first + b) * unit;
            auto args = Apply::args(stages, span, at, streams(stages, span), kernels::RowOrder::each);
            args.page_ahead = stages.ahead.page;
            // What was not read just before.
            if constexpr (Apply::access[role_residual] == Access::read) {
                if (span.data[role_residual]) args.ahead = stages.ahead.writes;
                if (args.ahead) Apply::read_then(args, to.then(b + some));
            }
            return args;
        };
        // As many rows of either as there are, then what is left of one of them.
        struct Call {
            bool reads = false, writes = false;
            decltype(read_args(0, 0, 0)) read{};
            decltype(write_args(0, 0)) write{};
        };
        const auto run = [&](const Call& call) {
            if (!call.writes)
                terms.add(call.read);
            else if (!call.reads)
                Apply::write(stages, call.write);
            else
                both(stages.flavour, call.read, call.write);
        };

        Call calls[2];
        int count = 0;
        for (int64_t o = outers.begin; o < outers.end; ++o) {
            if (count > 0) {
                // To put them together anew takes longer than a short row.
                for (int i = 0; i < count; ++i) {
                    Reduce::move(calls[i].read, from_steps);
                    calls[i].read.to.begins = false;
                    calls[i].read.to.ends = o + 1 == outers.end;
                    Apply::move(calls[i].write, to_steps);
                    run(calls[i]);
                }
                continue;
            }
            from.go_to(k, o);
            to.go_to(k, o);
            for (int64_t b = 0, some; b < reads || b < writes; b += some) {
                const int64_t readable = from.evenly(b), writable = to.evenly(b);
                some = readable == 0 ? writable : writable == 0 || readable < writable ? readable : writable;
                Call& call = calls[steady ? count++ : 0];
                call.reads = readable > 0;
                call.writes = writable > 0;
                if (call.reads) call.read = read_args(b, some, o);
                if (call.writes) call.write = write_args(b, some);
                run(call);
            }
        }
        // Once more, alone. What is direct needs no worker's memory.
        sums.finish([&](int64_t c) { reduce<Reduce>(stages, read.group, k, {c, c + 1}, 0); });
    }
    if (!written.none() && stages.stream) stages.kernels.finish_streams();
}

// Reduces, merges and applies to some slabs.
template <class Reduce, class Apply, class Merge>
void alternate(const Stages& stages, const Plan& plan, Range slabs, const Merge& merge) noexcept {
    Slab written;
    for (int64_t s = slabs.begin; s <= slabs.end; ++s) {
        const Slab read = s < slabs.end ? Slab(stages.box, plan.channel_block, s) : Slab();
        alternate_slabs<Reduce, Apply>(stages, read, written, plan.from_end);
        if (!read.none()) merge(read.group, read.channels);
        written = read;
    }
}

}  // namespace batchnorm
