// How many threads a call gets.
#pragma once

#include <batchnorm/core.hpp>

#include "parallel.hpp"

namespace batchnorm {

// Below so many elements for each, another thread costs more than it does, whatever they are (docs/performance.md).
inline constexpr std::int64_t most_elements_per_thread = 32768;

// The team for work of so many elements under these options, of which `each` are worth a thread.
Team make_team(const Options& options, std::int64_t elements, std::int64_t each) noexcept;

// As many of a team's threads as so many values of statistics are worth: each parallel region has its price, and where
// processors are short that of the longest wait for one.
Team smaller_team(const Team& team, std::int64_t elements) noexcept;

}  // namespace batchnorm
