// Pattern::row, block by block of channels: while one block is written, the next one is read.
//
// A block that was just read is still in cache when it is written, and its channels follow each other in memory: short
// rows that lie far apart are slow to read, as each starts a page anew (docs/performance.md).
#pragma once

#include <cstring>

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

// To the rows that are read after those of chunk k with outer index o, if there are any.
inline bool go_on(const Chunks& chunks, int64_t k, int64_t o, DirectRows& rows) noexcept {
    if (o + 1 < chunks.outer_range(k).end)
        rows.go_to(o + 1, chunks.inner_range(k));
    else if (k + 1 < chunks.count())
        rows.go_to(chunks.outer_range(k + 1).begin, chunks.inner_range(k + 1));
    else
        return false;
    return true;
}

// Reduces one slab and applies to another; either may be none.
template <class Reduce, class Apply>
void alternate_slabs(const Stages& stages, const Slab& read, const Slab& written) noexcept {
    const Box& box = stages.box;
    DirectRows from(box, Uses(box, Reduce::access), read.group), next = from;
    DirectRows to(box, Uses(box, Apply::access), written.group);
    const int64_t reads = read.channels.size(), writes = written.channels.size();
    const int64_t unit = Memory::coefficient_size(box), first = written.group * Memory::coefficient_pitch(box);

    for (int64_t k = 0; k < stages.chunks.count(); ++k) {
        const Range outers = stages.chunks.outer_range(k), inners = stages.chunks.inner_range(k);
        const Reduce terms(stages, read.group, k);
        RowSums<Reduce::sums> sums[most_alternate_block];
        std::memset(sums, 0, static_cast<std::size_t>(reads) * sizeof *sums);
        for (int64_t b = 0; b < reads; ++b) terms.around(read.channels.begin + b, sums[b].around);
        for (int64_t o = outers.begin; o < outers.end; ++o) {
            from.go_to(o, inners);
            to.go_to(o, inners);
            const bool goes_on = stages.ahead.reads && go_on(stages.chunks, k, o, next);
            // As many rows of either as there are, then what is left of one of them.
            for (int64_t b = 0, some; b < reads || b < writes; b += some) {
                const Range sources{read.channels.begin + b, read.channels.end};
                const Range targets{written.channels.begin + b, written.channels.end};
                const int64_t readable = b < reads ? from.evenly(sources) : 0;
                const int64_t writable = b < writes ? to.evenly(targets) : 0;
                some = readable == 0 ? writable : writable == 0 || readable < writable ? readable : writable;

                const auto read_args = [&] {
                    auto args = terms.row_args(from.span(sources.begin, some), sums[b]);
                    if (b + some < reads)
                        Reduce::read_then(args, from.span(sources.begin + some, 1));
                    else if (goes_on)
                        Reduce::read_then(args, next.span(read.channels.begin, 1));
                    return args;
                };
                const auto write_args = [&] {
                    const Span span = to.span(targets.begin, some);
                    Looked at = {};
                    for (int i = 0; i < Apply::coefficients(box); ++i)
                        at[i] =
                            static_cast<const char*>(stages.memory.coefficients[i]) + (first + targets.begin) * unit;
                    auto args = Apply::args(stages, span, at, streams(stages, span), false);
                    args.page_ahead = stages.ahead.page;
                    // What was not read just before.
                    if (Apply::access[role_residual] == Access::read && span.data[role_residual])
                        args.ahead = stages.ahead.writes;
                    return args;
                };
                if (writable == 0)
                    terms.add(read_args());
                else if (readable == 0)
                    Apply::write(stages, write_args());
                else
                    both(stages.flavour, read_args(), write_args());
            }
        }
        for (int64_t b = 0; b < reads; ++b) {
            const int64_t c = read.channels.begin + b;
            // Once more, alone. What is direct needs no worker's memory.
            if (finish_row(terms, sums[b], read.group, k, c)) reduce<Reduce>(stages, read.group, k, {c, c + 1}, 0);
        }
    }
    if (!written.none() && stages.stream) stages.kernels.finish_streams();
}

// Reduces, merges and applies to some slabs.
template <class Reduce, class Apply, class Merge>
void alternate(const Stages& stages, int64_t block, Range slabs, const Merge& merge) noexcept {
    Slab written;
    for (int64_t s = slabs.begin; s <= slabs.end; ++s) {
        const Slab read = s < slabs.end ? Slab(stages.box, block, s) : Slab();
        alternate_slabs<Reduce, Apply>(stages, read, written);
        if (!read.none()) merge(read.group, read.channels);
        written = read;
    }
}

}  // namespace batchnorm
