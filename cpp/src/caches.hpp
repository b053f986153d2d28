// What the processor tells of its caches.
#pragma once

#include <cstdint>

namespace batchnorm {

// The sizes of those that a core has to itself, for data; 0 where the system does not say.
struct Caches {
    std::int64_t first, second;
};

Caches own_caches() noexcept;

}  // namespace batchnorm
