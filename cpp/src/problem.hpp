// What a call asks for, its arguments checked: what a backend runs.
#pragma once

#include "box.hpp"
#include "epilogue.hpp"
#include "groups.hpp"
#include "validate.hpp"

namespace batchnorm {

inline constexpr Param no_param{};
inline constexpr MutParam not_wanted{};

// x is not empty, unless nothing is written of its shape.
struct Problem {
    Op op;
    const Validator& valid;
    const Options& options;
    const View* views[roles] = {};  // null, or of x's shape
    std::uint8_t* mask = nullptr;
    Epilogue epilogue{};
    bool writes = true;  // tensors; else statistics alone

    // One value for each statistic, or for each combination of the kept axes, or for all; absent where op has none.
    const Param *gamma = &no_param, *beta = &no_param, *mean = &no_param, *inv_std = &no_param, *var = &no_param,
                *m2 = &no_param, *count = &no_param, *sum_dy = &no_param, *sum_dy_xmu = &no_param;
    // The same of results.
    const MutParam *to_mean = &not_wanted, *to_inv_std = &not_wanted, *to_var = &not_wanted, *to_m2 = &not_wanted,
                   *to_count = &not_wanted, *to_sum_dy = &not_wanted, *to_sum_dy_xmu = &not_wanted,
                   *to_dgamma = &not_wanted, *to_dbeta = &not_wanted;

    bool has(Role role) const noexcept { return views[role] != nullptr; }
    // Whether a kernel that only normalizes is not enough.
    bool is_full() const noexcept {
        return epilogue.activates || epilogue.zeros_count_nothing || has(role_residual) || has(role_y) || has(role_v) ||
               has(role_weights);
    }
    // The groups of one size.
    Parts parts() const noexcept {
        const View& x = *views[role_x];
        return Parts(x.rank > 0 ? x.shape[0] : 1, options.group_size);
    }
    // The box of a part; as canonicalize().
    Box box_of(const Part& part, const PlaneLimits& limits = {}) const noexcept;
};

// Sums that op adds up for each statistic; 0: it does not reduce.
inline int sums(Op op, const Options& options) noexcept {
    switch (op) {
        case Op::batch_norm_inference:
        case Op::normalize:
        case Op::input_grad: return 0;
        case Op::batch_norm:
        case Op::moments: return options.weights ? 3 : 2;
        default: return 2;
    }
}

// Where arrays are, and what computes on them.
class Backend {
  public:
    virtual Status run(const Problem& problem) const noexcept = 0;
    // Writes one value everywhere, unless param is absent.
    virtual Status fill(const MutParam& param, double value) const noexcept = 0;
    // Whether values can be looked at, to check them.
    virtual bool sees_values() const noexcept = 0;

  protected:
    ~Backend() = default;
};

}  // namespace batchnorm
