// Batch normalization by its formulas, in float64 and two passes, with a bound for what rounding may add.
//
// A bound counts each rounding of the library's own arithmetic, element by element; u is the unit roundoff of the
// type of the arithmetic, 2^-24 or 2^-53. 16-bit data is rounded once more where it is stored, and its sums start in
// float.
#pragma once

#include "tensor.hpp"

#include <cmath>

namespace reference {

// A sum of n terms has an error of at most n * 2^-53 * sum|terms|; no accumulator gets more than 9000 here.
inline constexpr double sum_error = 1e-12;
// What the design allows where sums start in float: of 16-bit data, and of float32 on a GPU.
inline constexpr double run_sum_error = 1e-7;
inline constexpr double u64 = 0x1p-53;

inline double unit_roundoff(DType dtype) { return dtype == DType::f64 ? u64 : 0x1p-24; }
inline bool is_half(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }

// Of values in a type: half a unit in the last place for each, and half the least number.
inline double storage_error(DType dtype, double value) {
    switch (dtype) {
        case DType::f64: return 0;
        case DType::f32: return 0x1p-24 * std::fabs(value);
        case DType::f16: return 0x1p-11 * std::fabs(value) + 0x1p-25;
        case DType::bf16: return 0x1p-8 * std::fabs(value) + 0x1p-134;
    }
    return 0;
}

// What roundings of subnormal numbers add, four of them at most.
inline double underflow(double u) { return u == u64 ? 4 * 0x1p-1074 : 4 * 0x1p-149; }

struct Expected {
    Values value, bound;
    explicit Expected(std::size_t n) : value(n), bound(n) {}
};

// Which statistic each element belongs to.
struct Problem {
    Shape kept_shape;
    std::vector<std::size_t> statistic;  // of each element in C order
    std::size_t statistics;
    double values;  // M

    Problem(const Shape& shape, const std::vector<int>& axes) : statistic(static_cast<std::size_t>(product(shape))) {
        std::vector<bool> kept(shape.size());
        for (const int axis : axes) kept[static_cast<std::size_t>(axis < 0 ? axis + std::ssize(shape) : axis)] = true;
        for (std::size_t d = 0; d < shape.size(); ++d)
            if (kept[d]) kept_shape.push_back(shape[d]);
        statistics = static_cast<std::size_t>(product(kept_shape));
        values = statistics ? static_cast<double>(statistic.size()) / static_cast<double>(statistics) : 0;
        for (std::size_t i = 0; i < statistic.size(); ++i) {
            std::size_t rest = i, step = 1;
            for (std::size_t d = shape.size(); d-- > 0;) {
                const auto size = static_cast<std::size_t>(shape[d]);
                if (kept[d]) {
                    statistic[i] += rest % size * step;
                    step *= size;
                }
                rest /= size;
            }
        }
    }
};

struct Statistics {
    Expected mean, m2, var, inv_std;
    explicit Statistics(std::size_t n) : mean(n), m2(n), var(n), inv_std(n) {}
};

inline Statistics statistics(const Problem& p, const Values& x, double eps, double error = sum_error) {
    Statistics s(p.statistics);
    for (int round = 0; round < 2; ++round) {  // the second takes back the rounding errors of the first
        Values sum(p.statistics);
        for (std::size_t i = 0; i < x.size(); ++i) sum[p.statistic[i]] += x[i] - s.mean.value[p.statistic[i]];
        for (std::size_t k = 0; k < p.statistics; ++k) s.mean.value[k] += sum[k] / p.values;
    }
    Values deviation(p.statistics);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double d = x[i] - s.mean.value[p.statistic[i]];
        s.m2.value[p.statistic[i]] += d * d;
        deviation[p.statistic[i]] = std::max(deviation[p.statistic[i]], std::fabs(d));
    }
    for (std::size_t k = 0; k < p.statistics; ++k) {
        // The library sums differences from one of the elements, which are of the size of the largest deviation.
        const double var = s.m2.value[k] / p.values, var_bound = error * deviation[k] * deviation[k];
        s.mean.bound[k] = error * deviation[k] + 2 * u64 * std::fabs(s.mean.value[k]);
        s.m2.bound[k] = var_bound * p.values;
        s.var.value[k] = var;
        s.var.bound[k] = var_bound;
        s.inv_std.value[k] = 1 / std::sqrt(var + eps);
        s.inv_std.bound[k] = s.inv_std.value[k] * (var_bound / (var + eps) / 2 + 4 * u64);
    }
    return s;
}

// y = (x - hi) * scale + shift, of three rounded coefficients.
inline Expected normalize(const Problem& p, const Values& x, const Statistics& s, const Values& gamma,
                          const Values& beta, double u) {
    Expected y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t k = p.statistic[i];
        const double scale = gamma[k] * s.inv_std.value[k], mean = s.mean.value[k];
        y.value[i] = (x[i] - mean) * scale + beta[k];
        const double low = u * std::fabs(mean * scale);  // at most what the shift takes up: mean - hi
        const double first = std::fabs((x[i] - mean) * scale) + low, shift = std::fabs(beta[k]) + low;
        // Roundings: the difference, the scale, the product (of an unfused multiply-add), the shift, the sum.
        y.bound[i] = u * (3 * first + shift + (first + shift)) + std::fabs(scale) * s.mean.bound[k] +
                     first * s.inv_std.bound[k] / s.inv_std.value[k] + underflow(u);
    }
    return y;
}

struct GradSums {
    Expected dy, dy_xmu;
    explicit GradSums(std::size_t n) : dy(n), dy_xmu(n) {}
};

inline GradSums grad_sums(const Problem& p, const Values& dy, const Values& x, const Values& mean,
                          double error = sum_error) {
    GradSums s(p.statistics);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t k = p.statistic[i];
        const double product = dy[i] * (x[i] - mean[k]);
        s.dy.value[k] += dy[i];
        s.dy.bound[k] += error * std::fabs(dy[i]);
        s.dy_xmu.value[k] += product;
        s.dy_xmu.bound[k] += error * std::fabs(product);
    }
    return s;
}

// dgamma = sum(dy * (x - mean)) * inv_std
inline Expected dgamma(const GradSums& sums, const Values& inv_std) {
    Expected d(inv_std.size());
    for (std::size_t k = 0; k < inv_std.size(); ++k) {
        d.value[k] = sums.dy_xmu.value[k] * inv_std[k];
        d.bound[k] = sums.dy_xmu.bound[k] * inv_std[k] + u64 * std::fabs(d.value[k]);
    }
    return d;
}

// dx = a * (dy - dy_hi) + b * ((x - hi) * inv_std) + c, of six rounded coefficients.
inline Expected input_grad(const Problem& p, const Values& dy, const Values& x, const Values& mean,
                           const Values& inv_std, const GradSums& sums, const Values& gamma, double u) {
    Expected dx(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t k = p.statistic[i];
        const double r = inv_std[k], a = gamma[k] * r, dy_mean = sums.dy.value[k] / p.values;
        const double b = -a * sums.dy_xmu.value[k] * r / p.values, xhat = (x[i] - mean[k]) * r;
        dx.value[i] = a * (dy[i] - dy_mean) + b * xhat;
        const double low1 = u * std::fabs(a * dy_mean), low2 = u * std::fabs(b * mean[k] * r);
        const double first = std::fabs(a * (dy[i] - dy_mean)) + low1, second = std::fabs(b * xhat) + low2;
        const double c = low1 + low2;
        // Roundings: of the first term the difference, a and the product; of the second the difference, inv_std, two
        // products and b; c; the sum of the last two and that of all.
        dx.bound[i] = u * (3 * first + 5 * second + c + (second + c) + (first + second + c)) +
                      std::fabs(a) * sums.dy.bound[k] / p.values +
                      std::fabs(a * xhat) * sums.dy_xmu.bound[k] * r / p.values + underflow(u);
    }
    return dx;
}

// ty = a * (tx - tx_hi) + b * ((x - hi) * inv_std) + c, of six rounded coefficients.
inline Expected jvp(const Problem& p, const Values& tx, const Values& x, const Values& mean, const Values& inv_std,
                    const GradSums& sums, const Values& gamma, const Values& tgamma, const Values& tbeta, double u) {
    Expected ty(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t k = p.statistic[i];
        const double r = inv_std[k], a = gamma[k] * r, tx_mean = sums.dy.value[k] / p.values;
        const double share = a * (sums.dy_xmu.value[k] * r / p.values), b = tgamma[k] - share;
        const double xhat = (x[i] - mean[k]) * r;
        ty.value[i] = a * (tx[i] - tx_mean) + b * xhat + tbeta[k];
        const double low1 = u * std::fabs(a * tx_mean), low2 = u * std::fabs(b * mean[k] * r);
        const double first = std::fabs(a * (tx[i] - tx_mean)) + low1, second = std::fabs(b * xhat) + low2;
        const double c = low1 + low2 + std::fabs(tbeta[k]);
        // Roundings as of input_grad, and those of b in float64.
        ty.bound[i] = u * (3 * first + 5 * second + c + (second + c) + (first + second + c)) +
                      std::fabs(a) * sums.dy.bound[k] / p.values +
                      std::fabs(a * xhat) * sums.dy_xmu.bound[k] * r / p.values +
                      8 * u64 * (std::fabs(tgamma[k]) + std::fabs(share)) * std::fabs(xhat) + underflow(u);
    }
    return ty;
}

struct DoubleGrads {
    Expected dx, dgamma;
};

// dx = of_dy * (dy - its mean) + of_xhat * xhat + of_v * (v - its mean)
inline DoubleGrads double_backward(const Problem& p, const Values& v, const Values& dy, const Values& x,
                                   const Values& mean, const Values& inv_std, const GradSums& dy_sums,
                                   const GradSums& v_sums, const Values& gamma, const Values& ddgamma, double u,
                                   double error = sum_error) {
    DoubleGrads grads{Expected(x.size()), Expected(p.statistics)};
    Values v_mean(v_sums.dy.value), dy_abs(p.statistics);
    for (double& value : v_mean) value /= p.values;
    const GradSums mixed = grad_sums(p, dy, v, v_mean, error);
    for (std::size_t i = 0; i < x.size(); ++i) dy_abs[p.statistic[i]] += std::fabs(dy[i]);

    // A number and its error in float64.
    struct Mean {
        double value, error;
        double size() const { return std::fabs(value); }
    };
    const auto mean_of = [&](const Expected& sum, std::size_t k, double factor) {
        const double value = sum.value[k] * factor / p.values;
        return Mean{value, sum.bound[k] * factor / p.values + 4 * u64 * std::fabs(value)};
    };
    const auto mixed_of = [&](std::size_t k, const Mean& P, const Mean& q) {
        Mean m = mean_of(mixed.dy_xmu, k, 1);
        m.error += dy_abs[k] * v_sums.dy.bound[k] / p.values / p.values + P.error * q.size() + P.size() * q.error +
                   4 * u64 * (m.size() + P.size() * q.size());
        m.value -= P.value * q.value;
        return m;
    };
    for (std::size_t k = 0; k < p.statistics; ++k) {
        const Mean P = mean_of(v_sums.dy_xmu, k, inv_std[k]), q = mean_of(dy_sums.dy_xmu, k, inv_std[k]);
        const Mean m = mixed_of(k, P, q);
        grads.dgamma.value[k] = p.values * inv_std[k] * m.value;
        grads.dgamma.bound[k] = p.values * inv_std[k] * (m.error + 4 * u64 * m.size());
    }
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t k = p.statistic[i];
        const double r = inv_std[k], a = gamma[k] * r * r, g = ddgamma[k] * r, xhat = (x[i] - mean[k]) * r;
        const Mean P = mean_of(v_sums.dy_xmu, k, r), q = mean_of(dy_sums.dy_xmu, k, r), m = mixed_of(k, P, q);
        const Mean v_mean_k = mean_of(v_sums.dy, k, 1), dy_mean = mean_of(dy_sums.dy, k, 1);
        const double of_v = -a * q.value, of_dy = g - a * P.value;
        const double of_xhat = a * (2 * P.value * q.value - m.value) - g * q.value;
        grads.dx.value[i] = of_v * (v[i] - v_mean_k.value) + of_dy * (dy[i] - dy_mean.value) + of_xhat * xhat;

        const double low1 = u * std::fabs(of_dy * dy_mean.value), low2 = u * std::fabs(of_v * v_mean_k.value);
        const double low3 = u * std::fabs(of_xhat * mean[k] * r), c = low1 + low2 + low3;
        const double first = std::fabs(of_dy * (dy[i] - dy_mean.value)) + low1;
        const double second = std::fabs(of_v * (v[i] - v_mean_k.value)) + low2,
                     third = std::fabs(of_xhat * xhat) + low3;
        // Roundings: of the first and second term the difference, the coefficient and the product; of the third five;
        // c; and three sums. Then what the coefficients have from float64.
        const double A = std::fabs(a), G = std::fabs(g);
        const double of_xhat_error = A * (2 * P.error * q.size() + 2 * P.size() * q.error + m.error) + G * q.error +
                                     8 * u64 * (A * (2 * P.size() * q.size() + m.size()) + G * q.size());
        grads.dx.bound[i] = u * (3 * first + 3 * second + 5 * third + c + (third + c) + (second + third + c) +
                                 (first + second + third + c)) +
                            (A * q.error + 8 * u64 * std::fabs(of_v)) * std::fabs(v[i] - v_mean_k.value) +
                            (A * P.error + 8 * u64 * (A * P.size() + G)) * std::fabs(dy[i] - dy_mean.value) +
                            of_xhat_error * std::fabs(xhat) + std::fabs(of_v) * v_mean_k.error +
                            std::fabs(of_dy) * dy_mean.error + underflow(u);
    }
    return grads;
}

// dx = a * dy for constant statistics.
inline Expected scale(const Problem& p, const Values& dy, const Values& inv_std, const Values& gamma, double u) {
    Expected dx(dy.size());
    for (std::size_t i = 0; i < dy.size(); ++i) {
        dx.value[i] = gamma[p.statistic[i]] * inv_std[p.statistic[i]] * dy[i];
        dx.bound[i] = 3 * u * std::fabs(dx.value[i]) + underflow(u);  // a, the product, and in float64 inv_std
    }
    return dx;
}

}  // namespace reference
