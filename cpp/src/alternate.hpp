// Pattern::row, block by block of channels: while one block is written, the next one is read.
//
// Reading waits for memory and writing past the caches does not, so both together take little longer than reading
// alone. They take turns, in pieces of a row. What is read is fetched some pieces ahead, over the ends of rows, which
// hardware prefetchers do not see beyond. A block that was just read is still in cache when it is written.
#pragma once

#include "apply.hpp"
#include "plan.hpp"
#include "reduce.hpp"

namespace batchnorm {

inline constexpr int64_t alternate_piece_bytes = 3072;
inline constexpr int64_t alternate_ahead_bytes = 4096;

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

// Where a slab's rows are, in the operands that are accessed.
class SlabRows {
  public:
    SlabRows(const Box& box, const Access (&access)[roles], const Slab& slab) noexcept : box_(box) {
        for (int r = 0; r < roles; ++r) {
            const Operand& operand = box.operand[r];
            if (access[r] != Access::none && !slab.none())
                base_[r] = operand.data + operand.offset(box.level[group], group, slab.group);
        }
    }

    // Elements of a row; null where there is no access.
    void part(int64_t o, int64_t c, int64_t i, char* (&at)[roles]) const noexcept {
        for (int r = 0; r < roles; ++r)
            at[r] = base_[r] ? base_[r] + box_.operand[r].offset(box_.level[outer], outer, o) +
                                   box_.operand[r].offset(box_.level[channel], channel, c) + i * item_size(box_.dtype)
                             : nullptr;
    }

  private:
    const Box& box_;
    char* base_[roles] = {};
};

// Reduces one slab and applies to another, chunk by chunk; either may be none.
template <class Reduce, class Apply>
void alternate_slab(const Stages& stages, const Slab& read, const Slab& written, const Slab& next) noexcept {
    const Box& box = stages.box;
    const int64_t unit = item_size(box.dtype), inners = box.inners();
    const int64_t piece = alternate_piece_bytes / unit, distance = alternate_ahead_bytes / unit;
    const SlabRows from(box, Reduce::access, read), to(box, Apply::access, written), after(box, Reduce::access, next);
    const int64_t block =
        read.channels.size() > written.channels.size() ? read.channels.size() : written.channels.size();

    for (int64_t k = 0; k < stages.chunks.count(); ++k) {
        const Range outers = stages.chunks.outer_range(k), along = stages.chunks.inner_range(k);
        const Reduce terms(stages, read.group, k);
        RowSums sums[most_alternate_block];
        for (int64_t o = outers.begin; o < outers.end; ++o) {
            for (int64_t b = 0; b < block; ++b) {
                const bool reads = b < read.channels.size(), writes = b < written.channels.size();
                const int64_t read_c = read.channels.begin + b, written_c = written.channels.begin + b;
                Span source{1, 0, 0}, target{1, 0, 0};
                char* ahead[roles] = {};
                if (reads) {
                    from.part(o, read_c, 0, source.data);
                    if (b + 1 < read.channels.size())
                        from.part(o, read_c + 1, 0, ahead);
                    else if (o + 1 < box.outers())
                        from.part(o + 1, read.channels.begin, 0, ahead);
                    else
                        after.part(0, next.channels.begin, 0, ahead);
                }
                if (writes) to.part(o, written_c, 0, target.data);
                const bool stream = writes && streams(stages, target.data[role_out], 0, inners * unit);
                // Pieces of what is written start at a line.
                const auto misplaced =
                    reinterpret_cast<std::uintptr_t>(target.data[role_out]) / static_cast<std::uintptr_t>(unit) % 16;
                const int64_t shift = stream ? (16 - static_cast<int64_t>(misplaced)) % 16 : 0;
                const void* coefficients[coefficient_count] = {};
                for (int i = 0; i < Apply::coefficients && writes; ++i)
                    coefficients[i] = static_cast<const char*>(stages.memory.coefficients[i]) +
                                      (written.group * Memory::coefficient_pitch(box) + written_c) * unit;
                for (int64_t i = along.begin; i < along.end; i += piece) {
                    const int64_t end = i + piece < along.end ? i + piece : along.end;
                    if (reads) {
                        Span span = source;
                        span.n = end - i;
                        const char* fetched[roles] = {};
                        for (int r = 0; r < roles; ++r)
                            if (source.data[r]) {
                                span.data[r] += i * unit;
                                fetched[r] = i + distance < inners ? source.data[r] + (i + distance) * unit
                                             : ahead[r]            ? ahead[r] + (i + distance - inners) * unit
                                                                   : nullptr;
                            }
                        terms.add(span, terms.around(read_c), fetched, sums[b]);
                    }
                    const Range cut{i == 0 ? 0 : i + shift, end + shift < inners ? end + shift : inners};
                    if (writes && cut.size() > 0) {
                        Span span = target;
                        span.n = cut.size();
                        for (char*& data : span.data)
                            if (data) data += cut.begin * unit;
                        __builtin_prefetch(target.data[role_out] + (cut.begin + 1024) * unit, 0, 2);
                        Apply::write(stages, span, coefficients, stream);
                    }
                }
            }
        }
        for (int64_t b = 0; b < read.channels.size(); ++b)
            finish_row(terms, sums[b], read.group, k, read.channels.begin + b);
    }
    if (!written.none() && stages.stream) stages.kernels.finish_streams();
}

// Reduces, merges and applies to some slabs.
template <class Reduce, class Apply, class Merge>
void alternate(const Stages& stages, int64_t block, Range slabs, const Merge& merge) noexcept {
    Slab written, read(stages.box, block, slabs.begin);
    for (int64_t s = slabs.begin; s <= slabs.end; ++s) {
        const Slab next = s + 1 < slabs.end ? Slab(stages.box, block, s + 1) : Slab();
        alternate_slab<Reduce, Apply>(stages, read, written, next);
        if (!read.none()) merge(read.group, read.channels);
        written = read;
        read = next;
    }
}

}  // namespace batchnorm
