// Forward and backward of an installed library against plain loops.
#include <batchnorm/batchnorm.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <vector>

namespace bn = batchnorm;

int main() {
    constexpr std::size_t samples = 8, channels = 5, plane = 21, n = samples * channels * plane;
    constexpr double eps = 1e-5, m = samples * plane;
    std::vector<float> x(n), dy(n), y(n), dx(n), gamma(channels), beta(channels);
    for (std::size_t i = 0; i < n; ++i) {
        x[i] = static_cast<float>(i * i % 31) - 9;
        dy[i] = static_cast<float>(i * 7 % 13) - 5;
    }
    for (std::size_t c = 0; c < channels; ++c) {
        gamma[c] = static_cast<float>(c) + 0.5f;
        beta[c] = 2 - static_cast<float>(c);
    }

    std::vector<double> mean(channels), inv_std(channels), dgamma(channels), dbeta(channels);
    const auto tensor = [&](std::vector<float>& v) { return bn::view(v.data(), {samples, channels, plane}); };
    const auto of_channels = [&](auto& v) { return bn::view(v.data(), {channels}); };
    bn::batch_norm(tensor(x), 1, of_channels(gamma), of_channels(beta), tensor(y),
                   {of_channels(mean), of_channels(inv_std), {}});
    bn::batch_norm_backward(tensor(dy), tensor(x), 1, {of_channels(mean), of_channels(inv_std)}, of_channels(gamma),
                            tensor(dx), of_channels(dgamma), of_channels(dbeta));

    double worst = 0;
    for (std::size_t c = 0; c < channels; ++c) {
        // each(visit): visit(i) for every element i of this channel
        const auto each = [&](auto visit) {
            for (std::size_t s = 0; s < samples; ++s)
                for (std::size_t p = 0; p < plane; ++p) visit((s * channels + c) * plane + p);
        };
        double mu = 0, var = 0, sum_dy = 0, sum_dy_xhat = 0;
        each([&](std::size_t i) { mu += x[i] / m; });
        each([&](std::size_t i) { var += (x[i] - mu) * (x[i] - mu) / m; });
        const double r = 1 / std::sqrt(var + eps), scale = gamma[c] * r;
        each([&](std::size_t i) {
            sum_dy += dy[i];
            sum_dy_xhat += dy[i] * (x[i] - mu) * r;
        });
        const auto compare = [&](double got, double expected) {
            worst = std::max(worst, std::fabs(got - expected) / (1 + std::fabs(expected)));
        };
        each([&](std::size_t i) {
            compare(y[i], (x[i] - mu) * scale + beta[c]);
            compare(dx[i], scale * (dy[i] - sum_dy / m - (x[i] - mu) * r * sum_dy_xhat / m));
        });
        compare(dgamma[c], sum_dy_xhat);
        compare(dbeta[c], sum_dy);
    }
    std::printf("batchnorm %s, %s: off by %.1e\n", bn::version(), bn::isa(), worst);
    return worst < 1e-6 ? 0 : 1;  // a dozen float roundings of 6e-8
}
