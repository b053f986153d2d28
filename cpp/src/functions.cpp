#include "functions.hpp"

#include <cmath>

#include "params.hpp"

namespace batchnorm {

Box Problem::box_of(const Part& part, const PlaneLimits& limits) const noexcept {
    if (part.groups == 0) return canonicalize(views, valid.kept(), limits);
    View cut[roles];
    const View* present[roles] = {};
    for (int r = 0; r < roles; ++r) {
        if (!views[r]) continue;
        cut[r] = part.tensor(*views[r]);
        present[r] = &cut[r];
    }
    bool kept[max_rank] = {true};
    for (int d = 0; d + 1 < max_rank; ++d) kept[d + 1] = valid.kept()[d];
    return canonicalize(present, kept, limits);
}

namespace functions {

View one_value_each(const View& x, const Validator& valid) noexcept {
    View one = x;
    for (int d = valid.has_groups() ? 1 : 0; d < x.rank; ++d)
        if (!valid.kept()[d]) one.shape[d] = 1;
    return one;
}

View to_measure(const View& x, const Validator& valid) noexcept {
    static constexpr char anywhere = 0;  // never read: a view without data would be none at all
    View view = valid.empty() ? one_value_each(x, valid) : x;
    if (!view.data) view.data = &anywhere;
    return view;
}

namespace {

template <class AnyView>
View or_absent(const AnyView* view) noexcept {
    return view ? View(*view) : View{};
}

Status fill_all(const Backend& backend, std::initializer_list<const MutParam*> params, double value) noexcept {
    for (const MutParam* param : params)
        if (const Status status = backend.fill(*param, value); !status.ok()) return status;
    return {};
}

Epilogue forward_epilogue(const Options& options) noexcept {
    const double slope = options.activation == Activation::leaky_relu ? options.negative_slope : 0;
    return {options.activation != Activation::none, slope, false, false};
}

Epilogue backward_epilogue(const Options& options) noexcept {
    Epilogue epilogue = forward_epilogue(options);
    epilogue.zeros_count_nothing = options.weights != nullptr;
    return epilogue;
}

void check_outputs(Validator& valid, const char* name, const MutView& out, const MutStats& saved,
                   const Options& options, std::initializer_list<Validator::Named> inputs) noexcept {
    valid.output(name, out);
    valid.own_stat_output("mean", saved.mean);
    valid.own_stat_output("inv_std", saved.inv_std);
    valid.own_stat_output("var", saved.var);
    valid.own_stat_output("count", saved.count, !options.weights && options.group_size == 0);
    valid.separate(
        {{name, out}, {"mean", saved.mean}, {"inv_std", saved.inv_std}, {"var", saved.var}, {"count", saved.count}},
        inputs);
}

void write_saved(Problem& problem, const MutStats& saved) noexcept {
    problem.to_mean = &saved.mean;
    problem.to_inv_std = &saved.inv_std;
    problem.to_var = &saved.var;
    problem.to_count = &saved.count;
}

void check_grads(Validator& valid, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                 const Options& options, std::initializer_list<Validator::Named> inputs) noexcept {
    valid.output("out", dx);
    const View dresidual = or_absent(options.dresidual);
    if (options.dresidual) valid.output("dresidual", *options.dresidual);
    valid.stat_output("dgamma", dgamma);
    valid.stat_output("dbeta", dbeta);
    valid.separate({{"out", dx}, {"dresidual", dresidual}, {"dgamma", dgamma}, {"dbeta", dbeta}}, inputs);
}

}  // namespace

void check_statistics(Validator& valid, const Stats& saved, const Options& options, bool normalizes,
                      bool counts) noexcept {
    valid.stat("saved.mean", saved.mean, true);
    if (normalizes) valid.stat("saved.inv_std", saved.inv_std, true);
    valid.stat("saved.count", saved.count, options.weights && counts);
    valid.mask("saved.mask", saved.mask, options);
    if (!normalizes) return;
    valid.training();
    if (!options.weights) valid.values_behind("saved.count", saved.count);
}

// --------------------------------------------------------------------------------------------------------- forward

namespace {

Status forward(const Backend& backend, Validator& valid, const View& x, const Axes& axes, const Param& gamma,
               const Param& beta, const MutView& out, const MutStats& saved, const Options& options,
               bool inplace) noexcept {
    valid.x(x, axes);
    valid.param("gamma", gamma, false);
    valid.param("beta", beta, false);
    valid.eps(options.eps);
    valid.options(options);
    const unsigned takes = Validator::activation | Validator::weights | Validator::groups;
    valid.more_options(options, inplace ? takes : takes | Validator::residual);
    valid.training();
    if (inplace) valid.invertible(options, gamma);
    const View residual = or_absent(options.residual), weights = or_absent(options.weights);
    check_outputs(valid, inplace ? "x" : "out", out, saved, options,
                  {{"x", x}, {"gamma", gamma}, {"beta", beta}, {"residual", residual}, {"weights", weights}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) {
        // As of a constant channel, with no element behind it.
        const Status status = fill_all(backend, {&saved.mean, &saved.var, &saved.count}, 0);
        return status.ok() ? backend.fill(saved.inv_std, 1 / std::sqrt(options.eps)) : status;
    }

    const View written = out;
    Problem problem{Op::batch_norm, valid, options, {&x, nullptr, &written, options.residual}};
    problem.views[role_weights] = valid.weights_like_x();
    problem.mask = saved.mask;
    problem.epilogue = forward_epilogue(options);
    problem.gamma = &gamma;
    problem.beta = &beta;
    write_saved(problem, saved);
    return backend.run(problem);
}

}  // namespace

Status batch_norm(const Backend& backend, const View& x, const Axes& axes, const Param& gamma, const Param& beta,
                  const MutView& out, const MutStats& saved, const Options& options) noexcept {
    Validator valid("batch_norm", backend.sees_values());
    return forward(backend, valid, x, axes, gamma, beta, out, saved, options, false);
}

Status batch_norm_inplace(const Backend& backend, const MutView& x, const Axes& axes, const Param& gamma,
                          const Param& beta, const MutStats& saved, const Options& options) noexcept {
    Validator valid("batch_norm_inplace", backend.sees_values());
    return forward(backend, valid, x, axes, gamma, beta, x, saved, options, true);
}

Status moments(const Backend& backend, const View& x, const Axes& axes, const MutMoments& out,
               const Options& options) noexcept {
    Validator valid("moments", backend.sees_values());
    valid.x(x, axes);
    valid.options(options);
    valid.more_options(options, Validator::weights | Validator::groups);
    valid.own_stat_output("mean", out.mean);
    valid.own_stat_output("m2", out.m2);
    valid.own_stat_output("count", out.count, !options.weights && options.group_size == 0);
    valid.separate({{"mean", out.mean}, {"m2", out.m2}, {"count", out.count}},
                   {{"x", x}, {"weights", or_absent(options.weights)}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) {
        const Status status = fill_all(backend, {&out.mean, &out.m2}, 0);
        return status.ok() ? backend.fill(out.count, static_cast<double>(valid.values())) : status;
    }

    Problem problem{Op::moments, valid, options, {&x}};
    problem.views[role_weights] = valid.weights_like_x();
    problem.to_mean = &out.mean;
    problem.to_m2 = &out.m2;
    problem.to_count = &out.count;
    return backend.run(problem);
}

Status normalize(const Backend& backend, const View& x, const Axes& axes, const Moments& moments, const Param& gamma,
                 const Param& beta, const MutView& out, const MutStats& saved, const Options& options) noexcept {
    Validator valid("normalize", backend.sees_values());
    valid.x(x, axes);
    valid.eps(options.eps);
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::residual | Validator::weights | Validator::groups);
    valid.stat("mean", moments.mean, true);
    valid.stat("m2", moments.m2, true);
    valid.param_sign("m2", moments.m2, false);
    valid.stat("count", moments.count, true);
    valid.param("gamma", gamma, false);
    valid.param("beta", beta, false);
    const View residual = or_absent(options.residual);
    check_outputs(valid, "out", out, saved, options,
                  {{"x", x},
                   {"mean", moments.mean},
                   {"m2", moments.m2},
                   {"count", moments.count},
                   {"gamma", gamma},
                   {"beta", beta},
                   {"residual", residual}});
    if (!valid.empty()) valid.param_sign("count", moments.count, moments.count.rank == 0 && !options.weights);
    if (!valid.ok() || valid.statistics() == 0 || valid.no_groups()) return valid.status();

    // An empty part of a batch still has the statistics of the whole.
    const View read = valid.empty() ? one_value_each(x, valid) : x;
    const View written = valid.empty() ? read : View(out);
    Problem problem{
        Op::normalize, valid, options, {&read, nullptr, &written, valid.empty() ? nullptr : options.residual}};
    problem.mask = saved.mask;
    problem.epilogue = forward_epilogue(options);
    problem.writes = !valid.empty();
    problem.mean = &moments.mean;
    problem.m2 = &moments.m2;
    problem.count = &moments.count;
    problem.gamma = &gamma;
    problem.beta = &beta;
    write_saved(problem, saved);
    return backend.run(problem);
}

Status batch_norm_inference(const Backend& backend, const View& x, const Axes& axes, const Param& mean,
                            const Param& var, const Param& gamma, const Param& beta, const MutView& out,
                            const Options& options) noexcept {
    Validator valid("batch_norm_inference", backend.sees_values());
    valid.x(x, axes);
    valid.param("mean", mean, true);
    valid.param("var", var, true);
    valid.param_sign("var", var, false);
    valid.param("gamma", gamma, false);
    valid.param("beta", beta, false);
    valid.eps(options.eps);
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::residual);
    const View residual = or_absent(options.residual);
    valid.output("out", out,
                 {{"x", x}, {"mean", mean}, {"var", var}, {"gamma", gamma}, {"beta", beta}, {"residual", residual}});
    if (!valid.ok() || valid.empty()) return valid.status();

    const View written = out;
    Problem problem{Op::batch_norm_inference, valid, options, {&x, nullptr, &written, options.residual}};
    problem.epilogue = forward_epilogue(options);
    problem.mean = &mean;
    problem.var = &var;
    problem.gamma = &gamma;
    problem.beta = &beta;
    return backend.run(problem);
}

// -------------------------------------------------------------------------------------------------------- backward

Status batch_norm_backward(const Backend& backend, const View& dy, const View& x, const Axes& axes, const Stats& saved,
                           const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                           const Options& options) noexcept {
    Validator valid("batch_norm_backward", backend.sees_values());
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::dresidual | Validator::weights | Validator::groups);
    check_statistics(valid, saved, options, true);
    valid.param("gamma", gamma, false);
    check_grads(valid, dx, dgamma, dbeta, options,
                {{"dy", dy},
                 {"x", x},
                 {"gamma", gamma},
                 {"saved.mean", saved.mean},
                 {"saved.inv_std", saved.inv_std},
                 {"saved.count", saved.count},
                 {"weights", or_absent(options.weights)}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill_all(backend, {&dgamma, &dbeta}, 0);

    const View written = dx, dresidual = or_absent(options.dresidual);
    Problem problem{Op::batch_norm_backward, valid, options, {&x, &dy, &written}};
    if (options.dresidual) problem.views[role_residual] = &dresidual;
    problem.views[role_weights] = valid.weights_like_x();
    problem.mask = const_cast<std::uint8_t*>(saved.mask);  // only read
    problem.epilogue = backward_epilogue(options);
    problem.mean = &saved.mean;
    problem.inv_std = &saved.inv_std;
    if (options.weights) problem.count = &saved.count;
    problem.gamma = &gamma;
    problem.to_dgamma = &dgamma;
    problem.to_dbeta = &dbeta;
    return backend.run(problem);
}

// The output takes x's place, with beta and 1 / gamma as the mean and inv_std that lead to xhat.
Status batch_norm_backward_from_output(const Backend& backend, const View& dy, const View& y, const Axes& axes,
                                       const Stats& saved, const Param& gamma, const Param& beta, const MutView& dx,
                                       const MutParam& dgamma, const MutParam& dbeta, const Options& options) noexcept {
    Validator valid("batch_norm_backward_from_output", backend.sees_values());
    valid.x(y, axes, "y");
    valid.tensor("dy", dy);
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::weights | Validator::groups);
    valid.stat("saved.inv_std", saved.inv_std, true);
    valid.stat("saved.count", saved.count, options.weights != nullptr);
    valid.param("gamma", gamma, false);
    valid.param("beta", beta, false);
    valid.invertible(options, gamma);
    valid.training();
    if (!options.weights) valid.values_behind("saved.count", saved.count);
    check_grads(valid, dx, dgamma, dbeta, options,
                {{"dy", dy},
                 {"y", y},
                 {"gamma", gamma},
                 {"beta", beta},
                 {"saved.inv_std", saved.inv_std},
                 {"saved.count", saved.count},
                 {"weights", or_absent(options.weights)}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill_all(backend, {&dgamma, &dbeta}, 0);

    const View written = dx;
    Problem problem{Op::batch_norm_backward_from_output, valid, options, {&y, &dy, &written}};
    problem.epilogue = backward_epilogue(options);
    problem.epilogue.restores = problem.epilogue.activates;
    if (problem.epilogue.activates) problem.views[role_y] = &y;
    problem.views[role_weights] = valid.weights_like_x();
    problem.inv_std = &saved.inv_std;
    if (options.weights) problem.count = &saved.count;
    problem.gamma = &gamma;
    problem.beta = &beta;
    problem.to_dgamma = &dgamma;
    problem.to_dbeta = &dbeta;
    return backend.run(problem);
}

Status grad_sums(const Backend& backend, const View& dy, const View& x, const Axes& axes, const Stats& saved,
                 const MutGradSums& out, const Options& options) noexcept {
    Validator valid("grad_sums", backend.sees_values());
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::weights | Validator::groups);
    check_statistics(valid, saved, options, false, !absent(out.count));
    valid.own_stat_output("sum_dy", out.sum_dy);
    valid.own_stat_output("sum_dy_xmu", out.sum_dy_xmu);
    valid.own_stat_output("count", out.count, !options.weights && options.group_size == 0);
    valid.separate({{"sum_dy", out.sum_dy}, {"sum_dy_xmu", out.sum_dy_xmu}, {"count", out.count}},
                   {{"dy", dy}, {"x", x}, {"saved.mean", saved.mean}, {"saved.count", saved.count}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) {
        const Status status = fill_all(backend, {&out.sum_dy, &out.sum_dy_xmu}, 0);
        return status.ok() ? backend.fill(out.count, static_cast<double>(valid.values())) : status;
    }

    Problem problem{Op::grad_sums, valid, options, {&x, &dy}};
    problem.mask = const_cast<std::uint8_t*>(saved.mask);  // only read
    problem.epilogue = backward_epilogue(options);
    problem.mean = &saved.mean;
    if (options.weights) problem.count = &saved.count;
    problem.to_sum_dy = &out.sum_dy;
    problem.to_sum_dy_xmu = &out.sum_dy_xmu;
    problem.to_count = &out.count;
    return backend.run(problem);
}

Status input_grad(const Backend& backend, const View& dy, const View& x, const Axes& axes, const Stats& saved,
                  const GradSums& sums, const Param& gamma, const MutView& dx, const MutParam& dgamma,
                  const MutParam& dbeta, const Options& options) noexcept {
    Validator valid("input_grad", backend.sees_values());
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::dresidual | Validator::weights | Validator::groups);
    valid.stat("saved.mean", saved.mean, true);
    valid.stat("saved.inv_std", saved.inv_std, true);
    valid.mask("saved.mask", saved.mask, options);
    valid.stat("sums.count", sums.count, true);
    valid.stat("sums.sum_dy", sums.sum_dy, true);
    valid.stat("sums.sum_dy_xmu", sums.sum_dy_xmu, true);
    valid.param("gamma", gamma, false);
    check_grads(valid, dx, dgamma, dbeta, options,
                {{"dy", dy},
                 {"x", x},
                 {"gamma", gamma},
                 {"saved.mean", saved.mean},
                 {"saved.inv_std", saved.inv_std},
                 {"sums.count", sums.count},
                 {"sums.sum_dy", sums.sum_dy},
                 {"sums.sum_dy_xmu", sums.sum_dy_xmu},
                 {"weights", or_absent(options.weights)}});
    if (!valid.empty()) valid.param_sign("sums.count", sums.count, sums.count.rank == 0 && !options.weights);
    if (!valid.ok() || valid.statistics() == 0) return valid.status();
    if (valid.no_groups()) return fill_all(backend, {&dgamma, &dbeta}, 0);

    // An empty part of a batch still has the sums of the whole.
    const View read = valid.empty() ? one_value_each(x, valid) : x;
    const View written = valid.empty() ? read : View(dx);
    const View dresidual = or_absent(options.dresidual);
    Problem problem{Op::input_grad, valid, options, {&read, &dy, &written}};
    problem.writes = !valid.empty();
    if (problem.writes) {
        if (options.dresidual) problem.views[role_residual] = &dresidual;
        problem.views[role_weights] = valid.weights_like_x();
    }
    problem.mask = const_cast<std::uint8_t*>(saved.mask);  // only read
    problem.epilogue = backward_epilogue(options);
    problem.mean = &saved.mean;
    problem.inv_std = &saved.inv_std;
    problem.count = &sums.count;
    problem.sum_dy = &sums.sum_dy;
    problem.sum_dy_xmu = &sums.sum_dy_xmu;
    problem.gamma = &gamma;
    problem.to_dgamma = &dgamma;
    problem.to_dbeta = &dbeta;
    return backend.run(problem);
}

Status batch_norm_inference_backward(const Backend& backend, const View& dy, const View& x, const Axes& axes,
                                     const Param& mean, const Param& var, const Param& gamma, const MutView& dx,
                                     const MutParam& dgamma, const MutParam& dbeta, const Options& options) noexcept {
    Validator valid("batch_norm_inference_backward", backend.sees_values());
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.param("mean", mean, true);
    valid.param("var", var, true);
    valid.param_sign("var", var, false);
    valid.param("gamma", gamma, false);
    valid.eps(options.eps);
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::dresidual | Validator::activation_output);
    valid.told_by_sign(options);
    const View y = options.activation == Activation::none ? View{} : or_absent(options.activation_output);
    check_grads(valid, dx, dgamma, dbeta, options,
                {{"dy", dy}, {"x", x}, {"mean", mean}, {"var", var}, {"gamma", gamma}, {"y", y}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill_all(backend, {&dgamma, &dbeta}, 0);

    const View written = dx, dresidual = or_absent(options.dresidual);
    Problem problem{Op::batch_norm_inference_backward, valid, options, {&x, &dy, &written}};
    problem.epilogue = backward_epilogue(options);
    if (options.activation != Activation::none) problem.views[role_y] = &y;
    if (options.dresidual) problem.views[role_residual] = &dresidual;
    problem.mean = &mean;
    problem.var = &var;
    problem.gamma = &gamma;
    problem.to_dgamma = &dgamma;
    problem.to_dbeta = &dbeta;
    return backend.run(problem);
}

}  // namespace functions
}  // namespace batchnorm
