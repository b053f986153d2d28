// Whether views share memory.
#pragma once

#include <batchnorm/core.hpp>

#include <cstdint>

namespace batchnorm {

// From the first byte of a view to past its last one; of one without elements or memory, none.
struct Extent {
    std::uintptr_t begin = 0, end = 0;

    explicit Extent(const View& view) noexcept;
    bool meets(const Extent& other) const noexcept { return begin < other.end && other.begin < end; }
};

// Whether an element of a and an element of b share a byte. Exact, except that views whose strides make the search
// long count as overlapping. Interleaved views (x[::2] and x[1::2], two column ranges of one buffer) do not overlap.
bool overlap(const View& a, const View& b) noexcept;

// Same elements in the same places.
bool identical(const View& a, const View& b) noexcept;

// Whether no two elements of a share a byte; false also where the strides are too odd to tell cheaply.
bool elements_distinct(const View& a) noexcept;

}  // namespace batchnorm
