// The kernels by themselves: what only large tensors, or only some processors, ask of them.
#include "isa.hpp"
#include "kernels/table.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"

namespace {

namespace kernels = batchnorm::kernels;
using batchnorm::Isa;
using batchnorm::kernels::FlavourKernels;
using batchnorm::kernels::InputGradArgs;
using batchnorm::kernels::KernelSet;
using batchnorm::kernels::lane_padding;
using batchnorm::kernels::LaneGradSumsArgs;
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

// Of each of some channels, or of lanes: accumulators of `count` sums, and what these are.
struct Sums {
    std::vector<double> accumulators, totals;
    int count;
    Sums(std::int64_t channels, int count_)
        : accumulators(static_cast<std::size_t>(channels * count_ * row_accumulators)),
          totals(static_cast<std::size_t>(channels * count_)),
          count(count_) {}

    bool operator==(const Sums& other) const {
        return same(accumulators, other.accumulators) && same(totals, other.totals);
    }
    static bool same(const std::vector<double>& some, const std::vector<double>& others) {
        return std::memcmp(some.data(), others.data(), some.size() * sizeof(double)) == 0;
    }
    // Whether these are sums at all.
    static bool some(const std::vector<double>& sums) {
        for (const double sum : sums)
            if (!std::isfinite(sum)) return false;
        return sums[0] != 0;
    }
    double* lanes(int which) { return accumulators.data() + static_cast<std::size_t>(which) * accumulators.size() / 2; }
};

// Rows that are added up: of one channel, or of one each, without a gap between them or with one.
struct RowsOf {
    const TypeKernels& kernels;
    const std::int64_t size, rows, n, stride;
    const bool next_channel;
    const std::vector<unsigned char> x, dy;
    const std::vector<double> means;

    RowsOf(const TypeKernels& kernels_, const Type& type, std::int64_t rows_, std::int64_t n_, std::int64_t gap,
           bool next_channel_)
        : kernels(kernels_),
          size(type.size),
          rows(rows_),
          n(n_),
          stride(n * type.size + gap),
          next_channel(next_channel_),
          x(numbers(rows * stride)),
          dy(numbers(2 * rows * stride, 2)),
          means(static_cast<std::size_t>(rows), 0) {}

    std::int64_t channels() const { return next_channel ? rows : 1; }

    template <int count>
    kernels::RowSumsTo<count> to(Sums& sums, bool begins, bool ends) const {
        kernels::RowSumsTo<count> to{sums.accumulators.data(), next_channel, begins, ends};
        for (int i = 0; i < count; ++i) to.totals[i] = sums.totals.data() + i * channels();
        return to;
    }
    // So many elements of each row, from the first-th on.
    void moments(Sums& sums, std::int64_t first, std::int64_t some, bool begins, bool ends, std::int64_t ahead = 0,
                 const void* then = nullptr) const {
        kernels.row_moments(
            {x.data() + first * size, stride, rows, some, {means.data(), 8}, to<2>(sums, begins, ends), ahead, then});
    }
    void gradients(Sums& sums, std::int64_t first, std::int64_t some, bool begins, bool ends, std::int64_t ahead = 0,
                   const void* then = nullptr) const {
        kernels.plain.row_grad_sums({dy.data() + first * size,
                                     stride,
                                     x.data() + first * size,
                                     stride,
                                     rows,
                                     some,
                                     {means.data(), 8},
                                     to<2>(sums, begins, ends),
                                     ahead,
                                     then,
                                     then});
    }
    // The weights are what dy's memory is in the type of the arithmetic.
    void weighted(Sums& sums, std::int64_t first, std::int64_t some, bool begins, bool ends) const {
        const std::int64_t unit = std::max<std::int64_t>(size, 4);
        kernels.row_weighted_moments({x.data() + first * size, stride, dy.data() + first * unit, 2 * stride, false,
                                      rows, some, means.data(), to<3>(sums, begins, ends)});
    }
};

constexpr std::int64_t row_lengths[] = {1, 31, 512, 1000, 5001};

// Rows that are fetched ahead of their reading are added up as others are: behind each other or apart, shorter and
// longer than what is fetched, and wherever reading goes on.
void fetching_ahead_changes_no_sum(const Isa& isa, const Type& type) {
    for (const std::int64_t n : row_lengths) {
        for (const std::int64_t count : {1, 3}) {
            for (const std::int64_t gap : {0, 96}) {
                for (const bool next_channel : {false, true}) {
                    const RowsOf rows(*(isa.kernels.*type.kernels), type, count, n, gap, next_channel);
                    const auto sums = [&](auto add, std::int64_t ahead, const void* then) {
                        Sums sums(rows.channels(), 2);
                        (rows.*add)(sums, 0, n, true, false, ahead, then);
                        return sums;
                    };
                    context = std::string(isa.name) + " " + type.name + " " + std::to_string(n);
                    for (const auto add : {&RowsOf::moments, &RowsOf::gradients}) {
                        const Sums plain = sums(add, 0, nullptr);
                        CHECK(Sums::some(plain.accumulators));
                        for (const std::int64_t ahead : {64, 1000, 6144})
                            for (const void* then : {static_cast<const void*>(nullptr),
                                                     static_cast<const void*>(rows.dy.data() + count * rows.stride)})
                                CHECK(sums(add, ahead, then) == plain);
                    }
                }
            }
        }
    }
}

// Accumulators that are added up: the upper half of them to the lower one, and so on.
double added_up(const double* accumulators) {
    std::vector<double> left(accumulators, accumulators + row_accumulators);
    while (left.size() > 1) {
        const std::size_t half = left.size() / 2;
        for (std::size_t i = 0; i < half; ++i) left[i] += left[i + half];
        left.resize(half);
    }
    return left[0];
}

// Sums that begin ignore what accumulators hold; those that end are of what these would have been; and parts of rows
// give what whole rows do.
template <class Add>
void sums_begin_and_end(const RowsOf& rows, int count, const Add& add) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    const auto of_nans = [&] {
        Sums sums(rows.channels(), count);
        std::fill(sums.accumulators.begin(), sums.accumulators.end(), nan);
        return sums;
    };
    // Kernels leave accumulators alone that they do not use.
    Sums from_zeros(rows.channels(), count), begun = of_nans(), parts = of_nans(), at_once = of_nans();
    add(from_zeros, 0, rows.n, false, false);
    CHECK(Sums::some(from_zeros.accumulators));
    add(begun, 0, rows.n, true, false);
    for (std::size_t i = 0; i < begun.accumulators.size(); ++i)
        CHECK(begun.accumulators[i] == from_zeros.accumulators[i] ||
              (std::isnan(begun.accumulators[i]) && from_zeros.accumulators[i] == 0));

    add(at_once, 0, rows.n, true, true);
    for (std::int64_t c = 0; c < rows.channels(); ++c) {
        for (int i = 0; i < count; ++i) {
            const double* const own = from_zeros.accumulators.data() + (c * count + i) * row_accumulators;
            CHECK(at_once.totals[static_cast<std::size_t>(i * rows.channels() + c)] == added_up(own));
        }
    }
    if (rows.n <= 128) return;
    add(parts, 0, 128, true, false);
    add(parts, 128, rows.n - 128, false, true);
    // Of a channel's rows the second parts come after all first ones.
    if (rows.rows == 1 || rows.next_channel) CHECK(Sums::same(parts.totals, at_once.totals));
}

void sums_begin_and_end(const Isa& isa, const Type& type) {
    for (const std::int64_t n : row_lengths) {
        for (const std::int64_t count : {1, 3}) {
            for (const bool next_channel : {false, true}) {
                context = std::string(isa.name) + " " + type.name + " " + std::to_string(n);
                const RowsOf rows(*(isa.kernels.*type.kernels), type, count, n, 0, next_channel);
                sums_begin_and_end(rows, 2, [&](auto&&... args) { rows.moments(args...); });
                sums_begin_and_end(rows, 2, [&](auto&&... args) { rows.gradients(args...); });
                if (!next_channel) sums_begin_and_end(rows, 3, [&](auto&&... args) { rows.weighted(args...); });
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
            const RowsOf of(kernels, type, rows, n, 0, false);
            const std::vector<double> means(static_cast<std::size_t>(n), 0);
            std::vector<Sums> all(3, Sums(std::max(n / row_accumulators + 1, rows), 2));
            all[2] = Sums(1, 3);
            of.moments(all[0], 0, n, true, true);
            of.gradients(all[1], 0, n, true, true);
            of.weighted(all[2], 0, n, true, true);
            // However rows of lanes are read, they are added up alike.
            const Sums none(std::max(n / row_accumulators + 1, rows), 2);
            for (const Reading reading : {Reading::fetched, Reading::cached, Reading::paired, Reading::alone}) {
                Sums moments = none, grad_sums = none, leaky_sums = none;
                kernels.lane_moments(
                    {x_rows.data(), rows, n, rows, reading, means.data(), moments.lanes(0), moments.lanes(1)});
                LaneGradSumsArgs args{dy_rows.data(),     x_rows.data(),     rows, n, rows, reading, means.data(),
                                      grad_sums.lanes(0), grad_sums.lanes(1)};
                kernels.plain.lane_grad_sums(args);
                args.sum_dy = leaky_sums.lanes(0);
                args.sum_dy_xmu = leaky_sums.lanes(1);
                args.activated = {true, 0.25};
                args.mask = x_rows.data();  // any bits
                kernels.full.lane_grad_sums(args);
                const std::vector<Sums> read = {moments, grad_sums, leaky_sums};
                if (reading == Reading::fetched) all.insert(all.end(), read.begin(), read.end());
                CHECK(std::equal(read.begin(), read.end(), all.begin() + 3));
                CHECK(!(leaky_sums == grad_sums));
            }
            return all;
        };
        const std::vector<Sums> some = sums_of(*(isa.kernels.*type.kernels)),
                                others = sums_of(*(other.kernels.*type.kernels));
        for (std::size_t i = 0; i < some.size(); ++i) {
            CHECK(Sums::some(i < 3 ? some[i].totals : some[i].accumulators));
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
            sums_begin_and_end(isa, type);
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
