// Activations, residuals, weights and groups: numbers, bits, workspaces, masks, and what is refused by name.
#include "calls.hpp"
#include "check.hpp"

#include <cmath>
#include <functional>
#include <limits>

namespace {

using batchnorm::Activation;
using batchnorm::Code;
using batchnorm::Options;
using batchnorm::Status;

constexpr Op ops[] = {Op::batch_norm,
                      Op::batch_norm_backward,
                      Op::moments,
                      Op::normalize,
                      Op::grad_sums,
                      Op::input_grad,
                      Op::batch_norm_inference,
                      Op::batch_norm_inference_backward,
                      Op::batch_norm_backward_from_output};

// What is switched on.
struct Extras {
    Activation activation = Activation::leaky_relu;
    bool residual = true, weights = true;
    int64_t group_size = 0;
};

bool is_frozen(Op op) { return op == Op::batch_norm_inference || op == Op::batch_norm_inference_backward; }
bool is_forward(Op op) { return op == Op::batch_norm || op == Op::normalize || op == Op::batch_norm_inference; }
bool is_backward(Op op) { return !is_forward(op) && op != Op::moments; }
bool writes_dx(Op op) { return is_backward(op) && op != Op::grad_sums; }

// A problem with operands of its own for all of it: batch_norm has been called, for the others to go on from.
struct Problem {
    static constexpr std::size_t guard = 64;

    Setup setup;
    Extras extras;
    Shape kept_shape, stat_shape;
    Tensor x, dy, y, residual, weights, gamma, beta, out, dresidual;
    Tensor mean, inv_std, var, count, m2, sum_dy, sum_dy_xmu, frozen_mean, frozen_var;
    Tensor stats[4], grads[2];
    std::vector<std::uint8_t> mask, new_mask;
    batchnorm::View residual_view, weights_view, y_view;
    batchnorm::MutView dresidual_view;
    std::size_t mask_bytes = 0;

    Problem(const Setup& s, const Extras& e) : setup(s), extras(e) {
        const Layout plain = Layout::contiguous;
        kept_shape = reference::Problem(s.shape, s.axes).kept_shape;
        stat_shape = kept_shape;
        if (e.group_size > 0) stat_shape.insert(stat_shape.begin(), (s.shape[0] + e.group_size - 1) / e.group_size);
        x = Tensor(s.dtype, s.shape, s.x).randomize(1, 2, 1);
        dy = Tensor(s.dtype, s.shape, s.dy).randomize(2, 1, 0.25);
        residual = Tensor(s.dtype, s.shape, s.dy).randomize(5);
        Shape some = s.shape;  // weights are repeated along the first axis
        if (!some.empty()) some[0] = 1;
        weights = Tensor(s.dtype == DType::f64 ? DType::f64 : DType::f32, some, plain);
        Random random(6);
        for (std::size_t i = 0; i < weights.size(); ++i) weights.set(i, static_cast<double>(random.integer(0, 3)) / 2);
        weights.set(0, 1);
        gamma = Tensor(DType::f64, kept_shape, plain).randomize(3, 1, 1.5);
        beta = Tensor(DType::f64, kept_shape, plain).randomize(4);
        frozen_mean = Tensor(DType::f64, kept_shape, plain).randomize(7);
        frozen_var = Tensor(DType::f64, kept_shape, plain).randomize(8, 1, 1.5);
        y = out = dresidual = Tensor(s.dtype, s.shape, s.out, guard);
        for (Tensor& one : stats) one = Tensor(DType::f64, stat_shape, plain, guard);
        for (Tensor& one : grads) one = Tensor(DType::f64, kept_shape, plain, guard);
        CHECK(core::mask_bytes(x.view(), to_axes(s.axes), options(Op::batch_norm), mask_bytes).ok());
        mask.assign(mask_bytes + 2 * guard, Tensor::sentinel);
        new_mask = mask;

        CHECK(run(Op::batch_norm).ok());
        mean = stats[0];
        inv_std = stats[1];
        var = stats[2];
        count = stats[3];
        y = out;
        mask = new_mask;
        CHECK(run(Op::moments).ok());
        m2 = stats[1];
        CHECK(run(Op::grad_sums).ok());
        sum_dy = stats[0];
        sum_dy_xmu = stats[1];
        reset();
    }

    bool is_restorable() const { return extras.activation != Activation::relu; }

    // Those that the function takes.
    Options options(Op op) {
        Options o;
        o.threads = 1;
        o.activation = op == Op::moments ? Activation::none : extras.activation;
        o.negative_slope = 0.25;
        residual_view = residual.view();
        weights_view = weights.view();
        dresidual_view = dresidual.mut();
        y_view = y.view();
        if (extras.residual && is_forward(op)) o.residual = &residual_view;
        if (extras.residual && writes_dx(op) && op != Op::batch_norm_backward_from_output)
            o.dresidual = &dresidual_view;
        if (op == Op::batch_norm_inference_backward) o.activation_output = &y_view;
        if (is_frozen(op)) return o;
        if (extras.weights && op != Op::normalize) o.weights = &weights_view;
        o.group_size = extras.group_size;
        return o;
    }

    Status run(Op op) { return run(op, options(op)); }
    Status run(Op op, const Options& o) {
        const batchnorm::Axes axes = to_axes(setup.axes);
        const batchnorm::Stats saved{mean.view(), inv_std.view(), count.view(), mask.data() + guard};
        const batchnorm::MutStats to{stats[0].mut(), stats[1].mut(), stats[2].mut(), stats[3].mut(),
                                     new_mask.data() + guard};
        switch (op) {
            case Op::batch_norm: return core::batch_norm(x.view(), axes, gamma.view(), beta.view(), out.mut(), to, o);
            case Op::batch_norm_backward:
                return core::batch_norm_backward(dy.view(), x.view(), axes, saved, gamma.view(), out.mut(),
                                                 grads[0].mut(), grads[1].mut(), o);
            case Op::batch_norm_inference:
                return core::batch_norm_inference(x.view(), axes, frozen_mean.view(), frozen_var.view(), gamma.view(),
                                                  beta.view(), out.mut(), o);
            case Op::batch_norm_inference_backward:
                return core::batch_norm_inference_backward(dy.view(), x.view(), axes, frozen_mean.view(),
                                                           frozen_var.view(), gamma.view(), out.mut(), grads[0].mut(),
                                                           grads[1].mut(), o);
            case Op::moments: return core::moments(x.view(), axes, {to.mean, to.inv_std, to.count}, o);
            case Op::normalize:
                return core::normalize(x.view(), axes, {mean.view(), m2.view(), count.view()}, gamma.view(),
                                       beta.view(), out.mut(), to, o);
            case Op::grad_sums:
                return core::grad_sums(dy.view(), x.view(), axes, saved, {to.count, to.mean, to.inv_std}, o);
            case Op::input_grad:
                return core::input_grad(dy.view(), x.view(), axes, saved,
                                        {count.view(), sum_dy.view(), sum_dy_xmu.view()}, gamma.view(), out.mut(),
                                        grads[0].mut(), grads[1].mut(), o);
            case Op::batch_norm_backward_from_output:
                return core::batch_norm_backward_from_output(dy.view(), y.view(), axes, saved, gamma.view(),
                                                             beta.view(), out.mut(), grads[0].mut(), grads[1].mut(), o);
            default: return {};
        }
    }

    std::vector<Tensor*> outputs() {
        return {&out, &dresidual, &stats[0], &stats[1], &stats[2], &stats[3], &grads[0], &grads[1]};
    }
    void reset() {
        for (Tensor* one : outputs()) one->reset();
        std::fill(new_mask.begin(), new_mask.end(), Tensor::sentinel);
    }
    std::vector<unsigned char> written() {
        std::vector<unsigned char> all(new_mask.begin(), new_mask.end());
        for (Tensor* one : outputs()) {
            const std::vector<unsigned char> more = one->bytes();
            all.insert(all.end(), more.begin(), more.end());
        }
        return all;
    }
    bool untouched() {
        for (Tensor* one : outputs())
            if (!one->untouched()) return false;
        return std::all_of(new_mask.begin(), new_mask.end(), [](auto b) { return b == Tensor::sentinel; });
    }
    bool padding_untouched() {
        for (Tensor* one : outputs())
            if (!one->padding_untouched()) return false;
        const auto kept = [](auto b) { return b == Tensor::sentinel; };
        return std::all_of(new_mask.begin(), new_mask.begin() + guard, kept) &&
               std::all_of(new_mask.end() - guard, new_mask.end(), kept);
    }
};

const std::vector<Setup>& setups() {
    static const std::vector<Setup> all = [] {
        std::vector<Setup> some = {
            {{5, 3, 20}, {1}},
            {{3, 2, 290}, {1}, DType::f64},
            {{9, 5, 9}, {1}},                // small planes
            {{7, 6, 19}, {-1}, DType::f64},  // lanes
            {{37, 7}, {1}},                  // folded
            {{5, 9, 6, 11}, {1, 3}},
            {{6, 3, 33}, {1}, DType::f16},
            {{7, 5, 19}, {-1}, DType::bf16},
            {{9, 5, 9}, {1}, DType::f16, Layout::misaligned, Layout::every_second, Layout::padded},
            {{37, 7}, {1}, DType::bf16, Layout::padded},
            {{6, 4, 49}, {1}, DType::f32, Layout::padded, Layout::records, Layout::transposed},
            {{6, 7, 33}, {1}, DType::f32, Layout::every_second, Layout::misaligned, Layout::reversed},
            {{13, 6, 5}, {1}, DType::f64, Layout::channels_last, Layout::contiguous, Layout::every_second},
        };
        if (!quick())
            some.insert(some.end(), {{{9, 3, 1000}, {1}},
                                     {{9, 17, 400}, {1}},
                                     {{2, 2, 40001}, {1}},
                                     {{1800, 5}, {1}},
                                     {{300, 130}, {1}, DType::f64}});
        return some;
    }();
    return all;
}

std::vector<Extras> some_extras(const Setup& setup) {
    const bool can_group = std::find(setup.axes.begin(), setup.axes.end(), 0) == setup.axes.end();
    const int64_t n = setup.shape[0], size = can_group ? n / 2 - (n % (n / 2) == 1 && setup.shape.size() == 2) : 0;
    if (product(setup.shape) > 5000) return {{Activation::leaky_relu, true, true, size}};
    return {{Activation::leaky_relu, true, true, size},   {Activation::relu, true, false, 0},
            {Activation::leaky_relu, false, false, size}, {Activation::none, true, false, 0},
            {Activation::none, false, true, size},        {Activation::leaky_relu, false, true, 0}};
}

std::string text(const Extras& e) {
    return " activation " + std::to_string(static_cast<int>(e.activation)) + (e.residual ? " residual" : "") +
           (e.weights ? " weights" : "") + " group_size " + std::to_string(e.group_size);
}

bool has(Op op, const Problem& p) { return op != Op::batch_norm_backward_from_output || p.is_restorable(); }

// Fused calls and split ones, in one thread or several, and nothing beside the outputs and the mask.
void bits() {
    for (const Setup& setup : setups())
        for (const Extras& extras : some_extras(setup)) {
            Problem p(setup, extras);
            context = text(setup) + text(extras);
            const auto result = [&](Op op, int threads = 1) {
                p.reset();
                Options o = p.options(op);
                o.threads = threads;
                const Status status = p.run(op, o);
                CHECK_DETAIL(status.ok(), status.message);
                CHECK(p.padding_untouched());
                return p.written();
            };
            CHECK(result(Op::batch_norm) == result(Op::normalize));
            CHECK(result(Op::batch_norm_backward) == result(Op::input_grad));
            for (const Op op : ops)
                if (has(op, p)) CHECK(result(op, 1) == result(op, 3));
            if (extras.activation == Activation::none) {
                p.reset();
                CHECK(p.run(Op::batch_norm).ok());
                CHECK(std::all_of(p.new_mask.begin(), p.new_mask.end(), [](auto b) { return b == Tensor::sentinel; }));
            }
        }
}

// batch_norm_inplace is batch_norm; what is found from its output is what x was.
void in_place() {
    for (const Setup& setup : setups())
        for (Extras extras : some_extras(setup)) {
            extras.residual = false;
            Setup same = setup;
            same.dy = same.out = same.x;
            Problem p(same, extras);
            if (!p.is_restorable()) continue;
            context = "in place " + text(same) + text(extras);
            Problem other(same, extras);
            CHECK(core::batch_norm_inplace(
                      other.x.mut(), to_axes(same.axes), other.gamma.view(), other.beta.view(),
                      {other.stats[0].mut(), other.stats[1].mut(), other.stats[2].mut(), other.stats[3].mut()},
                      other.options(Op::batch_norm))
                      .ok());
            CHECK(other.x.bytes() == p.y.bytes());
            CHECK(other.stats[1].bytes() == p.inv_std.bytes());

            CHECK(p.run(Op::batch_norm_backward).ok());
            const Values want = p.out.values();
            CHECK(p.run(Op::batch_norm_backward_from_output).ok());
            double largest = 0, apart = 0;
            const Values got = p.out.values();
            for (std::size_t i = 0; i < got.size(); ++i) {
                largest = std::max(largest, std::fabs(want[i]));
                apart = std::max(apart, std::fabs(want[i] - got[i]));
            }
            // gamma is 0.5 at least and beta 1 at most: xhat is known to 3 eps, and a few more for its products.
            CHECK(largest > 0);
            const double u = std::max(reference::unit_roundoff(same.dtype), reference::storage_error(same.dtype, 1));
            CHECK(apart <= 16 * u * largest);
        }
}

// As tests/cpp/test_workspace.cpp.
void workspaces() {
    for (const Setup& setup : setups())
        for (const Extras& extras : some_extras(setup)) {
            Problem p(setup, extras);
            for (const Op op : ops) {
                if (!has(op, p)) continue;
                context = std::string(name(op)) + " " + text(setup) + text(extras);
                Options o = p.options(op);
                p.reset();
                CHECK(p.run(op, o).ok());
                const std::vector<unsigned char> expected = p.written();
                std::size_t needed = 0;
                // Of what takes x's place, from the output.
                const Tensor& data = op == Op::batch_norm_backward_from_output ? p.y : p.x;
                CHECK(core::workspace_bytes(op, data.view(), to_axes(setup.axes), o, needed).ok());
                constexpr std::size_t guard = 256;
                for (const std::size_t misalignment : {std::size_t{63}}) {
                    std::vector<unsigned char> memory(guard + misalignment + needed + guard, Tensor::sentinel);
                    unsigned char* const data = memory.data() + guard + misalignment;
                    o.workspace = {data, needed};
                    p.reset();
                    CHECK(p.run(op, o).ok());
                    CHECK(p.written() == expected);
                    CHECK(std::all_of(memory.data(), data, [](auto b) { return b == Tensor::sentinel; }));
                    CHECK(std::all_of(data + needed, data + needed + guard,
                                      [](auto b) { return b == Tensor::sentinel; }));
                    o.workspace.bytes = needed - 1;
                    p.reset();
                    const Status status = p.run(op, o);
                    CHECK_DETAIL(status.code == Code::invalid_value, status.message);
                    CHECK_DETAIL(std::string(status.message).find("workspace has " + std::to_string(needed - 1)) !=
                                     std::string::npos,
                                 status.message);
                    CHECK(p.untouched());
                }
            }
        }
}

// Rows of elements at whole bytes.
void mask_sizes() {
    struct Size {
        Shape shape;
        std::vector<int> axes;
        Layout layout;
        int64_t group_size;
        std::size_t bytes;
    };
    for (const Size& size : {Size{{2, 3, 20}, {1}, Layout::contiguous, 0, 6 * 3},
                             {{5, 3, 20}, {1}, Layout::contiguous, 0, 5 * 8},  // small planes in one row
                             {{9, 5, 9}, {1}, Layout::contiguous, 0, 9 * 6},
                             {{9, 5, 9}, {1}, Layout::contiguous, 4, 8 * 6 + 5 * 2},  // in groups of few samples
                             {{9, 5, 9}, {1}, Layout::contiguous, 8, 8 * 6 + 5 * 2},  // and one of one sample
                             {{7, 6, 19}, {-1}, Layout::contiguous, 0, 42 * 3},
                             {{7, 19, 6}, {1}, Layout::channels_last, 0, 42 * 3},
                             {{2, 3, 20}, {1}, Layout::padded, 0, 6 * 3},
                             {{5, 3, 4, 5}, {1}, Layout::padded, 0, 60},          // each row of 5 by itself
                             {{5, 3, 20}, {0, 1, 2}, Layout::contiguous, 0, 38},  // 300 statistics in a row
                             {{0, 3, 20}, {1}, Layout::contiguous, 0, 0}}) {
        context = "mask of " + ::text(size.shape) + " group_size " + std::to_string(size.group_size);
        const Tensor x(DType::f32, size.shape, size.layout);
        Options options;
        options.group_size = size.group_size;
        std::size_t bytes = 99;
        CHECK(core::mask_bytes(x.view(), to_axes(size.axes), options, bytes).ok());
        CHECK_DETAIL(bytes == size.bytes, std::to_string(bytes));
    }
}

void refused() {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    const Setup setup{{6, 3, 5}, {1}};
    Problem p(setup, {Activation::leaky_relu, true, true, 3});
    const Tensor wide(DType::f64, {6, 3, 5}), longer(DType::f32, {6, 3, 6});
    Tensor negative(DType::f32, {6, 5}), not_finite(DType::f32, {6, 5});
    negative.fill(Values(30, 1)).set(29, -2);
    not_finite.fill(Values(30, 1)).set(17, nan);
    const batchnorm::View wide_view = wide.view(), longer_view = longer.view(), negative_view = negative.view(),
                          not_finite_view = not_finite.view(), out_view = p.out.view();
    batchnorm::View no_data = p.residual.view();
    no_data.data = nullptr;
    const auto check = [&](Op op, const char* message, const std::function<void(Options&)>& spoil) {
        Options o = p.options(op);
        spoil(o);
        p.reset();
        const Status status = p.run(op, o);
        context = std::string(name(op)) + ": " + message;
        CHECK_DETAIL(!status.ok() && std::string(status.message).find(message) != std::string::npos, status.message);
        CHECK_DETAIL(std::string(status.message).rfind(std::string(name(op)) + ": ", 0) == 0, status.message);
        CHECK(p.untouched());
    };
    const bool looks_at_values = !device::is_cuda();
    for (const Op op : ops) {
        const bool trains = !is_frozen(op);
        if (op != Op::moments) {
            check(op, "negative_slope must be finite, got nan", [&](Options& o) { o.negative_slope = nan; });
            check(op, "negative_slope must be finite, got -inf", [&](Options& o) { o.negative_slope = -inf; });
            check(op, "activation 9 is unknown", [](Options& o) { o.activation = static_cast<Activation>(9); });
        } else {
            check(op, "activation is not taken", [](Options& o) { o.activation = Activation::relu; });
        }
        if (trains) {
            check(op, "group_size must be at least 1, got -1", [](Options& o) { o.group_size = -1; });
            check(op, "weights is float64, expected float32", [&](Options& o) { o.weights = &wide_view; });
            check(op, "weights has shape (6, 3, 6)", [&](Options& o) { o.weights = &longer_view; });
            check(op, "weights has no data", [&](Options& o) { o.weights = &no_data; });
            if (looks_at_values) {
                check(op, "weights must be finite and not negative, got -2",
                      [&](Options& o) { o.weights = &negative_view; });
                check(op, "weights must be finite and not negative, got nan",
                      [&](Options& o) { o.weights = &not_finite_view; });
            }
        } else {
            check(op, "group_size is not taken", [](Options& o) { o.group_size = 2; });
            check(op, "weights is not taken", [&](Options& o) { o.weights = &negative_view; });
        }
        if (is_forward(op)) {
            check(op, "residual is float64, expected x's type float32", [&](Options& o) { o.residual = &wide_view; });
            check(op, "residual has shape (6, 3, 6)", [&](Options& o) { o.residual = &longer_view; });
            check(op, "residual has no data", [&](Options& o) { o.residual = &no_data; });
            batchnorm::View shifted = p.out.view();
            shifted.data = static_cast<const char*>(shifted.data) + 4;
            check(op, "out overlaps residual", [&](Options& o) { o.residual = &shifted; });
            check(op, "dresidual is not taken", [&](Options& o) { o.dresidual = &p.dresidual_view; });
        } else {
            check(op, "residual is not taken", [&](Options& o) { o.residual = &p.residual_view; });
        }
        if (writes_dx(op) && op != Op::batch_norm_backward_from_output) {
            batchnorm::MutView bad = p.out.mut();
            check(op, "the outputs out and dresidual overlap", [&](Options& o) { o.dresidual = &bad; });
            bad = p.dresidual.mut();
            bad.stride[0] = 0;
            check(op, "dresidual has elements that share memory", [&](Options& o) { o.dresidual = &bad; });
            bad = p.x.mut();
            bad.data = static_cast<char*>(bad.data) + 4;
            check(op, "dresidual overlaps x", [&](Options& o) { o.dresidual = &bad; });
        }
        if (op == Op::batch_norm_inference_backward) {
            check(op, "y, forward's output, is required", [](Options& o) { o.activation_output = nullptr; });
            check(op, "negative_slope must not be negative", [](Options& o) { o.negative_slope = -1; });
            check(op, "y has shape (6, 3, 6)", [&](Options& o) { o.activation_output = &longer_view; });
            check(op, "out overlaps y", [&](Options& o) {
                p.y_view = p.out.view();
                p.y_view.data = static_cast<const char*>(p.y_view.data) + 4;
                o.activation_output = &p.y_view;
            });
        } else {
            check(op, "activation_output is not taken", [&](Options& o) { o.activation_output = &out_view; });
        }
    }
    const Op from_output = Op::batch_norm_backward_from_output;
    check(from_output, "activation relu cannot be gone back through",
          [](Options& o) { o.activation = Activation::relu; });
    for (const double slope : {0.0, -0.5})
        check(from_output, "negative_slope must be positive", [&](Options& o) { o.negative_slope = slope; });
    const std::vector<unsigned char> before = p.x.bytes();
    Options leaky = p.options(Op::moments);
    leaky.activation = Activation::relu;
    CHECK(!core::batch_norm_inplace(p.x.mut(), 1, {}, {}, {}, leaky).ok());
    if (!looks_at_values) return;
    leaky.activation = Activation::none;
    p.gamma.set(1, 0);
    const Status status = core::batch_norm_inplace(p.x.mut(), 1, p.gamma.view(), {}, {}, leaky);
    CHECK_DETAIL(std::string(status.message).find("batch_norm_inplace: gamma must not be 0") == 0, status.message);
    CHECK(p.x.bytes() == before);
}

// Where backward needs what forward kept.
void required() {
    const Setup setup{{6, 3, 5}, {1}};
    Problem p(setup, {Activation::relu, false, true, 0});
    const auto call = [&](bool sums, const batchnorm::Stats& saved) {
        p.reset();
        const Options o = p.options(sums ? Op::grad_sums : Op::batch_norm_backward);
        return sums ? core::grad_sums(p.dy.view(), p.x.view(), 1, saved,
                                      {p.stats[2].mut(), p.stats[0].mut(), p.stats[1].mut()}, o)
                    : core::batch_norm_backward(p.dy.view(), p.x.view(), 1, saved, {}, p.out.mut(), {}, {}, o);
    };
    for (const bool sums : {false, true}) {
        context = sums ? "grad_sums" : "batch_norm_backward";
        Status status = call(sums, {p.mean.view(), p.inv_std.view(), p.count.view(), nullptr});
        CHECK_DETAIL(std::string(status.message).find("saved.mask is required with an activation") != std::string::npos,
                     status.message);
        CHECK(p.untouched());
        status = call(sums, {p.mean.view(), p.inv_std.view(), {}, p.mask.data() + Problem::guard});
        CHECK_DETAIL(std::string(status.message).find("saved.count is required") != std::string::npos, status.message);
        CHECK(p.untouched());
    }
}

// A call of embedders: a few numbers by hand. x has 1, 3 and a 100 of weight 0.
void numbers() {
    context = "numbers";
    const float x[] = {1, 3, 100}, residual[] = {0.5f, -2, 0}, weights[] = {1, 1, 0}, dy[] = {1, 1, 1};
    float y[3], dx[3], dresidual[3];
    double mean = 0, inv_std = 0, var = 0, count = 0, dgamma = 0, dbeta = 0;
    std::uint8_t mask = 0xff;
    const batchnorm::View added = batchnorm::view(residual, {3, 1}), weighing = batchnorm::view(weights, {3});
    const batchnorm::MutView to = batchnorm::view(dresidual, {3, 1});
    Options o;
    o.eps = 3;
    o.activation = Activation::leaky_relu;
    o.negative_slope = 0.5;
    o.residual = &added;
    o.weights = &weighing;
    CHECK(core::batch_norm(batchnorm::view(x, {3, 1}), 1, {}, {}, batchnorm::view(y, {3, 1}),
                           {batchnorm::view(&mean, {1}), batchnorm::view(&inv_std, {1}), batchnorm::view(&var, {1}),
                            batchnorm::view(&count, {1}), &mask},
                           o)
              .ok());
    CHECK(mean == 2 && var == 1 && inv_std == 0.5 && count == 2);
    CHECK(y[0] == 0 && y[1] == -0.75 && y[2] == 49);  // leaky(-0.5 + 0.5), leaky(0.5 - 2), 49
    CHECK(mask == 4);
    o.residual = nullptr;
    o.dresidual = &to;
    CHECK(core::batch_norm_backward(
              batchnorm::view(dy, {3, 1}), batchnorm::view(x, {3, 1}), 1,
              {batchnorm::view(&mean, {1}), batchnorm::view(&inv_std, {1}), batchnorm::view(&count, {1}), &mask}, {},
              batchnorm::view(dx, {3, 1}), batchnorm::view(&dgamma, {1}), batchnorm::view(&dbeta, {1}), o)
              .ok());
    CHECK(dresidual[0] == 0.5 && dresidual[1] == 0.5 && dresidual[2] == 1);
    CHECK(dbeta == 2 && dgamma == 49);  // -0.25 + 0.25 + 49
    // 0.5 * (0.5 - 2 / 2 - xhat * 49 / 2) with xhat -0.5 and 0.5; and 0.5 * 1 where the weight is 0.
    CHECK(dx[0] == 5.875 && dx[1] == -6.375 && dx[2] == 0.5);
}

}  // namespace

int main() {
    numbers();
    bits();
    in_place();
    workspaces();
    mask_sizes();
    refused();
    required();
    return report();
}
