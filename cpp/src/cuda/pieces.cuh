// Pieces of the box (work.hpp): one block of threads takes a piece, and its threads take packs of it in an order that
// depends on the box alone.
#pragma once

#include "pack.cuh"

namespace batchnorm::cuda {

inline constexpr int block_threads = 256;
inline constexpr int warp_threads = 32;
inline constexpr int block_warps = block_threads / warp_threads;

struct Piece {
    int64_t g, unit, k;
};

// In memory order: neighbouring channels, or tiles, of a chunk after each other.
__device__ inline Piece piece_by_chunk(const Work& work, int64_t index) {
    const int64_t k = index / work.units_of_group;
    return {k / work.chunks_of_unit, index % work.units_of_group, k % work.chunks_of_unit};
}
// All chunks of a unit after each other.
__device__ inline Piece piece_by_unit(const Work& work, int64_t index) {
    const int64_t unit = index / work.chunks_of_unit;
    return {unit / work.units_of_group, unit % work.units_of_group, index % work.chunks_of_unit};
}

// The channels of a piece.
template <Pattern pattern>
__device__ Range channels_of(const Work& work, const Piece& piece) {
    if constexpr (pattern == Pattern::row) return {piece.unit, piece.unit + 1};
    const int64_t step = work.tile.channels, begin = piece.unit * step, end = begin + step;
    return {begin, end < work.box.channels() ? end : work.box.channels()};
}

// An operand's rows in a piece. packed: from the thread's first pack on, and how far apart its steps' rows are.
struct Rows {
    char* first;
    const Operand& operand;
    int64_t step;

    __device__ bool exist() const { return operand.data != nullptr; }
};

// How a thread goes through a piece: a pack at each step. packed: all operands have all their packs whole and aligned,
// and one dimension to each level.
template <Pattern pattern, bool packed>
class Walk;

template <bool packed>
class Walk<Pattern::row, packed> {
  public:
    __device__ Walk(const Work& work, const Piece& piece) : work_(work), piece_(piece) {
        const unsigned elements = static_cast<unsigned>(inners().size()), rows = static_cast<unsigned>(outers().size());
        elements_ = elements;
        packs_of_row_ = (elements + pack_size - 1) / pack_size;
        packs_ = rows * packs_of_row_;
        inverse_ = static_cast<unsigned>(((1ull << 32) + packs_of_row_ - 1) / packs_of_row_);
    }

    // How many times a thread takes a pack, at most.
    static int64_t steps(const Work& work) {
        const Chunks& chunks = work.chunks;
        const int64_t rows = chunks.outer_range(0).size(),
                      packs = (chunks.inner_range(0).size() + pack_size - 1) / pack_size;
        return (rows * packs + block_threads - 1) / block_threads;
    }
    // How many this thread takes.
    __device__ int steps() const {
        return static_cast<int>((packs_ + block_threads - 1 - threadIdx.x) / block_threads);
    }

    // The pack that this thread takes at a step, in the chunk; of 0 elements where there is none.
    struct At {
        unsigned row, first;
        int count;
    };
    __device__ At at(int step) const {
        const unsigned pack = static_cast<unsigned>(step) * block_threads + threadIdx.x;
        if (pack >= packs_) return {0, 0, 0};
        // A chunk has so few packs that this is exact.
        const unsigned row = packs_of_row_ == 1 ? pack : __umulhi(pack, inverse_);
        const unsigned first = (pack - row * packs_of_row_) * pack_size;
        const unsigned left = elements_ - first;
        return {row, first, packed || left > pack_size ? pack_size : static_cast<int>(left)};
    }

    __device__ Rows rows(Role role) const {
        const Box& box = work_.box;
        const Operand& operand = box.operand[role];
        char* const first = operand.data + offset<packed>(operand, box.level[group], group, piece_.g) +
                            offset<packed>(operand, box.level[channel], channel, piece_.unit);
        if constexpr (packed) {
            const int64_t step = operand.stride[outer][0];
            return {first + outers().begin * step + inners().begin * operand.unit, operand, step};
        } else {
            return {first, operand, 0};
        }
    }
    template <class T>
    __device__ auto place(const Rows& rows, const At& at) const {
        if constexpr (packed) {
            return PackedPlace{rows.first + at.row * rows.step + at.first * static_cast<int64_t>(sizeof(T)), at.count};
        } else {
            const Box& box = work_.box;
            const int64_t o = outers().begin + at.row;
            return Place{rows.first + offset<false>(rows.operand, box.level[outer], outer, o),
                         rows.operand,
                         box.level[inner],
                         inner,
                         inners().begin + at.first,
                         at.count};
        }
    }
    __device__ unsigned char* mask(const At& at) const {
        return work_.box.mask_at(piece_.g, outers().begin + at.row, piece_.unit, inners().begin + at.first);
    }

    // The channel of each element of the thread's packs: the same for all.
    __device__ int64_t channel_of(int) const { return piece_.unit; }

  private:
    __device__ Range outers() const { return work_.chunks.outer_range(piece_.k); }
    __device__ Range inners() const { return work_.chunks.inner_range(piece_.k); }

    const Work& work_;
    const Piece& piece_;
    unsigned elements_, packs_of_row_, packs_, inverse_;
};

template <bool packed>
class Walk<Pattern::lane, packed> {
  public:
    __device__ Walk(const Work& work, const Piece& piece) : work_(work), piece_(piece) {
        const Tile& tile = work.tile;
        columns_ = static_cast<unsigned>(tile.packs);
        rows_at_once_ = block_threads / columns_;
        row_ = threadIdx.x / columns_;
        column_ = threadIdx.x % columns_;
        rows_ = static_cast<unsigned>(outers().size());
        const int64_t lanes = work.box.lanes(), first = piece.unit * tile.lanes, end = first + tile.lanes;
        const int64_t left = (end < lanes ? end : lanes) - lane();
        count_ = row_ >= rows_at_once_ || left <= 0 ? 0
                 : packed || left > pack_size       ? pack_size
                                                    : static_cast<int>(left);
    }

    static int64_t steps(const Work& work) {
        const int64_t at_once = block_threads / work.tile.packs;
        return (work.chunks.outer_range(0).size() + at_once - 1) / at_once;
    }
    __device__ int steps() const {
        return count_ > 0 ? static_cast<int>((rows_ + rows_at_once_ - 1 - row_) / rows_at_once_) : 0;
    }

    struct At {
        unsigned step;
        int count;
    };
    __device__ At at(int step) const {
        const unsigned row = static_cast<unsigned>(step) * rows_at_once_ + row_;
        return {static_cast<unsigned>(step), row < rows_ ? count_ : 0};
    }

    __device__ Rows rows(Role role) const {
        const Box& box = work_.box;
        const Operand& operand = box.operand[role];
        char* const first = operand.data + offset<packed>(operand, box.level[group], group, piece_.g);
        if constexpr (packed) {
            const int64_t stride = operand.stride[outer][0];
            return {first + (outers().begin + row_) * stride + lane() * operand.unit, operand, rows_at_once_ * stride};
        } else {
            return {first, operand, 0};
        }
    }
    template <class T>
    __device__ auto place(const Rows& rows, const At& at) const {
        if constexpr (packed) {
            return PackedPlace{rows.first + at.step * rows.step, at.count};
        } else {
            const Box& box = work_.box;
            return Place{rows.first + offset<false>(rows.operand, box.level[outer], outer, outer_of(at)),
                         rows.operand,
                         box.level[channel],
                         channel,
                         lane(),
                         at.count};
        }
    }
    __device__ unsigned char* mask(const At& at) const { return work_.box.mask_at(piece_.g, outer_of(at), 0, lane()); }

    __device__ int64_t channel_of(int i) const {
        const int64_t lane_i = lane() + i, last = work_.box.lanes() - 1;
        return (lane_i < last ? lane_i : last) / work_.box.plane;
    }

    // This thread's place among those of the block.
    __device__ unsigned row() const { return row_; }
    __device__ unsigned column() const { return column_; }
    __device__ unsigned columns() const { return columns_; }
    __device__ unsigned rows_at_once() const { return rows_at_once_; }

  private:
    __device__ Range outers() const { return work_.chunks.outer_range(piece_.k); }
    __device__ int64_t lane() const { return piece_.unit * work_.tile.lanes + column_ * pack_size; }
    __device__ int64_t outer_of(const At& at) const { return outers().begin + at.step * rows_at_once_ + row_; }

    const Work& work_;
    const Piece& piece_;
    unsigned columns_, rows_at_once_, row_, column_, rows_;
    int count_;
};

// Packs that a thread has read, kept in shared memory until it needs them once more. Each thread's are its own.
template <class T>
class Stash {
  public:
    __device__ explicit Stash(char* memory) : memory_(memory) {}

    __device__ explicit operator bool() const { return memory_ != nullptr; }
    __device__ void keep(int step, const Pack<T>& pack) const {
        uint4 words[words_of<T>];
        words_from(pack, words);
        for (int i = 0; i < words_of<T>; ++i) at(step, i) = words[i];
    }
    __device__ Pack<T> take(int step) const {
        uint4 words[words_of<T>];
        for (int i = 0; i < words_of<T>; ++i) words[i] = at(step, i);
        return pack_of<T>(words);
    }

    __host__ __device__ static constexpr int64_t bytes(int64_t steps) {
        return steps * block_threads * sizeof(Pack<T>);
    }

  private:
    // Neighbouring threads' words are neighbours, on different banks.
    __device__ uint4& at(int step, int word) const {
        return reinterpret_cast<uint4*>(memory_)[(step * words_of<T> + word) * block_threads + threadIdx.x];
    }

    char* memory_;
};

}  // namespace batchnorm::cuda
