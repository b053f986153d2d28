// 8 neighbouring elements, which one thread takes at a time: 16 bytes and more of memory, and one byte of a mask.
#pragma once

#include "element.cuh"

namespace batchnorm::cuda {

template <class T, bool of_16_bits = sizeof(T) == 2>
struct alignas(16) Elements {
    T at[pack_size];

    __device__ T get(int i) const { return at[i]; }
    __device__ void put(int i, T v) { at[i] = v; }
};

// Of 16 bits two elements stay in the register that they are loaded into until they are used: the compiler otherwise
// parts them at once, and so waits for each load before it issues the next one.
template <class T>
struct alignas(16) Elements<T, true> {
    unsigned pairs[pack_size / 2];

    __device__ T get(int i) const { return {static_cast<unsigned short>(pairs[i / 2] >> i % 2 * 16)}; }
    __device__ void put(int i, T v) {
        pairs[i / 2] = i % 2 ? (pairs[i / 2] & 0xffffu) | static_cast<unsigned>(v.bits) << 16
                             : (pairs[i / 2] & 0xffff0000u) | v.bits;
    }
};

template <class T>
struct Pack : Elements<T> {
    __device__ Arithmetic<T> operator[](int i) const { return widen(this->get(i)); }
    __device__ void set(int i, Arithmetic<T> v) { this->put(i, narrow<T>(v)); }
};

template <class T>
inline constexpr int words_of = sizeof(Pack<T>) / sizeof(uint4);

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

// The offset of an index, of whose dimensions the last goes fastest.
__device__ inline int64_t odometer(const int64_t* size, const int64_t* stride, int rank, int64_t index) {
    int64_t bytes = 0;
#pragma unroll 1
    for (int d = rank - 1; d > 0; --d) {
        bytes += index % size[d] * stride[d];
        index /= size[d];
    }
    return bytes + index * stride[0];
}

// The same of an operand along a level. packed: of which all levels have one dimension.
template <bool packed>
__device__ int64_t offset(const Operand& operand, const Level& level, LevelName name, int64_t index) {
    if (packed || level.rank <= 1) return index * operand.stride[name][0];
    return odometer(level.size, operand.stride[name], level.rank, index);
}

// Where a thread's pack of an operand is: those elements of a row from an index on.
struct Place {
    char* row;
    const Operand& operand;
    const Level& level;
    LevelName name;
    int64_t first;
    int count;  // elements of the pack that there are, at most pack_size

    __device__ char* at(int i) const { return row + offset<false>(operand, level, name, first + i); }
    template <class T>
    __device__ char* direct() const {
        return row + first * static_cast<int64_t>(sizeof(T));
    }
    template <class T>
    __device__ bool is_whole() const {
        return count == pack_size && operand.direct &&
               reinterpret_cast<unsigned long long>(direct<T>()) % sizeof(uint4) == 0;
    }
};

// The same where all packs are whole, and aligned as for a uint4.
struct PackedPlace {
    char* first;
    int count;  // pack_size, or 0
};

template <class T>
__device__ Pack<T> load_words(const char* p) {
    uint4 words[words_of<T>];
#pragma unroll
    for (int i = 0; i < words_of<T>; ++i) words[i] = reinterpret_cast<const uint4*>(p)[i];
    return pack_of<T>(words);
}

template <class T>
__device__ void store_words(char* p, const Pack<T>& pack) {
    uint4 words[words_of<T>];
    words_from(pack, words);
#pragma unroll
    for (int i = 0; i < words_of<T>; ++i) reinterpret_cast<uint4*>(p)[i] = words[i];
}

// What is not there is 0.
template <class T>
__device__ Pack<T> load_pack(const PackedPlace& place) {
    return place.count > 0 ? load_words<T>(place.first) : Pack<T>{};
}
template <class T>
__device__ Pack<T> load_pack(const Place& place) {
    if (place.is_whole<T>()) return load_words<T>(place.direct<T>());
    // One load in the code, and no index into registers that is not a constant.
    Pack<T> pack = {};
#pragma unroll 1
    for (int i = 0; i < place.count; ++i) {
        const T element = load_element<T>(place.at(i));
#pragma unroll
        for (int k = 0; k < pack_size; ++k)
            if (k == i) pack.put(k, element);
    }
    return pack;
}

// count is not 0.
template <class T>
__device__ void store_pack(const PackedPlace& place, const Pack<T>& pack) {
    store_words(place.first, pack);
}
template <class T>
__device__ void store_pack(const Place& place, const Pack<T>& pack) {
    if (place.is_whole<T>()) return store_words(place.direct<T>(), pack);
#pragma unroll 1
    for (int i = 0; i < place.count; ++i) {
        T element = pack.get(0);
#pragma unroll
        for (int k = 1; k < pack_size; ++k)
            if (k == i) element = pack.get(k);
        store_element<T>(place.at(i), element);
    }
}

}  // namespace batchnorm::cuda
