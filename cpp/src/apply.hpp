// The writers: what they read, and which kernel writes it.
#pragma once

#include "stages.hpp"

namespace batchnorm {

// y = (x - hi) * scale + shift, and dx = scale * dy, which has hi and shift 0.
template <Role from>
struct NormalizeTerms {
    static constexpr Access access[roles] = {from == role_x ? Access::read : Access::none,
                                             from == role_dy ? Access::read : Access::none, Access::write};
    static constexpr int coefficients = 3;

    static void write(const Stages& stages, const Span& span, const void* const (&at)[coefficient_count]) noexcept {
        stages.kernels.normalize[stages.box.pattern]({span.data[from], span.stride[from], span.data[role_out],
                                                      span.stride[role_out], span.rows, span.n, at[0], at[1], at[2],
                                                      stages.box.lanes(), stages.streams()});
    }
};

struct InputGradTerms {
    static constexpr Access access[roles] = {Access::read, Access::read, Access::write};
    static constexpr int coefficients = 6;

    static void write(const Stages& stages, const Span& span, const void* const (&at)[coefficient_count]) noexcept {
        stages.kernels.input_grad[stages.box.pattern]({span.data[role_dy], span.stride[role_dy], span.data[role_x],
                                                       span.stride[role_x], span.data[role_out], span.stride[role_out],
                                                       span.rows, span.n, at[0], at[1], at[2], at[3], at[4], at[5],
                                                       stages.box.lanes(), stages.streams()});
    }
};

}  // namespace batchnorm
