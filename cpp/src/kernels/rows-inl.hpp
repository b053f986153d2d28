// What the four kernels share: stepping through rows, and looking up a per-channel value.
#pragma once

#include "table.hpp"

namespace {

using batchnorm::kernels::Pattern;
using std::int64_t;

template <class T>
const T* row_at(const void* data, int64_t stride, int64_t row) {
    return reinterpret_cast<const T*>(static_cast<const char*>(data) + stride * row);
}
template <class T>
T* row_at(void* data, int64_t stride, int64_t row) {
    return reinterpret_cast<T*>(static_cast<char*>(data) + stride * row);
}

// step(i) for each whole vector of a row of n elements, then step(i, left) for the elements that are left: what takes
// the trailing count, such as Vec::load(p, left...), serves both.
template <int width, class Step>
void for_each_vector(int64_t n, const Step& step) {
    int64_t i = 0;
    for (; i + width <= n; i += width) step(i);
    if (i < n) step(i, static_cast<int>(n - i));
}

// For the writers: step(i, channel) and step(i, channel, left), where channel is i mod period. A head of fewer elements
// than a vector comes first.
template <int width, class Step>
void for_each_vector(int64_t n, int head, int64_t period, const Step& step) {
    const int64_t advance = width % period;
    int64_t i = head, channel = head % period;
    if (head > 0) step(0, 0, head);
    for (; i + width <= n; i += width) {
        step(i, channel);
        channel += advance;
        if (channel >= period) channel -= period;
    }
    if (i < n) step(i, channel, static_cast<int>(n - i));
}

// Prefetches rows in memory order, one step for each vector of a row. A block of rows is read across (a vector of each
// row, then the next vector of each), which hardware prefetchers take for no stream at all: walking the next block in
// order meanwhile reads it three times as fast (docs/performance.md).
class RowPrefetcher {
  public:
    RowPrefetcher(const void* data, int64_t stride, int64_t row, int64_t row_bytes)
        : row_(static_cast<const char*>(data) + stride * row), at_(row_), stride_(stride), row_bytes_(row_bytes) {}

    void step(int bytes) {
        __builtin_prefetch(at_);
        at_ += bytes;
        if (at_ - row_ < row_bytes_) return;
        row_ += stride_;
        at_ = row_;
    }

  private:
    const char *row_, *at_;
    int64_t stride_, row_bytes_;
};

// How a row is written: through the caches, or past them. The latter needs aligned vectors, which come after a head.
template <class T, bool stream>
struct RowWriter {
    T* row;

    int head(int64_t n) const {
        if (!stream) return 0;
        constexpr int width = Vec<T>::width;
        const auto element = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(row) / sizeof(T));
        const int64_t elements = (width - element % width) % width;
        return static_cast<int>(elements < n ? elements : n);
    }
    void write(Vec<T> v, int64_t i) const {
        if constexpr (stream)
            v.stream(row + i);
        else
            v.store(row + i);
    }
    void write(Vec<T> v, int64_t i, int n) const { v.store(row + i, n); }
};

// Whether rows can be streamed with profit. A line that is written partly by streams and partly through the caches
// costs more than streaming saves: rows must start and end on vectors, or be so long that their ends do not count.
template <class T>
bool worth_streaming(const void* data, int64_t stride, int64_t n) {
    const auto ends = reinterpret_cast<std::uintptr_t>(data) | static_cast<std::uintptr_t>(stride);
    const int64_t row_bytes = n * static_cast<int64_t>(sizeof(T));
    return row_bytes >= 4096 ? ends % sizeof(T) == 0 : ends % sizeof(Vec<T>) == 0 && row_bytes % 64 == 0;
}

// A per-channel value: one for the whole row, or one for each of its elements.
template <class T, Pattern pattern>
struct PerChannel;

template <class T>
struct PerChannel<T, Pattern::row> {
    Vec<T> value;
    explicit PerChannel(const void* p) : value(Vec<T>::all(*static_cast<const T*>(p))) {}
    template <class... Left>
    Vec<T> at(int64_t, Left...) const {
        return value;
    }
};

template <class T>
struct PerChannel<T, Pattern::lane> {
    const T* p;
    explicit PerChannel(const void* p_) : p(static_cast<const T*>(p_)) {}
    template <class... Left>
    Vec<T> at(int64_t i, Left... left) const {
        return Vec<T>::load(p + i, left...);
    }
};

}  // namespace
