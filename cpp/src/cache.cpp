#include "cache.hpp"

#include <unistd.h>

#include <atomic>

namespace batchnorm {
namespace {

std::int64_t ask() noexcept {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return bytes > 0 ? bytes : 0;
#else
    return 0;
#endif
}

}  // namespace

// Once: in a virtual machine the instruction behind it takes longer than a small call.
std::int64_t own_cache_bytes() noexcept {
    static std::atomic<std::int64_t> known{-1};
    std::int64_t bytes = known.load(std::memory_order_relaxed);
    if (bytes < 0) known.store(bytes = ask(), std::memory_order_relaxed);
    return bytes;
}

}  // namespace batchnorm
