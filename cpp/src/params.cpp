#include "params.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/half.hpp"

namespace batchnorm {
namespace {

template <class T>
T load_as(const char* p) noexcept {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}
template <class T>
double load(const char* p) noexcept {
    const T value = load_as<T>(p);
    if constexpr (sizeof(T) == 2)
        return static_cast<double>(to_float(value));
    else
        return static_cast<double>(value);
}
double load(const char* p, DType dtype) noexcept {
    switch (dtype) {
        case DType::f32: return load<float>(p);
        case DType::f64: return load<double>(p);
        case DType::f16: return load<Half>(p);
        case DType::bf16: return load<BFloat16>(p);
    }
    return 0;
}

template <class T>
void store(char* p, double value) noexcept {
    T narrow;
    if constexpr (sizeof(T) == 2)
        narrow = from_double<T>(value);
    else
        narrow = static_cast<T>(value);
    std::memcpy(p, &narrow, sizeof narrow);
}
void store(char* p, DType dtype, double value) noexcept {
    switch (dtype) {
        case DType::f32: return store<float>(p, value);
        case DType::f64: return store<double>(p, value);
        case DType::f16: return store<Half>(p, value);
        case DType::bf16: return store<BFloat16>(p, value);
    }
}

// Calls visit(byte offset) for each element of a view, in C order.
template <class AnyView, class Visit>
void for_each_element(const AnyView& view, const Visit& visit) noexcept {
    const int last = view.rank - 1;
    const int64_t n = last < 0 ? 1 : view.shape[last], stride = last < 0 ? 0 : view.stride[last];
    int64_t rows = 1;
    for (int d = 0; d < last; ++d) rows *= view.shape[d];
    for (int64_t row = 0; row < rows; ++row) {
        int64_t offset = 0, place = row;
        for (int d = last - 1; d >= 0; --d) {
            offset += place % view.shape[d] * view.stride[d];
            place /= view.shape[d];
        }
        for (int64_t i = 0; i < n; ++i, offset += stride) visit(offset);
    }
}

// Whether one stride walks all elements of a view, of rank 1 or more, in C order.
template <class AnyView>
bool one_stride(const AnyView& view) noexcept {
    for (int d = view.rank - 1; d > 0; --d)
        if (view.stride[d - 1] != view.shape[d] * view.stride[d]) return false;
    return view.rank > 0;
}

// Whether a view's elements follow each other in C order.
template <class AnyView>
bool contiguous(const AnyView& view) noexcept {
    return one_stride(view) && view.stride[view.rank - 1] == item_size(view.dtype);
}

// Where the element is that has this place in C order, in bytes.
template <class AnyView>
int64_t offset_of(const AnyView& view, int64_t place) noexcept {
    int64_t offset = 0;
    for (int d = view.rank - 1; d >= 0; --d) {
        offset += place % view.shape[d] * view.stride[d];
        place /= view.shape[d];
    }
    return offset;
}

template <class AnyView>
int64_t elements(const AnyView& view) noexcept {
    int64_t n = 1;
    for (int d = 0; d < view.rank; ++d) n *= view.shape[d];
    return n;
}

// Calls visit(i, byte offset) for the i-th of n elements of a view from the first-th on, in C order; rank 0 has one for
// all.
template <class AnyView, class Visit>
void for_some_elements(const AnyView& view, int64_t first, int64_t n, const Visit& visit) noexcept {
    if (one_stride(view))
        for (int64_t i = 0; i < n; ++i) visit(i, (first + i) * view.stride[view.rank - 1]);
    else
        for (int64_t i = 0; i < n; ++i) visit(i, offset_of(view, first + i));
}

// Calls visit(value) for each element of a param, in C order: a float if it is one, else a double.
template <class Visit>
void for_each_value(const Param& param, const Visit& visit) noexcept {
    const char* data = static_cast<const char*>(param.data);
    const bool follow = contiguous(param);
    const int64_t n = elements(param);
    if (follow && param.dtype == DType::f32)
        for (int64_t i = 0; i < n; ++i) visit(load_as<float>(data + i * 4));
    else if (follow && param.dtype == DType::f64)
        for (int64_t i = 0; i < n; ++i) visit(load_as<double>(data + i * 8));
    else
        for_each_element(param, [&](int64_t offset) { visit(load(data + offset, param.dtype)); });
}

// Whether a condition holds for any value: the compiler can make vectors of that.
template <class Condition>
bool any_value(const Param& param, const Condition& condition) noexcept {
    int any = 0;
    for_each_value(param, [&](auto value) { any |= condition(value); });
    return any != 0;
}

// Calls visit(statistic in box order, byte offset in the param) for each statistic.
template <class AnyView, class Visit>
void for_each_statistic(const Box& box, const AnyView& param, const Visit& visit) noexcept {
    if (box.in_order && one_stride(param)) {
        const int64_t stride = param.stride[param.rank - 1];
        for (int64_t s = 0; s < box.statistics(); ++s) visit(s, s * stride);
        return;
    }
    int64_t statistic = 0;
    for (int64_t g = 0; g < box.groups(); ++g) {
        for (int64_t c = 0; c < box.channels(); ++c) {
            // Its place in C order, then that place in the param's own strides.
            int64_t place = 0;
            const auto add = [&](const Level& level, const int64_t (&stride)[max_rank], int64_t index) {
                for (int d = level.rank - 1; d >= 0; --d) {
                    place += index % level.size[d] * stride[d];
                    index /= level.size[d];
                }
            };
            add(box.level[group], box.kept_stride[0], g);
            add(box.level[channel], box.kept_stride[1], c * box.plane);
            visit(statistic++, offset_of(param, place));
        }
    }
}

// What the groups of group_size share, along the first dimension: that of one of them.
Param of_one_group(const Param& param) noexcept {
    Param own = param;
    --own.rank;
    std::copy(param.shape + 1, param.shape + param.rank, own.shape);
    std::copy(param.stride + 1, param.stride + param.rank, own.stride);
    return own;
}

}  // namespace

void load_values(const Param& param, int64_t first, int64_t n, double* values) noexcept {
    const char* data = static_cast<const char*>(param.data);
    const bool follow = contiguous(param);
    if (follow && param.dtype == DType::f32)
        for (int64_t i = 0; i < n; ++i) values[i] = load<float>(data + (first + i) * 4);
    else if (follow && param.dtype == DType::f64)
        std::memcpy(values, data + first * 8, static_cast<std::size_t>(n) * sizeof(double));
    else
        for_some_elements(param, first, n,
                          [&](int64_t i, int64_t offset) { values[i] = load(data + offset, param.dtype); });
}

void store_values(const MutParam& param, int64_t first, int64_t n, const double* values) noexcept {
    char* data = static_cast<char*>(param.data);
    const bool follow = contiguous(param);
    if (follow && param.dtype == DType::f32)
        for (int64_t i = 0; i < n; ++i) store<float>(data + (first + i) * 4, values[i]);
    else if (follow && param.dtype == DType::f64)
        std::memcpy(data + first * 8, values, static_cast<std::size_t>(n) * sizeof(double));
    else
        for_some_elements(param, first, n,
                          [&](int64_t i, int64_t offset) { store(data + offset, param.dtype, values[i]); });
}

Column load_column(const Box& box, const Param& param, double otherwise, double* memory) noexcept {
    if (absent(param)) return {nullptr, otherwise};
    const char* data = static_cast<const char*>(param.data);
    if (param.rank == 0) return {nullptr, load(data, param.dtype)};
    if (box.in_order && contiguous(param))
        load_values(param, 0, box.statistics(), memory);
    else if (box.in_order && param.rank > 1 && param.stride[0] == 0) {
        double* to = memory;
        for_each_value(of_one_group(param), [&](double value) { *to++ = value; });
        for (const double* from = memory; to < memory + box.statistics();) *to++ = *from++;
    } else
        for_each_statistic(box, param,
                           [&](int64_t s, int64_t offset) { memory[s] = load(data + offset, param.dtype); });
    return {memory, 0};
}

const double* load_array(const Box& box, const Param& param, double* memory) noexcept {
    const Column column = load_column(box, param, 0, memory);
    if (!column.data)
        for (int64_t s = 0; s < box.statistics(); ++s) memory[s] = column.same;
    return memory;
}

void store_column(const Box& box, const Column& values, const MutParam& param) noexcept {
    if (absent(param)) return;
    char* data = static_cast<char*>(param.data);
    if (param.rank == 0)
        store(data, param.dtype, values[0]);
    else if (values.data && box.in_order && contiguous(param))
        store_values(param, 0, box.statistics(), values.data);
    else
        for_each_statistic(box, param,
                           [&](int64_t s, int64_t offset) { store(data + offset, param.dtype, values[s]); });
}

void copy_out(const double* values, const MutParam& param) noexcept {
    if (!absent(param)) store_values(param, 0, elements(param), values);
}

void fill(const MutParam& param, double value) noexcept {
    if (absent(param)) return;
    char* data = static_cast<char*>(param.data);
    for_each_element(param, [&](int64_t offset) { store(data + offset, param.dtype, value); });
}

double only_value(const Param& param) noexcept {
    double only = 0;
    for_each_value(param, [&](double value) { only = value; });
    return only;
}

double least_value(const Param& param, bool positive) noexcept {
    const bool some = positive ? any_value(param, [](auto value) { return value <= 0; })
                               : any_value(param, [](auto value) { return value < 0; });
    double least = 1;
    if (some)
        for_each_value(param, [&](double value) {
            if (value < least) least = value;
        });
    return least;
}

double unfit_weight(const Param& param) noexcept {
    const bool some = any_value(
        param, [](auto value) { return !(value >= 0 && value <= std::numeric_limits<decltype(value)>::max()); });
    double unfit = 0;
    const auto take = [&](double value) {
        // The first one that is not finite, else the least one.
        if (std::isfinite(unfit) && (!std::isfinite(value) || value < unfit)) unfit = value;
    };
    if (some) for_each_value(param, take);
    return unfit;
}

double in_arithmetic(DType dtype, double value) noexcept {
    return dtype == DType::f64 ? value : static_cast<double>(static_cast<float>(value));
}

bool all_invertible(const Param& param, DType dtype) noexcept {
    return !any_value(param, [&](double value) { return std::isinf(in_arithmetic(dtype, 1 / value)); });
}

}  // namespace batchnorm
