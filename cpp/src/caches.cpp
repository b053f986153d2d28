#include "caches.hpp"

#include <unistd.h>

namespace batchnorm {
namespace {

std::int64_t positive(long bytes) noexcept { return bytes > 0 ? bytes : 0; }

Caches ask() noexcept {
#ifdef _SC_LEVEL2_CACHE_SIZE
    return {positive(sysconf(_SC_LEVEL1_DCACHE_SIZE)), positive(sysconf(_SC_LEVEL2_CACHE_SIZE))};
#else
    return {0, 0};
#endif
}

}  // namespace

// Once: in a virtual machine the instruction behind it takes longer than a small call.
Caches own_caches() noexcept {
    static const Caches known = ask();
    return known;
}

}  // namespace batchnorm
