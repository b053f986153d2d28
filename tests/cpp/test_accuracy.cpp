// Numbers that cost accuracy elsewhere: large means, constant channels, huge and tiny values, NaN; and inputs for which
// every step is exact, so that nothing may be off at all.
#include "calls.hpp"
#include "check.hpp"

#include <limits>

namespace {

// Channels-first and channels-last, with tails, of one chunk and of more.
constexpr int first = 1, last = -1;
const std::vector<std::pair<Shape, int>> shapes = {
    {{4, 3, 37}, first}, {{4, 37, 3}, last}, {{6, 21}, last}, {{1, 2, 33000}, first}, {{300, 130}, last}};

double largest(const Values& values) {
    double most = 0;
    for (const double value : values) most = std::max(most, std::fabs(value));
    return most;
}

// The largest error, in bounds; NaN if there is one.
double worst(const Tensor& got, const reference::Expected& expected) {
    double most = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        const double error = std::fabs(got.get(i) - expected.value[i]) / expected.bound[i];
        if (!(error <= most)) most = error;
    }
    return most;
}

// Every element within its bound, and for float32 within the design's 5e-7 of the largest. The bounds in terms of the
// terms are 2^-24 * 4 |(x - mean) * scale| + 2 |beta| = 2.4e-7 and 1.2e-7 for y, and for dx 2.4e-7 of its first term
// and 4.2e-7 of its second, which is smaller.
void check_tensor(const Tensor& got, reference::Expected expected) {
    CHECK_DETAIL(worst(got, expected) <= 1, std::to_string(worst(got, expected)) + " bounds");
    if (got.dtype() == DType::f64) return;
    expected.bound.assign(got.size(), 5e-7 * largest(expected.value));
    CHECK_DETAIL(worst(got, expected) <= 1, std::to_string(worst(got, expected)) + " times 5e-7");
}

// Forward and backward, and the statistics within the design's limits.
void check_accuracy(Example& e) {
    Call call = e.call();
    const Values x = e.x.values(), dy = e.dy.values(), gamma = e.gamma.values();
    const reference::Statistics& s = e.statistics;
    const double u = reference::unit_roundoff(e.setup.dtype);

    CHECK(run(Op::batch_norm, call).ok());
    check_tensor(e.out, reference::normalize(e.problem, x, s, gamma, e.beta.values(), u));
    for (std::size_t k = 0; k < e.problem.statistics; ++k) {
        const double mean = s.mean.value[k], std = std::sqrt(s.var.value[k]);
        CHECK(std::fabs(e.result[0].get(k) - mean) <= 1e-7 * std::max(std::fabs(mean), std));
        CHECK(std::fabs(e.result[0].get(k) - mean) <= s.mean.bound[k]);
        CHECK(std::fabs(e.result[1].get(k) - s.inv_std.value[k]) <= 1e-6 * s.inv_std.value[k]);
    }

    CHECK(run(Op::batch_norm_backward, call).ok());
    check_tensor(e.out, reference::input_grad(e.problem, dy, x, s.mean.value, s.inv_std.value, e.sums, gamma, u));
    reference::GradSums terms(e.problem.statistics);  // sum|dy| and sum|dy * xhat|
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t k = e.problem.statistic[i];
        terms.dy.value[k] += std::fabs(dy[i]);
        terms.dy_xmu.value[k] += std::fabs(dy[i] * (x[i] - s.mean.value[k])) * s.inv_std.value[k];
    }
    for (std::size_t k = 0; k < e.problem.statistics; ++k) {
        const double dgamma = e.sums.dy_xmu.value[k] * s.inv_std.value[k];
        CHECK(std::fabs(e.result[0].get(k) - dgamma) <= 1e-7 * terms.dy_xmu.value[k]);
        CHECK(std::fabs(e.result[1].get(k) - e.sums.dy.value[k]) <= 1e-7 * terms.dy.value[k]);
    }
}

void large_means_and_values() {
    for (const auto& [shape, axis] : shapes)
        for (const DType dtype : {DType::f32, DType::f64})
            for (const auto& [scale, shift] : std::vector<std::pair<double, double>>{
                     {1, 0}, {1, 1e6}, {1, -1e6}, {1e-3, 1e3}, {1e30, 0}, {1e30, 3e30}, {1e24, 1e30}, {1e-20, 1e-20}}) {
                Setup setup{shape, {axis}, dtype};
                setup.x_scale = std::sqrt(3.0) * scale;  // a uniform distribution of this standard deviation
                setup.x_shift = shift;
                Example e(setup);
                context = text(setup) + " scale " + std::to_string(scale) + " shift " + std::to_string(shift);
                check_accuracy(e);
            }
}

// Their variance is 0 and y is beta, to the bit.
void constant_channels() {
    for (const auto& [shape, axis] : shapes)
        for (const DType dtype : {DType::f32, DType::f64})
            for (const double value : {0.0, 0.1, -1e6 / 3, 1e30, 1e-40}) {
                Setup setup{shape, {axis}, dtype};
                setup.gamma = DType::f32;
                Example e(setup);
                context = text(setup) + " constant " + std::to_string(value);
                for (std::size_t i = 0; i < e.x.size(); ++i) e.x.set(i, value);
                const double mean = e.x.get(0);
                Call call = e.call();
                CHECK(run(Op::batch_norm, call).ok());
                bool exact = true;
                for (std::size_t i = 0; i < e.x.size(); ++i)
                    exact &= e.out.get(i) == e.beta.get(e.problem.statistic[i]);
                CHECK(exact);
                for (std::size_t k = 0; k < e.problem.statistics; ++k) {
                    CHECK(e.result[0].get(k) == mean);
                    CHECK(e.result[1].get(k) == 1 / std::sqrt(1e-5));
                    CHECK(e.result[2].get(k) == 0);
                }
            }
}

// Subnormal inputs are numbers like others: nothing flushes them.
void subnormal_values() {
    for (const auto& [shape, axis] : shapes) {
        Setup setup{shape, {axis}};
        setup.x_scale = 1e-40;
        Example e(setup);
        context = text(setup) + " subnormal";
        Call call = e.call();
        call.gamma = call.beta = {};
        const reference::Statistics& s = e.statistics;
        CHECK(run(Op::moments, call).ok());
        for (std::size_t k = 0; k < e.problem.statistics; ++k) {
            CHECK(std::fabs(e.result[0].get(k) - s.mean.value[k]) <= s.mean.bound[k]);
            CHECK(std::fabs(e.result[1].get(k) - s.m2.value[k]) <= s.m2.bound[k]);
            CHECK(s.m2.value[k] > 0);
        }
        // y is x * 316, around the smallest normal number.
        CHECK(run(Op::batch_norm, call).ok());
        const Values one(e.problem.statistics, 1), zero(e.problem.statistics);
        CHECK(worst(e.out, reference::normalize(e.problem, e.x.values(), s, one, zero,
                                                reference::unit_roundoff(DType::f32))) <= 1);
        CHECK(largest(e.out.values()) > 1e-38);
    }
}

// One NaN or infinity spoils its own channel and no other.
void not_a_number() {
    for (const auto& [shape, axis] : shapes)
        for (const DType dtype : {DType::f32, DType::f64})
            for (const double value :
                 {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
                for (const std::size_t at : {std::size_t{0}, std::size_t{1}, std::size_t{40}, std::size_t{100}}) {
                    Example clean({shape, {axis}, dtype}), spoilt({shape, {axis}, dtype});
                    context = text(clean.setup) + " not finite at " + std::to_string(at);
                    spoilt.x.set(at, value);
                    spoilt.dy.set(at, value);
                    const std::size_t channel = clean.problem.statistic[at];
                    for (const Op op : {Op::batch_norm, Op::batch_norm_backward, Op::batch_norm_inference_backward}) {
                        Call call = spoilt.call();
                        CHECK(run(op, clean.call()).ok());
                        CHECK(run(op, call).ok());
                        bool others_same = true;
                        for (std::size_t i = 0; i < clean.x.size(); ++i)
                            others_same &=
                                clean.problem.statistic[i] == channel || clean.out.get(i) == spoilt.out.get(i);
                        CHECK_DETAIL(others_same, name(op));
                        for (int k = 0; k < 2; ++k) {
                            bool same = true;
                            for (std::size_t c = 0; c < clean.problem.statistics; ++c)
                                same &= c == channel || clean.result[k].get(c) == spoilt.result[k].get(c);
                            CHECK_DETAIL(same, name(op));
                        }
                        CHECK_DETAIL(!std::isfinite(spoilt.out.get(at)), name(op));
                    }
                    const Call call = spoilt.call();
                    CHECK(run(Op::batch_norm, call).ok());
                    CHECK(std::isnan(spoilt.result[2].get(channel)));  // the variance, never silently a number
                }
}

// x is m - 3 or m + 3 in equal parts, so that the variance is 9 and with eps = 7 inv_std is 1/4; gamma, beta and dy are
// small integers and M a power of two. No step rounds, in any order of summation, and the results are exact.
void exact_integers() {
    for (const auto& [shape, axis] : std::vector<std::pair<Shape, int>>{{{4, 5, 16}, first},
                                                                        {{64, 5}, last},
                                                                        {{8, 33, 4}, first},
                                                                        {{8, 4, 33}, last},
                                                                        {{512, 70}, last},
                                                                        {{4, 1, 16384}, first},
                                                                        {{32768, 2}, last}})
        for (const DType dtype : {DType::f32, DType::f64})
            for (const double m : {0.0, 5.0, -1048576.0}) {
                Setup setup{shape, {axis}, dtype};
                Example e(setup);
                context = text(setup) + " exact, mean " + std::to_string(m);
                Random random(5);
                std::vector<std::size_t> seen(e.problem.statistics);
                for (std::size_t i = 0; i < e.x.size(); ++i) {
                    e.x.set(i, m + (seen[e.problem.statistic[i]]++ % 2 ? 3 : -3));
                    e.dy.set(i, static_cast<double>(random.integer(-4, 4)));
                }
                for (std::size_t k = 0; k < e.problem.statistics; ++k) {
                    e.gamma.set(k, static_cast<double>(random.integer(-3, 3)));
                    e.beta.set(k, static_cast<double>(random.integer(-3, 3)));
                }
                const Values x = e.x.values(), dy = e.dy.values(), gamma = e.gamma.values(), beta = e.beta.values();
                const reference::GradSums sums =
                    reference::grad_sums(e.problem, dy, x, Values(e.problem.statistics, m));
                Call call = e.call();
                call.options.eps = 7;
                call.mean = e.mean.fill(Values(e.problem.statistics, m)).view();
                call.inv_std = e.inv_std.fill(Values(e.problem.statistics, 0.25)).view();

                CHECK(run(Op::batch_norm, call).ok());
                bool exact = true;
                for (std::size_t i = 0; i < x.size(); ++i) {
                    const std::size_t k = e.problem.statistic[i];
                    exact &= e.out.get(i) == (x[i] - m) / 4 * gamma[k] + beta[k];
                }
                CHECK(exact);
                for (std::size_t k = 0; k < e.problem.statistics; ++k) {
                    CHECK(e.result[0].get(k) == m);
                    CHECK(e.result[1].get(k) == 0.25);
                    CHECK(e.result[2].get(k) == 9);
                }

                CHECK(run(Op::batch_norm_backward, call).ok());
                exact = true;
                const double n = e.problem.values;
                for (std::size_t i = 0; i < x.size(); ++i) {
                    const std::size_t k = e.problem.statistic[i];
                    const double dbeta = sums.dy.value[k], dgamma = sums.dy_xmu.value[k] / 4;
                    const double dx = gamma[k] / 4 * (dy[i] - dbeta / n - (x[i] - m) / 4 * dgamma / n);
                    exact &= e.out.get(i) == (dtype == DType::f32 ? static_cast<double>(static_cast<float>(dx)) : dx);
                }
                CHECK(exact);
                for (std::size_t k = 0; k < e.problem.statistics; ++k) {
                    CHECK(e.result[0].get(k) == sums.dy_xmu.value[k] / 4);
                    CHECK(e.result[1].get(k) == sums.dy.value[k]);
                }
            }
}

}  // namespace

int main() {
    large_means_and_values();
    constant_channels();
    subnormal_values();
    not_a_number();
    exact_integers();
    return report();
}
