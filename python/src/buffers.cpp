#include "buffers.hpp"

#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
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
    std::size_t* total;  // of what it counts to, if anything
    void* next;          // in the list of unused buffers that it is in
    std::uint64_t released;
    unsigned forks;
};

Header& header(void* data) { return *reinterpret_cast<Header*>(static_cast<char*>(data) - page); }

// How much of a buffer to have in huge pages, which come at the price of 20 small ones: the last one too if at least
// half of it is used, or three quarters if it is the only one.
std::size_t huge_bytes(std::size_t bytes) {
    return bytes < huge_page * 3 / 4 ? 0 : (bytes + huge_page / 2) / huge_page * huge_page;
}

void* map(std::size_t bytes) {
    const std::size_t huge = huge_bytes(bytes);
    const std::size_t mapped = huge ? huge_page + round_up(bytes, huge_page) : page + bytes;
    void* const mapping = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    const std::size_t offset = huge ? huge_page - reinterpret_cast<std::uintptr_t>(mapping) % huge_page : page;
    void* const data = static_cast<char*>(mapping) + offset;
    if (huge) madvise(data, huge, MADV_HUGEPAGE);
    header(data) = {mapping, mapped, bytes, nullptr, nullptr, 0, 0};
    return data;
}

void unmap(void* data) {
    const Header own = header(data);
    munmap(own.mapping, own.mapped);
}

// The unused buffers of one size: one that is kept, so that one result after the other costs nothing, and spare ones,
// whose pages the kernel may take whenever it needs memory. One that it did not take is written without a page fault.
struct Unused {
    std::size_t bytes;
    void *kept, *spare;
    std::uint64_t since;
};

// The last sizes released, as many as a DenseNet has. It has nothing to destroy: arrays may die after the last of this
// library's code ran.
Unused sizes[64];

// Counts acquires and releases. A buffer that was not taken for as long as a training step of 250 layers leaves.
std::uint64_t now;
constexpr std::uint64_t patience = 1024;

// No more bytes than these are kept in all, beside the buffer released last; of more, those of the sizes used longest
// ago become spare.
constexpr std::size_t most_kept = std::size_t{256} << 20;
std::size_t kept;

// Spare buffers of less than so many bytes in all are held instead: to tell the kernel about a small one, and other
// processors that it did, takes longer than to write it.
constexpr std::size_t most_held = std::size_t{8} << 20;
std::size_t held;

std::mutex mutex;

// The kernel frees no huge page lazily that another process has too: a buffer that was in use at a fork cannot be
// spare.
std::atomic<unsigned> forks;

// A fork takes the mutex along as it is, and the child would pay for copies of pages whose content nobody needs.
[[maybe_unused]] const int watch_forks = pthread_atfork(
    [] {
        mutex.lock();
        ++forks;
    },
    [] { mutex.unlock(); },
    [] {
        mutex.unlock();
        clear();
    });

void count(void* data, std::size_t& total) {
    total += size(data);
    header(data).total = &total;
}

// Lists go through the headers: a release must not need memory.
void push(void*& list, void* data) {
    header(data).next = list;
    list = data;
}

void* pop(void*& list) {
    void* const data = list;
    if (!data) return nullptr;
    list = header(data).next;
    if (header(data).total) *header(data).total -= size(data);
    header(data).total = nullptr;
    return data;
}

void* take(Unused& unused) { return pop(unused.kept ? unused.kept : unused.spare); }

void* take(std::size_t bytes) {
    const std::lock_guard lock(mutex);
    ++now;
    for (Unused& unused : sizes)
        if (unused.bytes == bytes) return take(unused);
    return nullptr;
}

// The place of a size, if need be instead of the size used longest ago, whose buffers leave.
Unused& place_of(std::size_t bytes) {
    Unused* place = sizes;
    for (Unused& unused : sizes) {
        if (unused.bytes == bytes) return unused;
        if (unused.since < place->since) place = &unused;
    }
    while (void* const data = take(*place)) unmap(data);
    place->bytes = bytes;
    return *place;
}

bool hold(void* data) {
    if (held + size(data) >= most_held) return false;
    count(data, held);
    return true;
}

// Without its header. All of the last huge page: the kernel takes one apart of which only a part is freed.
bool free_lazily(void* data) {
#ifdef MADV_FREE
    const std::size_t bytes = huge_bytes(size(data)) ? round_up(size(data), huge_page) : size(data);
    return header(data).forks == forks && !madvise(data, bytes, MADV_FREE);
#else
    return false;
#endif
}

void make_spare(Unused& unused, void* data) {
    if (hold(data) || free_lazily(data))
        push(unused.spare, data);
    else
        unmap(data);
}

// Another size than `last`, of those with a buffer that is kept the one used longest ago.
Unused* oldest_kept(const Unused& last) {
    Unused* oldest = nullptr;
    for (Unused& unused : sizes)
        if (unused.kept && &unused != &last && (!oldest || unused.since < oldest->since)) oldest = &unused;
    return oldest;
}

void unmap_old_ones() {
    for (Unused& unused : sizes)
        for (void** first : {&unused.kept, &unused.spare})
            for (void** list = first; *list;)
                if (now - header(*list).released > patience)
                    unmap(pop(*list));
                else
                    list = &header(*list).next;
}

}  // namespace

void* acquire(std::size_t bytes) noexcept {
    const std::size_t whole = round_up(bytes, page);
    void* data = take(whole);
    if (!data) data = map(whole);
    if (!data) {
        clear();
        data = map(whole);
    }
    if (data) header(data).forks = forks;
    return data;
}

void release(void* data) noexcept {
    const std::lock_guard lock(mutex);
    Unused& unused = place_of(size(data));
    header(data).released = unused.since = ++now;
    if (unused.kept) {
        make_spare(unused, data);
    } else {
        push(unused.kept, data);
        count(data, kept);
        for (Unused* other; kept > most_kept && (other = oldest_kept(unused));) make_spare(*other, pop(other->kept));
    }
    unmap_old_ones();
}

std::size_t size(void* data) noexcept { return header(data).bytes; }

void clear() noexcept {
    const auto next = [](Unused& unused) {
        const std::lock_guard lock(mutex);
        return take(unused);
    };
    for (Unused& unused : sizes)
        while (void* const data = next(unused)) unmap(data);
}

}  // namespace buffers
