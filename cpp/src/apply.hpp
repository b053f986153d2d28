// The writers: what they read, and which kernel writes it.
#pragma once

#include "stages.hpp"

namespace batchnorm {

// y = (x - hi) * scale + shift, and dx = scale * dy, which has hi and shift 0.
template <Role from>
struct NormalizeFrom {
    static constexpr Access access[roles] = {from == role_x ? Access::read : Access::none,
                                             from == role_dy ? Access::read : Access::none, Access::write};
    static constexpr int coefficients = 3;

    static kernels::NormalizeArgs args(const Box& box, const Span& span, const void* const (&at)[coefficient_count],
                                       bool stream) noexcept {
        return {span.data[from],
                span.stride[from],
                span.data[role_out],
                span.stride[role_out],
                span.rows,
                span.n,
                at[0],
                at[1],
                at[2],
                box.lanes(),
                stream};
    }
    static void write(const Stages& stages, const kernels::NormalizeArgs& args) noexcept {
        stages.kernels.normalize[stages.box.pattern](args);
    }
};

struct InputGrad {
    static constexpr Access access[roles] = {Access::read, Access::read, Access::write};
    static constexpr int coefficients = 6;

    static kernels::InputGradArgs args(const Box& box, const Span& span, const void* const (&at)[coefficient_count],
                                       bool stream) noexcept {
        return {span.data[role_dy],
                span.stride[role_dy],
                span.data[role_x],
                span.stride[role_x],
                span.data[role_out],
                span.stride[role_out],
                span.rows,
                span.n,
                at[0],
                at[1],
                at[2],
                at[3],
                at[4],
                at[5],
                box.lanes(),
                stream};
    }
    static void write(const Stages& stages, const kernels::InputGradArgs& args) noexcept {
        stages.kernels.input_grad[stages.box.pattern](args);
    }
};

using Normalize = NormalizeFrom<role_x>;
using Scale = NormalizeFrom<role_dy>;

// A chunk of some channels.
template <class Terms>
void apply(const Stages& stages, int64_t g, int64_t k, Range channels, int worker) noexcept;

// Whether rows of the output can be streamed with profit. A line that is written partly by streams and partly through
// the caches costs more than streaming saves: rows must start and end on lines, or be so long that their ends do not
// count. A tile is read again at once, to unpack it.
inline bool streams(const Stages& stages, const char* out, int64_t stride, int64_t row_bytes) noexcept {
    if (!stages.stream || !stages.box.operand[role_out].direct) return false;
    const auto ends = reinterpret_cast<std::uintptr_t>(out) | static_cast<std::uintptr_t>(stride);
    if (row_bytes >= 4096) return ends % static_cast<std::uintptr_t>(item_size(stages.box.dtype)) == 0;
    return ends % 64 == 0 && row_bytes % 64 == 0;
}

}  // namespace batchnorm
