// How many threads a call gets.
#pragma once

#include <batchnorm/core.hpp>

#include "parallel.hpp"

namespace batchnorm {

// The team for work of so many elements of so many statistics under these options.
Team make_team(const Options& options, std::int64_t elements, std::int64_t statistics) noexcept;

// As many of a team's threads as so many elements are worth: each parallel region has its price, and where processors
// are short that of the longest wait for one.
Team smaller_team(const Team& team, std::int64_t elements) noexcept;

}  // namespace batchnorm
