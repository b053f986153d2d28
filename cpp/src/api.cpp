// The public functions: check, make the box, plan, run the stages.
#include "isa.hpp"
#include "run.hpp"
#include "status.hpp"
#include "thread_count.hpp"
#include "validate.hpp"

namespace batchnorm {
namespace {

bool reduces(Op op) noexcept { return op != Op::batch_norm_inference && op != Op::normalize && op != Op::input_grad; }

// Operands that op reads.
int tensors(Op op) noexcept {
    const bool backward = op == Op::batch_norm_backward || op == Op::batch_norm_inference_backward ||
                          op == Op::grad_sums || op == Op::input_grad;
    return backward ? 2 : 1;
}

const kernels::TypeKernels& kernels_of(const kernels::KernelTable& table, DType dtype) noexcept {
    switch (dtype) {
        case DType::f64: return table.f64;
        case DType::f16: return table.f16;
        case DType::bf16: return table.bf16;
        case DType::f32: break;
    }
    return table.f32;
}

// Finds the kernels, plans, gets the memory and calls body(run). The arguments are valid and x is not empty.
template <class Body>
Status execute(Op op, const Validator& valid, const View* const (&views)[roles], const Options& options,
               const Body& body) noexcept {
    Status status;
    const kernels::KernelTable* table = active_kernels(status);
    if (!table) return status;

    const Box box = canonicalize(views, valid.kept());
    const Chunks chunks(box);
    const Team team = make_team(options, box.elements());
    const Plan plan = make_plan(box, chunks, tensors(op), reduces(op), team.threads);

    Arena measure;
    Memory(measure, box, chunks, team.threads, reduces(op));
    if (options.workspace.data && options.workspace.bytes < measure.bytes())
        return failure(Code::invalid_value, "%s: workspace has %zu bytes, expected at least %zu", valid.function(),
                       options.workspace.bytes, measure.bytes());
    const Scratch scratch(options.workspace, measure.bytes());
    if (!scratch.data())
        return failure(Code::out_of_memory, "%s: no memory for a workspace of %zu bytes", valid.function(),
                       measure.bytes());

    Arena arena(scratch.data());
    const Memory memory(arena, box, chunks, team.threads, reduces(op));
    const Stages stages{box, chunks, kernels_of(*table, box.dtype), memory, plan.stream};
    body(Run{stages, plan, team});
    return status;
}

// x with one value for each statistic: what has x's kept axes where x itself is empty.
View one_value_each(const View& x, const bool (&kept)[max_rank]) noexcept {
    View one = x;
    for (int d = 0; d < x.rank; ++d)
        if (!kept[d]) one.shape[d] = 1;
    return one;
}

// What an empty x leaves: as of a constant channel, with no element behind it.
void fill_empty(const MutStats& saved, double eps) noexcept {
    fill(saved.mean, 0);
    fill(saved.var, 0);
    fill(saved.inv_std, 1 / __builtin_sqrt(eps));
}

void store_stats(const Box& box, const Memory& memory, const MutStats& saved) noexcept {
    store_column(box, {memory.mean, 0}, saved.mean);
    store_column(box, {memory.spread, 0}, saved.var);
    store_column(box, {memory.inv_std, 0}, saved.inv_std);
}

// dgamma and dbeta, from sums that are already there.
void store_param_grads(const Box& box, const Memory& memory, const MutParam& dgamma, const MutParam& dbeta) noexcept {
    store_column(box, {memory.sum_dy, 0}, dbeta);
    for (int64_t s = 0; s < box.statistics(); ++s) memory.sum_dy_xmu[s] *= memory.inv_std[s];
    store_column(box, {memory.sum_dy_xmu, 0}, dgamma);
}

void check_saved(Validator& valid, const MutView& out, const MutStats& saved) noexcept {
    valid.stat_output("mean", saved.mean);
    valid.stat_output("inv_std", saved.inv_std);
    valid.stat_output("var", saved.var);
    valid.separate({{"out", out}, {"mean", saved.mean}, {"inv_std", saved.inv_std}, {"var", saved.var}});
}

void check_param_grads(Validator& valid, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta) noexcept {
    valid.stat_output("dgamma", dgamma);
    valid.stat_output("dbeta", dbeta);
    valid.separate({{"out", dx}, {"dgamma", dgamma}, {"dbeta", dbeta}});
}

}  // namespace

// --------------------------------------------------------------------------------------------------------- forward

Status core::batch_norm(const View& x, const Axes& axes, const Param& gamma, const Param& beta, const MutView& out,
                        const MutStats& saved, const Options& options) noexcept {
    Validator valid("batch_norm");
    valid.x(x, axes);
    valid.param("gamma", gamma, false);
    valid.param("beta", beta, false);
    valid.eps(options.eps);
    valid.options(options);
    valid.training();
    valid.output("out", out, {{"x", x}, {"gamma", gamma}, {"beta", beta}});
    check_saved(valid, out, saved);
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill_empty(saved, options.eps), Status{};

    const View written = out;
    return execute(Op::batch_norm, valid, {&x, nullptr, &written}, options, [&](const Run& run) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        const Column scale = load_column(stages.box, gamma, 1, memory.gamma);
        const Column shift = load_column(stages.box, beta, 0, memory.beta);
        const Column count{nullptr, static_cast<double>(valid.values())};
        run.traverse<MomentSums, Normalize>([&](int64_t g, Range channels) {
            stages.merge_moments(g, channels);
            stages.variance_from_m2(g, channels, count);
            stages.inv_std_from_variance(g, channels, options.eps);
            stages.normalize_coefficients(g, channels, scale, shift);
        });
        store_stats(stages.box, memory, saved);
    });
}

Status core::moments(const View& x, const Axes& axes, const MutMoments& out, const Options& options) noexcept {
    Validator valid("moments");
    valid.x(x, axes);
    valid.options(options);
    valid.stat_output("mean", out.mean);
    valid.stat_output("m2", out.m2);
    valid.stat_output("count", out.count, true);
    valid.separate({{"mean", out.mean}, {"m2", out.m2}, {"count", out.count}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) {
        fill(out.mean, 0);
        fill(out.m2, 0);
        fill(out.count, static_cast<double>(valid.values()));
        return {};
    }

    return execute(Op::moments, valid, {&x, nullptr, nullptr}, options, [&](const Run& run) {
        const Stages& stages = run.stages;
        run.reduce<MomentSums>([&](int64_t g, Range channels) { stages.merge_moments(g, channels); });
        store_column(stages.box, {stages.memory.mean, 0}, out.mean);
        store_column(stages.box, {stages.memory.spread, 0}, out.m2);
        fill(out.count, static_cast<double>(valid.values()));
    });
}

Status core::normalize(const View& x, const Axes& axes, const Moments& moments, const Param& gamma, const Param& beta,
                       const MutView& out, const MutStats& saved, const Options& options) noexcept {
    Validator valid("normalize");
    valid.x(x, axes);
    valid.param("mean", moments.mean, true);
    valid.param("m2", moments.m2, true);
    valid.param_sign("m2", moments.m2, false);
    valid.param("count", moments.count, true);
    valid.param("gamma", gamma, false);
    valid.param("beta", beta, false);
    valid.eps(options.eps);
    valid.options(options);
    valid.output("out", out, {{"x", x}, {"mean", moments.mean}, {"m2", moments.m2}, {"gamma", gamma}, {"beta", beta}});
    check_saved(valid, out, saved);
    if (!valid.empty()) valid.param_sign("count", moments.count, true);
    if (!valid.ok() || valid.statistics() == 0) return valid.status();

    // An empty part of a batch still has the statistics of the whole.
    const View read = valid.empty() ? one_value_each(x, valid.kept()) : x;
    const View written = valid.empty() ? read : View(out);
    return execute(Op::normalize, valid, {&read, nullptr, &written}, options, [&](const Run& run) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, moments.mean, memory.mean);
        load_array(stages.box, moments.m2, memory.spread);
        const Column count = load_column(stages.box, moments.count, 1, memory.count);
        const Column scale = load_column(stages.box, gamma, 1, memory.gamma);
        const Column shift = load_column(stages.box, beta, 0, memory.beta);
        run.each_statistic(1, [&](int64_t g, Range channels) {
            stages.variance_from_m2(g, channels, count);
            stages.inv_std_from_variance(g, channels, options.eps);
            stages.normalize_coefficients(g, channels, scale, shift);
        });
        if (!valid.empty()) run.apply<Normalize>();
        store_stats(stages.box, memory, saved);
    });
}

Status core::batch_norm_inference(const View& x, const Axes& axes, const Param& mean, const Param& var,
                                  const Param& gamma, const Param& beta, const MutView& out,
                                  const Options& options) noexcept {
    Validator valid("batch_norm_inference");
    valid.x(x, axes);
    valid.param("mean", mean, true);
    valid.param("var", var, true);
    valid.param_sign("var", var, false);
    valid.param("gamma", gamma, false);
    valid.param("beta", beta, false);
    valid.eps(options.eps);
    valid.options(options);
    valid.output("out", out, {{"x", x}, {"mean", mean}, {"var", var}, {"gamma", gamma}, {"beta", beta}});
    if (!valid.ok() || valid.empty()) return valid.status();

    const View written = out;
    return execute(Op::batch_norm_inference, valid, {&x, nullptr, &written}, options, [&](const Run& run) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, mean, memory.mean);
        load_array(stages.box, var, memory.spread);
        const Column scale = load_column(stages.box, gamma, 1, memory.gamma);
        const Column shift = load_column(stages.box, beta, 0, memory.beta);
        run.each_statistic(1, [&](int64_t g, Range channels) {
            stages.inv_std_from_variance(g, channels, options.eps);
            stages.normalize_coefficients(g, channels, scale, shift);
        });
        run.apply<Normalize>();
    });
}

// -------------------------------------------------------------------------------------------------------- backward

Status core::batch_norm_backward(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                                 const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                                 const Options& options) noexcept {
    Validator valid("batch_norm_backward");
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.param("saved.mean", saved.mean, true);
    valid.param("saved.inv_std", saved.inv_std, true);
    valid.param("gamma", gamma, false);
    valid.options(options);
    valid.training();
    valid.output("out", dx, {{"dy", dy}, {"x", x}, {"gamma", gamma}});
    check_param_grads(valid, dx, dgamma, dbeta);
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill(dgamma, 0), fill(dbeta, 0), Status{};

    const View written = dx;
    return execute(Op::batch_norm_backward, valid, {&x, &dy, &written}, options, [&](const Run& run) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, saved.mean, memory.mean);
        load_array(stages.box, saved.inv_std, memory.inv_std);
        const Column scale = load_column(stages.box, gamma, 1, memory.gamma);
        const Column count{nullptr, static_cast<double>(valid.values())};
        run.traverse<GradientSums, InputGrad>([&](int64_t g, Range channels) {
            stages.merge_gradients(g, channels);
            stages.input_grad_coefficients(g, channels, scale, count);
        });
        store_param_grads(stages.box, memory, dgamma, dbeta);
    });
}

Status core::grad_sums(const View& dy, const View& x, const Axes& axes, const Stats& saved, const MutGradSums& out,
                       const Options& options) noexcept {
    Validator valid("grad_sums");
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.param("saved.mean", saved.mean, true);
    valid.options(options);
    valid.stat_output("sum_dy", out.sum_dy);
    valid.stat_output("sum_dy_xmu", out.sum_dy_xmu);
    valid.stat_output("count", out.count, true);
    valid.separate({{"sum_dy", out.sum_dy}, {"sum_dy_xmu", out.sum_dy_xmu}, {"count", out.count}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) {
        fill(out.sum_dy, 0);
        fill(out.sum_dy_xmu, 0);
        fill(out.count, static_cast<double>(valid.values()));
        return {};
    }

    return execute(Op::grad_sums, valid, {&x, &dy, nullptr}, options, [&](const Run& run) {
        const Stages& stages = run.stages;
        load_array(stages.box, saved.mean, stages.memory.mean);
        run.reduce<GradientSums>([&](int64_t g, Range channels) { stages.merge_gradients(g, channels); });
        store_column(stages.box, {stages.memory.sum_dy, 0}, out.sum_dy);
        store_column(stages.box, {stages.memory.sum_dy_xmu, 0}, out.sum_dy_xmu);
        fill(out.count, static_cast<double>(valid.values()));
    });
}

Status core::input_grad(const View& dy, const View& x, const Axes& axes, const Stats& saved, const GradSums& sums,
                        const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                        const Options& options) noexcept {
    Validator valid("input_grad");
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.param("saved.mean", saved.mean, true);
    valid.param("saved.inv_std", saved.inv_std, true);
    valid.param("sums.count", sums.count, true);
    valid.param("sums.sum_dy", sums.sum_dy, true);
    valid.param("sums.sum_dy_xmu", sums.sum_dy_xmu, true);
    valid.param("gamma", gamma, false);
    valid.options(options);
    valid.output("out", dx, {{"dy", dy}, {"x", x}, {"gamma", gamma}});
    check_param_grads(valid, dx, dgamma, dbeta);
    if (!valid.empty()) valid.param_sign("sums.count", sums.count, true);
    if (!valid.ok() || valid.statistics() == 0) return valid.status();

    // An empty part of a batch still has the sums of the whole.
    const View read = valid.empty() ? one_value_each(x, valid.kept()) : x;
    const View written = valid.empty() ? read : View(dx);
    return execute(Op::input_grad, valid, {&read, &dy, &written}, options, [&](const Run& run) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, saved.mean, memory.mean);
        load_array(stages.box, saved.inv_std, memory.inv_std);
        load_array(stages.box, sums.sum_dy, memory.sum_dy);
        load_array(stages.box, sums.sum_dy_xmu, memory.sum_dy_xmu);
        const Column count = load_column(stages.box, sums.count, 1, memory.count);
        const Column scale = load_column(stages.box, gamma, 1, memory.gamma);
        if (!valid.empty()) {
            run.each_statistic(
                1, [&](int64_t g, Range channels) { stages.input_grad_coefficients(g, channels, scale, count); });
            run.apply<InputGrad>();
        }
        store_param_grads(stages.box, memory, dgamma, dbeta);
    });
}

Status core::batch_norm_inference_backward(const View& dy, const View& x, const Axes& axes, const Param& mean,
                                           const Param& var, const Param& gamma, const MutView& dx,
                                           const MutParam& dgamma, const MutParam& dbeta,
                                           const Options& options) noexcept {
    Validator valid("batch_norm_inference_backward");
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.param("mean", mean, true);
    valid.param("var", var, true);
    valid.param_sign("var", var, false);
    valid.param("gamma", gamma, false);
    valid.eps(options.eps);
    valid.options(options);
    valid.output("out", dx, {{"dy", dy}, {"x", x}, {"mean", mean}, {"var", var}, {"gamma", gamma}});
    check_param_grads(valid, dx, dgamma, dbeta);
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill(dgamma, 0), fill(dbeta, 0), Status{};

    const View written = dx;
    return execute(Op::batch_norm_inference_backward, valid, {&x, &dy, &written}, options, [&](const Run& run) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, mean, memory.mean);
        load_array(stages.box, var, memory.spread);
        const Column scale = load_column(stages.box, gamma, 1, memory.gamma);
        run.each_statistic(1,
                           [&](int64_t g, Range channels) { stages.inv_std_from_variance(g, channels, options.eps); });
        run.traverse<GradientSums, Scale>([&](int64_t g, Range channels) {
            stages.merge_gradients(g, channels);
            stages.scale_coefficients(g, channels, scale);
        });
        store_param_grads(stages.box, memory, dgamma, dbeta);
    });
}

// ------------------------------------------------------------------------------------------------------- workspace

Status core::workspace_bytes(Op op, const View& x, const Axes& axes, const Options& options,
                             std::size_t& bytes) noexcept {
    bytes = 0;
    Validator valid("workspace_bytes");
    valid.x(x, axes);
    valid.options(options);
    if (!valid.ok() || valid.statistics() == 0) return valid.status();
    const View read = valid.empty() ? one_value_each(x, valid.kept()) : x;
    const Box box = canonicalize({&read, nullptr, nullptr}, valid.kept());
    const Chunks chunks(box);
    Arena measure;
    Memory(measure, box, chunks, make_team(options, box.elements()).threads, reduces(op));
    bytes = measure.bytes();
    return {};
}

const char* version() noexcept { return BATCHNORM_VERSION; }

}  // namespace batchnorm
