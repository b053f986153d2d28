// The throwing API, as C++17.
#include <batchnorm/batchnorm.hpp>

#include "check.hpp"

#include <cmath>
#include <vector>

static_assert(__cplusplus == 201703L);

namespace bn = batchnorm;

namespace {

// Two samples of two channels of two values: means 2 and 10, variances 1 and 4.
const std::vector<float> x = {1, 3, 8, 12, 3, 1, 12, 8};
const std::vector<float> dy = {1, 0, 2, 0, 0, 0, 0, 1};

void results() {
    std::vector<float> y(8), dx(8);
    std::vector<double> mean(2), inv_std(2), var(2), m2(2), sum_dy(2), sum_dy_xmu(2), dgamma(2), dbeta(2);
    double count = 0;
    bn::Options options;
    options.eps = 1e-12;
    const bn::View xs = bn::view(x.data(), {2, 2, 2}), dys = bn::view(dy.data(), {2, 2, 2});
    const bn::MutView ys = bn::view(y.data(), {2, 2, 2}), dxs = bn::view(dx.data(), {2, 2, 2});
    const auto as_input = [](const std::vector<double>& v) { return bn::view(v.data(), {2}); };
    const bn::MutParam dgammas = bn::view(dgamma.data(), {2}), dbetas = bn::view(dbeta.data(), {2});
    const std::vector<float> expected = {-1, 1, -1, 1, 1, -1, 1, -1};

    bn::batch_norm(xs, 1, {}, {}, ys,
                   {bn::view(mean.data(), {2}), bn::view(inv_std.data(), {2}), bn::view(var.data(), {2})}, options);
    CHECK(y == expected);
    CHECK((mean == std::vector<double>{2, 10}));
    CHECK((var == std::vector<double>{1, 4}));

    bn::moments(xs, 1, {bn::view(mean.data(), {2}), bn::view(m2.data(), {2}), bn::view(&count, {})});
    CHECK((m2 == std::vector<double>{4, 16}));
    CHECK(count == 4);
    y.assign(8, 0);
    const double number = count;
    bn::normalize(xs, 1, {as_input(mean), as_input(m2), bn::view(&number, {})}, {}, {}, ys, {}, options);
    CHECK(y == expected);
    y.assign(8, 0);
    bn::batch_norm_inference(xs, 1, as_input(mean), as_input(var), {}, {}, ys, options);
    CHECK(y == expected);

    const bn::Stats saved = {as_input(mean), as_input(inv_std)};
    bn::grad_sums(dys, xs, 1, saved, {{}, bn::view(sum_dy.data(), {2}), bn::view(sum_dy_xmu.data(), {2})});
    CHECK((sum_dy == std::vector<double>{1, 3}));
    CHECK((sum_dy_xmu == std::vector<double>{-1, -6}));
    bn::batch_norm_backward(dys, xs, 1, saved, {}, dxs, dgammas, dbetas, options);
    CHECK(dbeta == sum_dy);
    CHECK(std::fabs(dgamma[0] + 1) < 1e-9 && std::fabs(dgamma[1] + 3) < 1e-9);  // inv_std is 1 - eps / 2
    const std::vector<float> fused = dx;
    dx.assign(8, 0);
    bn::input_grad(dys, xs, 1, saved, {bn::view(&number, {}), as_input(sum_dy), as_input(sum_dy_xmu)}, {}, dxs, dgammas,
                   dbetas, options);
    CHECK(dx == fused);
    bn::batch_norm_inference_backward(dys, xs, 1, as_input(mean), as_input(var), {}, dxs, dgammas, dbetas, options);
    CHECK(dx[0] == 1 && dx[1] == 0 && dx[2] == 1);

    // x is the sum of a constant and its own direction: y does not change.
    bn::batch_norm_jvp(xs, xs, 1, saved, {}, {}, {}, ys, options);
    for (const float value : y) CHECK(std::fabs(value) < 1e-6f);
    std::vector<float> ddy(8);
    bn::batch_norm_double_backward(xs, dys, xs, 1, saved, {}, {}, {}, bn::view(ddy.data(), {2, 2, 2}), dxs, dgammas,
                                   options);
    CHECK(ddy == y);
    CHECK(std::fabs(dgamma[0]) < 1e-9 && std::fabs(dgamma[1]) < 1e-9);

    std::vector<float> running_mean = {0, 0}, running_var = {1, 1};
    bn::update_running(bn::view(running_mean.data(), {2}), bn::view(running_var.data(), {2}), as_input(mean),
                       as_input(var), bn::view(&number, {}), 0.5);
    CHECK((running_mean == std::vector<float>{1, 5}));
    CHECK(std::fabs(running_var[0] - 7.0f / 6) < 1e-6f && std::fabs(running_var[1] - 19.0f / 6) < 1e-6f);

    CHECK(bn::workspace_bytes(bn::Op::batch_norm, xs, 1) > 0);
    bn::set_num_threads(2);
    CHECK(bn::get_num_threads() == 2);
}

// The functions and options that came later: x in two channels, -1 and 1 in each.
void options() {
    const float source[8] = {-1, 1, -1, 1, 1, -1, 1, -1};
    std::vector<float> z(source, source + 8), y(8), dx(8);
    std::vector<double> mean(4), inv_std(4), var(4), count(4), dgamma(2), dbeta(2);
    const bn::View xs = bn::view(source, {2, 2, 2});
    const bn::MutView zs = bn::view(z.data(), {2, 2, 2});
    bn::Options of_groups;
    of_groups.group_size = 1;
    of_groups.activation = bn::Activation::leaky_relu;
    of_groups.eps = 3;  // inv_std = 0.5
    const auto of = [](std::vector<double>& v) { return bn::view(v.data(), {2, 2}); };
    const auto as_input = [](const bn::MutView& v) { return bn::View(v); };
    CHECK(bn::mask_bytes(xs, 1, of_groups) == 1);
    std::uint8_t mask[4] = {0xff, 0xff, 0xff, 0xff};
    bn::batch_norm(xs, 1, {}, {}, bn::view(y.data(), {2, 2, 2}), {of(mean), of(inv_std), of(var), of(count), mask},
                   of_groups);
    CHECK(mask[0] == 0b01011010 && mask[1] == 0xff);
    CHECK(count == std::vector<double>(4, 2.0) && var == std::vector<double>(4, 1.0));
    bn::batch_norm_inplace(zs, 1, {}, {}, {of(mean), of(inv_std), of(var), of(count)}, of_groups);
    CHECK(z == y && y[0] == -0.005f && y[1] == 0.5f);
    bn::batch_norm_backward_from_output(xs, as_input(zs), 1, {as_input(of(mean)), as_input(of(inv_std))}, {}, {},
                                        bn::view(dx.data(), {2, 2, 2}), bn::view(dgamma.data(), {2}),
                                        bn::view(dbeta.data(), {2}), of_groups);
    // dy through leaky_relu is -0.01 and 1 in each of two groups, xhat -0.5 and 0.5.
    CHECK(std::abs(dbeta[0] - 1.98) < 1e-9 && std::abs(dgamma[1] - 1.01) < 1e-6);
}

template <class Exception, class Function>
void check_throws(const std::string& message, const Function& function) {
    try {
        function();
    } catch (const Exception& error) {
        CHECK_DETAIL(std::string(error.what()).find(message) == 0, error.what());
        return;
    }
    CHECK_DETAIL(false, "nothing was thrown: " + message);
}

void exceptions() {
    std::vector<float> y(8);
    const bn::View xs = bn::view(x.data(), {2, 2, 2});
    const bn::MutView ys = bn::view(y.data(), {2, 2, 2});
    using std::invalid_argument;
    check_throws<invalid_argument>("batch_norm: axis 7 is out of range for x of shape (2, 2, 2)",
                                   [&] { bn::batch_norm(xs, 7, {}, {}, ys, {}); });
    check_throws<invalid_argument>("batch_norm_backward: saved.mean is required",
                                   [&] { bn::batch_norm_backward(xs, xs, 1, {}, {}, ys, {}, {}); });
    check_throws<invalid_argument>("batch_norm_inference: mean is required",
                                   [&] { bn::batch_norm_inference(xs, 1, {}, {}, {}, {}, ys); });
    check_throws<invalid_argument>("batch_norm_inference_backward: mean is required",
                                   [&] { bn::batch_norm_inference_backward(xs, xs, 1, {}, {}, {}, ys, {}, {}); });
    check_throws<invalid_argument>("moments: axis 3", [&] { bn::moments(xs, 3, {}); });
    check_throws<invalid_argument>("normalize: mean is required", [&] { bn::normalize(xs, 1, {}, {}, {}, ys, {}); });
    check_throws<invalid_argument>("grad_sums: saved.mean is required", [&] { bn::grad_sums(xs, xs, 1, {}, {}); });
    check_throws<invalid_argument>("input_grad: saved.mean is required",
                                   [&] { bn::input_grad(xs, xs, 1, {}, {}, {}, ys, {}, {}); });
    check_throws<invalid_argument>("workspace_bytes: axis 3", [&] { bn::workspace_bytes(bn::Op::moments, xs, 3); });
    check_throws<invalid_argument>("mask_bytes: axis 3", [&] { bn::mask_bytes(xs, 3); });
    bn::Options relu;
    relu.activation = bn::Activation::relu;
    check_throws<invalid_argument>("batch_norm_inplace: activation relu",
                                   [&] { bn::batch_norm_inplace(ys, 1, {}, {}, {}, relu); });
    check_throws<invalid_argument>("batch_norm_backward_from_output: saved.inv_std is required",
                                   [&] { bn::batch_norm_backward_from_output(xs, xs, 1, {}, {}, {}, ys, {}, {}); });
    check_throws<invalid_argument>("set_num_threads: threads must be", [] { bn::set_num_threads(-1); });
    CHECK(y == std::vector<float>(8));

    bn::Status status;
    for (const bn::Code code : {bn::Code::unavailable, bn::Code::device_error}) {
        status.code = code;
        check_throws<std::runtime_error>("", [&] { bn::check(status); });
    }
    status.code = bn::Code::out_of_memory;
    check_throws<std::bad_alloc>("", [&] { bn::check(status); });
}

}  // namespace

int main() {
    results();
    options();
    exceptions();
    return report();
}
