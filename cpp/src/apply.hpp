// The writers: what they read, and which kernel writes it.
#pragma once

#include "plan.hpp"
#include "stages.hpp"

namespace batchnorm {

// What the kernels look up for a row.
using Looked = const void* [coefficient_count];

// y = (x - hi) * scale + shift, and dx = scale * dy, which has hi and shift 0.
template <Role from>
struct NormalizeFrom {
    static constexpr Access access[roles] = {from == role_x ? Access::read : Access::none,
                                             from == role_dy ? Access::read : Access::none, Access::write,
                                             from == role_x ? Access::read : Access::none};
    static int coefficients(const Box&) noexcept { return 3; }

    static kernels::NormalizeArgs args(const Stages& stages, const Span& span, const Looked& at, bool stream,
                                       kernels::RowOrder order) noexcept {
        return {span.data[from],
                span.stride[from],
                span.data[role_out],
                span.stride[role_out],
                span.rows,
                span.n,
                at[0],
                at[1],
                at[2],
                span.next_channel,
                stages.box.lanes(),
                stream,
                order,
                stages.epilogue.activates,
                stages.epilogue.slope,
                span.data[role_residual],
                span.stride[role_residual],
                span.mask,
                span.mask_stride,
                stages.ahead.output,
                stages.ahead.rows};
    }
    static void read_then(kernels::NormalizeArgs& args, const Span& rows) noexcept {
        args.residual_then = rows.data[role_residual];
    }
    static void move(kernels::NormalizeArgs& args, const RowSteps& steps) noexcept {
        RowSteps::move(args.x, steps.of[from]);
        RowSteps::move(args.y, steps.of[role_out]);
        RowSteps::move(args.residual, steps.of[role_residual]);
        RowSteps::move(args.mask, steps.mask);
    }
    // To the coefficients so many bytes further on.
    static void skip(kernels::NormalizeArgs& args, int64_t bytes) noexcept {
        for (const void** at : {&args.hi, &args.scale, &args.shift}) RowSteps::move(*at, bytes);
    }
    static void write(const Stages& stages, const kernels::NormalizeArgs& args) noexcept {
        stages.flavour.normalize[stages.box.pattern](args);
    }
};

// dx = a * (dy - w * dy_hi) + w * (b * xhat + c) + d * (v - v_hi), or, where the statistics are constant, only a * dy,
// for dy as an activation let it through: that is written as the residual's gradient.
template <bool reads_x>
struct InputGradOf {
    static constexpr Access access[roles] = {reads_x ? Access::read : Access::none,
                                             Access::read,
                                             Access::write,
                                             Access::write,
                                             Access::read,
                                             Access::read,
                                             Access::read};
    static int coefficients(const Box& box) noexcept { return box.operand[role_v].data ? 8 : 6; }

    static kernels::InputGradArgs args(const Stages& stages, const Span& span, const Looked& at, bool stream,
                                       kernels::RowOrder order) noexcept {
        constexpr Role x = reads_x ? role_x : role_dy;
        return {span.data[role_dy],
                span.stride[role_dy],
                span.data[x],
                span.stride[x],
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
                span.next_channel,
                stages.box.lanes(),
                stream,
                order,
                !reads_x,
                stages.activated(),
                span.data[role_y],
                span.stride[role_y],
                span.mask,
                span.mask_stride,
                span.data[role_weights],
                span.stride[role_weights],
                stages.box.operand[role_weights].uniform,
                span.data[role_v],
                span.stride[role_v],
                at[6],
                at[7],
                span.data[role_residual],
                span.stride[role_residual],
                stages.ahead.rows};
    }
    static void move(kernels::InputGradArgs& args, const RowSteps& steps) noexcept {
        RowSteps::move(args.dy, steps.of[role_dy]);
        RowSteps::move(args.x, steps.of[reads_x ? role_x : role_dy]);
        RowSteps::move(args.dx, steps.of[role_out]);
        RowSteps::move(args.y, steps.of[role_y]);
        RowSteps::move(args.mask, steps.mask);
        RowSteps::move(args.weights, steps.of[role_weights]);
        RowSteps::move(args.v, steps.of[role_v]);
        RowSteps::move(args.dresidual, steps.of[role_residual]);
    }
    // Without v, whose coefficients stay.
    static void skip(kernels::InputGradArgs& args, int64_t bytes) noexcept {
        for (const void** at : {&args.hi, &args.inv_std, &args.dy_hi, &args.a, &args.b, &args.c})
            RowSteps::move(*at, bytes);
    }
    static void write(const Stages& stages, const kernels::InputGradArgs& args) noexcept {
        stages.flavour.input_grad[stages.box.pattern](args);
    }
};

using Normalize = NormalizeFrom<role_x>;
using InputGrad = InputGradOf<true>;
// dx of constant statistics: plain, and full.
using Scale = NormalizeFrom<role_dy>;
using ScaleActivated = InputGradOf<false>;

template <class Terms>
void apply(const Stages& stages, const Region& region, int worker) noexcept;

// Whether rows of the output can be streamed with profit. The lines at their ends are not, unless they are whole ones:
// that costs more than streaming saves where there is little between them. A tile is read again at once, to unpack it.
inline bool streams(const Stages& stages, const Span& span) noexcept {
    if (!stages.stream || !stages.box.operand[role_out].direct) return false;
    const int64_t unit = item_size(stages.box.dtype), row_bytes = span.n * unit;
    const auto ends =
        reinterpret_cast<std::uintptr_t>(span.data[role_out]) | static_cast<std::uintptr_t>(span.stride[role_out]);
    const bool joined = span.rows > 1 && span.stride[role_out] == row_bytes;
    if (row_bytes >= (joined ? least_joined_row_bytes : least_streamed_row_bytes))
        return ends % static_cast<std::uintptr_t>(unit) == 0;
    return ends % 64 == 0 && row_bytes % 64 == 0;
}

// To write a row of each of some channels of a group, from the c-th on.
template <class Terms>
[[gnu::always_inline]] inline auto row_args(const Stages& stages, const Span& span, int64_t g, int64_t c) noexcept {
    Looked at = {};
    for (int i = 0; i < Terms::coefficients(stages.box); ++i)
        at[i] = stages.memory.coefficients_from(i, stages.box, g, c);
    return Terms::args(stages, span, at, streams(stages, span), kernels::RowOrder::each);
}

// Whether rows of lanes are written across: where they stay in the caches, and a part of a vector at their ends is
// small beside the rest.
inline bool goes_across(const Stages& stages, const Span& span) noexcept {
    constexpr int64_t line = 64, long_row = 4 * line;
    const int64_t row_bytes = span.n * item_size(stages.box.dtype);
    return stages.reading == kernels::Reading::cached && span.rows > 1 &&
           (row_bytes % line == 0 || row_bytes >= long_row);
}

}  // namespace batchnorm
