// All functions behind one call, so that a test can go over them.
#pragma once

#include "device.hpp"
#include "reference.hpp"
#include "tensor.hpp"

namespace core = device;
using batchnorm::Op;

inline constexpr Op all_ops[] = {Op::batch_norm,
                                 Op::batch_norm_backward,
                                 Op::batch_norm_inference,
                                 Op::batch_norm_inference_backward,
                                 Op::moments,
                                 Op::normalize,
                                 Op::grad_sums,
                                 Op::input_grad,
                                 Op::batch_norm_jvp,
                                 Op::batch_norm_double_backward};

inline const char* name(Op op) {
    constexpr const char* names[] = {"batch_norm",
                                     "batch_norm_backward",
                                     "batch_norm_inference",
                                     "batch_norm_inference_backward",
                                     "moments",
                                     "normalize",
                                     "grad_sums",
                                     "input_grad",
                                     "batch_norm_backward_from_output",
                                     "batch_norm_jvp",
                                     "batch_norm_double_backward"};
    return names[static_cast<int>(op)];
}

// The operands of any function; each takes those that it has.
struct Call {
    batchnorm::View x, dy, ddx;  // dy is the jvp's tx too
    batchnorm::Axes axes = 1;
    batchnorm::Param gamma, beta, mean, var, inv_std, m2, count, sum_dy, sum_dy_xmu;
    batchnorm::Param tgamma, tbeta;
    batchnorm::MutView out, ddy;
    // (mean, inv_std, var), (mean, m2, count), (sum_dy, sum_dy_xmu, count) or (dgamma, dbeta).
    batchnorm::MutParam result[3];
    batchnorm::MutParam stored_count;  // of forward
    std::uint8_t* mask = nullptr;      // where options have an activation
    batchnorm::Options options;
};

inline batchnorm::Status run(Op op, const Call& c) {
    const auto& [first, second, third] = c.result;
    switch (op) {
        case Op::batch_norm:
            return core::batch_norm(c.x, c.axes, c.gamma, c.beta, c.out, {first, second, third, c.stored_count, c.mask},
                                    c.options);
        case Op::batch_norm_backward:
            return core::batch_norm_backward(c.dy, c.x, c.axes, {c.mean, c.inv_std, c.count, c.mask}, c.gamma, c.out,
                                             first, second, c.options);
        case Op::batch_norm_inference:
            return core::batch_norm_inference(c.x, c.axes, c.mean, c.var, c.gamma, c.beta, c.out, c.options);
        case Op::batch_norm_inference_backward:
            return core::batch_norm_inference_backward(c.dy, c.x, c.axes, c.mean, c.var, c.gamma, c.out, first, second,
                                                       c.options);
        case Op::moments: return core::moments(c.x, c.axes, {first, second, third}, c.options);
        case Op::normalize:
            return core::normalize(c.x, c.axes, {c.mean, c.m2, c.count}, c.gamma, c.beta, c.out,
                                   {first, second, third, c.stored_count, c.mask}, c.options);
        case Op::grad_sums:
            return core::grad_sums(c.dy, c.x, c.axes, {c.mean, {}, c.count, c.mask}, {third, first, second}, c.options);
        case Op::input_grad:
            return core::input_grad(c.dy, c.x, c.axes, {c.mean, c.inv_std, c.count, c.mask},
                                    {c.count, c.sum_dy, c.sum_dy_xmu}, c.gamma, c.out, first, second, c.options);
        case Op::batch_norm_backward_from_output:
            return core::batch_norm_backward_from_output(c.dy, c.x, c.axes, {{}, c.inv_std, c.count}, c.gamma, c.beta,
                                                         c.out, first, second, c.options);
        case Op::batch_norm_jvp:
            return core::batch_norm_jvp(c.dy, c.x, c.axes, {c.mean, c.inv_std}, c.gamma, c.tgamma, c.tbeta, c.out,
                                        c.options);
        case Op::batch_norm_double_backward:
            return core::batch_norm_double_backward(c.ddx, c.dy, c.x, c.axes, {c.mean, c.inv_std}, c.gamma, c.tgamma,
                                                    c.tbeta, c.ddy, c.out, first, c.options);
    }
    return {};
}

inline constexpr DType all_dtypes[] = {DType::f32, DType::f64, DType::f16, DType::bf16};

inline const char* name(DType dtype) {
    constexpr const char* names[] = {"f32", "f64", "f16", "bf16"};
    return names[static_cast<int>(dtype)];
}

inline batchnorm::Axes to_axes(const std::vector<int>& list) {
    batchnorm::Axes axes{};
    for (const int axis : list) axes.axis[axes.count++] = axis;
    return axes;
}

// What an example is made of.
struct Setup {
    Shape shape;
    std::vector<int> axes;
    DType dtype = DType::f32;
    Layout x = Layout::contiguous, dy = Layout::contiguous, out = Layout::contiguous;
    DType gamma = DType::f64, result = DType::f64;
    Layout params = Layout::contiguous;  // of gamma, beta and the results
    double x_scale = 1, x_shift = 0;
};

inline std::string text(const Setup& s) {
    std::string axes;
    for (const int axis : s.axes) {
        if (!axes.empty()) axes += ',';
        axes += std::to_string(axis);
    }
    return text(s.shape) + " axes (" + axes + ") " + name(s.dtype) + " x " + name(s.x) + " dy " + name(s.dy) + " out " +
           name(s.out);
}

// Operands for every function, with statistics and sums that fit x and dy.
struct Example {
    Setup setup;
    reference::Problem problem;
    Tensor x, dy, ddx, gamma, beta, tgamma, tbeta;
    reference::Statistics statistics;
    reference::GradSums sums;
    Tensor mean, var, inv_std, m2, count, sum_dy, sum_dy_xmu;
    Tensor out, ddy, result[3];

    static constexpr int64_t guard = 64;  // around what is written

    static double sum_error(DType dtype) {
        const bool by_runs = reference::is_half(dtype) || (dtype == DType::f32 && device::is_cuda());
        return by_runs ? reference::run_sum_error : reference::sum_error;
    }

    explicit Example(const Setup& s)
        : setup(s),
          problem(s.shape, s.axes),
          x(s.dtype, s.shape, s.x),
          dy(s.dtype, s.shape, s.dy),
          ddx(s.dtype, s.shape, s.dy),
          gamma(s.gamma, problem.kept_shape, s.params),
          beta(s.gamma, problem.kept_shape, s.params),
          tgamma(s.gamma, problem.kept_shape, s.params),
          tbeta(s.gamma, problem.kept_shape, s.params),
          statistics(reference::statistics(problem, x.randomize(1, s.x_scale, s.x_shift).values(),
                                           batchnorm::Options{}.eps, sum_error(s.dtype))),
          sums(reference::grad_sums(problem, dy.randomize(2, 1, 0.25).values(), x.values(), statistics.mean.value,
                                    sum_error(s.dtype))),
          mean(given(statistics.mean.value)),
          var(given(statistics.var.value)),
          inv_std(given(statistics.inv_std.value)),
          m2(given(statistics.m2.value)),
          count(DType::f64, {}),
          sum_dy(given(sums.dy.value)),
          sum_dy_xmu(given(sums.dy_xmu.value)),
          out(s.dtype, s.shape, s.out, guard),
          ddy(s.dtype, s.shape, s.out, guard) {
        ddx.randomize(5, 1, -0.5);
        tgamma.randomize(6);
        tbeta.randomize(7);
        gamma.randomize(3, 1, 1.5);
        beta.randomize(4);
        count.set(0, problem.values);
        for (Tensor& one : result) one = Tensor(s.result, problem.kept_shape, s.params, guard);
    }

    Call call() {
        Call c;
        c.x = x.view();
        c.dy = dy.view();
        c.ddx = ddx.view();
        c.axes = to_axes(setup.axes);
        c.gamma = gamma.view();
        c.beta = beta.view();
        c.tgamma = tgamma.view();
        c.tbeta = tbeta.view();
        c.mean = mean.view();
        c.var = var.view();
        c.inv_std = inv_std.view();
        c.m2 = m2.view();
        c.count = count.view();
        c.sum_dy = sum_dy.view();
        c.sum_dy_xmu = sum_dy_xmu.view();
        c.out = out.mut();
        c.ddy = ddy.mut();
        for (int i = 0; i < 3; ++i) c.result[i] = result[i].mut();
        return c;
    }

    void reset() {
        out.reset();
        ddy.reset();
        for (Tensor& one : result) one.reset();
    }
    bool untouched() const {
        return out.untouched() && ddy.untouched() &&
               std::all_of(result, result + 3, [](const Tensor& t) { return t.untouched(); });
    }
    bool padding_untouched() const {
        return out.padding_untouched() && ddy.padding_untouched() &&
               std::all_of(result, result + 3, [](const Tensor& t) { return t.padding_untouched(); });
    }
    // All that a call wrote, or left alone.
    std::vector<unsigned char> written() const {
        std::vector<unsigned char> all = out.bytes();
        const auto add = [&](const Tensor& one) {
            const std::vector<unsigned char> more = one.bytes();
            all.insert(all.end(), more.begin(), more.end());
        };
        add(ddy);
        for (const Tensor& one : result) add(one);
        return all;
    }

  private:
    Tensor given(const Values& values) const { return Tensor(DType::f64, problem.kept_shape).fill(values); }
};
