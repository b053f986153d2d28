#include "validate.hpp"

#include <cmath>

#include "overlap.hpp"
#include "params.hpp"
#include "status.hpp"

namespace batchnorm {
namespace {

// More than any memory holds, and so few that no size in bytes overflows. An x with 0 strides can claim to have more.
constexpr std::int64_t most_elements = std::int64_t{1} << 48;

bool same_shape(const std::int64_t* a, int a_rank, const std::int64_t* b, int b_rank) noexcept {
    if (a_rank != b_rank) return false;
    for (int d = 0; d < a_rank; ++d)
        if (a[d] != b[d]) return false;
    return true;
}

}  // namespace

bool Validator::can_check(const char* name, const View& view, bool has_data, bool is_empty) noexcept {
    if (!ok()) return false;
    if (view.rank < 0 || view.rank > max_rank)
        status_ = failure(Code::invalid_value, "%s: %s has %d axes, expected at most %d", function_, name, view.rank,
                          max_rank);
    else if (!batchnorm::name(view.dtype))
        status_ = failure(Code::invalid_type, "%s: %s has the unknown type %d, expected f32, f64, f16 or bf16",
                          function_, name, static_cast<int>(view.dtype));
    else if (!has_data && !is_empty)
        status_ = failure(Code::invalid_value, "%s: %s has no data", function_, name);
    return ok();
}

void Validator::x(const View& x, const Axes& axes) noexcept {
    x_ = &x;
    if (!can_check("x", x, true, false)) return;

    for (int i = 0; i < axes.count; ++i) {
        // A list longer than Axes holds repeats an axis or has one out of range in what it does hold.
        const int axis = i < max_rank ? axes.axis[i] : axes.axis[0];
        const int at = axis < 0 ? axis + x.rank : axis;
        if (at < 0 || at >= x.rank) {
            status_ = failure(Code::invalid_value, "%s: axis %d is out of range for x of shape %s", function_, axis,
                              ShapeText(x.shape, x.rank).text);
            return;
        }
        if (kept_[at]) {
            status_ = failure(Code::invalid_value, "%s: axis %d is repeated", function_, axis);
            return;
        }
        kept_[at] = true;
    }

    bool zero = false;
    std::int64_t elements = 1, statistics = 1, values = 1;
    for (int d = 0; d < x.rank; ++d) {
        if (kept_[d]) kept_shape_[kept_rank_++] = x.shape[d];
        zero |= x.shape[d] == 0;
        const bool too_large =
            x.shape[d] > 0 && (__builtin_mul_overflow(elements, x.shape[d], &elements) || elements > most_elements);
        if (x.shape[d] < 0 || too_large) {
            status_ = failure(Code::invalid_value, "%s: x has the impossible shape %s", function_,
                              ShapeText(x.shape, x.rank).text);
            return;
        }
        (kept_[d] ? statistics : values) *= x.shape[d];
    }
    statistics_ = statistics;
    values_ = values;
    can_check("x", x, x.data != nullptr, zero);
}

void Validator::training() noexcept {
    if (!ok() || empty() || values_ > 1) return;
    status_ =
        failure(Code::invalid_value,
                "%s: x of shape %s has one value for each statistic, expected at least 2: a variance does not exist",
                function_, ShapeText(x_->shape, x_->rank).text);
}

void Validator::eps(double eps) noexcept {
    if (ok() && !(eps > 0 && std::isfinite(eps)))
        status_ = failure(Code::invalid_value, "%s: eps must be positive and finite, got %g", function_, eps);
}

void Validator::options(const Options& options) noexcept {
    if (!ok()) return;
    if (options.threads < 0)
        status_ = failure(Code::invalid_value, "%s: threads must be at least 1 (or 0 for the default), got %d",
                          function_, options.threads);
    else if (options.executor.run && options.executor.threads < 1)
        status_ = failure(Code::invalid_value, "%s: executor.threads must be at least 1, got %d", function_,
                          options.executor.threads);
}

void Validator::tensor(const char* name, const View& view) noexcept {
    if (!can_check(name, view, true, false)) return;
    if (view.dtype != x_->dtype)
        status_ = failure(Code::invalid_type, "%s: %s is %s, expected x's type %s", function_, name,
                          batchnorm::name(view.dtype), batchnorm::name(x_->dtype));
    else if (!same_shape(view.shape, view.rank, x_->shape, x_->rank))
        status_ = failure(Code::invalid_value, "%s: %s has shape %s, expected x's shape %s", function_, name,
                          ShapeText(view.shape, view.rank).text, ShapeText(x_->shape, x_->rank).text);
    else
        can_check(name, view, view.data != nullptr, empty());
}

void Validator::param(const char* name, const Param& param, bool required) noexcept {
    if (!can_check(name, param, true, false)) return;
    if (absent(param)) {
        if (required) status_ = failure(Code::invalid_value, "%s: %s is required", function_, name);
        return;
    }
    bool no_values = false;
    for (int d = 0; d < param.rank; ++d) no_values |= param.shape[d] == 0;
    if (param.rank > 0 && !same_shape(param.shape, param.rank, kept_shape_, kept_rank_))
        status_ = failure(Code::invalid_value, "%s: %s has shape %s, expected %s, the kept axes of x's shape %s",
                          function_, name, ShapeText(param.shape, param.rank).text,
                          ShapeText(kept_shape_, kept_rank_).text, ShapeText(x_->shape, x_->rank).text);
    else
        can_check(name, param, param.data != nullptr, no_values);
}

void Validator::param_sign(const char* name, const Param& param, bool positive) noexcept {
    if (!ok() || absent(param)) return;
    const double least = least_value(param, 1);
    if (positive ? least <= 0 : least < 0)
        status_ = failure(Code::invalid_value, "%s: %s must %s, got %g", function_, name,
                          positive ? "be positive" : "not be negative", least);
}

void Validator::stat_output(const char* name, const MutParam& param, bool may_be_scalar) noexcept {
    if (absent(param)) return;
    const View view = param;
    this->param(name, view, false);
    if (!ok()) return;
    if (param.rank == 0 && kept_rank_ > 0 && !may_be_scalar)
        status_ = failure(Code::invalid_value, "%s: %s is a scalar, expected shape %s", function_, name,
                          ShapeText(kept_shape_, kept_rank_).text);
    else if (!elements_distinct(view))
        status_ = failure(Code::invalid_value, "%s: %s has elements that share memory", function_, name);
    else
        apart(name, view, {"x", *x_});
}

void Validator::output(const char* name, const MutView& out, std::initializer_list<Named> inputs) noexcept {
    const View view = out;
    tensor(name, view);
    if (ok() && !elements_distinct(view))
        status_ = failure(Code::invalid_value,
                          "%s: %s has elements that share memory (a 0 stride?), expected one place for each", function_,
                          name);
    for (const Named& input : inputs) apart(name, view, input);
}

void Validator::apart(const char* name, const View& written, const Named& input) noexcept {
    if (!ok() || absent(input.view) || identical(written, input.view) || !overlap(written, input.view)) return;
    status_ = failure(Code::invalid_value, "%s: %s overlaps %s, expected separate memory or exactly %s", function_,
                      name, input.name, input.name);
}

void Validator::separate(std::initializer_list<Named> outputs) noexcept {
    for (const Named* a = outputs.begin(); a != outputs.end(); ++a)
        for (const Named* b = a + 1; b != outputs.end() && ok(); ++b)
            if (!absent(a->view) && !absent(b->view) && overlap(a->view, b->view))
                status_ = failure(Code::invalid_value, "%s: the outputs %s and %s overlap, expected separate memory",
                                  function_, a->name, b->name);
}

}  // namespace batchnorm
