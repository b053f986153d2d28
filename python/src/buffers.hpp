// Memory for large outputs that is used again: a page that the process has not had before costs more than what a kernel
// does with it.
#pragma once

#include <cstddef>

namespace buffers {

// What malloc takes from the system one by one, or gives back to it, as long as the process has freed nothing larger.
constexpr std::size_t least_bytes = std::size_t{128} << 10;

// Memory that starts a page, of undefined content; nullptr if there is none.
void* acquire(std::size_t bytes) noexcept;

// Gives it back: it is kept for the next acquire of its size. If one of that size is kept already, or too much is in
// all, the system may take its pages whenever it needs memory, and it is unmapped if it is not used again for long.
// From any thread, with or without the GIL, also while the process ends.
void release(void* data) noexcept;

// How many bytes it has: those asked for, rounded up to whole pages.
std::size_t size(void* data) noexcept;

// Unmaps all that is not in use.
void clear() noexcept;

}  // namespace buffers
