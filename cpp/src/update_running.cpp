// core::update_running: the moving averages that inference takes.
#include "params.hpp"
#include "validate.hpp"

namespace batchnorm {
namespace {

Axes all_axes(int rank) noexcept {
    Axes axes{};
    for (int d = 0; d < rank && d < max_rank; ++d) axes.axis[axes.count++] = d;
    return axes;
}

double unbiased_share(double count) noexcept { return count > 1 ? count / (count - 1) : 1; }

}  // namespace

Status core::update_running(const MutParam& running_mean, const MutParam& running_var, const Param& mean,
                            const Param& var, const Param& count, double momentum, bool unbiased) noexcept {
    Validator valid("update_running");
    const View statistics = running_mean, variances = running_var;
    valid.x(statistics, all_axes(running_mean.rank), "running_mean");
    valid.param("running_var", variances, true);
    valid.param("mean", mean, true);
    valid.param("var", var, true);
    valid.param("count", count, true);
    valid.stat_output("running_mean", running_mean);
    valid.stat_output("running_var", running_var);
    valid.param_sign("var", var, false);
    valid.param_sign("count", count, false);
    valid.share("momentum", momentum);
    valid.separate({{"running_mean", statistics}, {"running_var", variances}},
                   {{"mean", mean}, {"var", var}, {"count", count}});
    if (!valid.ok()) return valid.status();

    constexpr std::int64_t block = 256;
    double means[block], vars[block], new_means[block], new_vars[block], counts[block];
    const double keep = 1 - momentum;
    for (std::int64_t first = 0; first < valid.statistics(); first += block) {
        const std::int64_t left = valid.statistics() - first, n = left < block ? left : block;
        load_values(statistics, first, n, means);
        load_values(variances, first, n, vars);
        load_values(mean, first, n, new_means);
        load_values(var, first, n, new_vars);
        load_values(count, first, n, counts);
        for (std::int64_t i = 0; i < n; ++i) {
            if (!(counts[i] > 0)) continue;  // nothing was seen
            const double new_var = unbiased ? new_vars[i] * unbiased_share(counts[i]) : new_vars[i];
            means[i] = keep * means[i] + momentum * new_means[i];
            vars[i] = keep * vars[i] + momentum * new_var;
        }
        store_values(running_mean, first, n, means);
        store_values(running_var, first, n, vars);
    }
    return {};
}

}  // namespace batchnorm
