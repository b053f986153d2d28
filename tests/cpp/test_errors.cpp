// Bad input is refused by name, and nothing is written then.
#include "calls.hpp"
#include "check.hpp"

#include <cmath>
#include <functional>
#include <limits>

namespace {

using batchnorm::Code;
using batchnorm::MutView;
using batchnorm::Status;
using batchnorm::View;
using batchnorm::view;

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

// Which functions have an argument.
bool any(Op) { return true; }
bool has_dy(Op op) {
    return op == Op::batch_norm_backward || op == Op::batch_norm_inference_backward || op == Op::grad_sums ||
           op == Op::input_grad || op == Op::batch_norm_double_backward;
}
bool is_jvp(Op op) { return op == Op::batch_norm_jvp; }
bool has_ddx(Op op) { return op == Op::batch_norm_double_backward; }
bool has_directions(Op op) { return is_jvp(op) || has_ddx(op); }
bool has_out(Op op) { return op != Op::moments && op != Op::grad_sums && !has_ddx(op); }
bool has_gamma(Op op) { return has_out(op) || has_ddx(op); }
bool has_beta(Op op) { return op == Op::batch_norm || op == Op::batch_norm_inference || op == Op::normalize; }
bool has_mean(Op op) { return op != Op::batch_norm && op != Op::moments; }
bool has_inv_std(Op op) { return op == Op::batch_norm_backward || op == Op::input_grad || has_directions(op); }
bool has_var(Op op) { return op == Op::batch_norm_inference || op == Op::batch_norm_inference_backward; }
bool has_m2(Op op) { return op == Op::normalize; }
bool has_count(Op op) { return op == Op::normalize || op == Op::input_grad; }
bool has_sums(Op op) { return op == Op::input_grad; }
bool has_eps(Op op) { return has_var(op) || op == Op::batch_norm || op == Op::normalize; }
bool has_results(Op op) { return op != Op::batch_norm_inference && !is_jvp(op); }
bool has_several_results(Op op) { return has_results(op) && !has_ddx(op); }
bool trains(Op op) { return op == Op::batch_norm || op == Op::batch_norm_backward || has_directions(op); }

const char* first_result(Op op) {
    if (op == Op::batch_norm || op == Op::normalize || op == Op::moments) return "mean";
    return op == Op::grad_sums ? "sum_dy" : "dgamma";
}

struct BadInput {
    const char* argument;  // as the message names it
    bool (*has)(Op);
    std::function<void(Call&)> spoil;
    const char* also = "";  // what else the message must say
    Code code = Code::invalid_value;
};

char some_bytes[64];
const double some_doubles[] = {-2, 0, 1, 1, 1, 1};
const View some_view = view(some_doubles, {6});
const MutView some_target{};

View with_data(View v, const void* data) {
    v.data = data;
    return v;
}
View of_shape(View v, std::initializer_list<int64_t> shape) {
    v.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), v.shape);
    return v;
}
template <class AnyView>
AnyView of_type(AnyView v, DType dtype) {
    v.dtype = dtype;
    return v;
}
template <class AnyView>
AnyView of_rank(AnyView v, int rank) {
    v.rank = rank;
    return v;
}

// x has shape (4, 3, 5) and axis 1 is kept.
const std::vector<BadInput> bad_inputs = {
    {"axis 3", any, [](Call& c) { c.axes = 3; }, "(4, 3, 5)"},
    {"axis -4", any, [](Call& c) { c.axes = -4; }, "(4, 3, 5)"},
    {"axis 1 is repeated", any, [](Call& c) { c.axes = {1, 1}; }},
    {"axis -2 is repeated", any, [](Call& c) { c.axes = {1, -2}; }},
    {"axis", any, [](Call& c) { c.axes = {0, 1, 2, 0, 1, 2, 0, 1, 2, 0}; }, "repeated"},

    {"x has 9 axes", any, [](Call& c) { c.x.rank = 9; }, "at most 8"},
    {"x has -1 axes", any, [](Call& c) { c.x.rank = -1; }},
    {"x has no data", any, [](Call& c) { c.x.data = nullptr; }},
    {"x has the unknown type 7", any, [](Call& c) { c.x.dtype = static_cast<DType>(7); }, "f32, f64, f16 or bf16",
     Code::invalid_type},
    {"x has the impossible shape (4, -3, 5)", any, [](Call& c) { c.x.shape[1] = -3; }},
    {"x has the impossible shape", any, [](Call& c) { c.x.shape[0] = c.x.shape[2] = int64_t{1} << 32; }},
    {"x of shape (1, 3, 1)", trains,
     [](Call& c) {
         for (int64_t* shape : {c.x.shape, c.dy.shape, c.ddx.shape, c.out.shape, c.ddy.shape}) shape[0] = shape[2] = 1;
     },
     "variance"},
    {"x of shape (4, 3, 5)", trains,
     [](Call& c) {
         c.axes = {0, 1, 2};
         c.gamma.rank = c.beta.rank = c.mean.rank = c.inv_std.rank = c.tgamma.rank = c.tbeta.rank = 0;
     },
     "at least 2"},

    {"dy is float64", has_dy, [](Call& c) { c.dy.dtype = DType::f64; }, "float32", Code::invalid_type},
    {"dy is float16", has_dy, [](Call& c) { c.dy.dtype = DType::f16; }, "float32", Code::invalid_type},
    {"dy has shape (4, 3, 4)", has_dy, [](Call& c) { c.dy.shape[2] = 4; }, "(4, 3, 5)"},
    {"dy has shape (4, 3)", has_dy, [](Call& c) { c.dy.rank = 2; }, "(4, 3, 5)"},
    {"dy has 9 axes", has_dy, [](Call& c) { c.dy.rank = 9; }},
    {"dy has no data", has_dy, [](Call& c) { c.dy.data = nullptr; }},

    {"tx is float64", is_jvp, [](Call& c) { c.dy.dtype = DType::f64; }, "float32", Code::invalid_type},
    {"tx has shape (4, 3, 4)", is_jvp, [](Call& c) { c.dy.shape[2] = 4; }, "(4, 3, 5)"},
    {"tx has no data", is_jvp, [](Call& c) { c.dy.data = nullptr; }},
    {"ddx is float64", has_ddx, [](Call& c) { c.ddx.dtype = DType::f64; }, "float32", Code::invalid_type},
    {"ddx has shape (4, 3, 4)", has_ddx, [](Call& c) { c.ddx.shape[2] = 4; }, "(4, 3, 5)"},
    {"ddx has 9 axes", has_ddx, [](Call& c) { c.ddx.rank = 9; }},
    {"ddx has no data", has_ddx, [](Call& c) { c.ddx.data = nullptr; }},
    {"tgamma has shape (4,)", is_jvp, [](Call& c) { c.tgamma = of_shape(c.tgamma, {4}); }, "(3,)"},
    {"tbeta has shape (4,)", is_jvp, [](Call& c) { c.tbeta = of_shape(c.tbeta, {4}); }, "(3,)"},
    {"ddgamma has shape (4,)", has_ddx, [](Call& c) { c.tgamma = of_shape(c.tgamma, {4}); }, "(3,)"},
    {"ddbeta has shape (4,)", has_ddx, [](Call& c) { c.tbeta = of_shape(c.tbeta, {4}); }, "(3,)"},
    {"dx is float64", has_ddx, [](Call& c) { c.out.dtype = DType::f64; }, "float32", Code::invalid_type},
    {"dx has shape (4, 4, 5)", has_ddx, [](Call& c) { c.out.shape[1] = 4; }, "(4, 3, 5)"},
    {"ddy has shape (4, 4, 5)", has_ddx, [](Call& c) { c.ddy.shape[1] = 4; }, "(4, 3, 5)"},
    {"ddy has no data", has_ddx, [](Call& c) { c.ddy.data = nullptr; }},
    {"dx has elements that share memory", has_ddx, [](Call& c) { c.out.stride[0] = 0; }, "0 stride"},
    {"ddy has elements that share memory", has_ddx, [](Call& c) { c.ddy.stride[2] = 2; }},
    {"the outputs ddy and dx overlap", has_ddx, [](Call& c) { c.ddy = c.out; }},
    {"the outputs dx and dgamma overlap", has_ddx,
     [](Call& c) { c.result[0].data = static_cast<char*>(c.out.data) + 8; }},
    {"dx overlaps ddgamma", has_ddx, [](Call& c) { c.tgamma = view(static_cast<const float*>(c.out.data) + 1, {3}); }},
    {"ddy overlaps saved.mean", has_ddx,
     [](Call& c) { c.mean = view(static_cast<const float*>(c.ddy.data) + 1, {3}); }},
    {"dgamma overlaps gamma", has_ddx, [](Call& c) { c.gamma = c.result[0]; }, "still needed"},
    {"weights is not taken", has_directions, [](Call& c) { c.options.weights = &some_view; }},
    {"activation is not taken", has_directions, [](Call& c) { c.options.activation = batchnorm::Activation::relu; }},
    {"residual is not taken", has_directions, [](Call& c) { c.options.residual = &some_view; }},
    {"dresidual is not taken", has_directions, [](Call& c) { c.options.dresidual = &some_target; }},
    {"activation_output is not taken", has_directions, [](Call& c) { c.options.activation_output = &some_view; }},

    {"out is float64", has_out, [](Call& c) { c.out.dtype = DType::f64; }, "float32", Code::invalid_type},
    {"out is bfloat16", has_out, [](Call& c) { c.out.dtype = DType::bf16; }, "float32", Code::invalid_type},
    {"out has shape (4, 4, 5)", has_out, [](Call& c) { c.out.shape[1] = 4; }, "(4, 3, 5)"},
    {"out has -2 axes", has_out, [](Call& c) { c.out.rank = -2; }},
    {"out has no data", has_out, [](Call& c) { c.out.data = nullptr; }},
    {"out has elements that share memory", has_out, [](Call& c) { c.out.stride[0] = 0; }, "0 stride"},
    {"out has elements that share memory", has_out, [](Call& c) { c.out.stride[2] = 2; }},
    {"out has elements that share memory", has_out, [](Call& c) { c.out.stride[0] = c.out.stride[1]; }},

    {"mean overlaps gamma", [](Op op) { return op == Op::batch_norm || op == Op::normalize; },
     [](Call& c) { c.gamma = view(static_cast<const float*>(c.result[0].data) + 1, {3}); }},

    {"gamma has shape (4,)", has_gamma, [](Call& c) { c.gamma = of_shape(c.gamma, {4}); }, "(3,)"},
    {"gamma has shape (1, 3, 1)", has_gamma, [](Call& c) { c.gamma = of_shape(c.gamma, {1, 3, 1}); }, "(3,)"},
    {"gamma has no data", has_gamma, [](Call& c) { c.gamma.data = nullptr; }},
    {"gamma has 9 axes", has_gamma, [](Call& c) { c.gamma.rank = 9; }},
    {"beta has shape (2,)", has_beta, [](Call& c) { c.beta = of_shape(c.beta, {2}); }, "(3,)"},
    {"beta has no data", has_beta, [](Call& c) { c.beta.data = nullptr; }},
    {"mean has shape (5,)", has_mean, [](Call& c) { c.mean = of_shape(c.mean, {5}); }, "(3,)"},
    {"mean is required", has_mean, [](Call& c) { c.mean = {}; }},
    {"inv_std is required", has_inv_std, [](Call& c) { c.inv_std = {}; }},
    {"inv_std has shape (3, 3)", has_inv_std, [](Call& c) { c.inv_std = of_shape(c.inv_std, {3, 3}); }, "(3,)"},
    {"var is required", has_var, [](Call& c) { c.var = {}; }},
    {"var has shape (2,)", has_var, [](Call& c) { c.var = of_shape(c.var, {2}); }, "(3,)"},
    {"var must not be negative", has_var, [](Call& c) { c.var = with_data(c.var, some_doubles); }, "-2"},
    {"m2 is required", has_m2, [](Call& c) { c.m2 = {}; }},
    {"m2 must not be negative", has_m2, [](Call& c) { c.m2 = with_data(c.m2, some_doubles); }, "-2"},
    {"count is required", has_count, [](Call& c) { c.count = {}; }},
    {"count must be positive", has_count, [](Call& c) { c.count.data = some_doubles; }, "-2"},
    {"count must be positive", has_count, [](Call& c) { c.count.data = some_doubles + 1; }, "0"},
    {"count has shape (4,)", has_count, [](Call& c) { c.count = view(some_doubles + 2, {4}); }, "(3,)"},
    {"sum_dy is required", has_sums, [](Call& c) { c.sum_dy = {}; }},
    {"sum_dy_xmu is required", has_sums, [](Call& c) { c.sum_dy_xmu = {}; }},
    {"sum_dy has shape (4,)", has_sums, [](Call& c) { c.sum_dy = of_shape(c.sum_dy, {4}); }, "(3,)"},

    {"eps", has_eps, [](Call& c) { c.options.eps = 0; }, "0"},
    {"eps", has_eps, [](Call& c) { c.options.eps = -1e-5; }, "-1e-05"},
    {"eps", has_eps, [](Call& c) { c.options.eps = not_a_number; }, "nan"},
    {"eps", has_eps, [](Call& c) { c.options.eps = infinity; }, "inf"},
    {"threads", any, [](Call& c) { c.options.threads = -1; }, "-1"},
    {"threads", any, [](Call& c) { c.options.threads = batchnorm::max_threads + 1; }, "from 1 to 4096"},
    {"executor.threads", any,
     [](Call& c) {
         c.options.executor.run = [](void*, int, void (*)(void*, int), void*) {};
         c.options.executor.threads = 0;
     },
     "0"},
    {"workspace has 64 bytes", any, [](Call& c) { c.options.workspace = {some_bytes, 64}; }, "expected at least"},
};

Example example() {
    Setup setup{{4, 3, 5}, {1}};
    return Example(setup);
}

void check_refused(Op op, const Example& e, const Status& status, Code code, const std::string& argument,
                   const std::string& also = "") {
    const std::string message = status.message;
    context = std::string(name(op)) + ": " + argument;
    CHECK_DETAIL(status.code == code, message);
    CHECK_DETAIL(message.rfind(std::string(name(op)) + ": ", 0) == 0, message);
    CHECK_DETAIL(message.find(argument) != std::string::npos, message);
    CHECK_DETAIL(message.find(also) != std::string::npos, message);
    CHECK(e.untouched());
}

// Without a fault nothing is refused: the checks below are about the fault.
void good_input_is_accepted() {
    for (const Op op : all_ops) {
        Example e = example();
        context = name(op);
        const Status status = run(op, e.call());
        CHECK_DETAIL(status.ok(), status.message);
        CHECK(status.message[0] == '\0');
        CHECK(!e.untouched());
    }
}

void bad_arguments() {
    for (const BadInput& bad : bad_inputs)
        for (const Op op : all_ops) {
            if (!bad.has(op)) continue;
            Example e = example();
            Call call = e.call();
            bad.spoil(call);
            check_refused(op, e, run(op, call), bad.code, bad.argument, bad.also);
        }
}

void bad_results() {
    for (const Op op : all_ops) {
        if (!has_results(op)) continue;
        const std::string result = first_result(op);
        Example e = example();
        const auto check = [&](const std::function<void(batchnorm::MutParam&)>& spoil, const std::string& fault) {
            Call call = e.call();
            spoil(call.result[0]);
            check_refused(op, e, run(op, call), Code::invalid_value, result + fault);
        };
        check([](auto& r) { r.shape[0] = 4; }, " has shape (4,), expected (3,)");
        check([](auto& r) { r.rank = 0; }, " is a scalar");
        check([](auto& r) { r.data = nullptr; }, " has no data");
        check([](auto& r) { r.stride[0] = 0; }, " has elements that share memory");
        check([&](auto& r) { r.data = const_cast<void*>(e.x.view().data); }, " overlaps x");
    }
}

// A result may be left out, and a count be one for all.
void absent_results_are_not_written() {
    for (const Op op : all_ops) {
        Example e = example();
        Call call = e.call();
        call.result[0] = call.result[1] = call.result[2] = {};
        context = name(op);
        CHECK(run(op, call).ok());
        for (const Tensor& result : e.result) CHECK(result.untouched());
        double count = 0;
        call.result[2] = batchnorm::view(&count, {});
        if (op != Op::moments && op != Op::grad_sums) continue;
        CHECK(run(op, call).ok());
        CHECK(count == 20);
    }
}

// One buffer for an input and out, shifted against each other or interleaved.
void overlaps() {
    const Example e = example();
    const auto at = [](MutView v, void* data, int64_t item_stride) {
        v.data = data;
        for (int d = 0; d < v.rank; ++d) v.stride[d] *= item_stride;
        return v;
    };
    const auto as_view = [](const MutView& v) {
        View w = of_rank(of_type(View{}, v.dtype), v.rank);
        w.data = v.data;
        std::copy(v.shape, v.shape + v.rank, w.shape);
        std::copy(v.stride, v.stride + v.rank, w.stride);
        return w;
    };
    for (const Op op : all_ops) {
        if (!has_out(op)) continue;
        for (const bool with_dy : {false, true}) {
            if (with_dy && !has_dy(op)) continue;
            const Values values = (with_dy ? e.dy : e.x).values();
            // Places of two arrays of 60 floats in a buffer: the distance of their first elements and the stride of
            // both, in floats.
            const auto check = [&](int64_t distance, int64_t stride, bool accepted) {
                Example one = example();
                Call call = one.call();
                CHECK(run(op, call).ok());
                const std::vector<unsigned char> expected = one.out.bytes();

                std::vector<float> buffer(400, 77.0f), before;
                const MutView input = at(call.out, &buffer[100], stride);
                const MutView out = at(call.out, &buffer[100] + distance, stride);
                for (std::size_t i = 0; i < values.size(); ++i)
                    buffer[100 + i * static_cast<std::size_t>(stride)] = static_cast<float>(values[i]);
                before = buffer;
                (with_dy ? call.dy : call.x) = as_view(input);
                call.out = out;
                const Status status = run(op, call);
                context = std::string(name(op)) + (with_dy ? " dy" : " x") + " at distance " +
                          std::to_string(distance) + " stride " + std::to_string(stride);
                CHECK_DETAIL(status.ok() == accepted, status.message);
                if (!accepted) {
                    check_refused(op, Example(one.setup), status, Code::invalid_value,
                                  with_dy ? "out overlaps dy" : "out overlaps x");
                    CHECK(buffer == before);
                    return;
                }
                bool same = true;
                for (std::size_t i = 0; i < values.size(); ++i)
                    same &= std::memcmp(&buffer[100 + i * static_cast<std::size_t>(stride)] + distance,
                                        &expected[i * 4], 4) == 0;
                CHECK(same);
            };
            check(0, 1, true);  // in place
            check(0, 2, true);
            check(1, 2, true);  // x[::2] and x[1::2]
            check(-1, 2, true);
            check(60, 1, true);  // one after the other
            check(-60, 1, true);
            check(1, 1, false);
            check(-1, 1, false);
            check(59, 1, false);
            check(-59, 1, false);
            check(2, 2, false);
        }
    }
}

// Columns of one matrix: ranges of memory that overlap, elements that do not.
void neighbouring_columns_are_apart() {
    std::vector<float> matrix(10 * 8);
    for (std::size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<float>(i * i % 17);
    View x = view(static_cast<const float*>(matrix.data()), {10, 4});
    MutView out = view(matrix.data() + 4, {10, 4});
    x.stride[0] = out.stride[0] = 32;
    context = "columns";
    CHECK(core::batch_norm(x, 1, {}, {}, out, {}).ok());
    out.data = matrix.data() + 3;
    const std::vector<float> before = matrix;
    CHECK(core::batch_norm(x, 1, {}, {}, out, {}).code == Code::invalid_value);
    CHECK(matrix == before);
}

// out as the scale that is being read.
void parameters_overlapping_out() {
    for (const auto& [argument, has] :
         std::vector<std::pair<std::string, bool (*)(Op)>>{{"gamma", has_gamma}, {"beta", has_beta}})
        for (const Op op : all_ops) {
            if (!has(op) || !has_out(op)) continue;
            Example e = example();
            Call call = e.call();
            batchnorm::Param& param = argument == "gamma" ? call.gamma : call.beta;
            param = view(static_cast<const float*>(call.out.data) + 1, {3});
            check_refused(op, e, run(op, call), Code::invalid_value, "out overlaps " + argument);
        }
}

// Two results in one place.
void outputs_overlapping_each_other() {
    for (const Op op : all_ops) {
        if (!has_several_results(op)) continue;
        Example e = example();
        Call call = e.call();
        call.result[1] = call.result[0];
        check_refused(op, e, run(op, call), Code::invalid_value, std::string("the outputs ") + first_result(op));
    }
}

// An empty batch: nothing to normalize, but results to fill.
void empty_arrays() {
    for (const DType dtype : all_dtypes)
        for (const Shape& shape : {Shape{0, 3, 5}, {4, 3, 0}, {4, 0, 5}})
            for (const Op op : all_ops) {
                Example e({shape, {1}, dtype});
                context = std::string(name(op)) + " of " + text(shape);
                Call call = e.call();
                e.count.set(0, 4);
                call.x.data = call.dy.data = call.ddx.data = nullptr;
                call.out.data = call.ddy.data = nullptr;
                const Status status = run(op, call);
                CHECK_DETAIL(status.ok(), status.message);
                std::size_t bytes = 1;
                CHECK(core::workspace_bytes(op, call.x, call.axes, call.options, bytes).ok());
                if (op == Op::batch_norm_backward || op == Op::batch_norm_inference_backward || op == Op::moments)
                    for (std::size_t k = 0; k < e.result[0].size(); ++k) {
                        CHECK(e.result[0].get(k) == 0);
                        CHECK(e.result[1].get(k) == 0);
                    }
                for (std::size_t k = 0; k < e.result[0].size() && has_ddx(op); ++k) CHECK(e.result[0].get(k) == 0);
            }
}

void settings() {
    context = "settings";
    CHECK(core::set_num_threads(3).ok());
    CHECK(batchnorm::get_num_threads() == 3);
    const Status status = core::set_num_threads(0);
    CHECK(status.code == Code::invalid_value);
    CHECK(std::string(status.message).find("set_num_threads: threads must be from 1 to 4096") == 0);
    CHECK(batchnorm::get_num_threads() == 3);
    CHECK(std::string(batchnorm::version()).find('.') != std::string::npos);

    std::size_t bytes = 1;
    const Status refused = core::workspace_bytes(Op::moments, view(some_doubles, {2, 2}), 5, {}, bytes);
    CHECK(refused.code == Code::invalid_value);
    CHECK(std::string(refused.message).find("workspace_bytes: axis 5") == 0);
}

// An array that is one number repeated can claim any size, one whose size in bytes overflows too.
void impossible_sizes() {
    const float number = 1;
    View x = view(&number, {2, 1});
    x.shape[1] = int64_t{1} << 61;
    x.stride[0] = x.stride[1] = 0;
    context = "impossible size";
    const Status status = core::moments(x, 1, {});
    CHECK(status.code == Code::invalid_value);
    CHECK(std::string(status.message).find("moments: x has the impossible shape (2, 2305843009213693952)") == 0);
}

// Outputs of the double backward over its inputs: what is read last must not be written first.
void double_backward_in_place() {
    const Op op = Op::batch_norm_double_backward;
    Example expected = example();
    context = "expected";
    CHECK(run(op, expected.call()).ok());
    const int inputs = 3, none = inputs;
    for (int ddy = 0; ddy <= none; ++ddy)
        for (int dx = 0; dx <= none; ++dx) {
            if (ddy == dx && dx != none) continue;  // refused: the outputs overlap
            Example e = example();
            Tensor* const input[] = {&e.x, &e.dy, &e.ddx, nullptr};
            Call call = e.call();
            if (ddy != none) call.ddy = input[ddy]->mut();
            if (dx != none) call.out = input[dx]->mut();
            const Tensor& to_dy = ddy == none ? e.ddy : *input[ddy];
            const Tensor& to_x = dx == none ? e.out : *input[dx];
            context = "ddy over " + std::to_string(ddy) + ", dx over " + std::to_string(dx);
            const std::vector<unsigned char> before[] = {e.x.bytes(), e.dy.bytes(), e.ddx.bytes()};
            const Status status = run(op, call);
            const bool possible = ddy == none || dx == none || dx == 1;
            CHECK_DETAIL(status.ok() == possible, status.message);
            if (possible) {
                CHECK(to_dy.values() == expected.ddy.values());
                CHECK(to_x.values() == expected.out.values());
            } else {
                const std::string message = status.message;
                CHECK_DETAIL(message.find("ddy overlaps ") != std::string::npos, message);
                CHECK_DETAIL(message.find("still needed for dx") != std::string::npos, message);
                CHECK(e.untouched());
                for (int i = 0; i < inputs; ++i) CHECK(input[i]->bytes() == before[i]);
            }
        }
}

// A count of values is forward's own, also where its type has rounded it.
void counts_of_all_types() {
    for (const DType dtype : all_dtypes) {
        context = std::string("count of ") + name(dtype);
        Example e(Setup{{2049, 2}, {1}});
        Call call = e.call();
        Tensor count(dtype, {});
        count.set(0, 2049);
        call.count = count.view();
        CHECK(run(Op::batch_norm_backward, call).ok());
        count.set(0, 1024);
        const batchnorm::Status status = run(Op::batch_norm_backward, call);
        CHECK_DETAIL(status.code == Code::invalid_value, status.message);
        CHECK_DETAIL(std::string(status.message).find("saved.count is 1024, but x of shape (2049, 2) has 2049") !=
                         std::string::npos,
                     status.message);
    }
}

}  // namespace

int main() {
    counts_of_all_types();
    double_backward_in_place();
    good_input_is_accepted();
    bad_arguments();
    bad_results();
    absent_results_are_not_written();
    overlaps();
    neighbouring_columns_are_apart();
    parameters_overlapping_out();
    outputs_overlapping_each_other();
    empty_arrays();
    settings();
    impossible_sizes();
    return report();
}
