// Where the sums of a (group, channel) pair are cut.
//
// Each chunk's partial result has a slot of its own and slots are merged in order, so that results have the same bits
// for every number of threads and every traversal. For that the cuts depend on the box alone.
#pragma once

#include "box.hpp"
#include "range.hpp"

namespace batchnorm {

struct Chunks {
    int64_t outer_step, inner_step;
    int64_t outer_count, inner_count;
    int64_t outers, inners, plane;

    explicit Chunks(const Box& box) noexcept;

    int64_t count() const noexcept { return outer_count * inner_count; }
    Range outer_range(int64_t k) const noexcept { return range(k / inner_count, outer_step, outers); }
    Range inner_range(int64_t k) const noexcept { return range(k % inner_count, inner_step, inners); }
    int64_t values(int64_t k) const noexcept { return outer_range(k).size() * inner_range(k).size() * plane; }

  private:
    static Range range(int64_t i, int64_t step, int64_t end) noexcept {
        const int64_t begin = i * step;
        return {begin, begin + step < end ? begin + step : end};
    }
};

}  // namespace batchnorm
