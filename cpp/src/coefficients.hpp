// From a statistic and its parameters to what the kernels look up: the formulas, for one statistic.
//
// Means come as hi + lo, hi of the type T of the arithmetic; what lo does is folded into a term that is added.
#pragma once

namespace batchnorm {

template <class T>
struct Split {
    T hi;
    double lo;
    constexpr explicit Split(double value) noexcept : hi(static_cast<T>(value)), lo(value - static_cast<double>(hi)) {}
};

// A factor in the type T; the largest that T has for one beyond: an infinity would make a NaN of a difference of 0.
template <class T>
constexpr T factor_in(double value) noexcept {
    constexpr double most = sizeof(T) == sizeof(float) ? static_cast<double>(__FLT_MAX__) : __DBL_MAX__;
    const bool beyond = (value > most && value <= __DBL_MAX__) || (value < -most && value >= -__DBL_MAX__);
    return static_cast<T>(beyond ? (value > 0 ? most : -most) : value);
}

// y = (x - hi) * scale + shift
template <class T>
struct NormalizeCoefficients {
    T hi, scale, shift;

    static constexpr NormalizeCoefficients of(double mean, double inv_std, double gamma, double beta) noexcept {
        const double factor = gamma * inv_std;
        const T hi = static_cast<T>(mean);
        return {hi, factor_in<T>(factor), static_cast<T>(beta - (mean - static_cast<double>(hi)) * factor)};
    }
};

// dx = a * (dy - dy_hi) + b * xhat + c, with xhat = (x - hi) * r.
template <class T>
struct InputGradCoefficients {
    T hi, r, dy_hi, a, b, c;

    // dx = scale * (dy - mean of dy - xhat * mean of dy * xhat)
    static constexpr InputGradCoefficients of(double mean, double r, double scale, double sum_dy, double sum_dy_xmu,
                                              double count) noexcept {
        // What has no weight behind it has none to spread either.
        const double n = count > 0 ? count : __builtin_huge_val();
        return {mean, r, sum_dy / n, scale, -scale * (sum_dy_xmu * r / n), 0};
    }

    constexpr InputGradCoefficients(double mean, double r_, double dy_mean, double scale, double slope,
                                    double constant) noexcept
        : InputGradCoefficients(Split<T>(mean), r_, Split<T>(dy_mean), scale, slope, constant) {}

  private:
    constexpr InputGradCoefficients(const Split<T>& mean, double r_, const Split<T>& dy, double scale, double slope,
                                    double constant) noexcept
        : hi(mean.hi),
          r(factor_in<T>(r_)),
          dy_hi(dy.hi),
          a(factor_in<T>(scale)),
          b(factor_in<T>(slope)),
          c(static_cast<T>(constant - scale * dy.lo - slope * (mean.lo * r_))) {}
};

}  // namespace batchnorm
