// Writing a Status: printf-style, cut at the message's length.
#pragma once

#include <batchnorm/core.hpp>

namespace batchnorm {

[[gnu::format(printf, 2, 3)]] Status failure(Code code, const char* format, ...) noexcept;

// A shape as Python writes it, "(32, 64)", for messages.
struct ShapeText {
    char text[160];
    ShapeText(const std::int64_t* shape, int rank) noexcept;
};

inline const char* name(DType dtype) noexcept { return dtype == DType::f32 ? "float32" : "float64"; }

}  // namespace batchnorm
