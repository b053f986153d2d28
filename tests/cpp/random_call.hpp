// A random call of any function: its shapes, options and operands, and what these hold.
#pragma once

#include "calls.hpp"
#include "check.hpp"
#include "guarded.hpp"
#include "running_error.hpp"

#include <deque>
#include <functional>
#include <optional>

using batchnorm::Activation;
using batchnorm::Status;
using batchnorm::View;

struct Operand {
    const char* name;
    Array array;
    bool written = false;
    Numbers expected{};  // of what is written
};

// The embedder's threads, of which there is one, that takes the last task first.
inline void run_backwards(void*, int tasks, void (*task)(void*, int), void* state) {
    while (tasks-- > 0) task(state, tasks);
}

class RandomCall {
  public:
    // All but the outputs and the workspace.
    explicit RandomCall(std::uint64_t seed) : random_(seed) {
        op_ = any({Op::batch_norm, Op::batch_norm_backward, Op::batch_norm_inference, Op::batch_norm_inference_backward,
                   Op::moments, Op::normalize, Op::grad_sums, Op::input_grad, Op::batch_norm_backward_from_output,
                   Op::batch_norm_jvp, Op::batch_norm_double_backward});
        inplace_ = is({Op::batch_norm}) && one_in(3);
        dtype_ = any({DType::f32, DType::f32, DType::f64, DType::f16, DType::bf16});
        do draw_shape();
        while (too_few_values() && !one_in(6));
        draw_options();
        draw_operands();
    }

    Status run() const {
        if (!inplace_) return ::run(op_, call_);
        const auto& [first, second, third] = call_.result;
        return core::batch_norm_inplace(call_.out, call_.axes, call_.gamma, call_.beta,
                                        {first, second, third, call_.stored_count}, call_.options);
    }

    std::string text() const {
        const batchnorm::Options& o = call_.options;
        std::string all = function() + " of " + ::text(shape_) + ", axes";
        for (const int axis : axes_) all += ' ' + std::to_string(axis);
        all += ", group_size " + std::to_string(group_size_) + ", eps " + precise(o.eps) + ", activation " +
               std::to_string(static_cast<int>(o.activation)) + " " + precise(o.negative_slope) + ", threads " +
               std::to_string(o.threads) + (o.executor.run ? " of " + std::to_string(o.executor.threads) : "") +
               (workspace_ ? ", workspace" : "");
        for (const Operand& one : operands_)
            all += std::string(", ") + one.name + (one.written ? " (written)" : "") + " " + one.array.text();
        return all + "; ";
    }

  protected:
    bool one_in(int64_t n) { return random_.integer(1, n) == 1; }
    template <class T>
    T any(std::initializer_list<T> list) {
        return list.begin()[random_.integer(0, static_cast<int64_t>(list.size()) - 1)];
    }
    bool is(std::initializer_list<Op> ops) const { return std::find(ops.begin(), ops.end(), op_) != ops.end(); }
    bool from_output() const { return is({Op::batch_norm_backward_from_output}); }
    bool is_frozen() const { return is({Op::batch_norm_inference, Op::batch_norm_inference_backward}); }
    bool is_forward() const { return is({Op::batch_norm, Op::normalize, Op::batch_norm_inference}); }
    bool has_directions() const { return is({Op::batch_norm_jvp, Op::batch_norm_double_backward}); }
    bool is_backward() const { return !is_forward() && !has_directions() && !is({Op::moments}); }
    bool trains() const { return is({Op::batch_norm, Op::batch_norm_backward}) || from_output() || has_directions(); }
    bool writes_out() const { return !is({Op::moments, Op::grad_sums}); }
    bool activates() const { return call_.options.activation != Activation::none; }
    bool empty() const { return product(shape_) == 0; }
    bool too_few_values() const { return trains() && !empty() && values_of(statistics_ - 1) < 2; }
    std::string function() const { return inplace_ ? "batch_norm_inplace" : name(op_); }

    // ----------------------------------------------------------------------------------------- shapes and options

    void draw_shape() {
        const auto rank = static_cast<std::size_t>(one_in(20) ? any({0, 6, 7, 8}) : random_.integer(1, 5));
        const int64_t most = one_in(60) ? 60000 : any({60, 600, 6000});
        shape_.assign(rank, 1);
        for (std::size_t i = 0, first = static_cast<std::size_t>(random_.integer(0, 7)); i < rank; ++i) {
            const int64_t size = any({1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 32, 37, 64, 67, 100, 129, 257, 300, 1009});
            if (size * product(shape_) <= most) shape_[(i + first) % rank] = size;
        }
        if (rank > 0 && one_in(25)) shape_[rank - 1 - bits() % rank] = 0;

        const int axes = static_cast<int>(rank), only = rank > 1 && one_in(2) ? 1 : axes - 1;
        const bool has_one = one_in(2), has_none = one_in(20);
        keeps_.clear();
        axes_.clear();
        for (int d = 0; d < axes; ++d) {
            keeps_.push_back(!has_none && (has_one ? d == only : one_in(2)));
            if (keeps_.back()) axes_.push_back(one_in(3) ? d - axes : d);
        }
        if (one_in(4)) std::reverse(axes_.begin(), axes_.end());
        problem_.emplace(shape_, axes_);
        stat_shape_ = problem_->kept_shape;
        group_size_ = 0;
        if (!is_frozen() && rank > 0 && rank < 8 && !keeps_[0] && one_in(3)) {
            group_size_ = random_.integer(1, shape_[0] + 2);
            stat_shape_.insert(stat_shape_.begin(), (shape_[0] + group_size_ - 1) / group_size_);
        }
        statistics_ = static_cast<std::size_t>(product(stat_shape_));
        call_.axes = to_axes(axes_);
        call_.options.group_size = group_size_;
    }

    std::size_t bits() { return static_cast<std::size_t>(random_.bits() >> 1); }

    // Of a statistic: M.
    double values_of(std::size_t k) const {
        int64_t values = 1;
        for (std::size_t d = 0; d < shape_.size(); ++d)
            if (!keeps_[d] && (d > 0 || group_size_ == 0)) values *= shape_[d];
        if (group_size_ == 0) return static_cast<double>(values);
        const auto group = static_cast<int64_t>(k / problem_->statistics);
        return static_cast<double>(values * std::min(group_size_, shape_[0] - group * group_size_));
    }

    std::size_t kept_of(std::size_t element) const { return problem_->statistic[element]; }
    std::size_t statistic_of(std::size_t element) const {
        if (group_size_ == 0) return kept_of(element);
        const std::size_t sample = element / (problem_->statistic.size() / static_cast<std::size_t>(shape_[0]));
        return sample / static_cast<std::size_t>(group_size_) * problem_->statistics + kept_of(element);
    }

    void draw_options() {
        batchnorm::Options& o = call_.options;
        o.eps = any({1e-5, 1e-3, 0.5});
        if ((is_forward() || is_backward()) && one_in(2)) {
            const bool restores = from_output() || inplace_;
            o.activation = restores || one_in(2) ? Activation::leaky_relu : Activation::relu;
            o.negative_slope = restores                                          ? any({0.01, 0.25, 1.5})
                               : o.activation == Activation::relu || is_frozen() ? any({0.01, 0.25, 0.0})
                                                                                 : any({0.01, 0.25, 1.5, 0.0, -0.5});
        }
        o.threads = any({0, 1, 2, 3});
        if (one_in(4)) o.executor = {nullptr, any({1, 2, 3}), run_backwards};
    }

    void draw_workspace() {
        CHECK(core::workspace_bytes(op_, call_.x, call_.axes, call_.options, workspace_bytes_).ok());
        if (one_in(3)) return;
        const std::size_t shift = one_in(2) ? bits() % 64 : 0;
        const bool at_start = one_in(2);
        workspace_.emplace(workspace_bytes_ + shift, at_start, other_pattern);
        workspace_data_ = workspace_->data() + (at_start ? shift : 0);
        call_.options.workspace = {workspace_data_, workspace_bytes_};
        workspace_->remember();
    }

    // --------------------------------------------------------------------------------------------------- operands

    Operand& add(const char* name, DType dtype, const Shape& shape, bool repeats) {
        return operands_.emplace_back(Operand{name, Array(random_, dtype, shape, repeats)});
    }
    Operand* find(const std::string& name) {
        const auto at = std::find_if(operands_.begin(), operands_.end(), [&](auto& one) { return one.name == name; });
        return at == operands_.end() ? nullptr : &*at;
    }

    // An input like x; its values as they are in its type.
    Values tensor(View& to, const char* name, double scale, double middle) {
        Array& array = add(name, dtype_, shape_, !inplace_ && one_in(4)).array;
        for (std::size_t i = 0; i < array.size(); ++i) array.set(i, random_.uniform() * scale + middle);
        to = array.view();
        return array.values();
    }

    // One value for each of n, or one for all, or, where it may be, absent.
    Values param(batchnorm::Param& to, const char* name, const Shape& shape,
                 const std::function<double(std::size_t)>& value, const double* otherwise = nullptr,
                 bool may_be_one = true) {
        const auto n = static_cast<std::size_t>(product(shape));
        if (otherwise && one_in(4)) return Values(n, *otherwise);
        const bool one = may_be_one && n > 0 && one_in(10);
        const DType dtype = any({DType::f64, DType::f64, DType::f32, DType::f16, DType::bf16});
        Array& array = add(name, dtype, one ? Shape{} : shape, may_be_one && one_in(8)).array;
        for (std::size_t i = 0; i < array.size(); ++i) array.set(i, std::clamp(value(i), -6e4, 6e4));
        to = array.view();
        return one ? Values(n, array.get(0)) : array.values();
    }

    // An output like x: it may be one of some inputs, which then must not be written yet.
    Operand& output(batchnorm::MutView& to, const char* name, std::initializer_list<const char*> in_place) {
        Operand* one = one_in(3) && in_place.size() > 0 ? find(any(in_place)) : nullptr;
        if (!one || one->written || one->array.repeats()) one = &add(name, dtype_, shape_, false);
        one->written = true;
        to = one->array.mut();
        return *one;
    }

    void result(batchnorm::MutParam& to, const char* name, const Shape& shape, const Numbers& expected,
                bool may_be_one = false) {
        if (one_in(6)) return;
        const bool one_for_all = may_be_one && statistics_ > 0 && one_in(3);
        Operand& one = add(name, any({DType::f64, DType::f64, DType::f32, DType::f16, DType::bf16}),
                           one_for_all ? Shape{} : shape, false);
        one.written = true;
        one.expected = one_for_all ? Numbers{exact(values_of(0))} : expected;
        to = one.array.mut();
    }

    void draw_operands() {
        static const double zero = 0, one = 1;
        const Shape& kept = problem_->kept_shape;
        const auto uniform = [&](double scale, double middle) {
            return [this, scale, middle](std::size_t) { return random_.uniform() * scale + middle; };
        };
        // Away from 0, by which from_output divides.
        const auto either_sign = [this](std::size_t) { return any({-1, 1}) * (random_.uniform() / 2 + 1); };
        shift_ = from_output() ? 0 : any({0, 0, 3, -1000});
        const double scale = one_in(20) ? 0 : any({1.0, 1.0, 0.01, 30.0});
        x_ = tensor(call_.x, from_output() ? "y" : "x", scale, shift_);
        if (is_backward() || has_directions()) dy_ = tensor(call_.dy, "dy", 1, any({0.0, 0.25, 3.0}));
        if (is({Op::batch_norm_double_backward})) ddx_ = tensor(call_.ddx, "ddx", 1, -0.5);
        if (is_forward() && !inplace_ && one_in(3)) {
            residual_ = tensor(residual_view_, "residual", 1, 0);
            call_.options.residual = &residual_view_;
        }
        draw_weights();
        if (writes_out()) gamma_ = param(call_.gamma, "gamma", kept, either_sign, &one);
        if (is_forward() || from_output()) beta_ = param(call_.beta, "beta", kept, uniform(1, 0), &zero);
        if (has_directions()) {
            tgamma_ = param(call_.tgamma, "tgamma", kept, uniform(1, 0), &zero);
            tbeta_ = param(call_.tbeta, "tbeta", kept, uniform(1, 0), &zero);
        }
        draw_statistics();
        if (activates()) draw_mask();
    }

    // For each element, 1 where there are none.
    void draw_weights() {
        weights_.assign(x_.size(), 1);
        if (is_frozen() || has_directions() || !one_in(3)) return;
        const bool whole = axes_.empty() || one_in(2);
        Shape shape = whole ? shape_ : Shape{};
        for (std::size_t d = 0; d < shape_.size(); ++d)
            if (whole && one_in(3))
                shape[d] = 1;
            else if (!whole && !keeps_[d])
                shape.push_back(shape_[d]);
        Array& array = add("weights", dtype_ == DType::f64 ? DType::f64 : DType::f32, shape, one_in(4)).array;
        for (std::size_t i = 0; i < array.size(); ++i) array.set(i, one_in(4) ? 0 : random_.uniform() + 1);
        weights_view_ = array.view();
        call_.options.weights = &weights_view_;
        for (std::size_t i = 0; i < x_.size(); ++i) {  // its place in the weights, axis by axis
            std::size_t rest = i, at = 0, step = 1, axis = shape.size();
            for (std::size_t d = shape_.size(); d-- > 0;) {
                const auto size = static_cast<std::size_t>(shape_[d]), index = rest % size;
                rest /= size;
                if (!whole && keeps_[d]) continue;
                const auto own = static_cast<std::size_t>(shape[--axis]);
                at += (own == 1 ? 0 : index) * step;
                step *= own;
            }
            weights_[i] = array.get(at);
        }
        // What has no weight may be anything.
        Array& x = operands_.front().array;
        if (x.repeats() || is({Op::normalize}) || is_backward()) return;
        for (std::size_t i = 0; i < x_.size(); ++i)
            if (weights_[i] == 0 && one_in(3)) x.set(i, x_[i] = std::nan(""));
    }

    // What a function is given of x's statistics, near them but not exactly: any numbers must do.
    void draw_statistics() {
        const Statistics own = statistics_of_x();
        const Shape& of = stat_shape_;
        const auto near_mean = [&](std::size_t k) { return own.mean[k].value + random_.uniform() * 0.1; };
        const auto near = [this](const Numbers& values) {
            return [this, &values](std::size_t k) { return values[k].value * (1 + 0.1 * random_.uniform()); };
        };
        const auto count = [&](std::size_t k) { return own.count[k]; };
        count_ = own.count;
        if (is({Op::batch_norm, Op::moments})) return;
        if (!from_output()) mean_ = param(call_.mean, "given mean", of, near_mean);
        if (is_frozen()) var_ = param(call_.var, "given var", of, near(own.var));
        if (is({Op::batch_norm_backward, Op::input_grad}) || from_output() || has_directions())
            inv_std_ = param(call_.inv_std, "given inv_std", of, near(own.inv_std));
        const bool weighs = call_.options.weights != nullptr;
        if (is({Op::normalize})) m2_ = param(call_.m2, "given m2", of, near(own.m2), nullptr, !weighs);
        if (is_frozen() || has_directions()) return;
        if (!weighs && !is({Op::normalize, Op::input_grad}) && one_in(2)) return;
        // One for all where all are the same, and of a type that holds it.
        Array& array = add("given count", DType::f64, weighs || group_size_ || one_in(2) ? of : Shape{}, false).array;
        for (std::size_t k = 0; k < array.size(); ++k) array.set(k, array.shape() == of ? count(k) : values_of(0));
        call_.count = array.view();
        if (!is({Op::input_grad})) return;
        sum_dy_ =
            param(call_.sum_dy, "given sum_dy", of, [&](std::size_t k) { return own.count[k] * random_.uniform(); });
        sum_dy_xmu_ = param(call_.sum_dy_xmu, "given sum_dy_xmu", of,
                            [&](std::size_t k) { return own.count[k] * random_.uniform(); });
    }

    // Forward writes a mask; backward gets one that forward wrote, whose output tells what is in it.
    void draw_mask() {
        if (is({Op::batch_norm_inference}) || inplace_) return;
        if (is({Op::batch_norm_inference_backward}) || from_output()) {
            Values y = x_;
            if (!from_output()) {
                y = tensor(y_view_, "activation_output", 1, 0);
                call_.options.activation_output = &y_view_;
            }
            for (const double value : y) through_.push_back(value > 0);
            return;
        }
        batchnorm::Options options;
        options.group_size = group_size_;
        CHECK(core::mask_bytes(call_.x, call_.axes, options, mask_bytes_).ok());
        const bool at_start = one_in(2);
        if (is_forward() && one_in(4)) return;  // not wanted
        mask_.emplace(mask_bytes_, at_start, other_pattern);
        call_.mask = mask_->data();
        if (is_backward() && !empty()) {
            static const double one = 1;
            Tensor y(dtype_, shape_);
            options.activation = Activation::leaky_relu;
            options.negative_slope = 0.5;
            const View count = batchnorm::view(&one, {}), mean = batchnorm::view(&shift_, {});
            CHECK(core::normalize(call_.x, call_.axes, {mean, count, count}, {}, {}, y.mut(),
                                  {{}, {}, {}, {}, call_.mask}, options)
                      .ok());
            for (const double value : y.values()) through_.push_back(value > 0);
        }
        mask_->remember();
    }

    // ------------------------------------------------------------------------------------------------- statistics

    // Of float64 sums; or of 16-bit elements, of which up to 8 are added in one float, and then their sums in pairs
    // (docs/numerics.md): the root of 10 roundings, since not all go one way.
    double sum_error() const { return reference::is_half(dtype_) ? 3.2 * 0x1p-24 : reference::sum_error; }
    double elements_u() const { return reference::unit_roundoff(dtype_); }
    double slope() const { return call_.options.activation == Activation::relu ? 0 : call_.options.negative_slope; }
    // What the type of 16-bit elements cannot hold of a mean.
    double lost(double mean) const { return reference::storage_error(dtype_, mean); }

    struct Statistics {
        Numbers mean, m2, var, inv_std;
        Values count;
    };

    Statistics statistics_of_x() const {
        Values count(statistics_), mean(statistics_), m2(statistics_), farthest(statistics_);
        for (std::size_t i = 0; i < x_.size(); ++i) count[statistic_of(i)] += weights_[i];
        for (int round = 0; round < 2; ++round) {  // the second takes back the rounding errors of the first
            Values sum(statistics_);
            for (std::size_t i = 0; i < x_.size(); ++i)
                if (weights_[i] > 0) sum[statistic_of(i)] += weights_[i] * (x_[i] - mean[statistic_of(i)]);
            for (std::size_t k = 0; k < statistics_; ++k)
                if (count[k] > 0) mean[k] += sum[k] / count[k];
        }
        for (std::size_t i = 0; i < x_.size(); ++i) {
            if (weights_[i] == 0) continue;
            const std::size_t k = statistic_of(i);
            const double d = x_[i] - mean[k];
            m2[k] += weights_[i] * d * d;
            farthest[k] = std::max(farthest[k], std::fabs(d));
        }
        Statistics s;
        s.count = count;
        // Of sums of differences from one of the elements, which may be the farthest: then all are twice as far, their
        // squares twice as much.
        const double error = 2 * sum_error();
        for (std::size_t k = 0; k < statistics_; ++k) {
            s.mean.push_back({mean[k], error * farthest[k] + 2 * reference::u64 * std::fabs(mean[k])});
            s.m2.push_back({m2[k], error * farthest[k] * farthest[k] * count[k]});
            s.var.push_back(count[k] > 0 ? s.m2[k] / count[k] : Number{});
            s.inv_std.push_back(inv_std_of(s.var[k]));
        }
        return s;
    }

    Number inv_std_of(Number var) const {
        const double sum = var.value + call_.options.eps, inv_std = 1 / std::sqrt(sum);
        return {inv_std, inv_std * (var.error / sum / 2 + 4 * reference::u64)};
    }

    static std::string precise(double value) {
        char digits[32];
        std::snprintf(digits, sizeof digits, "%.17g", value);
        return digits;
    }

    static constexpr unsigned char other_pattern = 0xa5;  // beside bits, of which all may be set

    Random random_;
    Op op_;
    bool inplace_ = false;
    DType dtype_;
    Shape shape_, stat_shape_;  // of all groups
    std::vector<int> axes_;
    std::vector<bool> keeps_;  // for each axis
    int64_t group_size_ = 0;
    std::optional<reference::Problem> problem_;
    std::size_t statistics_ = 0;
    double shift_ = 0;
    Call call_;
    View residual_view_, weights_view_, y_view_;
    batchnorm::MutView dresidual_view_;
    std::deque<Operand> operands_;  // x is the first
    std::optional<Guarded> mask_, workspace_;
    unsigned char* workspace_data_ = nullptr;
    std::size_t mask_bytes_ = 0, workspace_bytes_ = 0;
    // What the operands hold: for each element, each combination of the kept axes, or each statistic.
    Values x_, dy_, ddx_, residual_, weights_, gamma_, beta_, tgamma_, tbeta_;
    Values mean_, inv_std_, var_, m2_, count_, sum_dy_, sum_dy_xmu_;
    std::vector<bool> through_;  // what the activation lets through
};
