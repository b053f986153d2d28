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
        const int64_t blocks = (box.channels() + block - 1) / block, c = index % blocks * block;
        group = index / blocks;
        channels = {c, c + block < box.channels() ? c + block : box.channels()};
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

// Reduces one slab and applies to another, row by row; either may be none.
template <class Reduce, class Apply>
void alternate_slabs(const Stages& stages, const Slab& read, const Slab& written) noexcept {
    const Box& box = stages.box;
    DirectRows from(box, Uses(box, Reduce::access), read.group), to(box, Uses(box, Apply::access), written.group);
    const int64_t reads = read.channels.size(), writes = written.channels.size();
    Span source, target;
    Looked looked[most_alternate_block];
    for (int64_t b = 0; b < writes; ++b) {
        const int64_t c = written.group * Memory::coefficient_pitch(box) + written.channels.begin + b;
        for (int i = 0; i < Apply::coefficients(box); ++i)
            looked[b][i] = static_cast<const char*>(stages.memory.coefficients[i]) + c * Memory::coefficient_size(box);
    }

    for (int64_t k = 0; k < stages.chunks.count(); ++k) {
        const Range outers = stages.chunks.outer_range(k), inners = stages.chunks.inner_range(k);
        const Reduce terms(stages, read.group, k);
        RowSums<Reduce::sums> sums[most_alternate_block];
        for (int64_t b = 0; b < reads; ++b) {
            sums[b].clear();
            terms.around(read.channels.begin + b, sums[b].around);
        }
        for (int64_t o = outers.begin; o < outers.end; ++o) {
            from.go_to(o, inners);
            to.go_to(o, inners);
            for (int64_t b = 0; b < reads || b < writes; ++b) {
                if (b < reads) from.move(source, read.channels.begin + b);
                if (b < writes) to.move(target, written.channels.begin + b);
                const Looked& at = looked[b < writes ? b : 0];
                const bool stream = streams(stages, target);

                if (b >= writes)
                    terms.add(terms.row_args(source, sums[b]));
                else if (b >= reads)
                    Apply::write(stages, Apply::args(stages, target, at, stream, false));
                else
                    both(stages.flavour, terms.row_args(source, sums[b]),
                         Apply::args(stages, target, at, stream, false));
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
