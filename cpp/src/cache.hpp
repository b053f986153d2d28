// What the processor tells of its caches.
#pragma once

#include <cstdint>

namespace batchnorm {

// The size of the second-level cache, which a core has to itself; 0 where the system does not say.
std::int64_t own_cache_bytes() noexcept;

}  // namespace batchnorm
