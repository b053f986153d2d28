// From a region of the box to kernel calls: rows of contiguous elements, at one distance from each other.
//
// An operand that has no unit stride along the rows is packed into a tile, or written to one and unpacked.
#pragma once

#include "box.hpp"
#include "chunks.hpp"

namespace batchnorm {

// Part of a group: channels (Pattern::row; for_each_span takes one) or lanes (Pattern::lane), over part of outer and
// inner.
struct Region {
    int64_t group;
    Range channels, outers, inners;
};

struct Span {
    int64_t rows = 0, n = 0;
    int64_t first = 0;  // the first element's place in the region's row: in lanes, the offset of per-channel values
    char* data[roles] = {};  // null, with stride 0, for an operand that is not used
    int64_t stride[roles] = {};
    bool next_channel = false;     // Pattern::row: each row is of the channel after that of the row before
    std::uint8_t* mask = nullptr;  // null where the call has none
    int64_t mask_stride = 0;
};

// What rows move by, in bytes, from one outer index to the next, or to channels further on.
struct RowSteps {
    int64_t of[roles] = {};
    int64_t mask = 0;

    template <class T>
    static void move(T*& pointer, int64_t step) noexcept {
        if (pointer)
            pointer =
                reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(pointer) + static_cast<std::uintptr_t>(step));
    }
};

// Rows of a group in Pattern::row, one of each channel, where the box is direct.
class DirectRows {
  public:
    DirectRows(const Box& box, const Uses& uses, int64_t g) noexcept : box_(box), group_(g) {
        for (int r = 0; r < roles; ++r) {
            if (uses.of[r] == Access::none) continue;
            used_[count_++] = r;
            base_[r] = box.operand[r].data + box.operand[r].offset(box.level[group], group, g);
        }
    }

    // The rows that follow have this outer index, and these of their elements.
    void go_to(int64_t o, Range inners) noexcept {
        outer_ = o;
        inners_ = inners;
        for (int i = 0; i < count_; ++i) {
            const int r = used_[i];
            const Operand& operand = box_.operand[r];
            row_[r] = base_[r] + operand.offset(box_.level[outer], outer, o) +
                      (operand.uniform ? 0 : inners.begin * operand.unit);
        }
    }

    // Whether all outer indices are at one distance from each other, and all channels.
    bool steady() const noexcept { return box_.level[outer].rank <= 1 && box_.level[channel].rank <= 1; }
    RowSteps steps() const noexcept { return steps_along(outer, 1, box_.mask_stride()); }
    RowSteps channel_steps(int64_t channels) const noexcept {
        return steps_along(channel, channels, box_.mask_pitch());
    }

    // How many of these channels, from the first one on, are at one distance from each other.
    int64_t evenly(Range channels) const noexcept {
        const Level& level = box_.level[channel];
        if (level.rank <= 1) return channels.size();
        const int64_t period = level.size[level.rank - 1], left = period - channels.begin % period;
        return left < channels.size() ? left : channels.size();
    }

    // The rows of so many channels from c on, which are at one distance from each other.
    Span span(int64_t c, int64_t channels) const noexcept {
        const Level& level = box_.level[channel];
        Span span;
        span.rows = channels;
        span.n = inners_.size();
        span.next_channel = true;
        for (int i = 0; i < count_; ++i) {
            const int r = used_[i];
            span.data[r] = row_[r] + box_.operand[r].offset(level, channel, c);
            span.stride[r] = level.rank == 0 ? 0 : box_.operand[r].stride[channel][level.rank - 1];
        }
        span.mask = box_.mask_at(group_, outer_, c, inners_.begin);
        span.mask_stride = box_.mask_pitch();
        return span;
    }

  private:
    RowSteps steps_along(LevelName name, int64_t times, int64_t mask_step) const noexcept {
        RowSteps steps;
        for (int i = 0; i < count_; ++i)
            steps.of[used_[i]] = box_.level[name].rank == 0 ? 0 : times * box_.operand[used_[i]].stride[name][0];
        steps.mask = times * mask_step;
        return steps;
    }

    const Box& box_;
    int64_t group_, outer_ = 0;
    Range inners_{0, 0};
    int count_ = 0, used_[roles];
    char *base_[roles], *row_[roles];
};

// Calls body(span, outer, channel) for spans of rows of channels that follow each other, the first of them `channel`,
// one outer index of the region after the other, where the box is direct.
template <class Body>
void for_each_direct_span(const Box& box, const Region& region, const Uses& uses, const Body& body) noexcept {
    const auto [g, channels, outers, inners] = region;
    DirectRows rows(box, uses, g);
    for (int64_t o = outers.begin; o < outers.end; ++o) {
        rows.go_to(o, inners);
        for (int64_t c = channels.begin, some; c < channels.end; c += some) {
            some = rows.evenly({c, channels.end});
            body(rows.span(c, some), o, c);
        }
    }
}

// A tile holds one operand's share of a kernel call; a worker has one for each operand that is not direct.
inline constexpr int64_t tile_elements = 4096;
static_assert(tile_elements % kernels::row_alignment == 0 && tile_elements % kernels::half_row_run == 0);
inline constexpr int64_t tile_bytes = tile_elements * 8;
using Tiles = char* [roles];

// n elements of a row, from its `start`-th on, to or from contiguous memory.
void pack(const Box& box, const Operand& operand, const char* row, int64_t start, int64_t n, char* packed) noexcept;
void unpack(const Box& box, const Operand& operand, char* row, int64_t start, int64_t n, const char* packed) noexcept;

// Calls body(span) for spans that cover the region in order. uses says what body does with each operand. The sums of a
// region do not depend on how it was covered (kernels/table.hpp).
template <class Body>
void for_each_span(const Box& box, const Region& region, const Uses& uses, const Tiles& tiles,
                   const Body& body) noexcept {
    const Access(&access)[roles] = uses.of;
    const bool by_row = box.pattern == Pattern::row;
    const Range along = by_row ? region.inners : region.channels;

    char* base[roles] = {};
    bool direct = true;
    for (int r = 0; r < roles; ++r) {
        if (access[r] == Access::none) continue;
        const Operand& operand = box.operand[r];
        base[r] = operand.data + operand.offset(box.level[group], group, region.group);
        if (by_row) base[r] += operand.offset(box.level[channel], channel, region.channels.begin);
        direct &= operand.in_place();
    }

    // Rows are at one distance along the fastest dimension of the outer level.
    const Level& rows_level = box.level[outer];
    const int fastest = rows_level.rank - 1;
    const int64_t period = fastest < 0 ? 1 : rows_level.size[fastest];
    for (int64_t o = region.outers.begin; o < region.outers.end;) {
        const int64_t left = region.outers.end - o, until_carry = period - o % period;
        const int64_t rows = left < until_carry ? left : until_carry;
        char* at[roles] = {};
        int64_t stride[roles] = {};
        for (int r = 0; r < roles; ++r) {
            if (access[r] == Access::none) continue;
            at[r] = base[r] + box.operand[r].offset(rows_level, outer, o);
            stride[r] = fastest < 0 ? 0 : box.operand[r].stride[outer][fastest];
        }

        const int64_t n_step = direct || along.size() < tile_elements ? along.size() : tile_elements;
        const int64_t row_step = direct ? rows : tile_elements / n_step;
        for (int64_t row = 0; row < rows; row += row_step) {
            for (int64_t start = along.begin; start < along.end; start += n_step) {
                Span span;
                span.rows = rows - row < row_step ? rows - row : row_step;
                span.n = along.end - start < n_step ? along.end - start : n_step;
                span.first = start - along.begin;
                span.mask = box.mask_at(region.group, o + row, region.channels.begin, start);
                span.mask_stride = box.mask_stride();
                for (int r = 0; r < roles; ++r) {
                    if (access[r] == Access::none) continue;
                    const Operand& operand = box.operand[r];
                    char* first_row = at[r] + row * stride[r];
                    if (operand.in_place()) {
                        span.data[r] = operand.uniform ? first_row : first_row + start * operand.unit;
                        span.stride[r] = stride[r];
                        continue;
                    }
                    span.data[r] = tiles[r];
                    span.stride[r] = span.n * operand.unit;
                    if (access[r] == Access::read)
                        for (int64_t i = 0; i < span.rows; ++i)
                            pack(box, operand, first_row + i * stride[r], start, span.n,
                                 span.data[r] + i * span.stride[r]);
                }
                body(span);
                for (int r = 0; r < roles; ++r) {
                    const Operand& operand = box.operand[r];
                    if (access[r] != Access::write || operand.in_place()) continue;
                    for (int64_t i = 0; i < span.rows; ++i)
                        unpack(box, operand, at[r] + (row + i) * stride[r], start, span.n,
                               span.data[r] + i * span.stride[r]);
                }
            }
        }
        o += rows;
    }
}

// Whether a span's rows follow each other without a gap, in every operand and in the mask: then they may be taken as
// one.
inline bool gapless(const Box& box, const Span& span, const Uses& uses) noexcept {
    for (int r = 0; r < roles; ++r)
        if (uses.of[r] != Access::none && (span.stride[r] != span.n * box.operand[r].unit || box.operand[r].uniform))
            return false;
    return !span.mask || span.n % 8 == 0;
}

// Rows of lanes for the reductions, each where its pointer says; `listed` may be more than `rows`: what is read next.
struct Batch {
    int64_t rows, listed, n;
    int64_t first;  // the first lane's place in the region's row
    const void* const* at[roles] = {};
    const void* const* mask = nullptr;
};

// Lanes and rows of a batch that is packed.
inline constexpr int64_t packed_lanes = tile_elements / kernels::rows_ahead;
static_assert(most_folded_lanes <= packed_lanes);

// Pointers for a batch, of each operand that is reduced and of the mask, and rows of a mask that is packed; a worker
// has one.
struct RowLists {
    static constexpr int64_t most_rows = 256;
    const void* at[roles][most_rows + kernels::rows_ahead];
    const void* mask[most_rows];
    std::uint8_t packed_mask[kernels::rows_ahead][packed_lanes / 8];
};
static_assert(RowLists::most_rows % kernels::half_lane_rows == 0 &&
              kernels::rows_ahead % kernels::half_lane_rows == 0);  // the rows of batches

// The masks of `rows` rows from the o-th on, one after the other without a gap.
void pack_mask(const Box& box, int64_t g, int64_t o, int64_t rows, std::uint8_t* packed) noexcept;

// Pointers to `rows` rows, every step-th from the first-th of the outer level on, at whose start `from` points.
void list_rows(const Box& box, const Operand& operand, const char* from, int64_t first, int64_t step, int64_t rows,
               const void** at) noexcept;
// To those that are read after a region's rows up to the next-th: the ones below, then the same lanes' neighbours from
// the top on. At most rows_ahead; how many.
int64_t list_next_rows(const Box& box, const Operand& operand, const char* from, const Region& region, int64_t next,
                       int64_t step, const void** at) noexcept;

// Calls body(batch) for batches that cover a region of Pattern::lane in order, `fold` rows taken as one (the last ones
// may be fewer, a batch of their own).
template <class Body>
void for_each_batch(const Box& box, const Region& region, const Uses& uses, int64_t fold, const Tiles& tiles,
                    RowLists& lists, const Body& body) noexcept {
    const Access(&access)[roles] = uses.of;
    const int64_t lanes = region.channels.size(), end = region.outers.end;
    char* base[roles] = {};
    bool in_place[roles] = {}, all_in_place = true;
    for (int r = 0; r < roles; ++r) {
        if (access[r] == Access::none) continue;
        const Operand& operand = box.operand[r];
        base[r] = operand.data + operand.offset(box.level[group], group, region.group);
        in_place[r] = operand.in_place() && (fold == 1 || operand.gapless);
        all_in_place &= in_place[r];
    }
    const bool masked = box.mask && access[role_dy] != Access::none;  // it is dy that comes through the activation
    const bool mask_in_place = !masked || fold == 1 || lanes % 8 == 0;
    all_in_place &= mask_in_place;
    const int64_t n_step = all_in_place || lanes < packed_lanes ? lanes : packed_lanes;
    const int64_t row_step = all_in_place ? RowLists::most_rows : kernels::rows_ahead;

    int64_t rows = 0;
    for (int64_t o = region.outers.begin; o < end; o += rows * fold) {
        // Of rows that are fewer than fold, the last batch is one row.
        const int64_t whole = (end - o) / fold, taken = whole == 0 ? end - o : fold;
        rows = whole == 0 ? 1 : whole < row_step ? whole : row_step;
        for (int64_t start = 0; start < lanes; start += n_step) {
            const int64_t n = lanes - start < n_step ? lanes - start : n_step;
            Batch batch{rows, rows, n * taken, start};
            for (int r = 0; r < roles; ++r) {
                if (access[r] == Access::none) continue;
                const Operand& operand = box.operand[r];
                const int64_t unit = operand.unit;
                const void** at = lists.at[r];
                batch.at[r] = at;
                const int64_t first = region.channels.begin + start;
                if (in_place[r]) {
                    const char* const from = base[r] + (operand.uniform ? 0 : first * unit);
                    list_rows(box, operand, from, o, fold, rows, at);
                    if (all_in_place)
                        batch.listed =
                            rows + list_next_rows(box, operand, from, region, o + rows * fold, fold, at + rows);
                    continue;
                }
                char* packed = tiles[r];
                for (int64_t i = 0; i < rows; ++i) {
                    at[i] = packed;
                    for (int64_t f = 0; f < taken; ++f, packed += n * unit)
                        pack(box, operand, base[r] + operand.offset(box.level[outer], outer, o + i * fold + f), first,
                             n, packed);
                }
            }
            for (int64_t i = 0; i < rows && masked; ++i) {
                batch.mask = lists.mask;
                lists.mask[i] = box.mask_at(region.group, o + i * fold, 0, region.channels.begin + start);
                if (mask_in_place) continue;
                pack_mask(box, region.group, o + i * fold, taken, lists.packed_mask[i]);
                lists.mask[i] = lists.packed_mask[i];
            }
            body(batch);
        }
    }
}

}  // namespace batchnorm
