#include "buffers.hpp"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <mutex>

namespace buffers {
namespace {

constexpr std::size_t page = 4096, huge_page = std::size_t{2} << 20;

constexpr std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// In the page before the data, which so starts a page itself. On a 4 KiB scale NumPy's and PyTorch's large arrays start
// at 16 and 64: outputs that start less than 1 KiB after their input are slower by up to a fifth, those at 0 are not.
struct Header {
    void* mapping;
    std::size_t mapped, bytes;
};

Header& header(void* data) { return *reinterpret_cast<Header*>(static_cast<char*>(data) - page); }

// How much of a buffer to have in huge pages, which come at the price of 20 small ones: the last one too if at least
// half of it is used.
std::size_t huge_bytes(std::size_t bytes) { return (bytes + huge_page / 2) / huge_page * huge_page; }

void* map(std::size_t bytes) {
    const std::size_t mapped = huge_page + round_up(bytes, huge_page);
    void* const mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    const std::size_t offset = huge_page - reinterpret_cast<std::uintptr_t>(mapping) % huge_page;
    void* const data = static_cast<char*>(mapping) + offset;
    if (const std::size_t huge = huge_bytes(bytes)) madvise(data, huge, MADV_HUGEPAGE);
    header(data) = {mapping, mapped, bytes};
    return data;
}

void unmap(void* data) {
    const Header own = header(data);
    munmap(own.mapping, own.mapped);
}

// The buffers that nobody uses. It has nothing to destroy: arrays may die after the last of this library's code ran.
struct Kept {
    void* data;
    std::size_t bytes;
    std::uint64_t since;
};
Kept kept[16];
std::uint64_t releases;
std::mutex mutex;

// A fork takes the mutex along as it is, and the child would pay for copies of pages whose content nobody needs.
[[maybe_unused]] const int watch_forks = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); },
                                                        [] {
                                                            mutex.unlock();
                                                            clear();
                                                        });

void* take_kept(std::size_t bytes) {
    const std::lock_guard lock(mutex);
    for (Kept& slot : kept) {
        if (!slot.data || slot.bytes != bytes) continue;
        void* const data = slot.data;
        slot.data = nullptr;
        return data;
    }
    return nullptr;
}

// Keeps it, and returns the one that has to go for it: itself if one of its size is kept, else the one kept longest if
// all places are taken, else nullptr.
void* keep(void* data, std::size_t bytes) {
    const std::lock_guard lock(mutex);
    Kept* place = kept;
    for (Kept& slot : kept) {
        if (slot.data && slot.bytes == bytes) return data;
        if (place->data && (!slot.data || slot.since < place->since)) place = &slot;
    }
    void* const leaves = place->data;
    *place = {data, bytes, releases++};
    return leaves;
}

}  // namespace

void* acquire(std::size_t bytes) noexcept {
    const std::size_t whole = round_up(bytes, page);
    if (void* const data = take_kept(whole)) return data;
    if (void* const data = map(whole)) return data;
    clear();
    return map(whole);
}

void release(void* data) noexcept {
    if (void* const leaves = keep(data, size(data))) unmap(leaves);
}

std::size_t size(void* data) noexcept { return header(data).bytes; }

void clear() noexcept {
    for (Kept& slot : kept) {
        void* data;
        {
            const std::lock_guard lock(mutex);
            data = slot.data;
            slot.data = nullptr;
        }
        if (data) unmap(data);
    }
}

}  // namespace buffers
