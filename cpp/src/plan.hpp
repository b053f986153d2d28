// How a call goes through the box. It never changes the chunks, and so never the bits.
#pragma once

#include "box.hpp"
#include "caches.hpp"
#include "chunks.hpp"

namespace batchnorm {

enum class Traversal : std::uint8_t {
    alternate,   // Pattern::row, channel by channel, reading one while the one before it is written
    row_by_row,  // Pattern::row, where a channel has one row: reduce, merge, apply some rows at a time, in L1
    slabs,       // each block of channels: reduce, merge, apply, while the block is still in cache
    two_passes,  // reduce all, merge all, apply all, each in memory order
};

// What is fetched, so many bytes ahead; 0: it is not.
struct Ahead {
    int64_t reads = 0;   // rows that are reduced (Pattern::row)
    int64_t writes = 0;  // what outputs are made of, if nothing else is read
    int64_t page = 0;    // if something else is, a line of the output, so that its page is looked up
    int64_t output = 0;  // outputs of normalize that go through the caches
    bool rows = false;   // what outputs are made of, some rows ahead, where a call of a kernel has several
};

struct Plan {
    Traversal traversal;
    int64_t channel_block;     // channels that one task takes
    int64_t rows_at_once = 0;  // of them, row by row
    kernels::Reading reading = kernels::Reading::fetched;
    bool stream = false;    // whether outputs are written past them
    bool from_end = false;  // whether what was read before is read again from its end
    // Pattern::lane: whether it takes no longer to look up for each row what it is multiplied by than for some at once.
    bool looks_up_quickly = false;
    Ahead ahead{};
};

// Shorter rows are not written past the caches: too much of them would be the lines at their ends, which are not; or,
// where they share these without a gap, which are put together first.
inline constexpr int64_t least_streamed_row_bytes = 1024, least_joined_row_bytes = 256;

// Which planes are lanes where nothing is added up, for an output of so many bytes.
PlaneLimits written_planes(DType dtype, int64_t bytes, const Caches& own = own_caches()) noexcept;

// So many elements are worth another thread, in a call that reduces or only writes.
int64_t elements_per_thread(const Box& box, bool reduces) noexcept;

// For a call that reads `tensors` operands, to reduce them or only to apply, on so many threads; and has some `more`
// that go into what it writes, or are written too.
Plan make_plan(const Box& box, const Chunks& chunks, int tensors, bool reduces, int threads, int more = 0,
               const Caches& own = own_caches()) noexcept;

// The same for a call that reduces and writes nothing: what it reads need not stay in cache.
Plan to_reduce_alone(Plan plan, const Box& box, int threads) noexcept;

// Channels whose rows are reduced side by side; no plan has more of them in a block that alternates or goes row by row.
inline constexpr int64_t most_row_block = 32;

// No plan has a larger block in Pattern::lane.
inline constexpr int64_t most_lanes = 4096;

}  // namespace batchnorm
