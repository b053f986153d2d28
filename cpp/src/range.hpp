#pragma once

#include <cstdint>

namespace batchnorm {

struct Range {
    std::int64_t begin, end;
    constexpr std::int64_t size() const noexcept { return end - begin; }
};

}  // namespace batchnorm
