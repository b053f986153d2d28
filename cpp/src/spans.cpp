#include "spans.hpp"

#include <cstring>

namespace batchnorm {
namespace {

// Walks a row along its level's dimensions, calling move(element, place) for places 0 .. n - 1.
template <class Move>
void walk(const Box& box, const Operand& operand, char* row, int64_t start, int64_t n, const Move& move) noexcept {
    const LevelName name = box.row_level();
    const Level& level = box.level[name];
    const int fastest = level.rank - 1;
    if (fastest < 0) return move(row, 0);
    const int64_t period = level.size[fastest], step = operand.stride[name][fastest];
    for (int64_t i = 0; i < n;) {
        const int64_t index = start + i;
        const int64_t left = n - i, until_carry = period - index % period;
        const int64_t run = left < until_carry ? left : until_carry;
        char* element = row + operand.offset(level, name, index);
        for (int64_t k = 0; k < run; ++k) move(element + k * step, i + k);
        i += run;
    }
}

}  // namespace

void pack(const Box& box, const Operand& operand, const char* row, int64_t start, int64_t n, char* packed) noexcept {
    char* const from = const_cast<char*>(row);  // only read below
    if (box.dtype == DType::f32)
        walk(box, operand, from, start, n, [&](char* element, int64_t i) { std::memcpy(packed + i * 4, element, 4); });
    else
        walk(box, operand, from, start, n, [&](char* element, int64_t i) { std::memcpy(packed + i * 8, element, 8); });
}

void unpack(const Box& box, const Operand& operand, char* row, int64_t start, int64_t n, const char* packed) noexcept {
    if (box.dtype == DType::f32)
        walk(box, operand, row, start, n, [&](char* element, int64_t i) { std::memcpy(element, packed + i * 4, 4); });
    else
        walk(box, operand, row, start, n, [&](char* element, int64_t i) { std::memcpy(element, packed + i * 8, 8); });
}

}  // namespace batchnorm
