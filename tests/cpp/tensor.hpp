// Arrays of any type and strides that own their memory.
#pragma once

#include <batchnorm/core.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

using batchnorm::DType;
using std::int64_t;
using Shape = std::vector<int64_t>;
using Values = std::vector<double>;  // of each element, or of each statistic, in C order

// splitmix64: the same numbers on every platform.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    // An integer of [low, high].
    int64_t integer(int64_t low, int64_t high) {
        return low + static_cast<int64_t>(bits() % static_cast<std::uint64_t>(high - low + 1));
    }
    // Of [-1, 1).
    double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-52 - 1; }

  private:
    std::uint64_t state_;
};

// The 16-bit types by their definition, in float64: bits of the mantissa, and the exponent of the least normal number.
struct Bits16 {
    int mantissa, least;
};
inline constexpr Bits16 f16_bits{10, -14}, bf16_bits{7, -126};

inline double value_of(std::uint16_t bits, Bits16 type) {
    const int magnitude = bits & 0x7fff, exponent = magnitude >> type.mantissa, top = 0x7fff >> type.mantissa;
    const int fraction = magnitude & ((1 << type.mantissa) - 1), implied = exponent > 0 ? 1 << type.mantissa : 0;
    double value = std::ldexp(fraction + implied, std::max(exponent, 1) - 1 + type.least - type.mantissa);
    if (exponent == top) value = fraction ? std::nan("") : HUGE_VAL;
    return bits & 0x8000 ? -value : value;
}

// To nearest, ties to even.
inline std::uint16_t nearest(double value, Bits16 type) {
    const int sign = std::signbit(value) ? 0x8000 : 0, infinity = 0x7fff >> type.mantissa << type.mantissa;
    if (std::isnan(value)) return static_cast<std::uint16_t>(sign | infinity | 1 << (type.mantissa - 1));
    const double magnitude = std::fabs(value);
    if (std::isinf(magnitude)) return static_cast<std::uint16_t>(sign | infinity);
    int exponent = type.least;
    if (magnitude > 0) exponent = std::max(std::ilogb(magnitude), type.least);
    // In units of the last bit; what is rounded up to the next exponent carries.
    const double units = std::nearbyint(std::ldexp(magnitude, type.mantissa - exponent));
    const double bits = units + std::ldexp(exponent - type.least, type.mantissa);
    return static_cast<std::uint16_t>(sign | static_cast<int>(std::min(bits, static_cast<double>(infinity))));
}

enum class Layout {
    contiguous,
    channels_last,  // axis 1 fastest in memory
    transposed,     // the first axis fastest
    padded,         // x[:-1, :-1, ...]
    every_second,   // x[..., ::2]
    reversed,       // x[::-1, ::-1, ...]
    misaligned,     // one byte past an aligned address
    records,        // a field of a packed record: strides that are no multiple of the item size
    repeated_first,
    repeated_last,  // an axis of stride 0: for what is only read
};
inline constexpr Layout writable_layouts[] = {Layout::contiguous, Layout::channels_last, Layout::transposed,
                                              Layout::padded,     Layout::every_second,  Layout::reversed,
                                              Layout::misaligned, Layout::records};
inline constexpr Layout layouts[] = {Layout::contiguous,     Layout::channels_last, Layout::transposed, Layout::padded,
                                     Layout::every_second,   Layout::reversed,      Layout::misaligned, Layout::records,
                                     Layout::repeated_first, Layout::repeated_last};

inline const char* name(Layout layout) {
    constexpr const char* names[] = {"contiguous", "channels_last", "transposed", "padded",         "every_second",
                                     "reversed",   "misaligned",    "records",    "repeated_first", "repeated_last"};
    return names[static_cast<int>(layout)];
}

inline int64_t product(const Shape& shape) {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// An element at any address.
inline double load_element(DType dtype, const unsigned char* p) {
    const auto load = [p](auto value) {
        std::memcpy(&value, p, sizeof value);
        return value;
    };
    switch (dtype) {
        case DType::f64: return load(double{});
        case DType::f16: return value_of(load(std::uint16_t{}), f16_bits);
        case DType::bf16: return value_of(load(std::uint16_t{}), bf16_bits);
        case DType::f32: break;
    }
    return static_cast<double>(load(float{}));
}
inline void save_element(DType dtype, unsigned char* p, double value) {
    const auto save = [p](auto narrow) { std::memcpy(p, &narrow, sizeof narrow); };
    switch (dtype) {
        case DType::f64: return save(value);
        case DType::f16: return save(nearest(value, f16_bits));
        case DType::bf16: return save(nearest(value, bf16_bits));
        case DType::f32: return save(static_cast<float>(value));
    }
}

template <class Pointer>
batchnorm::BasicView<Pointer> describe(Pointer* data, DType dtype, const Shape& shape, const Shape& stride) {
    batchnorm::BasicView<Pointer> view;
    view.data = data;
    view.dtype = dtype;
    view.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), view.shape);
    std::copy(stride.begin(), stride.end(), view.stride);
    return view;
}

// Byte offsets of the elements in C order, from the first one.
inline std::vector<int64_t> element_places(const Shape& shape, const Shape& stride) {
    std::vector<int64_t> places;
    places.reserve(static_cast<std::size_t>(product(shape)));
    Shape index(shape.size());
    for (int64_t i = 0, n = product(shape), place = 0; i < n; ++i) {
        places.push_back(place);
        for (std::size_t axis = shape.size(); axis-- > 0;) {
            place += stride[axis];
            if (++index[axis] < shape[axis]) break;
            place -= shape[axis] * stride[axis];
            index[axis] = 0;
        }
    }
    return places;
}

class Tensor {
  public:
    static constexpr unsigned char sentinel = 0xa5;

    Tensor() = default;

    // `guard` bytes lie before and after the elements. Without them a sanitizer sees what is read outside.
    Tensor(DType dtype, const Shape& shape, Layout layout = Layout::contiguous, int64_t guard = 0)
        : dtype_(dtype), shape_(shape), stride_(shape.size()) {
        const int rank = static_cast<int>(shape.size());
        std::vector<int> order(shape.size());  // from slowest to fastest
        std::iota(order.begin(), order.end(), 0);
        if (layout == Layout::channels_last && rank > 1) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
        if (layout == Layout::transposed) std::reverse(order.begin(), order.end());

        int64_t stride = batchnorm::item_size(dtype);
        if (layout == Layout::every_second) stride *= 2;
        if (layout == Layout::records) stride += 3;
        int64_t low = 0, high = batchnorm::item_size(dtype);  // bytes that the elements span
        for (int i = rank; i-- > 0;) {
            const auto axis = static_cast<std::size_t>(order[static_cast<std::size_t>(i)]);
            stride_[axis] = layout == Layout::reversed ? -stride : stride;
            if (layout == Layout::repeated_first && axis == 0) stride_[axis] = 0;
            if (layout == Layout::repeated_last && axis + 1 == shape.size()) stride_[axis] = 0;
            const int64_t reach = std::max<int64_t>(shape[axis] - 1, 0) * stride_[axis];
            (reach < 0 ? low : high) += reach;
            stride *= shape[axis] + (layout == Layout::padded);
        }

        origin_ = guard - low + (layout == Layout::misaligned);
        memory_.assign(static_cast<std::size_t>(origin_ + high + guard), sentinel);
        places_ = element_places(shape, stride_);
        for (int64_t& place : places_) place += origin_;
    }

    DType dtype() const { return dtype_; }
    const Shape& shape() const { return shape_; }
    std::size_t size() const { return places_.size(); }

    double get(std::size_t i) const { return load_element(dtype_, memory_.data() + places_[i]); }
    void set(std::size_t i, double value) { save_element(dtype_, memory_.data() + places_[i], value); }

    Values values() const {
        Values all(size());
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = get(i);
        return all;
    }
    Tensor& fill(const Values& all) {
        for (std::size_t i = 0; i < all.size(); ++i) set(i, all[i]);
        return *this;
    }
    // scale * [-1, 1) + shift
    Tensor& randomize(std::uint64_t seed, double scale = 1, double shift = 0) {
        Random random(seed);
        for (std::size_t i = 0; i < size(); ++i) set(i, random.uniform() * scale + shift);
        return *this;
    }

    // The elements' bytes in C order, whatever the layout.
    std::vector<unsigned char> bytes() const {
        const auto item = static_cast<std::size_t>(batchnorm::item_size(dtype_));
        std::vector<unsigned char> all(size() * item);
        for (std::size_t i = 0; i < size(); ++i) std::memcpy(&all[i * item], memory_.data() + places_[i], item);
        return all;
    }

    void reset() { std::fill(memory_.begin(), memory_.end(), sentinel); }
    bool untouched() const {
        return std::all_of(memory_.begin(), memory_.end(), [](unsigned char byte) { return byte == sentinel; });
    }
    // Whether only elements were written.
    bool padding_untouched() const {
        Tensor rest = *this;
        for (const int64_t place : places_)
            std::memset(rest.memory_.data() + place, sentinel, static_cast<std::size_t>(batchnorm::item_size(dtype_)));
        return rest.untouched();
    }

    batchnorm::View view() const { return describe<const void>(memory_.data() + origin_, dtype_, shape_, stride_); }
    batchnorm::MutView mut() { return describe<void>(memory_.data() + origin_, dtype_, shape_, stride_); }

  private:
    DType dtype_ = DType::f32;
    Shape shape_, stride_;
    std::vector<unsigned char> memory_;
    std::vector<int64_t> places_;  // byte offsets of the elements in C order
    int64_t origin_ = 0;
};

// "4x3x5"
inline std::string text(const Shape& shape) {
    std::string all;
    for (const int64_t size : shape) {
        if (!all.empty()) all += 'x';
        all += std::to_string(size);
    }
    return all.empty() ? "()" : all;
}
