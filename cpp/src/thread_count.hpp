// How many threads a call gets.
#pragma once

#include <batchnorm/core.hpp>

#include "parallel.hpp"

namespace batchnorm {

// The team for work of so many elements under these options.
Team make_team(const Options& options, std::int64_t elements) noexcept;

}  // namespace batchnorm
