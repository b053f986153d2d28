// The public functions: check, make the box, plan, run the stages.
#include <optional>

#include "groups.hpp"
#include "isa.hpp"
#include "overlap.hpp"
#include "run.hpp"
#include "status.hpp"
#include "thread_count.hpp"
#include "validate.hpp"

namespace batchnorm {
namespace {

// Sums that op adds up for each statistic.
int sums(Op op, const Options& options) noexcept {
    switch (op) {
        case Op::batch_norm_inference:
        case Op::normalize:
        case Op::input_grad: return 0;
        case Op::batch_norm:
        case Op::moments: return options.weights ? 3 : 2;
        default: return 2;
    }
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

bool goes_back(Op op) noexcept {
    return op != Op::batch_norm && op != Op::batch_norm_inference && op != Op::moments && op != Op::normalize;
}

// Operands that op reads all along.
int tensors(Op op) noexcept { return goes_back(op) ? 2 : 1; }

// A call, its arguments checked and x not empty.
struct Call {
    Op op;
    const Validator& valid;
    const Options& options;
    const View* views[roles] = {};  // null, or of x's shape
    std::uint8_t* mask = nullptr;
    Epilogue epilogue{};

    bool has(Role role) const noexcept { return views[role] != nullptr; }
    // Whether it needs the full flavour of the kernels.
    bool is_full() const noexcept {
        return epilogue.activates || epilogue.zeros_count_nothing || has(role_residual) || has(role_y) || has(role_v) ||
               has(role_weights);
    }
};

// Everything that is known of a part of a call before it has memory.
struct Prepared {
    Box box;
    Chunks chunks;
    Team team;

    Prepared(const Call& call, const Part& part) noexcept
        : box(box_of(call, part)), chunks(box), team(make_team(call.options, box.elements())) {}

    Memory lay_out(Arena& arena, const Call& call) const noexcept {
        return Memory(arena, box, chunks, team.threads, sums(call.op, call.options));
    }

  private:
    static Box box_of(const Call& call, const Part& part) noexcept {
        if (part.groups == 0) return canonicalize(call.views, call.valid.kept());
        View views[roles];
        const View* present[roles] = {};
        for (int r = 0; r < roles; ++r) {
            if (!call.views[r]) continue;
            views[r] = part.tensor(*call.views[r]);
            present[r] = &views[r];
        }
        bool kept[max_rank] = {true};
        for (int d = 0; d + 1 < max_rank; ++d) kept[d + 1] = call.valid.kept()[d];
        return canonicalize(present, kept);
    }
};

// A call's parts, and what is known of each.
struct PreparedParts {
    const Parts parts;
    std::optional<Prepared> at[2];

    explicit PreparedParts(const Call& call) noexcept : parts(samples(call), call.options.group_size) {
        for (int i = 0; i < parts.count; ++i) at[i].emplace(call, parts.at[i]);
    }

  private:
    static int64_t samples(const Call& call) noexcept {
        return call.views[role_x]->rank > 0 ? call.views[role_x]->shape[0] : 1;
    }
};

// Totals of dgamma and dbeta over groups, one for each combination of the kept axes, and a place to sort a part's by.
struct Totals {
    double *dgamma = nullptr, *dbeta = nullptr, *sorted = nullptr;

    Totals(Arena& arena, const Call& call, const Parts& parts) noexcept {
        if (parts.at[0].groups == 0) return;
        dgamma = arena.take<double>(call.valid.statistics());
        dbeta = arena.take<double>(call.valid.statistics());
        sorted = arena.take<double>(call.valid.statistics() * parts.at[0].groups);
    }
};

// The workspace that a call needs.
std::size_t measure(const Call& call, const PreparedParts& prepared) noexcept {
    std::size_t most = 0;
    for (int i = 0; i < prepared.parts.count; ++i) {
        Arena arena;
        Totals(arena, call, prepared.parts);
        prepared.at[i]->lay_out(arena, call);
        if (arena.bytes() > most) most = arena.bytes();
    }
    return most;
}

// The same for any operands of x's shape, which may all have to be packed: a view that repeats one element is never
// direct.
std::size_t measure_any(Call call) noexcept {
    View repeated = *call.views[role_x];
    for (std::int64_t& stride : repeated.stride) stride = 0;
    const auto any = [&](Role role, bool has) { call.views[role] = has ? &repeated : nullptr; };
    any(role_dy, goes_back(call.op));
    any(role_out, call.op != Op::moments && call.op != Op::grad_sums);
    any(role_residual, call.options.residual || call.options.dresidual);
    any(role_y, call.options.activation != Activation::none);
    any(role_v, call.op == Op::batch_norm_double_backward);
    any(role_weights, call.options.weights);
    return measure(call, PreparedParts(call));
}

// The bytes that a call is to be given: what it needs, or what workspace_bytes() tells where it is the caller's.
std::size_t bytes_for(const Call& call, const PreparedParts& prepared) noexcept {
    return call.options.workspace.data ? measure_any(call) : measure(call, prepared);
}

// Finds the kernels, gets the memory and calls body(kernels, memory).
template <class Body>
Status with_memory(const Call& call, std::size_t bytes, const Body& body) noexcept {
    Status status;
    const kernels::KernelTable* table = active_kernels(status);
    if (!table) return status;

    const Options& options = call.options;
    if (options.workspace.data && options.workspace.bytes < bytes)
        return failure(Code::invalid_value, "%s: workspace has %zu bytes, expected at least %zu", call.valid.function(),
                       options.workspace.bytes, bytes);
    const Scratch scratch(options.workspace, bytes);
    if (!scratch.data())
        return failure(Code::out_of_memory, "%s: no memory for a workspace of %zu bytes", call.valid.function(), bytes);
    body(*table, scratch.data());
    return status;
}

// Plans each part of the call and calls body(run, part, totals).
template <class Body>
void each_part(const Call& call, PreparedParts& prepared_parts, const kernels::KernelTable& table, void* scratch,
               const Body& body) noexcept {
    const Options& options = call.options;
    const Parts& parts = prepared_parts.parts;
    std::uint8_t* mask = call.mask;
    for (int i = 0; i < parts.count; ++i) {
        const Part& part = parts.at[i];
        Prepared& prepared = *prepared_parts.at[i];
        prepared.box.mask = mask;
        if (mask) mask += prepared.box.mask_rows() * prepared.box.mask_pitch();
        const Box& box = prepared.box;
        Arena arena(scratch);
        const Totals totals(arena, call, parts);
        const Memory memory = prepared.lay_out(arena, call);
        const int more = call.has(role_residual) + call.has(role_y) + call.has(role_v) + call.has(role_weights);
        const Plan plan =
            make_plan(box, prepared.chunks, tensors(call.op), sums(call.op, options) > 0, prepared.team.threads, more);
        const kernels::TypeKernels& kernels = kernels_of(table, box.dtype);
        const Stages stages{box,           prepared.chunks, kernels,    call.is_full() ? kernels.full : kernels.plain,
                            call.epilogue, memory,          plan.stream};
        body(Run{stages, plan, prepared.team}, part, totals);
    }
}

template <class Body>
Status execute(const Call& call, const Body& body) noexcept {
    PreparedParts prepared(call);
    return with_memory(call, bytes_for(call, prepared), [&](const kernels::KernelTable& table, void* scratch) {
        each_part(call, prepared, table, scratch, body);
    });
}

template <class AnyView>
View or_absent(const AnyView* view) noexcept {
    return view ? View(*view) : View{};
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

void store_stats(const Stages& stages, const Part& part, const Column& count, const MutStats& saved) noexcept {
    const Box& box = stages.box;
    const Memory& memory = stages.memory;
    store_column(box, {memory.mean, 0}, part.own(saved.mean));
    store_column(box, {memory.spread, 0}, part.own(saved.var));
    store_column(box, {memory.inv_std, 0}, part.own(saved.inv_std));
    store_column(box, count, part.own(saved.count));
}

// One column of gradients, added up over the groups of all parts where there are some.
void store_param_grad(const Box& box, const double* values, const Part& part, double* totals, double* sorted,
                      const MutParam& to) noexcept {
    if (part.groups == 0) return store_column(box, {values, 0}, to);
    const int64_t n = box.statistics() / part.groups;
    MutParam in_order;
    in_order.data = sorted;
    in_order.dtype = DType::f64;
    in_order.rank = box.kept_rank;
    int64_t stride = sizeof(double);
    for (int d = box.kept_rank; d-- > 0; stride *= box.kept_shape[d]) {
        in_order.shape[d] = box.kept_shape[d];
        in_order.stride[d] = stride;
    }
    store_column(box, {values, 0}, in_order);
    for (int64_t s = 0; s < n; ++s) {
        double total = part.first_group == 0 ? 0 : totals[s];
        for (int64_t g = 0; g < part.groups; ++g) total += sorted[g * n + s];
        totals[s] = total;
    }
    if (part.last) copy_out(totals, to);
}

// dgamma and dbeta, from sums that are already there. The former are sums of dy * (x - mean), of which xhat is
// `scales`.
void store_param_grads(const Stages& stages, const double* scales, const Part& part, const Totals& totals,
                       const MutParam& dgamma, const MutParam& dbeta) noexcept {
    const Memory& memory = stages.memory;
    store_param_grad(stages.box, memory.sum_dy, part, totals.dbeta, totals.sorted, dbeta);
    for (int64_t s = 0; s < stages.box.statistics(); ++s) memory.sum_dy_xmu[s] *= scales[s];
    store_param_grad(stages.box, memory.sum_dy_xmu, part, totals.dgamma, totals.sorted, dgamma);
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

Param constant(const double* value) noexcept { return view(value, {}); }

// The count behind each statistic: forward's, if it is in memory, or M.
Column count_of(const Stages& stages, const Options& options) noexcept {
    return {options.weights ? stages.memory.count : nullptr, static_cast<double>(stages.box.values())};
}

void check_saved(Validator& valid, const MutView& out, const MutStats& saved, const Options& options) noexcept {
    valid.own_stat_output("mean", saved.mean);
    valid.own_stat_output("inv_std", saved.inv_std);
    valid.own_stat_output("var", saved.var);
    valid.own_stat_output("count", saved.count, !options.weights && options.group_size == 0);
    valid.separate(
        {{"out", out}, {"mean", saved.mean}, {"inv_std", saved.inv_std}, {"var", saved.var}, {"count", saved.count}});
}

// What backward takes from forward.
void check_statistics(Validator& valid, const Stats& saved, const Options& options, bool normalizes,
                      bool counts = true) noexcept {
    valid.stat("saved.mean", saved.mean, true);
    if (normalizes) valid.stat("saved.inv_std", saved.inv_std, true);
    valid.stat("saved.count", saved.count, options.weights && counts);
    valid.mask("saved.mask", saved.mask, options);
}

void check_grads(Validator& valid, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                 const Options& options, std::initializer_list<Validator::Named> inputs) noexcept {
    valid.output("out", dx, inputs);
    const View dresidual = or_absent(options.dresidual);
    if (options.dresidual) valid.output("dresidual", *options.dresidual, inputs);
    valid.stat_output("dgamma", dgamma);
    valid.stat_output("dbeta", dbeta);
    valid.separate({{"out", dx}, {"dresidual", dresidual}, {"dgamma", dgamma}, {"dbeta", dbeta}});
}

}  // namespace

// --------------------------------------------------------------------------------------------------------- forward

namespace {

Status forward(Validator& valid, const View& x, const Axes& axes, const Param& gamma, const Param& beta,
               const MutView& out, const MutStats& saved, const Options& options, bool inplace) noexcept {
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
    valid.output("out", out,
                 {{"x", x}, {"gamma", gamma}, {"beta", beta}, {"residual", residual}, {"weights", weights}});
    check_saved(valid, out, saved, options);
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill_empty(saved, options.eps), Status{};

    const View written = out;
    Call call{Op::batch_norm, valid, options, {&x, nullptr, &written, options.residual}};
    call.mask = saved.mask;
    call.epilogue = forward_epilogue(options);
    call.views[role_weights] = valid.weights_like_x();
    return execute(call, [&](const Run& run, const Part& part, const Totals&) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        const Column scale = load_column(stages.box, part.shared(gamma), 1, memory.gamma);
        const Column shift = load_column(stages.box, part.shared(beta), 0, memory.beta);
        const Column count = count_of(stages, options);
        const auto finish = [&](int64_t g, Range channels) {
            stages.variance_from_m2(g, channels, count);
            stages.inv_std_from_variance(g, channels, options.eps);
            stages.normalize_coefficients(g, channels, scale, shift);
        };
        if (options.weights)
            run.traverse<WeightedMomentSums, Normalize>([&](int64_t g, Range channels) {
                stages.merge_weighted_moments(g, channels);
                finish(g, channels);
            });
        else
            run.traverse<MomentSums, Normalize>([&](int64_t g, Range channels) {
                stages.merge_moments(g, channels);
                finish(g, channels);
            });
        store_stats(stages, part, count, saved);
    });
}

}  // namespace

Status core::batch_norm(const View& x, const Axes& axes, const Param& gamma, const Param& beta, const MutView& out,
                        const MutStats& saved, const Options& options) noexcept {
    Validator valid("batch_norm");
    return forward(valid, x, axes, gamma, beta, out, saved, options, false);
}

Status core::batch_norm_inplace(const MutView& x, const Axes& axes, const Param& gamma, const Param& beta,
                                const MutStats& saved, const Options& options) noexcept {
    Validator valid("batch_norm_inplace");
    return forward(valid, x, axes, gamma, beta, x, saved, options, true);
}

Status core::moments(const View& x, const Axes& axes, const MutMoments& out, const Options& options) noexcept {
    Validator valid("moments");
    valid.x(x, axes);
    valid.options(options);
    valid.more_options(options, Validator::weights | Validator::groups);
    valid.own_stat_output("mean", out.mean);
    valid.own_stat_output("m2", out.m2);
    valid.own_stat_output("count", out.count, !options.weights && options.group_size == 0);
    valid.separate({{"mean", out.mean}, {"m2", out.m2}, {"count", out.count}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) {
        fill(out.mean, 0);
        fill(out.m2, 0);
        fill(out.count, static_cast<double>(valid.values()));
        return {};
    }

    Call call{Op::moments, valid, options, {&x}};
    call.views[role_weights] = valid.weights_like_x();
    return execute(call, [&](const Run& run, const Part& part, const Totals&) {
        const Stages& stages = run.stages;
        if (options.weights)
            run.reduce<WeightedMomentSums>(
                [&](int64_t g, Range channels) { stages.merge_weighted_moments(g, channels); });
        else
            run.reduce<MomentSums>([&](int64_t g, Range channels) { stages.merge_moments(g, channels); });
        store_column(stages.box, {stages.memory.mean, 0}, part.own(out.mean));
        store_column(stages.box, {stages.memory.spread, 0}, part.own(out.m2));
        store_column(stages.box, count_of(stages, options), part.own(out.count));
    });
}

Status core::normalize(const View& x, const Axes& axes, const Moments& moments, const Param& gamma, const Param& beta,
                       const MutView& out, const MutStats& saved, const Options& options) noexcept {
    Validator valid("normalize");
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
    valid.output("out", out,
                 {{"x", x},
                  {"mean", moments.mean},
                  {"m2", moments.m2},
                  {"gamma", gamma},
                  {"beta", beta},
                  {"residual", residual}});
    check_saved(valid, out, saved, options);
    if (!valid.empty()) valid.param_sign("count", moments.count, moments.count.rank == 0);
    if (!valid.ok() || valid.statistics() == 0) return valid.status();
    if (valid.empty() && options.group_size > 0) return {};

    // An empty part of a batch still has the statistics of the whole.
    const View read = valid.empty() ? one_value_each(x, valid.kept()) : x;
    const View written = valid.empty() ? read : View(out);
    Call call{Op::normalize, valid, options, {&read, nullptr, &written, valid.empty() ? nullptr : options.residual}};
    call.mask = saved.mask;
    call.epilogue = forward_epilogue(options);
    return execute(call, [&](const Run& run, const Part& part, const Totals&) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, part.own(moments.mean), memory.mean);
        load_array(stages.box, part.own(moments.m2), memory.spread);
        const Column count = load_column(stages.box, part.own(moments.count), 1, memory.count);
        const Column scale = load_column(stages.box, part.shared(gamma), 1, memory.gamma);
        const Column shift = load_column(stages.box, part.shared(beta), 0, memory.beta);
        run.each_statistic(1, [&](int64_t g, Range channels) {
            stages.variance_from_m2(g, channels, count);
            stages.inv_std_from_variance(g, channels, options.eps);
            stages.normalize_coefficients(g, channels, scale, shift);
        });
        if (!valid.empty()) run.apply<Normalize>();
        store_stats(stages, part, count, saved);
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
    valid.more_options(options, Validator::activation | Validator::residual);
    const View residual = or_absent(options.residual);
    valid.output("out", out,
                 {{"x", x}, {"mean", mean}, {"var", var}, {"gamma", gamma}, {"beta", beta}, {"residual", residual}});
    if (!valid.ok() || valid.empty()) return valid.status();

    const View written = out;
    Call call{Op::batch_norm_inference, valid, options, {&x, nullptr, &written, options.residual}};
    call.epilogue = forward_epilogue(options);
    return execute(call, [&](const Run& run, const Part&, const Totals&) {
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
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::dresidual | Validator::weights | Validator::groups);
    check_statistics(valid, saved, options, true);
    valid.param("gamma", gamma, false);
    valid.training();
    check_grads(valid, dx, dgamma, dbeta, options,
                {{"dy", dy}, {"x", x}, {"gamma", gamma}, {"weights", or_absent(options.weights)}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill(dgamma, 0), fill(dbeta, 0), Status{};

    const View written = dx, dresidual = or_absent(options.dresidual);
    Call call{Op::batch_norm_backward, valid, options, {&x, &dy, &written}};
    call.mask = const_cast<std::uint8_t*>(saved.mask);  // only read
    call.epilogue = backward_epilogue(options);
    if (options.dresidual) call.views[role_residual] = &dresidual;
    call.views[role_weights] = valid.weights_like_x();
    return execute(call, [&](const Run& run, const Part& part, const Totals& totals) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, part.own(saved.mean), memory.mean);
        load_array(stages.box, part.own(saved.inv_std), memory.inv_std);
        const Column scale = load_column(stages.box, part.shared(gamma), 1, memory.gamma);
        const Column count = options.weights ? load_column(stages.box, part.own(saved.count), 1, memory.count)
                                             : count_of(stages, options);
        run.traverse<GradientSums, InputGrad>([&](int64_t g, Range channels) {
            stages.merge_gradients(g, channels);
            stages.input_grad_coefficients(g, channels, scale, count);
        });
        store_param_grads(stages, memory.inv_std, part, totals, dgamma, dbeta);
    });
}

// The output takes x's place, with beta and 1 / gamma as the mean and inv_std that lead to xhat.
Status core::batch_norm_backward_from_output(const View& dy, const View& y, const Axes& axes, const Stats& saved,
                                             const Param& gamma, const Param& beta, const MutView& dx,
                                             const MutParam& dgamma, const MutParam& dbeta,
                                             const Options& options) noexcept {
    Validator valid("batch_norm_backward_from_output");
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
    check_grads(valid, dx, dgamma, dbeta, options,
                {{"dy", dy}, {"y", y}, {"gamma", gamma}, {"beta", beta}, {"weights", or_absent(options.weights)}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill(dgamma, 0), fill(dbeta, 0), Status{};

    const View written = dx;
    Call call{Op::batch_norm_backward_from_output, valid, options, {&y, &dy, &written}};
    call.epilogue = backward_epilogue(options);
    call.epilogue.restores = call.epilogue.activates;
    if (call.epilogue.activates) call.views[role_y] = &y;
    call.views[role_weights] = valid.weights_like_x();
    return execute(call, [&](const Run& run, const Part& part, const Totals& totals) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        const double zero = 0, one = 1;
        load_array(stages.box, part.shared(absent(beta) ? constant(&zero) : beta), memory.mean);
        load_array(stages.box, part.own(saved.inv_std), memory.inv_std);
        const double* const scale =
            load_array(stages.box, part.shared(absent(gamma) ? constant(&one) : gamma), memory.gamma);
        for (int64_t s = 0; s < stages.box.statistics(); ++s) memory.spread[s] = 1 / scale[s];
        const Column count = options.weights ? load_column(stages.box, part.own(saved.count), 1, memory.count)
                                             : count_of(stages, options);
        run.traverse<GradientSums, InputGrad>([&](int64_t g, Range channels) {
            stages.merge_gradients(g, channels);
            stages.from_output_coefficients(g, channels, count);
        });
        store_param_grads(stages, memory.spread, part, totals, dgamma, dbeta);
    });
}

Status core::grad_sums(const View& dy, const View& x, const Axes& axes, const Stats& saved, const MutGradSums& out,
                       const Options& options) noexcept {
    Validator valid("grad_sums");
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.options(options);
    valid.more_options(options, Validator::activation | Validator::weights | Validator::groups);
    check_statistics(valid, saved, options, false, !absent(out.count));
    valid.own_stat_output("sum_dy", out.sum_dy);
    valid.own_stat_output("sum_dy_xmu", out.sum_dy_xmu);
    valid.own_stat_output("count", out.count, !options.weights && options.group_size == 0);
    valid.separate({{"sum_dy", out.sum_dy}, {"sum_dy_xmu", out.sum_dy_xmu}, {"count", out.count}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) {
        fill(out.sum_dy, 0);
        fill(out.sum_dy_xmu, 0);
        fill(out.count, static_cast<double>(valid.values()));
        return {};
    }

    Call call{Op::grad_sums, valid, options, {&x, &dy}};
    call.mask = const_cast<std::uint8_t*>(saved.mask);  // only read
    call.epilogue = backward_epilogue(options);
    return execute(call, [&](const Run& run, const Part& part, const Totals&) {
        const Stages& stages = run.stages;
        load_array(stages.box, part.own(saved.mean), stages.memory.mean);
        run.reduce<GradientSums>([&](int64_t g, Range channels) { stages.merge_gradients(g, channels); });
        store_column(stages.box, {stages.memory.sum_dy, 0}, part.own(out.sum_dy));
        store_column(stages.box, {stages.memory.sum_dy_xmu, 0}, part.own(out.sum_dy_xmu));
        const Column count = options.weights ? load_column(stages.box, part.own(saved.count), 1, stages.memory.count)
                                             : count_of(stages, options);
        store_column(stages.box, count, part.own(out.count));
    });
}

Status core::input_grad(const View& dy, const View& x, const Axes& axes, const Stats& saved, const GradSums& sums,
                        const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                        const Options& options) noexcept {
    Validator valid("input_grad");
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
                {{"dy", dy}, {"x", x}, {"gamma", gamma}, {"weights", or_absent(options.weights)}});
    if (!valid.empty()) valid.param_sign("sums.count", sums.count, sums.count.rank == 0);
    if (!valid.ok() || valid.statistics() == 0) return valid.status();
    if (valid.empty() && options.group_size > 0) return fill(dgamma, 0), fill(dbeta, 0), Status{};

    // An empty part of a batch still has the sums of the whole.
    const View read = valid.empty() ? one_value_each(x, valid.kept()) : x;
    const View written = valid.empty() ? read : View(dx);
    const View dresidual = or_absent(options.dresidual);
    Call call{Op::input_grad, valid, options, {&read, &dy, &written}};
    call.mask = const_cast<std::uint8_t*>(saved.mask);  // only read
    call.epilogue = backward_epilogue(options);
    if (!valid.empty()) {
        if (options.dresidual) call.views[role_residual] = &dresidual;
        call.views[role_weights] = valid.weights_like_x();
    }
    return execute(call, [&](const Run& run, const Part& part, const Totals& totals) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, part.own(saved.mean), memory.mean);
        load_array(stages.box, part.own(saved.inv_std), memory.inv_std);
        load_array(stages.box, part.own(sums.sum_dy), memory.sum_dy);
        load_array(stages.box, part.own(sums.sum_dy_xmu), memory.sum_dy_xmu);
        const Column count = load_column(stages.box, part.own(sums.count), 1, memory.count);
        const Column scale = load_column(stages.box, part.shared(gamma), 1, memory.gamma);
        if (!valid.empty()) {
            run.each_statistic(
                1, [&](int64_t g, Range channels) { stages.input_grad_coefficients(g, channels, scale, count); });
            run.apply<InputGrad>();
        }
        store_param_grads(stages, memory.inv_std, part, totals, dgamma, dbeta);
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
    valid.more_options(options, Validator::activation | Validator::dresidual | Validator::activation_output);
    valid.told_by_sign(options);
    const View y = options.activation == Activation::none ? View{} : or_absent(options.activation_output);
    check_grads(valid, dx, dgamma, dbeta, options,
                {{"dy", dy}, {"x", x}, {"mean", mean}, {"var", var}, {"gamma", gamma}, {"y", y}});
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill(dgamma, 0), fill(dbeta, 0), Status{};

    const View written = dx, dresidual = or_absent(options.dresidual);
    Call call{Op::batch_norm_inference_backward, valid, options, {&x, &dy, &written}};
    call.epilogue = backward_epilogue(options);
    if (options.activation != Activation::none) call.views[role_y] = &y;
    if (options.dresidual) call.views[role_residual] = &dresidual;
    return execute(call, [&](const Run& run, const Part& part, const Totals& totals) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, mean, memory.mean);
        load_array(stages.box, var, memory.spread);
        const Column scale = load_column(stages.box, gamma, 1, memory.gamma);
        run.each_statistic(1,
                           [&](int64_t g, Range channels) { stages.inv_std_from_variance(g, channels, options.eps); });
        if (call.is_full())
            run.traverse<GradientSums, ScaleActivated>([&](int64_t g, Range channels) {
                stages.merge_gradients(g, channels);
                stages.scale_activated_coefficients(g, channels, scale);
            });
        else
            run.traverse<GradientSums, Scale>([&](int64_t g, Range channels) {
                stages.merge_gradients(g, channels);
                stages.scale_coefficients(g, channels, scale);
            });
        store_param_grads(stages, memory.inv_std, part, totals, dgamma, dbeta);
    });
}

// ------------------------------------------------------------------------------------------------ higher derivatives

namespace {

// Writes ty: tx is the call's dy.
void jvp(const Call& call, PreparedParts& prepared, const kernels::KernelTable& table, void* scratch,
         const Stats& saved, const Param& gamma, const Param& tgamma, const Param& tbeta) noexcept {
    each_part(call, prepared, table, scratch, [&](const Run& run, const Part& part, const Totals&) {
        const Stages& stages = run.stages;
        const Memory& memory = stages.memory;
        load_array(stages.box, part.own(saved.mean), memory.mean);
        load_array(stages.box, part.own(saved.inv_std), memory.inv_std);
        const Column scale = load_column(stages.box, part.shared(gamma), 1, memory.gamma);
        const Column of_gamma = load_column(stages.box, part.shared(tgamma), 0, memory.tgamma);
        const Column of_beta = load_column(stages.box, part.shared(tbeta), 0, memory.tbeta);
        run.traverse<GradientSums, InputGrad>([&](int64_t g, Range channels) {
            stages.merge_gradients(g, channels);
            stages.jvp_coefficients(g, channels, scale, of_gamma, of_beta);
        });
    });
}

}  // namespace

Status core::batch_norm_jvp(const View& tx, const View& x, const Axes& axes, const Stats& saved, const Param& gamma,
                            const Param& tgamma, const Param& tbeta, const MutView& out,
                            const Options& options) noexcept {
    Validator valid("batch_norm_jvp");
    valid.x(x, axes);
    valid.tensor("tx", tx);
    valid.options(options);
    valid.more_options(options, Validator::groups);
    check_statistics(valid, saved, options, true);
    valid.param("gamma", gamma, false);
    valid.param("tgamma", tgamma, false);
    valid.param("tbeta", tbeta, false);
    valid.training();
    valid.output("out", out, {{"tx", tx}, {"x", x}, {"gamma", gamma}, {"tgamma", tgamma}, {"tbeta", tbeta}});
    if (!valid.ok() || valid.empty()) return valid.status();

    const View written = out;
    const Call call{Op::batch_norm_jvp, valid, options, {&x, &tx, &written}};
    PreparedParts prepared(call);
    return with_memory(call, bytes_for(call, prepared), [&](const kernels::KernelTable& table, void* scratch) {
        jvp(call, prepared, table, scratch, saved, gamma, tgamma, tbeta);
    });
}

Status core::batch_norm_double_backward(const View& ddx, const View& dy, const View& x, const Axes& axes,
                                        const Stats& saved, const Param& gamma, const Param& ddgamma,
                                        const Param& ddbeta, const MutView& ddy, const MutView& dx,
                                        const MutParam& dgamma, const Options& options) noexcept {
    Validator valid("batch_norm_double_backward");
    valid.x(x, axes);
    valid.tensor("dy", dy);
    valid.tensor("ddx", ddx);
    valid.options(options);
    valid.more_options(options, Validator::groups);
    check_statistics(valid, saved, options, true);
    valid.param("gamma", gamma, false);
    valid.param("ddgamma", ddgamma, false);
    valid.param("ddbeta", ddbeta, false);
    valid.training();
    const auto outputs_apart_from = [&](std::initializer_list<Validator::Named> inputs) {
        valid.output("ddy", ddy, inputs);
        valid.output("dx", dx, inputs);
    };
    const std::initializer_list<Validator::Named> params = {{"gamma", gamma},
                                                            {"ddgamma", ddgamma},
                                                            {"ddbeta", ddbeta},
                                                            {"saved.mean", saved.mean},
                                                            {"saved.inv_std", saved.inv_std}};
    outputs_apart_from({{"ddx", ddx}, {"dy", dy}, {"x", x}});
    outputs_apart_from(params);
    valid.stat_output("dgamma", dgamma);
    valid.separate({{"ddy", ddy}, {"dx", dx}, {"dgamma", dgamma}});
    valid.kept("dgamma", dgamma, params, "ddy");
    // ddy needs ddx and x, and dx all three: what one is written over, the other must have been read by then.
    const bool ddy_first = valid.ok() && (identical(dx, ddx) || identical(dx, x));
    if (ddy_first) valid.kept("ddy", ddy, {{"ddx", ddx}, {"dy", dy}, {"x", x}}, "dx");
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return fill(dgamma, 0), Status{};

    const View written_ddy = ddy, written_dx = dx;
    const Call to_dy{Op::batch_norm_jvp, valid, options, {&x, &ddx, &written_ddy}};
    const Call to_x{Op::batch_norm_double_backward, valid, options, {&x, &dy, &written_dx, nullptr, nullptr, &ddx}};
    PreparedParts parts_to_dy(to_dy), parts_to_x(to_x);
    const std::size_t bytes_to_dy = bytes_for(to_dy, parts_to_dy), bytes_to_x = bytes_for(to_x, parts_to_x);
    const auto write = [&](const kernels::KernelTable& table, void* scratch) {
        if (ddy_first) jvp(to_dy, parts_to_dy, table, scratch, saved, gamma, ddgamma, ddbeta);
        each_part(to_x, parts_to_x, table, scratch, [&](const Run& run, const Part& part, const Totals& totals) {
            const Stages& stages = run.stages;
            const Memory& memory = stages.memory;
            load_array(stages.box, part.own(saved.mean), memory.mean);
            load_array(stages.box, part.own(saved.inv_std), memory.inv_std);
            const Column scale = load_column(stages.box, part.shared(gamma), 1, memory.gamma);
            const Column of_gamma = load_column(stages.box, part.shared(ddgamma), 0, memory.tgamma);
            const auto merge_mixed = [&](int64_t g, Range channels) {
                stages.merge_dy_v(g, channels);
                stages.double_backward_coefficients(g, channels, scale, of_gamma);
            };
            run.traverse_after<InputGrad>(
                reduction<GradientSums>([&](int64_t g, Range channels) { stages.merge_gradients(g, channels); }),
                reduction<DirectionSums>([&](int64_t g, Range channels) { stages.merge_v(g, channels); }),
                reduction<MixedSums>(merge_mixed));
            store_param_grad(stages.box, memory.sum_dy_v, part, totals.dgamma, totals.sorted, dgamma);
        });
        if (!ddy_first) jvp(to_dy, parts_to_dy, table, scratch, saved, gamma, ddgamma, ddbeta);
    };
    return with_memory(to_x, bytes_to_x > bytes_to_dy ? bytes_to_x : bytes_to_dy, write);
}

// ------------------------------------------------------------------------------------------------------- workspace

Status core::workspace_bytes(Op op, const View& x, const Axes& axes, const Options& options,
                             std::size_t& bytes) noexcept {
    bytes = 0;
    Validator valid("workspace_bytes");
    valid.x(x, axes);
    valid.options(options);
    valid.more_options(options, ~0u);
    if (!valid.ok() || valid.statistics() == 0) return valid.status();
    if (valid.empty() && options.group_size > 0) return {};
    const View read = valid.empty() ? one_value_each(x, valid.kept()) : x;
    bytes = measure_any({op, valid, options, {&read}});
    return {};
}

Status core::mask_bytes(const View& x, const Axes& axes, const Options& options, std::size_t& bytes) noexcept {
    bytes = 0;
    Validator valid("mask_bytes");
    valid.x(x, axes);
    valid.more_options(options, ~0u);
    if (!valid.ok() || valid.empty()) return valid.status();
    const PreparedParts prepared({Op::batch_norm, valid, options, {&x}});
    for (int i = 0; i < prepared.parts.count; ++i) {
        const Box& box = prepared.at[i]->box;
        bytes += static_cast<std::size_t>(box.mask_rows() * box.mask_pitch());
    }
    return {};
}

const char* version() noexcept { return BATCHNORM_VERSION; }

}  // namespace batchnorm
