// A piece is a chunk of a unit: of a channel where rows lie within one (Pattern::row), of a tile of neighbouring
// channels where a row has one element of each (Pattern::lane). One block of threads takes a piece, and its threads
// take packs of it in an order that depends on the box alone.
#pragma once

#include "pack.cuh"

namespace batchnorm::cuda {

inline constexpr int block_threads = 256;
inline constexpr int warp_threads = 32;
inline constexpr int block_warps = block_threads / warp_threads;

struct Piece {
    int64_t g, unit, k;
};

__host__ __device__ constexpr int64_t units(const Box& box) {
    return box.pattern == Pattern::row ? box.channels() : Tiling(box).count(box);
}
__host__ __device__ constexpr int64_t pieces(const Box& box, const Chunks& chunks) {
    return box.groups() * units(box) * chunks.count();
}

// In memory order: neighbouring channels, or tiles, of a chunk after each other.
__device__ inline Piece piece_by_chunk(const Work& work, int64_t index) {
    const int64_t count = units(work.box), k = index / count;
    return {k / work.chunks.count(), index % count, k % work.chunks.count()};
}
// All chunks of a unit after each other.
__device__ inline Piece piece_by_unit(const Work& work, int64_t index) {
    const int64_t count = units(work.box), unit = index / work.chunks.count();
    return {unit / count, unit % count, index % work.chunks.count()};
}

// The channels of a piece.
template <Pattern pattern>
__device__ Range channels_of(const Work& work, const Piece& piece) {
    if constexpr (pattern == Pattern::row) return {piece.unit, piece.unit + 1};
    const int64_t step = Tiling(work.box).channels, begin = piece.unit * step, end = begin + step;
    return {begin, end < work.box.channels() ? end : work.box.channels()};
}

// An operand's rows in a piece.
struct Rows {
    char* first;
    const Operand& operand;

    __device__ bool exist() const { return operand.data != nullptr; }
};

// How a thread goes through a piece: packs 0 to packs() of its own.
template <Pattern pattern>
class Walk;

template <>
class Walk<Pattern::row> {
  public:
    __device__ Walk(const Work& work, const Piece& piece)
        : box_(work.box),
          piece_(piece),
          outers_(work.chunks.outer_range(piece.k)),
          inners_(work.chunks.inner_range(piece.k)) {
        packs_of_row_ = static_cast<unsigned>((inners_.size() + pack_size - 1) / pack_size);
        packs_ = static_cast<unsigned>(outers_.size()) * packs_of_row_;
        inverse_ = static_cast<unsigned>(((1ull << 32) + packs_of_row_ - 1) / packs_of_row_);
    }

    // How many times a thread takes a pack, at most.
    __host__ __device__ static constexpr int64_t steps(const Box&, const Chunks& chunks) {
        const int64_t rows = chunks.outer_range(0).size(),
                      packs = (chunks.inner_range(0).size() + pack_size - 1) / pack_size;
        return (rows * packs + block_threads - 1) / block_threads;
    }
    __device__ int steps() const { return static_cast<int>((packs_ + block_threads - 1) / block_threads); }

    // The pack that this thread takes at a step; of 0 elements where there is none.
    struct At {
        int64_t o, i;
        int count;
    };
    __device__ At at(int step) const {
        const unsigned pack = static_cast<unsigned>(step) * block_threads + threadIdx.x;
        if (pack >= packs_) return {0, 0, 0};
        // A chunk has so few packs that this is exact.
        const unsigned row =
            packs_of_row_ == 1 ? pack : static_cast<unsigned>(static_cast<unsigned long long>(pack) * inverse_ >> 32);
        const int64_t i = inners_.begin + static_cast<int64_t>(pack - row * packs_of_row_) * pack_size;
        const int64_t left = inners_.end - i;
        return {outers_.begin + row, i, static_cast<int>(left < pack_size ? left : pack_size)};
    }

    __device__ Rows rows(Role role) const {
        const Operand& operand = box_.operand[role];
        return {operand.data + offset(operand, box_.level[group], group, piece_.g) +
                    offset(operand, box_.level[channel], channel, piece_.unit),
                operand};
    }
    __device__ Place place(const Rows& rows, const At& at) const {
        return {rows.first + offset(rows.operand, box_.level[outer], outer, at.o),
                rows.operand,
                box_.level[inner],
                inner,
                at.i,
                at.count};
    }
    __device__ unsigned char* mask(const At& at) const { return box_.mask_at(piece_.g, at.o, piece_.unit, at.i); }

    // The channel of each element of the thread's packs: the same for all.
    __device__ int64_t channel_of(int) const { return piece_.unit; }

  private:
    const Box& box_;
    const Piece piece_;
    const Range outers_, inners_;
    unsigned packs_of_row_, packs_, inverse_;
};

template <>
class Walk<Pattern::lane> {
  public:
    __device__ Walk(const Work& work, const Piece& piece)
        : box_(work.box), piece_(piece), outers_(work.chunks.outer_range(piece.k)) {
        const Tiling tile(work.box);
        columns_ = static_cast<unsigned>(tile.packs);
        rows_at_once_ = block_threads / columns_;
        row_ = threadIdx.x / columns_;
        column_ = threadIdx.x % columns_;
        const int64_t first = piece.unit * tile.lanes, end = first + tile.lanes;
        lane_ = first + column_ * pack_size;
        const int64_t left = (end < box_.lanes() ? end : box_.lanes()) - lane_;
        count_ = row_ >= rows_at_once_ || left < 0 ? 0 : static_cast<int>(left < pack_size ? left : pack_size);
    }

    __host__ __device__ static constexpr int64_t steps(const Box& box, const Chunks& chunks) {
        const int64_t at_once = block_threads / Tiling(box).packs;
        return (chunks.outer_range(0).size() + at_once - 1) / at_once;
    }
    __device__ int steps() const { return static_cast<int>((outers_.size() + rows_at_once_ - 1) / rows_at_once_); }

    struct At {
        int64_t o;
        int count;
    };
    __device__ At at(int step) const {
        const int64_t o = outers_.begin + static_cast<int64_t>(step) * rows_at_once_ + row_;
        return {o, o < outers_.end ? count_ : 0};
    }

    __device__ Rows rows(Role role) const {
        const Operand& operand = box_.operand[role];
        return {operand.data + offset(operand, box_.level[group], group, piece_.g), operand};
    }
    __device__ Place place(const Rows& rows, const At& at) const {
        return {rows.first + offset(rows.operand, box_.level[outer], outer, at.o),
                rows.operand,
                box_.level[channel],
                channel,
                lane_,
                at.count};
    }
    __device__ unsigned char* mask(const At& at) const { return box_.mask_at(piece_.g, at.o, 0, lane_); }

    __device__ int64_t channel_of(int i) const {
        const int64_t lane = lane_ + i;
        return (lane < box_.lanes() ? lane : box_.lanes() - 1) / box_.plane;
    }

    // This thread's place among those of the block.
    __device__ unsigned row() const { return row_; }
    __device__ unsigned column() const { return column_; }
    __device__ unsigned columns() const { return columns_; }
    __device__ unsigned rows_at_once() const { return rows_at_once_; }

  private:
    const Box& box_;
    const Piece piece_;
    const Range outers_;
    unsigned columns_, rows_at_once_, row_, column_;
    int64_t lane_;
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
