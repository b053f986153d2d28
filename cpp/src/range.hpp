#pragma once

#include <cstdint>

namespace batchnorm {

struct Range {
    std::int64_t begin, end;
    constexpr std::int64_t size() const noexcept { return end - begin; }
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept { return (a + b - 1) / b; }

// Shares of n things, at most so many each, of which every thread gets as many.
constexpr std::int64_t even_share(std::int64_t n, std::int64_t most, int threads) noexcept {
    const std::int64_t rounds = ceil_div(n, most * threads);
    return ceil_div(n, rounds * threads);
}

}  // namespace batchnorm
