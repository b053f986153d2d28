// The kernels by themselves: what only large tensors, or only some processors, ask of them.
#include "isa.hpp"
#include "kernels/table.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "check.hpp"

namespace {

using batchnorm::Isa;
using batchnorm::kernels::FlavourKernels;
using batchnorm::kernels::InputGradArgs;
using batchnorm::kernels::KernelSet;
using batchnorm::kernels::lane_padding;
using batchnorm::kernels::NormalizeArgs;
using batchnorm::kernels::Reading;
using batchnorm::kernels::row_accumulators;
using batchnorm::kernels::RowOrder;
using batchnorm::kernels::TypeKernels;

struct Type {
    const char* name;
    const TypeKernels* KernelSet::* kernels;
    std::int64_t size;
};
constexpr Type types[] = {{"f32", &KernelSet::f32, 4},
                          {"f64", &KernelSet::f64, 8},
                          {"f16", &KernelSet::f16, 2},
                          {"bf16", &KernelSet::bf16, 2}};

// Bytes that are numbers of moderate size in every one of these types: the upper byte of each 2, little endian, is
// between 0x3c and 0x3f.
std::vector<unsigned char> numbers(std::int64_t bytes, std::uint32_t seed = 1) {
    std::vector<unsigned char> memory(static_cast<std::size_t>(bytes));
    std::uint32_t state = seed;
    for (std::size_t i = 0; i < memory.size(); ++i) {
        state = state * 1664525 + 1013904223;
        const auto random = static_cast<unsigned char>(state >> 24);
        memory[i] = i % 2 == 0 ? random : static_cast<unsigned char>(0x3c + random % 4);
    }
    return memory;
}

struct Sums {
    // Of each of some channels, one set after the other.
    std::vector<double> first, second;
    explicit Sums(std::int64_t channels)
        : first(static_cast<std::size_t>(channels * row_accumulators)), second(first.size()) {}
    bool operator==(const Sums& other) const {
        const std::size_t bytes = first.size() * sizeof(double);
        return std::memcmp(first.data(), other.first.data(), bytes) == 0 &&
               std::memcmp(second.data(), other.second.data(), bytes) == 0;
    }
    bool finite_and_not_zero() const {
        for (std::size_t i = 0; i < first.size(); ++i)
            if (!std::isfinite(first[i]) || !std::isfinite(second[i])) return false;
        return first[0] != 0 && second[0] != 0;
    }
};

// Rows that are fetched ahead of their reading are added up as others are: of one channel or of one each, behind each
// other or apart, shorter and longer than what is fetched, and wherever reading goes on.
void fetching_ahead_changes_no_sum(const Isa& isa, const Type& type) {
    const TypeKernels& kernels = *(isa.kernels.*type.kernels);
    const double zero = 0;
    for (const std::int64_t n : {1, 31, 512, 1000, 5001}) {
        for (const std::int64_t rows : {1, 3}) {
            for (const std::int64_t gap : {0, 96}) {
                const std::int64_t stride = n * type.size + gap;
                const std::vector<unsigned char> x = numbers(rows * stride), dy = numbers(2 * rows * stride);
                for (const bool next_channel : {false, true}) {
                    const std::int64_t step =
                        next_channel ? static_cast<std::int64_t>(row_accumulators * sizeof(double)) : 0;
                    const std::vector<double> means(static_cast<std::size_t>(rows * row_accumulators), zero);
                    const auto moments = [&](std::int64_t ahead, const void* then) {
                        Sums sums(rows);
                        kernels.row_moments({x.data(), stride, rows, n, means.data(), sums.first.data(),
                                             sums.second.data(), step, ahead, then});
                        return sums;
                    };
                    const auto gradients = [&](std::int64_t ahead, const void* then) {
                        Sums sums(rows);
                        kernels.plain.row_grad_sums({dy.data(), stride, x.data(), stride, rows, n, means.data(),
                                                     sums.first.data(), sums.second.data(), step, ahead, then, then});
                        return sums;
                    };
                    context = std::string(isa.name) + " " + type.name + " " + std::to_string(n);
                    const Sums plain_moments = moments(0, nullptr), plain_gradients = gradients(0, nullptr);
                    CHECK(plain_moments.finite_and_not_zero());
                    CHECK(plain_gradients.finite_and_not_zero());
                    for (const std::int64_t ahead : {64, 1000, 6144}) {
                        for (const void* then :
                             {static_cast<const void*>(nullptr), static_cast<const void*>(dy.data() + rows * stride)}) {
                            CHECK(moments(ahead, then) == plain_moments);
                            CHECK(gradients(ahead, then) == plain_gradients);
                        }
                    }
                }
            }
        }
    }
}

// What is asked of the writers: each of these has a flavour of its own.
enum class Asked { nothing, relu, leaky_relu, all };
constexpr Asked asked_of_writers[] = {Asked::nothing, Asked::relu, Asked::leaky_relu, Asked::all};

// What the writers make of rows of whole lines, with all memory between and behind them.
struct Written {
    std::vector<unsigned char> y, mask, dx, dresidual;

    bool operator==(const Written& other) const {
        return y == other.y && mask == other.mask && dx == other.dx && dresidual == other.dresidual;
    }
    bool lets_some_through() const {
        int through = 0;
        for (const unsigned char byte : mask) through += __builtin_popcount(byte);
        return through > 0 && through < 8 * static_cast<int>(mask.size());
    }
};
Written written(const TypeKernels& kernels, const Type& type, std::int64_t n, std::int64_t gap, RowOrder order,
                Asked asked) {
    constexpr std::int64_t rows = 11, lane = 1;
    const std::int64_t stride = n * type.size + gap, bytes = rows * stride, mask_stride = n / 8;
    const std::vector<unsigned char> x = numbers(bytes), dy = numbers(bytes, 2), v = numbers(bytes, 3);
    // Below 0 all, so that what is added to is not above it as a rule.
    std::vector<unsigned char> residual = numbers(bytes, 4);
    for (std::int64_t i = 1; i < bytes; i += 2) residual[static_cast<std::size_t>(i)] |= 0x80;
    // Of 16-bit elements they are floats.
    const std::int64_t unit = std::max<std::int64_t>(type.size, 4), pitch = (n + lane_padding) * unit;
    const std::vector<unsigned char> looked_up = numbers(8 * pitch, 5), weights = numbers(rows * n * unit, 6);
    const auto value = [&](std::int64_t i) { return looked_up.data() + i * pitch; };
    const std::vector<unsigned char> nothing(static_cast<std::size_t>(bytes), 0xa5);
    Written to{nothing, std::vector<unsigned char>(static_cast<std::size_t>(rows * mask_stride)), nothing, nothing};

    NormalizeArgs normalize{x.data(), stride,   to.y.data(), stride, rows,  n,    value(0),
                            value(1), value(2), false,       n,      false, order};
    normalize.output_ahead = 1024;
    InputGradArgs input_grad{dy.data(), stride,   x.data(), stride,   to.dx.data(), stride, rows, n,     value(0),
                             value(1),  value(2), value(3), value(4), value(5),     false,  n,    false, order};
    if (asked != Asked::nothing) {
        normalize.activates = true;
        normalize.slope = asked == Asked::relu ? 0 : 0.25;
        normalize.residual = residual.data();
        normalize.residual_stride = stride;
        normalize.mask = to.mask.data();
        normalize.mask_stride = mask_stride;
        input_grad.activated = {true, normalize.slope, 0};
        input_grad.mask = to.mask.data();
        input_grad.mask_stride = mask_stride;
        input_grad.dresidual = to.dresidual.data();
        input_grad.dresidual_stride = stride;
    }
    if (asked == Asked::all) {
        input_grad.weights = weights.data();
        input_grad.weights_stride = n * unit;
        input_grad.v = v.data();
        input_grad.v_stride = stride;
        input_grad.v_hi = value(6);
        input_grad.d = value(7);
    }
    const FlavourKernels& flavour = asked == Asked::nothing ? kernels.plain : kernels.full;
    flavour.normalize[lane](normalize);
    flavour.input_grad[lane](input_grad);
    return to;
}

// Of kernels of one instruction set for different processors: rows as they are added up in, and lanes.
void same_bits_on_all_processors(const Isa& isa, const Isa& other, const Type& type) {
    context = std::string(isa.name) + " " + type.name;
    for (const std::int64_t n : {1, 15, 64, 100, 333}) {
        const std::int64_t rows = 21, stride = n * type.size;
        const std::vector<unsigned char> x = numbers(rows * stride), dy = numbers(2 * rows * stride);
        std::vector<const void*> x_rows, dy_rows;
        for (std::int64_t row = 0; row < rows; ++row) {
            x_rows.push_back(x.data() + row * stride);
            dy_rows.push_back(dy.data() + (rows + row) * stride);
        }
        const auto sums_of = [&](const TypeKernels& kernels) {
            std::vector<Sums> all(8, Sums(std::max(n / row_accumulators + 1, rows)));
            const std::vector<double> means(static_cast<std::size_t>(n + row_accumulators), 0);
            kernels.row_moments(
                {x.data(), stride, rows, n, means.data(), all[0].first.data(), all[0].second.data(), 0});
            kernels.plain.row_grad_sums({dy.data(), stride, x.data(), stride, rows, n, means.data(),
                                         all[1].first.data(), all[1].second.data(), 0});
            for (const std::size_t way : {0, 1, 2}) {
                const auto reading = static_cast<Reading>(way);
                Sums &moments = all[2 + way], &grad_sums = all[5 + way];
                kernels.lane_moments(
                    {x_rows.data(), rows, n, rows, reading, means.data(), moments.first.data(), moments.second.data()});
                kernels.plain.lane_grad_sums({dy_rows.data(), x_rows.data(), rows, n, rows, reading, means.data(),
                                              grad_sums.first.data(), grad_sums.second.data()});
            }
            return all;
        };
        const std::vector<Sums> some = sums_of(*(isa.kernels.*type.kernels)),
                                others = sums_of(*(other.kernels.*type.kernels));
        for (std::size_t i = 0; i < some.size(); ++i) {
            CHECK(some[i].finite_and_not_zero());
            CHECK(some[i] == others[i]);
        }
    }
    for (const Asked asked : asked_of_writers)
        CHECK(written(*(isa.kernels.*type.kernels), type, 128, 64, RowOrder::each, asked) ==
              written(*(other.kernels.*type.kernels), type, 128, 64, RowOrder::each, asked));
}

void rows_are_the_same_in_any_order(const Isa& isa, const Type& type) {
    const TypeKernels& kernels = *(isa.kernels.*type.kernels);
    for (const std::int64_t lines : {1, 2, 7, 40}) {
        for (const std::int64_t gap : {0, 64, 200}) {
            for (const Asked asked : asked_of_writers) {
                const std::int64_t n = lines * 64 / type.size;
                context = std::string(isa.name) + " " + type.name + " " + std::to_string(n) + " gap " +
                          std::to_string(gap) + " asked " + std::to_string(static_cast<int>(asked));
                const Written each = written(kernels, type, n, gap, RowOrder::each, asked);
                CHECK(asked == Asked::nothing || each.lets_some_through());
                CHECK(written(kernels, type, n, gap, RowOrder::whole, asked) == each);
                CHECK(written(kernels, type, n, gap, RowOrder::across, asked) == each);
            }
        }
    }
}

}  // namespace

int main() {
    const batchnorm::IsaList built = batchnorm::built_isas();
    for (int i = 0; i < built.count; ++i) {
        if (!built.isa[i].supported()) continue;
        for (const Type& type : types) {
            const Isa& isa = built.isa[i];
            fetching_ahead_changes_no_sum(isa, type);
            rows_are_the_same_in_any_order(isa, type);
            for (int k = 0; k < i; ++k) {
                const Isa& other = built.isa[k];
                const bool differ = other.kernels.*type.kernels != isa.kernels.*type.kernels;
                if (std::string(other.name) == isa.name && other.supported() && differ)
                    same_bits_on_all_processors(other, isa, type);
            }
        }
    }
    return report();
}
