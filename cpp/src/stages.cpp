#include "stages.hpp"

#include <cmath>

#include "plan.hpp"

namespace batchnorm {
namespace {

using kernels::row_accumulators;

// Adds up the kernel's accumulators, always in the same order.
double total(double (&sums)[row_accumulators]) noexcept {
    for (int half = row_accumulators / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

double element(const char* p, DType dtype) noexcept {
    double value;
    float narrow;
    if (dtype == DType::f64) {
        __builtin_memcpy(&value, p, sizeof value);
        return value;
    }
    __builtin_memcpy(&narrow, p, sizeof narrow);
    return static_cast<double>(narrow);
}

// From the sums of n differences from a pivot to mean and m2, in place. Rounding must not make m2 negative; a NaN
// stays.
void finish_moments(double pivot, double n, double& sum_to_mean, double& sum_sq_to_m2) noexcept {
    const double shift = sum_to_mean / n;
    const double m2 = sum_sq_to_m2 - sum_to_mean * shift;
    sum_to_mean = pivot + shift;
    sum_sq_to_m2 = m2 < 0 ? 0 : m2;
}

// Rows of less are read channel by channel: a kernel call for each would cost more than their order brings.
constexpr int64_t long_row_bytes = 2048;

constexpr int64_t pivots_offset = roles * tile_bytes;

// Coefficients of one group, with the padding that the kernels may read in Pattern::lane.
int64_t coefficient_pitch(const Box& box) noexcept {
    return box.channels() + (box.pattern == Pattern::lane ? kernels::lane_padding : 0);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------- memory

constexpr int64_t Memory::worker_bytes() noexcept { return pivots_offset + most_lanes * 8; }

char* Memory::tiles(int worker) const noexcept { return workers + worker * worker_bytes(); }
char* Memory::pivots(int worker) const noexcept { return tiles(worker) + pivots_offset; }

Memory::Memory(Arena& arena, const Box& box, const Chunks& chunks, int threads, bool reduces) noexcept {
    const int64_t n = box.statistics();
    if (reduces)
        for (double*& slot : slots) slot = arena.take<double>(n * chunks.count());
    for (double** column : {&mean, &spread, &inv_std, &gamma, &beta, &count, &sum_dy, &sum_dy_xmu})
        *column = arena.take<double>(n);
    for (void*& values : coefficients)
        values = arena.take<char>(box.groups() * coefficient_pitch(box) * item_size(box.dtype));
    workers = arena.take<char>(threads * worker_bytes());
}

// ---------------------------------------------------------------------------------------------------------- reduce

// In Pattern::row each channel is a region of its own. Long rows are taken in memory order, the channels of an outer
// index after each other: reading pieces of 12 KB from 3 MB apart takes half as long again as reading four in a row.
template <class Body>
void Stages::for_each_region(int64_t g, int64_t k, Range channels, const Body& body) const noexcept {
    const Range outers = chunks.outer_range(k), inners = chunks.inner_range(k);
    if (box.pattern == Pattern::lane) return body(Region{g, channels, outers, inners});
    const bool in_memory_order = inners.size() * item_size(box.dtype) >= long_row_bytes;
    const int64_t step = in_memory_order ? 1 : outers.size();
    for (int64_t o = outers.begin; o < outers.end; o += step)
        for (int64_t c = channels.begin; c < channels.end; ++c) body(Region{g, {c, c + 1}, {o, o + step}, inners});
}

// In Pattern::row: the accumulators of some channels, which a kernel adds to row by row.
struct RowSums {
    static constexpr int64_t most_channels = 16;
    alignas(64) double sums[2][most_channels][row_accumulators] = {};
};

// Calls body(block) for blocks of channels that RowSums can hold.
template <class Body>
void for_each_row_block(Range channels, const Body& body) noexcept {
    for (int64_t c = channels.begin; c < channels.end; c += RowSums::most_channels) {
        const int64_t end = c + RowSums::most_channels;
        body(Range{c, end < channels.end ? end : channels.end});
    }
}

// In Pattern::lane with few channels, several rows are reduced as one (Box::fold): sums of that many lanes, which are
// added up in the end. Without folding the sums are the slots themselves.
struct LaneSums {
    const int64_t fold, lanes;
    double *const first, *const second;  // the slots
    alignas(64) double folded[2][most_folded_lanes];
    double* sums[2];

    LaneSums(int64_t fold_, int64_t lanes_, double* first_, double* second_) noexcept
        : fold(fold_), lanes(lanes_), first(first_), second(second_) {
        sums[0] = fold == 1 ? first : folded[0];
        sums[1] = fold == 1 ? second : folded[1];
        for (double* sum : sums)
            for (int64_t i = 0; i < fold * lanes; ++i) sum[i] = 0;
    }

    void finish() const noexcept {
        for (int64_t i = 0; i < lanes && fold > 1; ++i) {
            first[i] = second[i] = 0;
            for (int64_t at = i; at < fold * lanes; at += lanes) {
                first[i] += folded[0][at];
                second[i] += folded[1][at];
            }
        }
    }
};

void Stages::reduce_moments(int64_t g, int64_t k, Range channels, int worker) const noexcept {
    const Operand& x = box.operand[role_x];
    const Access access[roles] = {Access::read, Access::none, Access::none};
    const double n = static_cast<double>(chunks.values(k));
    double *const means = slot(0, g, k), *const m2s = slot(1, g, k);
    const int64_t unit = item_size(box.dtype);
    // The pivots: the chunk's first element of each channel.
    const char* const first = x.data + x.offset(box.level[group], group, g) +
                              x.offset(box.level[outer], outer, chunks.outer_range(k).begin) +
                              x.offset(box.level[inner], inner, chunks.inner_range(k).begin);

    if (box.pattern == Pattern::row) {
        const auto pivot = [&](int64_t c) { return first + x.offset(box.level[channel], channel, c); };
        for_each_row_block(channels, [&](Range block) {
            RowSums sums;
            for_each_region(g, k, block, [&](const Region& region) {
                const int64_t c = region.channels.begin, i = c - block.begin;
                for_each_span(box, region, access, memory.tiles(worker), [&](const Span& span) {
                    kernels.moments[Pattern::row]({span.data[role_x], span.stride[role_x], span.rows, span.n, pivot(c),
                                                   sums.sums[0][i], sums.sums[1][i]});
                });
            });
            for (int64_t c = block.begin; c < block.end; ++c) {
                means[c] = total(sums.sums[0][c - block.begin]);
                m2s[c] = total(sums.sums[1][c - block.begin]);
                finish_moments(element(pivot(c), box.dtype), n, means[c], m2s[c]);
            }
        });
        return;
    }

    const int64_t c = channels.begin, lanes = channels.size();
    LaneSums sums(box.fold(), lanes, means + c, m2s + c);
    const char* pivots = first + c * unit;
    if (!x.direct || sums.fold > 1) {
        for (int64_t i = 0; i < sums.fold; ++i) pack(box, x, first, c, lanes, memory.pivots(worker) + i * lanes * unit);
        pivots = memory.pivots(worker);
    }
    int64_t row = 0;
    for_each_region(g, k, channels, [&](const Region& region) {
        for_each_span(box, region, access, memory.tiles(worker), [&](const Span& span) {
            for_each_fold(span, access, unit, sums.fold, row, [&](const Span& part, int64_t lane) {
                kernels.moments[Pattern::lane]({part.data[role_x], part.stride[role_x], part.rows, part.n,
                                                pivots + lane * unit, sums.sums[0] + lane, sums.sums[1] + lane});
            });
        });
    });
    sums.finish();
    for (int64_t i = 0; i < lanes; ++i)
        finish_moments(element(pivots + i * unit, box.dtype), n, means[c + i], m2s[c + i]);
}

void Stages::reduce_gradients(int64_t g, int64_t k, Range channels, int worker) const noexcept {
    const Access access[roles] = {Access::read, Access::read, Access::none};
    double *const dys = slot(0, g, k), *const dy_xmus = slot(1, g, k);
    const double* mean = memory.mean + g * box.channels();

    const auto add = [&](const Span& span, const double* means, double* sum_dy, double* sum_dy_xmu) {
        kernels.grad_sums[box.pattern]({span.data[role_dy], span.stride[role_dy], span.data[role_x],
                                        span.stride[role_x], span.rows, span.n, means, sum_dy, sum_dy_xmu});
    };

    if (box.pattern == Pattern::row) {
        for_each_row_block(channels, [&](Range block) {
            RowSums sums;
            for_each_region(g, k, block, [&](const Region& region) {
                const int64_t c = region.channels.begin, i = c - block.begin;
                for_each_span(box, region, access, memory.tiles(worker),
                              [&](const Span& span) { add(span, mean + c, sums.sums[0][i], sums.sums[1][i]); });
            });
            for (int64_t c = block.begin; c < block.end; ++c) {
                dys[c] = total(sums.sums[0][c - block.begin]);
                dy_xmus[c] = total(sums.sums[1][c - block.begin]);
            }
        });
        return;
    }

    const int64_t c = channels.begin, lanes = channels.size();
    LaneSums sums(box.fold(), lanes, dys + c, dy_xmus + c);
    double folded_means[most_folded_lanes];
    mean += c;
    if (sums.fold > 1) {
        for (int64_t i = 0; i < sums.fold * lanes; ++i) folded_means[i] = mean[i % lanes];
        mean = folded_means;
    }
    int64_t row = 0;
    for_each_region(g, k, channels, [&](const Region& region) {
        for_each_span(box, region, access, memory.tiles(worker), [&](const Span& span) {
            for_each_fold(span, access, item_size(box.dtype), sums.fold, row, [&](const Span& part, int64_t lane) {
                add(part, mean + lane, sums.sums[0] + lane, sums.sums[1] + lane);
            });
        });
    });
    sums.finish();
}

// ----------------------------------------------------------------------------------------------------------- merge

// Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
void Stages::merge_moments(int64_t g, Range channels) const noexcept {
    double *const means = memory.mean + g * box.channels(), *const m2s = memory.spread + g * box.channels();
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        means[c] = slot(0, g, 0)[c];
        m2s[c] = slot(1, g, 0)[c];
    }
    double n = static_cast<double>(chunks.values(0));
    for (int64_t k = 1; k < chunks.count(); ++k) {
        const double *const mean_k = slot(0, g, k), *const m2_k = slot(1, g, k);
        const double n_k = static_cast<double>(chunks.values(k));
        const double share = n_k / (n + n_k), weight = n * share;
        for (int64_t c = channels.begin; c < channels.end; ++c) {
            const double delta = mean_k[c] - means[c];
            means[c] += delta * share;
            m2s[c] += m2_k[c] + delta * delta * weight;
        }
        n += n_k;
    }
}

void Stages::merge_gradients(int64_t g, Range channels) const noexcept {
    double *const dys = memory.sum_dy + g * box.channels(), *const dy_xmus = memory.sum_dy_xmu + g * box.channels();
    for (int64_t c = channels.begin; c < channels.end; ++c) dys[c] = dy_xmus[c] = 0;
    for (int64_t k = 0; k < chunks.count(); ++k) {
        const double *const dy_k = slot(0, g, k), *const dy_xmu_k = slot(1, g, k);
        for (int64_t c = channels.begin; c < channels.end; ++c) {
            dys[c] += dy_k[c];
            dy_xmus[c] += dy_xmu_k[c];
        }
    }
}

// ---------------------------------------------------------------------------------------------------- coefficients

void Stages::variance_from_m2(int64_t g, Range channels, const Column& count) const noexcept {
    const int64_t first = g * box.channels();
    for (int64_t s = first + channels.begin; s < first + channels.end; ++s) memory.spread[s] /= count[s];
}

void Stages::inv_std_from_variance(int64_t g, Range channels, double eps) const noexcept {
    const int64_t first = g * box.channels();
    for (int64_t s = first + channels.begin; s < first + channels.end; ++s)
        memory.inv_std[s] = 1 / std::sqrt(memory.spread[s] + eps);
}

namespace {

// The coefficients of a group, as the kernels look them up.
template <class T>
struct Coefficients {
    T* values[6];
    int64_t channels, end;

    Coefficients(const Stages& stages, int64_t g) noexcept
        : channels(stages.box.channels()), end(coefficient_pitch(stages.box)) {
        for (int i = 0; i < 6; ++i) values[i] = static_cast<T*>(stages.memory.coefficients[i]) + g * end;
    }

    void set(int i, int64_t c, T value) const noexcept {
        for (; c < end; c += channels) values[i][c] = value;  // and where the lanes go on, repeating
    }
};

template <class T>
void normalize_coefficients_of(const Stages& stages, int64_t g, Range channels, const Column& gamma,
                               const Column& beta) noexcept {
    const Memory& m = stages.memory;
    const Coefficients<T> coefficients(stages, g);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = g * stages.box.channels() + c;
        const double scale = gamma[s] * m.inv_std[s];
        const T hi = static_cast<T>(m.mean[s]);
        const double lo = m.mean[s] - static_cast<double>(hi);
        coefficients.set(0, c, hi);
        coefficients.set(1, c, static_cast<T>(scale));
        coefficients.set(2, c, static_cast<T>(beta[s] - lo * scale));
    }
}

template <class T>
void input_grad_coefficients_of(const Stages& stages, int64_t g, Range channels, const Column& gamma,
                                const Column& count) noexcept {
    const Memory& m = stages.memory;
    const Coefficients<T> coefficients(stages, g);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = g * stages.box.channels() + c;
        const double r = m.inv_std[s], scale = gamma[s] * r;
        const double dy_mean = m.sum_dy[s] / count[s];
        const double slope = -scale * (m.sum_dy_xmu[s] * r / count[s]);
        const T hi = static_cast<T>(m.mean[s]), dy_hi = static_cast<T>(dy_mean);
        const double lo = m.mean[s] - static_cast<double>(hi), dy_lo = dy_mean - static_cast<double>(dy_hi);
        coefficients.set(0, c, hi);
        coefficients.set(1, c, static_cast<T>(r));
        coefficients.set(2, c, dy_hi);
        coefficients.set(3, c, static_cast<T>(scale));
        coefficients.set(4, c, static_cast<T>(slope));
        coefficients.set(5, c, static_cast<T>(-scale * dy_lo - slope * (lo * r)));
    }
}

template <class T>
void scale_coefficients_of(const Stages& stages, int64_t g, Range channels, const Column& gamma) noexcept {
    const Coefficients<T> coefficients(stages, g);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = g * stages.box.channels() + c;
        coefficients.set(0, c, 0);
        coefficients.set(1, c, static_cast<T>(gamma[s] * stages.memory.inv_std[s]));
        coefficients.set(2, c, 0);
    }
}

}  // namespace

void Stages::normalize_coefficients(int64_t g, Range channels, const Column& gamma, const Column& beta) const noexcept {
    const auto fill = box.dtype == DType::f32 ? normalize_coefficients_of<float> : normalize_coefficients_of<double>;
    fill(*this, g, channels, gamma, beta);
}

void Stages::input_grad_coefficients(int64_t g, Range channels, const Column& gamma,
                                     const Column& count) const noexcept {
    const auto fill = box.dtype == DType::f32 ? input_grad_coefficients_of<float> : input_grad_coefficients_of<double>;
    fill(*this, g, channels, gamma, count);
}

void Stages::scale_coefficients(int64_t g, Range channels, const Column& gamma) const noexcept {
    const auto fill = box.dtype == DType::f32 ? scale_coefficients_of<float> : scale_coefficients_of<double>;
    fill(*this, g, channels, gamma);
}

// ----------------------------------------------------------------------------------------------------------- apply

// Calls body(span, coefficients) with the i-th coefficients of the span's first element as coefficients(i). Rows of all
// channels that follow each other without a gap become one row.
template <class Body>
void Stages::apply(const Access (&access)[roles], int64_t g, int64_t k, Range channels, int worker,
                   const Body& body) const noexcept {
    const int64_t unit = item_size(box.dtype), by_lane = box.pattern == Pattern::lane;
    for_each_region(g, k, channels, [&](const Region& region) {
        const int64_t first = g * coefficient_pitch(box) + region.channels.begin;
        for_each_span(box, region, access, memory.tiles(worker), [&](Span span) {
            if (by_lane && span.n == box.channels() && gapless(span, access, unit)) {
                span.n *= span.rows;
                span.rows = 1;
            }
            body(span, [&](int i) {
                return static_cast<const char*>(memory.coefficients[i]) + (first + span.first * by_lane) * unit;
            });
        });
    });
    if (streams()) kernels.finish_streams();
}

void Stages::apply_normalize(Role from, int64_t g, int64_t k, Range channels, int worker) const noexcept {
    Access access[roles] = {Access::none, Access::none, Access::write};
    access[from] = Access::read;
    apply(access, g, k, channels, worker, [&](const Span& span, const auto& at) {
        kernels.normalize[box.pattern]({span.data[from], span.stride[from], span.data[role_out], span.stride[role_out],
                                        span.rows, span.n, at(0), at(1), at(2), box.channels(), streams()});
    });
}

void Stages::normalize(int64_t g, int64_t k, Range channels, int worker) const noexcept {
    apply_normalize(role_x, g, k, channels, worker);
}

void Stages::scale(int64_t g, int64_t k, Range channels, int worker) const noexcept {
    apply_normalize(role_dy, g, k, channels, worker);
}

void Stages::input_grad(int64_t g, int64_t k, Range channels, int worker) const noexcept {
    const Access access[roles] = {Access::read, Access::read, Access::write};
    apply(access, g, k, channels, worker, [&](const Span& span, const auto& at) {
        kernels.input_grad[box.pattern]({span.data[role_dy], span.stride[role_dy], span.data[role_x],
                                         span.stride[role_x], span.data[role_out], span.stride[role_out], span.rows,
                                         span.n, at(0), at(1), at(2), at(3), at(4), at(5), box.channels(), streams()});
    });
}

}  // namespace batchnorm
