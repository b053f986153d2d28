#include "status.hpp"

#include <cstdarg>
#include <cstdio>

namespace batchnorm {

Status failure(Code code, const char* format, ...) noexcept {
    Status status;
    status.code = code;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(status.message, sizeof status.message, format, arguments);
    va_end(arguments);
    return status;
}

ShapeText::ShapeText(const std::int64_t* shape, int rank) noexcept {
    char* p = text;
    char* const end = text + sizeof text;
    const auto append = [&](const char* format, long long value) {
        p += std::snprintf(p, static_cast<std::size_t>(end - p), format, value);
    };
    append("(", 0);
    // max_rank numbers of 19 digits would not fit with their commas; such a shape is cut, which a message can bear.
    for (int i = 0; i < rank && end - p > 24; ++i) append(i == 0 ? "%lld" : ", %lld", shape[i]);
    append(rank == 1 ? ",)" : ")", 0);
}

}  // namespace batchnorm
