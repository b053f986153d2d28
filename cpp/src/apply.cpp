#include "apply.hpp"

#include <cstring>

namespace batchnorm {
namespace {

// Rows of less are taken channel by channel: a kernel call for each would cost more than their order brings.
constexpr int64_t long_row_bytes = 2048;

// What the kernels look up for channels of a group, from the first one on.
template <class Terms>
struct Coefficients {
    const char* at[coefficient_count] = {};

    Coefficients(const Stages& stages, int64_t g, Range channels, int worker) noexcept {
        const Box& box = stages.box;
        const int64_t unit = item_size(box.dtype);
        const int64_t first = g * Memory::coefficient_pitch(box) + channels.begin;
        for (int i = 0; i < Terms::coefficients; ++i)
            at[i] = static_cast<const char*>(stages.memory.coefficients[i]) + first * unit;
        if (box.plane > 1) expand(stages, channels.size(), stages.memory.worker(box, worker));
    }

  private:
    // Where lanes share a statistic: one for each of them.
    void expand(const Stages& stages, int64_t channels, const WorkerMemory& worker) noexcept {
        const int64_t plane = stages.box.plane;
        for (int i = 0; i < Terms::coefficients; ++i) {
            if (stages.box.dtype == DType::f32)
                repeat(reinterpret_cast<const float*>(at[i]), channels, plane, worker.coefficients[i]);
            else
                repeat(reinterpret_cast<const double*>(at[i]), channels, plane, worker.coefficients[i]);
            at[i] = static_cast<const char*>(worker.coefficients[i]);
        }
    }

    template <class T>
    static void repeat(const T* values, int64_t channels, int64_t plane, void* lanes) noexcept {
        T* to = static_cast<T*>(lanes);
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t i = 0; i < plane; ++i) *to++ = values[c];
        const T* first = static_cast<const T*>(lanes);
        for (int i = 0; i < kernels::lane_padding; ++i) *to++ = *first++;
    }
};

// Rows of all channels that follow each other without a gap become one row.
template <class Terms>
void apply(const Stages& stages, int64_t g, int64_t k, Range channels, int worker) noexcept {
    const Box& box = stages.box;
    const Range outers = stages.chunks.outer_range(k), inners = stages.chunks.inner_range(k);
    const int64_t unit = item_size(box.dtype);
    const Coefficients<Terms> coefficients(stages, g, channels, worker);
    char* const tiles = stages.memory.worker(box, worker).tiles;

    const auto write = [&](Span span, int64_t first) {
        const void* at[coefficient_count] = {};
        for (int i = 0; i < Terms::coefficients; ++i) at[i] = coefficients.at[i] + first * unit;
        Terms::write(stages, span, at);
    };
    if (box.pattern == Pattern::lane) {
        const Region region{g, {channels.begin * box.plane, channels.end * box.plane}, outers, inners};
        for_each_span(box, region, Terms::access, tiles, [&](Span span) {
            if (span.n == box.lanes() && gapless(span, Terms::access, unit)) {
                span.n *= span.rows;
                span.rows = 1;
            }
            write(span, span.first);
        });
    } else {
        // Long rows in memory order, the channels of an outer index after each other.
        const int64_t step = inners.size() * unit >= long_row_bytes ? 1 : outers.size();
        for (int64_t o = outers.begin; o < outers.end; o += step)
            for (int64_t c = channels.begin; c < channels.end; ++c)
                for_each_span(box, {g, {c, c + 1}, {o, o + step}, inners}, Terms::access, tiles,
                              [&](const Span& span) { write(span, c - channels.begin); });
    }
    if (stages.streams()) stages.kernels.finish_streams();
}

}  // namespace

void Stages::normalize(int64_t g, int64_t k, Range channels, int worker) const noexcept {
    apply<NormalizeTerms<role_x>>(*this, g, k, channels, worker);
}

void Stages::scale(int64_t g, int64_t k, Range channels, int worker) const noexcept {
    apply<NormalizeTerms<role_dy>>(*this, g, k, channels, worker);
}

void Stages::input_grad(int64_t g, int64_t k, Range channels, int worker) const noexcept {
    apply<InputGradTerms>(*this, g, k, channels, worker);
}

}  // namespace batchnorm
