// Where the sums of a (group, channel) pair are cut.
//
// Each chunk's partial result has a slot of its own and slots are merged in order, so that results have the same bits
// for every number of threads and every traversal. For that the cuts depend on the box alone.
#pragma once

#include "box.hpp"
#include "range.hpp"

namespace batchnorm {

// How fine to cut.
struct Grain {
    int64_t elements;          // of a chunk: about so many
    int64_t lanes;             // Pattern::lane: those that are reduced as one, and
    int64_t least_rows;        // rows of a chunk
    int64_t most_lane_chunks;  // and chunks at most
};

struct Chunks {
    int64_t outer_step, inner_step;
    int64_t outer_count, inner_count;
    int64_t outers, inners, plane;

    explicit Chunks(const Box& box) noexcept;  // for the CPU
    Chunks(const Box& box, const Grain& grain) noexcept;

    constexpr int64_t count() const noexcept { return outer_count * inner_count; }
    constexpr Range outer_range(int64_t k) const noexcept { return range(k / inner_count, outer_step, outers); }
    constexpr Range inner_range(int64_t k) const noexcept { return range(k % inner_count, inner_step, inners); }
    constexpr int64_t values(int64_t k) const noexcept { return outer_range(k).size() * inner_range(k).size() * plane; }

    // Of what is written, where nothing is added up: in the order of memory, and some for each thread, unless these
    // have columns of small planes.
    static Chunks to_write(const Box& box, int threads) noexcept;

  private:
    void cut_outers(int64_t parts) noexcept;  // into so many even parts, or fewer
    static constexpr Range range(int64_t i, int64_t step, int64_t end) noexcept {
        const int64_t begin = i * step;
        return {begin, begin + step < end ? begin + step : end};
    }
};

}  // namespace batchnorm
