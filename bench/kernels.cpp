// The kernels alone, on one thread: each instruction set, type, pattern and kernel, on data of four sizes, beside
// reading or copying as many bytes.
//
//     bench_kernels [--quick]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "isa.hpp"
#include "kernels/half.hpp"

namespace {

using namespace batchnorm::kernels;
using batchnorm::Isa;
using Clock = std::chrono::steady_clock;

constexpr std::size_t row_size = 1024;  // elements of a channel in a row, channels first
constexpr std::size_t channels = 256;   // channels last

struct Size {
    const char* name;
    std::size_t bytes;  // of each operand
};
constexpr Size sizes[] = {{"L1", 8 << 10}, {"L2", 256 << 10}, {"L3", 4 << 20}, {"memory", 128 << 20}};

// Memory at a distance from a page boundary that no other operand has.
class Operand {
  public:
    Operand(std::size_t bytes, std::size_t offset) : memory_(bytes + 8192) {
        void* start = memory_.data();
        std::size_t space = memory_.size();
        std::align(4096, bytes + offset, start, space);
        data_ = static_cast<char*>(start) + offset;
    }
    char* data() const { return data_; }

  private:
    std::vector<char> memory_;
    char* data_;
};

// The types that elements of type T are computed in, and that gradient sums take the mean in.
template <class T>
using Arithmetic = std::conditional_t<sizeof(T) == 8, double, float>;
template <class T>
using MeanOf = std::conditional_t<sizeof(T) == 2, float, double>;

template <class T>
void fill(const Operand& operand, std::size_t bytes) {
    auto* values = reinterpret_cast<T*>(operand.data());
    std::uint32_t state = 1;
    for (std::size_t i = 0; i < bytes / sizeof(T); ++i) {
        state = state * 1664525 + 1013904223;
        const auto value = static_cast<Arithmetic<T>>(state >> 8) / static_cast<Arithmetic<T>>(1 << 23) - 1;
        if constexpr (sizeof(T) == 2)
            values[i] = from_float<T>(value);
        else
            values[i] = value;
    }
}

struct Operands {
    explicit Operands(std::size_t bytes) : x(bytes, 0), dy(bytes, 21 * 64), out(bytes, 43 * 64) {}
    Operand x, dy, out;
};

// Reading as the processor can at best: every vector counts, and little is computed.
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void read(const char* from, std::size_t bytes) {
    using Line = std::int64_t __attribute__((vector_size(64)));
    const auto* lines = reinterpret_cast<const Line*>(from);
    Line even = {}, odd = {};
    for (std::size_t i = 0; i < bytes / sizeof(Line); i += 2) {
        even ^= lines[i];
        odd ^= lines[i + 1];
    }
    even ^= odd;
    asm volatile("" : : "m"(even));
}

// The fewest seconds of a call out of several measurements, each of them long enough for the clock.
template <class Call>
double seconds(const Call& call, bool quick) {
    const double enough = quick ? 0 : 2e-3;
    long repeats = 1;
    double best = 1e9;
    for (int measurement = 0; measurement < (quick ? 1 : 12); ++measurement) {
        const auto start = Clock::now();
        for (long i = 0; i < repeats; ++i) call();
        const double taken = std::chrono::duration<double>(Clock::now() - start).count();
        best = std::min(best, taken / static_cast<double>(repeats));
        if (taken < enough)
            repeats = static_cast<long>(static_cast<double>(repeats) * std::min(enough / taken + 1, 100.0));
    }
    return best;
}

struct Result {
    const char* kernel;
    double seconds;
    int read, written;  // operands
};

// Per-channel values, one for each lane and as many more as the kernels may read. They start a line, as in the library.
template <class T>
class PerChannel {
  public:
    explicit PerChannel(double value) {
        for (T& one : values_) one = static_cast<T>(value);
    }
    const T* data() const { return values_; }

  private:
    alignas(64) T values_[channels + static_cast<std::size_t>(lane_padding)];
};

template <class T>
std::vector<Result> time_kernels(const TypeKernels& kernels, Pattern pattern, const Operands& data, std::size_t bytes,
                                 bool quick) {
    const std::size_t n = pattern == row ? row_size : channels;
    const auto count = static_cast<std::int64_t>(n), rows = static_cast<std::int64_t>(bytes / sizeof(T) / n);
    const auto stride = static_cast<std::int64_t>(n * sizeof(T));
    const PerChannel<Arithmetic<T>> hi(0.25), inv_std(1), dy_hi(0), a(1), b(0.25), c(0);
    const PerChannel<MeanOf<T>> mean(0.125);
    alignas(64) double sums[channels] = {}, more[channels] = {};
    static_assert(channels >= 2 * row_accumulators);

    std::vector<const void*> x_rows, dy_rows;
    for (std::int64_t row = 0; row < rows; ++row) {
        x_rows.push_back(data.x.data() + row * stride);
        dy_rows.push_back(data.dy.data() + row * stride);
    }
    auto reading = Reading::fetched;
    const auto run_moments = [&] {
        if (pattern == row)
            kernels.row_moments({data.x.data(), stride, rows, count, {hi.data(), 0}, {sums, false}});
        else
            kernels.lane_moments({x_rows.data(), rows, count, rows, reading, hi.data(), sums, more});
    };
    const auto run_grad_sums = [&] {
        if (pattern == row)
            kernels.plain.row_grad_sums(
                {data.dy.data(), stride, data.x.data(), stride, rows, count, {mean.data(), 0}, {sums, false}});
        else
            kernels.plain.lane_grad_sums(
                {dy_rows.data(), x_rows.data(), rows, count, rows, reading, mean.data(), sums, more});
    };
    NormalizeArgs normalize{data.x.data(), stride,   data.out.data(), stride, rows,  count,         hi.data(),
                            a.data(),      c.data(), false,           count,  false, RowOrder::each};
    InputGradArgs input_grad{data.dy.data(), stride,   data.x.data(), stride,         data.out.data(), stride,
                             rows,           count,    hi.data(),     inv_std.data(), dy_hi.data(),    a.data(),
                             b.data(),       c.data(), false,         count,          false,           RowOrder::each};
    // As plan.cpp has it, of rows on Zen 5.
    normalize.output_ahead = 1024;
    normalize.fetches_rows = input_grad.fetches_rows = pattern == lane;
    const auto run_normalize = [&] {
        kernels.plain.normalize[pattern](normalize);
        if (normalize.stream) kernels.finish_streams();
    };
    const auto run_input_grad = [&] {
        kernels.plain.input_grad[pattern](input_grad);
        if (input_grad.stream) kernels.finish_streams();
    };
    std::vector<Result> results = {
        {"moments", seconds(run_moments, quick), 1, 0},
        {"grad_sums", seconds(run_grad_sums, quick), 2, 0},
        {"normalize", seconds(run_normalize, quick), 1, 1},
        {"input_grad", seconds(run_input_grad, quick), 2, 1},
    };
    if (pattern == lane) {
        reading = Reading::alone;
        results.push_back({"grad_sums, alone", seconds(run_grad_sums, quick), 2, 0});
        reading = Reading::cached;
        results.push_back({"moments, cached", seconds(run_moments, quick), 1, 0});
        results.push_back({"grad_sums, cached", seconds(run_grad_sums, quick), 2, 0});
        normalize.order = input_grad.order = RowOrder::whole;
        results.push_back({"normalize, whole rows", seconds(run_normalize, quick), 1, 1});
        results.push_back({"input_grad, whole rows", seconds(run_input_grad, quick), 2, 1});
        normalize.order = input_grad.order = RowOrder::across;
        results.push_back({"normalize, across", seconds(run_normalize, quick), 1, 1});
        results.push_back({"input_grad, across", seconds(run_input_grad, quick), 2, 1});
        normalize.order = input_grad.order = RowOrder::each;
    }
    normalize.stream = input_grad.stream = true;
    results.push_back({"normalize, streaming", seconds(run_normalize, quick), 1, 1});
    results.push_back({"input_grad, streaming", seconds(run_input_grad, quick), 2, 1});
    return results;
}

template <class T>
void time_type(const Isa& isa, const TypeKernels& kernels, const char* type, const Size& size, bool quick) {
    const Operands data(size.bytes);
    fill<T>(data.x, size.bytes);
    fill<T>(data.dy, size.bytes);
    for (const Pattern pattern : {row, lane}) {
        const double reading = seconds([&] { read(data.x.data(), size.bytes); }, quick);
        const double copying = seconds([&] { std::memcpy(data.out.data(), data.x.data(), size.bytes); }, quick);
        const auto bytes = static_cast<double>(size.bytes);
        for (const Result& result : time_kernels<T>(kernels, pattern, data, size.bytes, quick)) {
            // A copy reads one operand and writes one; what reads more takes that much longer.
            const double unit = result.written ? copying + (result.read - 1) * reading : result.read * reading;
            std::printf("%-7s %-4s %-7s %-5s %-22s %8.1f %8.3f %8.2f\n", isa.name, type, size.name,
                        pattern == row ? "row" : "lane", result.kernel,
                        (result.read + result.written) * bytes / result.seconds * 1e-9, result.seconds / bytes * 64e9,
                        result.seconds / unit);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
    std::printf("%-7s %-4s %-7s %-5s %-22s %8s %8s %8s\n", "", "", "", "", "", "", "ns for", "in reads");
    std::printf("%-7s %-4s %-7s %-5s %-22s %8s %8s %8s\n", "isa", "type", "data in", "", "kernel", "GB/s", "64 bytes",
                "+ copies");
    const batchnorm::IsaList built = batchnorm::built_isas();
    const char* last = "";
    for (int i = 0; i < built.count; ++i) {
        const Isa& isa = built.isa[i];
        // Of several with one name the first is in use.
        if (!isa.supported() || std::strcmp(isa.name, last) == 0) continue;
        last = isa.name;
        for (Size size : sizes) {
            if (quick) size.bytes = std::min(size.bytes, std::size_t{1} << 20);
            time_type<float>(isa, *isa.kernels.f32, "f32", size, quick);
            time_type<double>(isa, *isa.kernels.f64, "f64", size, quick);
            time_type<Half>(isa, *isa.kernels.f16, "f16", size, quick);
            time_type<BFloat16>(isa, *isa.kernels.bf16, "bf16", size, quick);
        }
    }
}
