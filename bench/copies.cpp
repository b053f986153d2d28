// Four ways to copy a tensor with all threads. The unit of the benchmark is the fastest of them, because which one that
// is depends on the size and on the machine.
#include <cstddef>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// The loops are compiled for each vector width and chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__)
#define EACH_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_WIDTH
#endif

namespace {

// A cache line: one AVX-512 register, two of AVX2, four of SSE2 or NEON.
using Line = float __attribute__((vector_size(64)));
constexpr std::size_t line = sizeof(Line);
// How many lines ahead to prefetch; what was fastest on Zen 4, where half of it and twice as much cost up to a tenth.
constexpr std::size_t read_ahead = 32, write_ahead = 64;

using Loop = void (*)(Line* y, const Line* x, std::size_t lines);

void by_memcpy(Line* y, const Line* x, std::size_t lines) { std::memcpy(y, x, lines * line); }

EACH_WIDTH void plain(Line* y, const Line* x, std::size_t lines) {
    for (std::size_t i = 0; i < lines; ++i) y[i] = x[i];
}

#if defined(__SSE2__)
void stream_line(Line* y, const Line* x) {
    const auto* from = reinterpret_cast<const float*>(x);
    auto* to = reinterpret_cast<float*>(y);
    for (int i = 0; i < 16; i += 4) _mm_stream_ps(to + i, _mm_load_ps(from + i));
}
void finish_streams() { _mm_sfence(); }
#elif defined(__aarch64__)
void stream_line(Line* y, const Line* x) {
    asm volatile("ldp q0, q1, [%1]\n ldp q2, q3, [%1, 32]\n stnp q0, q1, [%0]\n stnp q2, q3, [%0, 32]"
                 :
                 : "r"(y), "r"(x)
                 : "v0", "v1", "v2", "v3", "memory");
}
void finish_streams() {}
#else
void stream_line(Line* y, const Line* x) { *y = *x; }
void finish_streams() {}
#endif

void non_temporal(Line* y, const Line* x, std::size_t lines) {
    for (std::size_t i = 0; i < lines; ++i) {
        __builtin_prefetch(x + i + read_ahead);
        stream_line(y + i, x + i);
    }
    finish_streams();
}

EACH_WIDTH void prefetch_write(Line* y, const Line* x, std::size_t lines) {
    for (std::size_t i = 0; i < lines; ++i) {
        __builtin_prefetch(y + i + write_ahead, 1);
        y[i] = x[i];
    }
}

constexpr Loop loops[] = {by_memcpy, plain, non_temporal, prefetch_write};
constexpr const char* names[] = {"memcpy", "plain", "non-temporal", "prefetchw"};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The name of a way to copy, or null past the last one.
EXPORTED const char* batchnorm_copy_name(int way) { return way < 4 ? names[way] : nullptr; }

// Copies bytes from x to y, which are aligned to 64 and do not overlap. Each thread copies one contiguous part.
EXPORTED void batchnorm_copy(int way, void* y, const void* x, std::size_t bytes, int threads) {
    const std::size_t lines = bytes / line;
    auto* to = static_cast<Line*>(y);
    const auto* from = static_cast<const Line*>(x);
    if (threads == 1) {
        loops[way](to, from, lines);
    } else {
        const auto parts = static_cast<std::size_t>(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (std::size_t part = 0; part < parts; ++part) {
            const std::size_t begin = lines * part / parts, end = lines * (part + 1) / parts;
            loops[way](to + begin, from + begin, end - begin);
        }
    }
    std::memcpy(to + lines, from + lines, bytes % line);
}
