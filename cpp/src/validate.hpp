// Every check of every argument, before anything is written.
#pragma once

#include <batchnorm/core.hpp>

namespace batchnorm {

// Checks the arguments of one call one after the other; after the first failure the rest are passed over.
class Validator {
  public:
    explicit Validator(const char* function) noexcept : function_(function) {}

    const char* function() const noexcept { return function_; }
    bool ok() const noexcept { return status_.ok(); }
    const Status& status() const noexcept { return status_; }

    // x first: the others are held against it.
    void x(const View& x, const Axes& axes) noexcept;
    // A variance needs two values.
    void training() noexcept;
    void eps(double eps) noexcept;
    void options(const Options& options) noexcept;
    void tensor(const char* name, const View& view) noexcept;
    // Of the kept axes' shape, or one value for all.
    void param(const char* name, const Param& param, bool required) noexcept;
    // Not negative, or (positive) above 0; NaN passes as what it is in the data.
    void param_sign(const char* name, const Param& param, bool positive) noexcept;
    void stat_output(const char* name, const MutParam& param, bool may_be_scalar = false) noexcept;
    // Of x's shape and type, sharing no memory with an input, unless it is exactly that.
    struct Named {
        const char* name;
        View view;
    };
    void output(const char* name, const MutView& out, std::initializer_list<Named> inputs) noexcept;

    // What x and the axes say.
    bool empty() const noexcept { return statistics_ == 0 || values_ == 0; }
    std::int64_t statistics() const noexcept { return statistics_; }
    std::int64_t values() const noexcept { return values_; }  // M, behind each
    const bool (&kept() const noexcept)[max_rank] { return kept_; }

    // Outputs of one call, each in memory of its own.
    void separate(std::initializer_list<Named> outputs) noexcept;

  private:
    void apart(const char* name, const View& written, const Named& input) noexcept;
    // Whether a check of this view can go on: earlier ones passed, and it has a rank and a type that exist.
    bool can_check(const char* name, const View& view, bool has_data, bool is_empty) noexcept;

    const char* function_;
    Status status_;
    const View* x_ = nullptr;
    bool kept_[max_rank] = {};
    int kept_rank_ = 0;
    std::int64_t kept_shape_[max_rank] = {};
    std::int64_t statistics_ = 0, values_ = 0;
};

}  // namespace batchnorm
