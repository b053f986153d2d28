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
