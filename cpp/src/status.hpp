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

// As NumPy calls it; null for what is no type.
inline const char* name(DType dtype) noexcept {
    switch (dtype) {
        case DType::f32: return "float32";
        case DType::f64: return "float64";
        case DType::f16: return "float16";
        case DType::bf16: return "bfloat16";
    }
    return nullptr;
}

}  // namespace batchnorm
