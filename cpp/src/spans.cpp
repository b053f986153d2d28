#include "spans.hpp"

#include <cstring>
#include <type_traits>

namespace batchnorm {
namespace {

// Walks n elements of a row, from its `start`-th on, along its level's dimensions: move(element, step, place, run) for
// runs of elements that are `step` apart, the first of them the place-th.
template <class Move>
void walk(const Box& box, const Operand& operand, char* row, int64_t start, int64_t n, const Move& move) noexcept {
    const LevelName name = box.row_level();
    const Level& level = box.level[name];
    const int fastest = level.rank - 1;
    if (fastest < 0) return move(row, int64_t{0}, int64_t{0}, int64_t{1});
    const int64_t period = level.size[fastest], step = operand.stride[name][fastest];
    for (int64_t i = 0; i < n;) {
        const int64_t index = start + i;
        const int64_t left = n - i, until_carry = period - index % period;
        const int64_t run = left < until_carry ? left : until_carry;
        move(row + operand.offset(level, name, index), step, i, run);
        i += run;
    }
}

template <int64_t bytes>
using Step = std::integral_constant<int64_t, bytes>;

template <class T>
void copy(char* to, int64_t to_step, const char* from, int64_t from_step, int64_t n) noexcept {
    constexpr int64_t unit = sizeof(T);
    const auto stepping = [=](auto to_by, auto from_by) {
        for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * to_by, from + i * from_by, sizeof(T));
    };
    // The compiler makes vectors of steps that it knows; flipped rows are frequent enough.
    if (to_step == unit && from_step == unit)
        std::memcpy(to, from, static_cast<std::size_t>(n * unit));
    else if (to_step == unit && from_step == -unit)
        stepping(Step<unit>{}, Step<-unit>{});
    else if (to_step == -unit && from_step == unit)
        stepping(Step<-unit>{}, Step<unit>{});
    else
        stepping(to_step, from_step);
}

// The copy of elements of that size.
auto copy_of(int64_t unit) noexcept { return unit == 2 ? copy<std::uint16_t> : unit == 4 ? copy<float> : copy<double>; }

}  // namespace

void list_rows(const Box& box, const Operand& operand, const char* from, int64_t first, int64_t step, int64_t rows,
               const void** at) noexcept {
    const Level& level = box.level[outer];
    if (level.rank > 1) {
        for (int64_t i = 0; i < rows; ++i) at[i] = from + operand.offset(level, outer, first + i * step);
        return;
    }
    const int64_t stride = operand.stride[outer][0];
    from += first * stride;
    for (int64_t i = 0; i < rows; ++i, from += step * stride) at[i] = from;
}

int64_t list_next_rows(const Box& box, const Operand& operand, const char* from, const Region& region, int64_t next,
                       int64_t step, const void** at) noexcept {
    constexpr int64_t most = kernels::rows_ahead;
    const int64_t left = (box.outers() - next) / step, below = left < most ? left : most;
    list_rows(box, operand, from, next, step, below, at);
    const Range lanes = region.channels;
    if (lanes.end + lanes.size() > box.lanes()) return below;
    const int64_t top = box.outers() < most - below ? box.outers() : most - below;
    list_rows(box, operand, from + lanes.size() * operand.unit, 0, 1, top, at + below);
    return below + top;
}

void pack(const Box& box, const Operand& operand, const char* row, int64_t start, int64_t n, char* packed) noexcept {
    const int64_t unit = operand.unit;
    const auto copy_run = copy_of(unit);
    walk(box, operand, const_cast<char*>(row), start, n,  // only read
         [&](char* element, int64_t step, int64_t place, int64_t run) {
             copy_run(packed + place * unit, unit, element, step, run);
         });
}

void unpack(const Box& box, const Operand& operand, char* row, int64_t start, int64_t n, const char* packed) noexcept {
    const int64_t unit = operand.unit;
    const auto copy_run = copy_of(unit);
    walk(box, operand, row, start, n, [&](char* element, int64_t step, int64_t place, int64_t run) {
        copy_run(element, step, packed + place * unit, unit, run);
    });
}

// 32 bits at a time, the first of them the lowest.
void pack_mask(const Box& box, int64_t g, int64_t o, int64_t rows, std::uint8_t* packed) noexcept {
    std::uint64_t pending = 0;
    int64_t count = 0;  // of its bits
    const auto write = [&](int64_t bytes) {
        for (int64_t i = 0; i < bytes; ++i, pending >>= 8) *packed++ = static_cast<std::uint8_t>(pending);
    };
    for (int64_t row = o; row < o + rows; ++row) {
        const std::uint8_t* mask = box.mask_at(g, row, 0, 0);
        for (int64_t lane = 0; lane < box.lanes(); lane += 32) {
            const int64_t left = box.lanes() - lane, some = left < 32 ? left : 32;
            std::uint64_t bits = 0;
            for (int64_t i = 0; i < (some + 7) / 8; ++i) bits |= std::uint64_t{*mask++} << 8 * i;
            pending |= (bits & ((std::uint64_t{1} << some) - 1)) << count;
            count += some;
            if (count < 32) continue;
            write(4);
            count -= 32;
        }
    }
    write((count + 7) / 8);
}

}  // namespace batchnorm
