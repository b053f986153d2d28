// 8 neighbouring elements, which one thread takes at a time: 16 bytes and more of memory, and one byte of a mask.
#pragma once

#include "element.cuh"

namespace batchnorm::cuda {

template <class T>
struct alignas(16) Pack {
    T at[pack_size];

    __device__ Arithmetic<T> operator[](int i) const { return widen(at[i]); }
    __device__ void set(int i, Arithmetic<T> v) { at[i] = narrow<T>(v); }
};

template <class T>
inline constexpr int words_of = sizeof(Pack<T>) / sizeof(uint4);

__device__ inline bool is_aligned(const char* p) {
    return reinterpret_cast<unsigned long long>(p) % sizeof(uint4) == 0;
}

template <class T>
__device__ Pack<T> pack_of(const uint4 (&words)[words_of<T>]) {
    Pack<T> pack;
    memcpy(&pack, words, sizeof pack);
    return pack;
}

template <class T>
__device__ void words_from(const Pack<T>& pack, uint4 (&words)[words_of<T>]) {
    memcpy(words, &pack, sizeof pack);
}

// The offset of a level's index, of which the last dimension goes fastest. Called, not inlined: 64-bit divisions are
// long, and what is contiguous along a level needs none.
__device__ inline int64_t odometer(const int64_t* size, const int64_t* stride, int rank, int64_t index) {
    int64_t bytes = 0;
#pragma unroll 1
    for (int d = rank - 1; d > 0; --d) {
        bytes += index % size[d] * stride[d];
        index /= size[d];
    }
    return bytes + index * stride[0];
}

__device__ inline int64_t offset(const Operand& operand, const Level& level, LevelName name, int64_t index) {
    if (level.rank <= 1) return index * operand.stride[name][0];
    return odometer(level.size, operand.stride[name], level.rank, index);
}

// Where a run of elements of an operand is: those at a level's index and on.
struct Place {
    char* row;
    const Operand& operand;
    const Level& level;
    LevelName name;
    int64_t first;
    int count;  // elements of a pack that there are, at most pack_size

    __device__ char* at(int i) const { return row + offset(operand, level, name, first + i); }
};

// What is not there is 0.
template <class T>
__device__ Pack<T> load_pack(const Place& place) {
    if (place.operand.direct) {
        const char* const p = place.row + place.first * static_cast<int64_t>(sizeof(T));
        if (place.count == pack_size && is_aligned(p)) {
            uint4 words[words_of<T>];
            for (int i = 0; i < words_of<T>; ++i) words[i] = reinterpret_cast<const uint4*>(p)[i];
            return pack_of<T>(words);
        }
    }
    // One load in the code, and no index into registers that is not a constant.
    Pack<T> pack = {};
#pragma unroll 1
    for (int i = 0; i < place.count; ++i) {
        const T element = load_element<T>(place.at(i));
#pragma unroll
        for (int k = 0; k < pack_size; ++k)
            if (k == i) pack.at[k] = element;
    }
    return pack;
}

template <class T>
__device__ void store_pack(const Place& place, const Pack<T>& pack) {
    if (place.operand.direct) {
        char* const p = place.row + place.first * static_cast<int64_t>(sizeof(T));
        if (place.count == pack_size && is_aligned(p)) {
            uint4 words[words_of<T>];
            words_from(pack, words);
            for (int i = 0; i < words_of<T>; ++i) reinterpret_cast<uint4*>(p)[i] = words[i];
            return;
        }
    }
#pragma unroll 1
    for (int i = 0; i < place.count; ++i) {
        T element = pack.at[0];
#pragma unroll
        for (int k = 1; k < pack_size; ++k)
            if (k == i) element = pack.at[k];
        store_element<T>(place.at(i), element);
    }
}

}  // namespace batchnorm::cuda
