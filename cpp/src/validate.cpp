#include "validate.hpp"

#include <cmath>

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
    else if (!has_data && !is_empty && has_memory_)
        status_ = failure(Code::invalid_value, "%s: %s has no data", function_, name);
    return ok();
}

void Validator::x(const View& x, const Axes& axes, const char* name) noexcept {
    x_ = &x;
    x_name_ = name;
    if (!can_check(name, x, true, false)) return;

    for (int i = 0; i < axes.count; ++i) {
        // A list longer than Axes holds repeats an axis or has one out of range in what it does hold.
        const int axis = i < max_rank ? axes.axis[i] : axes.axis[0];
        const int at = axis < 0 ? axis + x.rank : axis;
        if (at < 0 || at >= x.rank) {
            status_ = failure(Code::invalid_value, "%s: axis %d is out of range for %s of shape %s", function_, axis,
                              name, ShapeText(x.shape, x.rank).text);
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
            status_ = failure(Code::invalid_value, "%s: %s has the impossible shape %s", function_, name,
                              ShapeText(x.shape, x.rank).text);
            return;
        }
        (kept_[d] ? statistics : values) *= x.shape[d];
    }
    statistics_ = statistics;
    values_ = values;
    stat_rank_ = kept_rank_;
    for (int d = 0; d < kept_rank_; ++d) stat_shape_[d] = kept_shape_[d];
    can_check(name, x, x.data != nullptr, zero);
}

void Validator::training() noexcept {
    if (!ok() || empty()) return;
    if (group_size_ > 0) {
        const std::int64_t samples = x_->shape[0], rest = samples % group_size_;
        const std::int64_t least = rest > 0 ? rest : group_size_;
        if (values_ / samples * least == 1)
            status_ =
                failure(Code::invalid_value,
                        "%s: group_size %lld leaves a group of one value for each statistic of %s of shape %s, "
                        "expected at least 2: a variance does not exist",
                        function_, static_cast<long long>(group_size_), x_name_, ShapeText(x_->shape, x_->rank).text);
        return;
    }
    if (values_ > 1) return;
    status_ =
        failure(Code::invalid_value,
                "%s: %s of shape %s has one value for each statistic, expected at least 2: a variance does not exist",
                function_, x_name_, ShapeText(x_->shape, x_->rank).text);
}

void Validator::eps(double eps) noexcept {
    if (ok() && !(eps > 0 && std::isfinite(eps)))
        status_ = failure(Code::invalid_value, "%s: eps must be positive and finite, got %g", function_, eps);
    // The inv_std of next to no variance must be a float32.
    constexpr double least = 1e-76;
    if (ok() && x_->dtype != DType::f64 && eps < least)
        status_ = failure(Code::invalid_value,
                          "%s: eps %g is too small for arithmetic in float32, expected at least %g (or float64 data)",
                          function_, eps, least);
}

void Validator::known(Op op) noexcept {
    if (ok() && op > Op::batch_norm_double_backward)
        status_ = failure(Code::invalid_value, "%s: op %d is unknown", function_, static_cast<int>(op));
}

void Validator::options(const Options& options) noexcept {
    if (!ok()) return;
    if (!sees_values_ && (options.threads != 0 || options.executor.run))
        status_ = failure(Code::invalid_value, "%s: %s is not taken on a GPU", function_,
                          options.threads != 0 ? "threads" : "executor");
    else if (options.threads < 0 || options.threads > max_threads)
        status_ = failure(Code::invalid_value, "%s: threads must be from 1 to %d (or 0 for the default), got %d",
                          function_, max_threads, options.threads);
    else if (options.executor.run && (options.executor.threads < 1 || options.executor.threads > max_threads))
        status_ = failure(Code::invalid_value, "%s: executor.threads must be from 1 to %d, got %d", function_,
                          max_threads, options.executor.threads);
}

void Validator::more_options(const Options& options, unsigned takes) noexcept {
    const auto refuse = [&](Takes option, bool given, const char* name) {
        if (ok() && given && (takes & option) == 0)
            status_ = failure(Code::invalid_value, "%s: %s is not taken by this function", function_, name);
    };
    refuse(activation, options.activation != Activation::none, "activation");
    refuse(residual, options.residual, "residual");
    refuse(dresidual, options.dresidual, "dresidual");
    refuse(weights, options.weights, "weights");
    refuse(groups, options.group_size != 0, "group_size");
    refuse(activation_output, options.activation_output, "activation_output");
    if (!ok()) return;
    if (options.activation > Activation::leaky_relu)
        status_ = failure(Code::invalid_value, "%s: activation %d is unknown", function_,
                          static_cast<int>(options.activation));
    else if (!std::isfinite(in_arithmetic(x_->dtype, options.negative_slope)))
        status_ = failure(Code::invalid_value, "%s: negative_slope must be finite%s, got %g", function_,
                          std::isfinite(options.negative_slope) ? " in float32, which x's arithmetic is in" : "",
                          options.negative_slope);
    if (ok() && options.group_size != 0) cut(options.group_size);
    if (ok() && options.residual) tensor("residual", *options.residual);
    if (ok() && options.activation_output) tensor("y", *options.activation_output);
    if (ok() && options.weights) weigh(*options.weights);
}

void Validator::cut(std::int64_t group_size) noexcept {
    if (group_size < 1)
        status_ = failure(Code::invalid_value, "%s: group_size must be at least 1, got %lld", function_,
                          static_cast<long long>(group_size));
    else if (x_->rank == 0 || kept_[0])
        status_ = failure(Code::invalid_value,
                          "%s: group_size cuts axis 0, which keeps its own statistics here: leave axis 0 out of axis",
                          function_);
    else if (x_->rank == max_rank)
        status_ = failure(Code::invalid_value, "%s: %s has %d axes, expected at most %d with group_size", function_,
                          x_name_, x_->rank, max_rank - 1);
    if (!ok()) return;
    group_size_ = group_size;
    const std::int64_t samples = x_->shape[0], count = samples / group_size + (samples % group_size != 0);
    for (int d = stat_rank_; d > 0; --d) stat_shape_[d] = stat_shape_[d - 1];
    stat_shape_[0] = count;
    ++stat_rank_;
}

// Of x's shape without the kept axes, or of x's rank and broadcast to it.
void Validator::weigh(const View& weights) noexcept {
    if (!can_check("weights", weights, true, false)) return;
    const DType expected = x_->dtype == DType::f64 ? DType::f64 : DType::f32;
    if (weights.dtype != expected) {
        status_ =
            failure(Code::invalid_type, "%s: weights is %s, expected %s for %s of type %s", function_,
                    batchnorm::name(weights.dtype), batchnorm::name(expected), x_name_, batchnorm::name(x_->dtype));
        return;
    }
    const bool whole = weights.rank == x_->rank;
    weights_ = *x_;
    weights_.data = weights.data;
    weights_.dtype = weights.dtype;
    bool fits = whole || weights.rank == x_->rank - kept_rank_;
    for (int d = 0, at = 0; d < x_->rank && fits; ++d) {
        weights_.stride[d] = 0;
        if (!whole && kept_[d]) continue;
        const std::int64_t size = weights.shape[at];
        fits = size == x_->shape[d] || (whole && size == 1);
        if (size == x_->shape[d]) weights_.stride[d] = weights.stride[at];
        ++at;
    }
    if (!fits) {
        status_ = failure(
            Code::invalid_value,
            "%s: weights has shape %s, expected that of %s, %s, without the kept axes, or of its rank and "
            "broadcast to it",
            function_, ShapeText(weights.shape, weights.rank).text, x_name_, ShapeText(x_->shape, x_->rank).text);
        return;
    }
    if (!can_check("weights", weights, weights.data != nullptr, empty()) || empty() || !sees_values_ || !has_memory_)
        return;
    if (const double unfit = unfit_weight(weights); unfit != 0)
        status_ = failure(Code::invalid_value, "%s: weights must be finite and not negative, got %g", function_, unfit);
}

void Validator::invertible(const Options& options, const Param& gamma) noexcept {
    if (!ok()) return;
    if (options.activation == Activation::relu)
        status_ = failure(
            Code::invalid_value,
            "%s: activation relu cannot be gone back through from its output, expected leaky_relu or none", function_);
    else if (options.activation == Activation::leaky_relu &&
             !(options.negative_slope > 0 && std::isfinite(in_arithmetic(x_->dtype, 1 / options.negative_slope))))
        status_ = failure(Code::invalid_value,
                          "%s: negative_slope must be positive (and 1 / negative_slope finite), to go back through "
                          "leaky_relu from its output, got %g",
                          function_, options.negative_slope);
    else if (sees_values_ && !absent(gamma) && !all_invertible(gamma, x_->dtype))
        status_ = failure(Code::invalid_value,
                          "%s: gamma must not be 0 (or so small that 1 / gamma overflows), since x is found again by "
                          "dividing by it: use batch_norm there",
                          function_);
}

void Validator::told_by_sign(const Options& options) noexcept {
    if (!ok() || options.activation == Activation::none) return;
    if (!options.activation_output)
        status_ = failure(Code::invalid_value, "%s: y, forward's output, is required with an activation", function_);
    else if (options.activation == Activation::leaky_relu && options.negative_slope < 0)
        status_ = failure(Code::invalid_value,
                          "%s: negative_slope must not be negative, since the sign of y tells the sign before "
                          "leaky_relu, got %g",
                          function_, options.negative_slope);
}

void Validator::mask(const char* name, const std::uint8_t* mask, const Options& options) noexcept {
    if (ok() && options.activation != Activation::none && !mask && !empty())
        status_ = failure(Code::invalid_value, "%s: %s is required with an activation", function_, name);
}

void Validator::tensor(const char* name, const View& view) noexcept {
    if (!can_check(name, view, true, false)) return;
    if (view.dtype != x_->dtype)
        status_ = failure(Code::invalid_type, "%s: %s is %s, expected %s's type %s", function_, name,
                          batchnorm::name(view.dtype), x_name_, batchnorm::name(x_->dtype));
    else if (!same_shape(view.shape, view.rank, x_->shape, x_->rank))
        status_ = failure(Code::invalid_value, "%s: %s has shape %s, expected %s's shape %s", function_, name,
                          ShapeText(view.shape, view.rank).text, x_name_, ShapeText(x_->shape, x_->rank).text);
    else
        can_check(name, view, view.data != nullptr, empty());
}

void Validator::param(const char* name, const Param& param, bool required) noexcept {
    of_shape(name, param, required, kept_shape_, kept_rank_, "the kept axes", "'s shape");
}

void Validator::stat(const char* name, const Param& param, bool required) noexcept {
    of_shape(name, param, required, stat_shape_, stat_rank_,
             group_size_ > 0 ? "the groups and the kept axes" : "the kept axes", "'s shape");
}

void Validator::of_shape(const char* name, const Param& param, bool required, const std::int64_t* shape, int rank,
                         const char* what, const char* of) noexcept {
    if (!can_check(name, param, true, false)) return;
    if (absent(param)) {
        if (required) status_ = failure(Code::invalid_value, "%s: %s is required", function_, name);
        return;
    }
    bool no_values = false;
    for (int d = 0; d < param.rank; ++d) no_values |= param.shape[d] == 0;
    if (param.rank > 0 && !same_shape(param.shape, param.rank, shape, rank))
        status_ = failure(Code::invalid_value, "%s: %s has shape %s, expected %s, %s of %s%s %s", function_, name,
                          ShapeText(param.shape, param.rank).text, ShapeText(shape, rank).text, what, x_name_, of,
                          ShapeText(x_->shape, x_->rank).text);
    else
        can_check(name, param, param.data != nullptr, no_values);
}

void Validator::param_sign(const char* name, const Param& param, bool positive) noexcept {
    if (!ok() || absent(param) || !sees_values_) return;
    const double least = least_value(param, positive);
    if (positive ? least <= 0 : least < 0)
        status_ = failure(Code::invalid_value, "%s: %s must %s, got %g", function_, name,
                          positive ? "be positive" : "not be negative", least);
}

void Validator::share(const char* name, double share) noexcept {
    if (ok() && !(share >= 0 && share <= 1))
        status_ = failure(Code::invalid_value, "%s: %s must be from 0 to 1, got %g", function_, name, share);
}

void Validator::values_behind(const char* name, const Param& count) noexcept {
    if (!ok() || absent(count) || !sees_values_ || count.rank != 0 || group_size_ > 0 || empty()) return;
    // As forward would store them in count's type.
    double memory = 0;
    MutParam stored;
    stored.data = &memory;
    stored.dtype = count.dtype;
    fill(stored, static_cast<double>(values_));
    if (const double given = only_value(count); given != only_value(stored))
        status_ = failure(Code::invalid_value,
                          "%s: %s is %g, but %s of shape %s has %lld values for each statistic: through a part of a "
                          "batch, grad_sums and input_grad go back",
                          function_, name, given, x_name_, ShapeText(x_->shape, x_->rank).text,
                          static_cast<long long>(values_));
}

void Validator::stat_output(const char* name, const MutParam& param, bool may_be_scalar) noexcept {
    written(name, param, may_be_scalar, kept_shape_, kept_rank_);
}

void Validator::own_stat_output(const char* name, const MutParam& param, bool may_be_scalar) noexcept {
    written(name, param, may_be_scalar, stat_shape_, stat_rank_);
}

void Validator::written(const char* name, const MutParam& param, bool may_be_scalar, const std::int64_t* shape,
                        int rank) noexcept {
    if (absent(param)) return;
    const View view = param;
    of_shape(name, view, false, shape, rank, "one for each statistic", " of shape");
    if (!ok()) return;
    if (param.rank == 0 && rank > 0 && !may_be_scalar)
        status_ = failure(Code::invalid_value, "%s: %s is a scalar, expected shape %s", function_, name,
                          ShapeText(shape, rank).text);
    else if (!elements_distinct(view))
        status_ = failure(Code::invalid_value, "%s: %s has elements that share memory", function_, name);
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

void Validator::kept(const char* name, const View& written, std::initializer_list<Named> inputs,
                     const char* other) noexcept {
    for (const Named& input : inputs)
        if (ok() && !absent(written) && !absent(input.view) && overlap(written, input.view))
            status_ = failure(Code::invalid_value,
                              "%s: %s overlaps %s, which is still needed for %s, expected separate memory", function_,
                              name, input.name, other);
}

void Validator::separate(std::initializer_list<Named> outputs, std::initializer_list<Named> inputs) noexcept {
    for (const Named* a = outputs.begin(); a != outputs.end(); ++a) {
        for (const Named& input : inputs)
            if (a->extent.meets(input.extent)) apart(a->name, a->view, input);
        for (const Named* b = a + 1; b != outputs.end() && ok(); ++b)
            if (a->extent.meets(b->extent) && overlap(a->view, b->view))
                status_ = failure(Code::invalid_value, "%s: the outputs %s and %s overlap, expected separate memory",
                                  function_, a->name, b->name);
    }
}

}  // namespace batchnorm
