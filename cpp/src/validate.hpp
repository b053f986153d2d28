// Every check of every argument, before anything is written.
#pragma once

#include <batchnorm/core.hpp>

#include "overlap.hpp"

namespace batchnorm {

// Checks the arguments of one call one after the other; after the first failure the rest are passed over.
class Validator {
  public:
    // sees_values: whether values may be looked at; on a device that would mean to wait for it.
    explicit Validator(const char* function, bool sees_values = true) noexcept
        : function_(function), sees_values_(sees_values) {}

    const char* function() const noexcept { return function_; }
    bool ok() const noexcept { return status_.ok(); }
    const Status& status() const noexcept { return status_; }

    // Nothing is looked at but shapes, strides and types: memory need not exist yet.
    void shapes_alone() noexcept { has_memory_ = false; }

    // x first: the others are held against it. Messages have it by the argument's name.
    void x(const View& x, const Axes& axes, const char* name = "x") noexcept;
    // A variance needs two values.
    void training() noexcept;
    void eps(double eps) noexcept;
    void known(Op op) noexcept;
    // Those that every function takes.
    void options(const Options& options) noexcept;
    // Those that the function takes; the others must be as they are by default.
    enum Takes : unsigned {
        activation = 1,
        residual = 2,
        dresidual = 4,
        weights = 8,
        groups = 16,
        activation_output = 32,
    };
    void more_options(const Options& options, unsigned takes) noexcept;
    // An activation that can be gone back through from its output, and what it needs.
    void invertible(const Options& options, const Param& gamma) noexcept;
    // An activation that the sign of its output tells, which is there.
    void told_by_sign(const Options& options) noexcept;
    void mask(const char* name, const std::uint8_t* mask, const Options& options) noexcept;
    void tensor(const char* name, const View& view) noexcept;
    // Of the kept axes' shape, or one value for all.
    void param(const char* name, const Param& param, bool required) noexcept;
    // Not negative, or (positive) above 0; NaN passes as what it is in the data.
    void param_sign(const char* name, const Param& param, bool positive) noexcept;
    // From 0 to 1.
    void share(const char* name, double share) noexcept;
    // A number of values, if it is given: that of x.
    void values_behind(const char* name, const Param& count) noexcept;
    void stat_output(const char* name, const MutParam& param, bool may_be_scalar = false) noexcept;
    // The same for statistics, which have groups as a leading axis.
    void stat(const char* name, const Param& param, bool required) noexcept;
    void own_stat_output(const char* name, const MutParam& param, bool may_be_scalar = false) noexcept;
    // Of x's shape and type, sharing no memory with an input, unless it is exactly that.
    struct Named {
        const char* name;
        const View& view;
        const Extent extent{view};
    };
    void output(const char* name, const MutView& out, std::initializer_list<Named> inputs = {}) noexcept;

    // What x and the axes say.
    bool empty() const noexcept { return statistics_ == 0 || values_ == 0; }
    bool has_groups() const noexcept { return group_size_ > 0; }
    bool no_groups() const noexcept { return has_groups() && x_->shape[0] == 0; }  // of no samples
    std::int64_t statistics() const noexcept { return statistics_; }
    std::int64_t values() const noexcept { return values_; }  // M, behind each, where there are no groups
    const bool (&kept() const noexcept)[max_rank] { return kept_; }
    // As a view of x's shape, which repeats what is one for several; null where there are none.
    const View* weights_like_x() const noexcept { return weights_.data ? &weights_ : nullptr; }

    // Outputs of one call, each in memory of its own, sharing none with an input, unless it is exactly that.
    void separate(std::initializer_list<Named> outputs, std::initializer_list<Named> inputs = {}) noexcept;
    // An output that is written while the inputs are still needed, for another one.
    void kept(const char* name, const View& written, std::initializer_list<Named> inputs, const char* other) noexcept;

  private:
    void apart(const char* name, const View& written, const Named& input) noexcept;
    void cut(std::int64_t group_size) noexcept;
    void weigh(const View& weights) noexcept;
    void of_shape(const char* name, const Param& param, bool required, const std::int64_t* shape, int rank,
                  const char* what, const char* of) noexcept;
    void written(const char* name, const MutParam& param, bool may_be_scalar, const std::int64_t* shape,
                 int rank) noexcept;
    // Whether a check of this view can go on: earlier ones passed, and it has a rank and a type that exist.
    bool can_check(const char* name, const View& view, bool has_data, bool is_empty) noexcept;

    const char* function_;
    bool sees_values_, has_memory_ = true;
    Status status_;
    const View* x_ = nullptr;
    const char* x_name_ = "x";
    bool kept_[max_rank] = {};
    int kept_rank_ = 0;
    std::int64_t kept_shape_[max_rank] = {};
    // The shape of statistics: that, after the groups.
    int stat_rank_ = 0;
    std::int64_t stat_shape_[max_rank + 1] = {};
    std::int64_t statistics_ = 0, values_ = 0;
    std::int64_t group_size_ = 0;
    View weights_;
};

}  // namespace batchnorm
