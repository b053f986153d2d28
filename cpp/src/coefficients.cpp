// From statistics and parameters to what the kernels look up.
#include <cmath>
#include <limits>

#include "coefficients.hpp"
#include "stages.hpp"

namespace batchnorm {

void Stages::variance_from_m2(int64_t g, Range channels, const Column& count) const noexcept {
    const int64_t first = g * box.channels();
    double* const spread = memory.spread + first;
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const double n = count[first + c];
        spread[c] /= n > 0 ? n : 1;
    }
}

void Stages::inv_std_from_variance(int64_t g, Range channels, double eps) const noexcept {
    const int64_t first = g * box.channels();
    for (int64_t s = first + channels.begin; s < first + channels.end; ++s)
        memory.inv_std[s] = 1 / std::sqrt(memory.spread[s] + eps);
}

namespace {

// The coefficients of a group, as the kernels look them up.
template <class T>
struct Coefficients {
    T* __restrict values[coefficient_count];
    const int64_t channels, end;
    const bool plain_nans;

    Coefficients(const Stages& stages, int64_t g) noexcept
        : channels(stages.box.channels()),
          end(Memory::coefficient_pitch(stages.box)),
          plain_nans(stages.box.dtype == DType::bf16) {
        for (int i = 0; i < coefficient_count; ++i)
            values[i] = static_cast<T*>(stages.memory.coefficients[i]) + g * end;
    }

    void store(int64_t c, const InputGradCoefficients<T>& own) const noexcept {
        values[0][c] = own.hi;
        values[1][c] = own.r;
        values[2][c] = own.dy_hi;
        values[3][c] = own.a;
        values[4][c] = own.b;
        values[5][c] = own.c;
    }

    // Goes on where the lanes do, repeating. A NaN that a caller brought may have any bits; kernels that round to
    // bfloat16 want them to be 0 in the lower half.
    void finish(int count, Range written) const noexcept {
        for (int i = 0; i < count && plain_nans; ++i)
            for (int64_t c = written.begin; c < written.end; ++c)
                if (std::isnan(values[i][c])) values[i][c] = std::numeric_limits<T>::quiet_NaN();
        for (int64_t at = channels; at < end; ++at)
            for (int i = 0; i < count && at % channels >= written.begin && at % channels < written.end; ++i)
                values[i][at] = values[i][at % channels];
    }
};

template <class T>
void normalize_coefficients_of(const Stages& stages, int64_t g, Range channels, const Column& gamma,
                               const Column& beta) noexcept {
    const Memory& m = stages.memory;
    const Coefficients<T> coefficients(stages, g);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = g * stages.box.channels() + c;
        const auto own = NormalizeCoefficients<T>::of(m.mean[s], m.inv_std[s], gamma[s], beta[s]);
        coefficients.values[0][c] = own.hi;
        coefficients.values[1][c] = own.scale;
        coefficients.values[2][c] = own.shift;
    }
    coefficients.finish(3, channels);
}

// Without a branch in the loop, and as no array overlaps another one, the compiler can make vectors of it.
template <class T, class ScaleAt, class CountAt>
void fill_input_grad(const Stages& stages, int64_t g, Range channels, const double* r_of, const ScaleAt& scale_at,
                     const CountAt& count_at) noexcept {
    const Memory m = stages.memory;
    const Coefficients<T> coefficients(stages, g);
    const int64_t first = g * stages.box.channels();
#pragma GCC ivdep
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = first + c;
        coefficients.store(c, InputGradCoefficients<T>::of(m.mean[s], r_of[s], scale_at(s), m.sum_dy[s],
                                                           m.sum_dy_xmu[s], count_at(s)));
    }
    coefficients.finish(6, channels);
}

template <class T, class ScaleAt>
void input_grad_coefficients_of(const Stages& stages, int64_t g, Range channels, const double* r_of,
                                const ScaleAt& scale_at, const Column& count) noexcept {
    if (count.data)
        fill_input_grad<T>(stages, g, channels, r_of, scale_at, [counts = count.data](int64_t s) { return counts[s]; });
    else
        fill_input_grad<T>(stages, g, channels, r_of, scale_at, [same = count.same](int64_t) { return same; });
}

// That of a direction: tgamma * xhat + tbeta comes in addition.
template <class T>
void jvp_coefficients_of(const Stages& stages, int64_t g, Range channels, const Column& gamma, const Column& tgamma,
                         const Column& tbeta) noexcept {
    const Memory& m = stages.memory;
    const Coefficients<T> coefficients(stages, g);
    const double n = static_cast<double>(stages.box.values());
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = g * stages.box.channels() + c;
        const double r = m.inv_std[s], scale = gamma[s] * r;
        const double slope = tgamma[s] - scale * (m.sum_dy_xmu[s] * r / n);
        coefficients.store(c, {m.mean[s], r, m.sum_dy[s] / n, scale, slope, tbeta[s]});
    }
    coefficients.finish(6, channels);
}

// With p and q the means of v * xhat and dy * xhat, k that of (v - its mean) * dy, less p * q, and a = gamma *
// inv_std^2, the derivative of M * (gamma * inv_std * k + tgamma * q) with respect to x is
//     -a * q * (v - its mean) + (tgamma * inv_std - a * p) * (dy - its mean) + (a * (2 * p * q - k) - tgamma * inv_std
//     * q) * xhat
template <class T>
void double_backward_coefficients_of(const Stages& stages, int64_t g, Range channels, const Column& gamma,
                                     const Column& tgamma) noexcept {
    const Memory& m = stages.memory;
    const Coefficients<T> coefficients(stages, g);
    const double n = static_cast<double>(stages.box.values());
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = g * stages.box.channels() + c;
        const double r = m.inv_std[s], a = gamma[s] * r * r;
        const double p = m.sum_v_xmu[s] * r / n, q = m.sum_dy_xmu[s] * r / n, k = m.sum_dy_v[s] / n - p * q;
        const double of_v = -a * q, of_dy = tgamma[s] * r - a * p, of_xhat = a * (2 * p * q - k) - tgamma[s] * r * q;
        const Split<T> mean(m.mean[s]), dy(m.sum_dy[s] / n), v(m.v_mean[s]);
        coefficients.values[0][c] = mean.hi;
        coefficients.values[1][c] = factor_in<T>(r);
        coefficients.values[2][c] = dy.hi;
        coefficients.values[3][c] = factor_in<T>(of_dy);
        coefficients.values[4][c] = factor_in<T>(of_xhat);
        coefficients.values[5][c] = static_cast<T>(-of_dy * dy.lo - of_v * v.lo - of_xhat * (mean.lo * r));
        coefficients.values[6][c] = factor_in<T>(of_v);
        coefficients.values[7][c] = v.hi;
        m.sum_dy_v[s] = n * r * k;
    }
    coefficients.finish(8, channels);
}

template <class T>
void scale_coefficients_of(const Stages& stages, int64_t g, Range channels, const Column& gamma) noexcept {
    const Coefficients<T> coefficients(stages, g);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = g * stages.box.channels() + c;
        coefficients.values[0][c] = 0;
        coefficients.values[1][c] = factor_in<T>(gamma[s] * stages.memory.inv_std[s]);
        coefficients.values[2][c] = 0;
    }
    coefficients.finish(3, channels);
}

template <class T>
void scale_activated_coefficients_of(const Stages& stages, int64_t g, Range channels, const Column& gamma) noexcept {
    const Coefficients<T> coefficients(stages, g);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        const int64_t s = g * stages.box.channels() + c;
        for (T* values : coefficients.values) values[c] = 0;
        coefficients.values[3][c] = factor_in<T>(gamma[s] * stages.memory.inv_std[s]);
    }
    coefficients.finish(6, channels);
}

}  // namespace

void Stages::normalize_coefficients(int64_t g, Range channels, const Column& gamma, const Column& beta) const noexcept {
    const auto fill =
        arithmetic(box.dtype) == DType::f32 ? normalize_coefficients_of<float> : normalize_coefficients_of<double>;
    fill(*this, g, channels, gamma, beta);
}

void Stages::input_grad_coefficients(int64_t g, Range channels, const Column& gamma,
                                     const Column& count) const noexcept {
    const auto scale = [&](int64_t s) { return gamma[s] * memory.inv_std[s]; };
    arithmetic(box.dtype) == DType::f32
        ? input_grad_coefficients_of<float>(*this, g, channels, memory.inv_std, scale, count)
        : input_grad_coefficients_of<double>(*this, g, channels, memory.inv_std, scale, count);
}

void Stages::from_output_coefficients(int64_t g, Range channels, const Column& count) const noexcept {
    const auto scale = [&](int64_t s) { return memory.gamma[s] * memory.inv_std[s]; };
    arithmetic(box.dtype) == DType::f32
        ? input_grad_coefficients_of<float>(*this, g, channels, memory.spread, scale, count)
        : input_grad_coefficients_of<double>(*this, g, channels, memory.spread, scale, count);
}

void Stages::jvp_coefficients(int64_t g, Range channels, const Column& gamma, const Column& tgamma,
                              const Column& tbeta) const noexcept {
    const auto fill = arithmetic(box.dtype) == DType::f32 ? jvp_coefficients_of<float> : jvp_coefficients_of<double>;
    fill(*this, g, channels, gamma, tgamma, tbeta);
}

void Stages::double_backward_coefficients(int64_t g, Range channels, const Column& gamma,
                                          const Column& tgamma) const noexcept {
    const auto fill = arithmetic(box.dtype) == DType::f32 ? double_backward_coefficients_of<float>
                                                          : double_backward_coefficients_of<double>;
    fill(*this, g, channels, gamma, tgamma);
}

void Stages::scale_coefficients(int64_t g, Range channels, const Column& gamma) const noexcept {
    const auto fill =
        arithmetic(box.dtype) == DType::f32 ? scale_coefficients_of<float> : scale_coefficients_of<double>;
    fill(*this, g, channels, gamma);
}

void Stages::scale_activated_coefficients(int64_t g, Range channels, const Column& gamma) const noexcept {
    const auto fill = arithmetic(box.dtype) == DType::f32 ? scale_activated_coefficients_of<float>
                                                          : scale_activated_coefficients_of<double>;
    fill(*this, g, channels, gamma);
}

}  // namespace batchnorm
