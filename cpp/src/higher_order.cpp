// Derivatives of batch_norm beyond its gradients, on the CPU.
#include "execute.hpp"
#include "functions.hpp"
#include "overlap.hpp"
#include "status.hpp"

namespace batchnorm {

using functions::check_statistics;

namespace {

// Writes ty: tx is the problem's dy.
void jvp(const Problem& problem, PreparedParts& prepared, const kernels::KernelSet& set, void* scratch,
         const Stats& saved, const Param& gamma, const Param& tgamma, const Param& tbeta) noexcept {
    each_part(problem, prepared, set, scratch, [&](const Run& run, const Part& part, const Totals&) {
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
    valid.output("out", out,
                 {{"tx", tx},
                  {"x", x},
                  {"gamma", gamma},
                  {"tgamma", tgamma},
                  {"tbeta", tbeta},
                  {"saved.mean", saved.mean},
                  {"saved.inv_std", saved.inv_std}});
    if (!valid.ok() || valid.empty()) return valid.status();

    const View written = out;
    const Problem problem{Op::batch_norm_jvp, valid, options, {&x, &tx, &written}};
    PreparedParts prepared(problem);
    return with_memory(problem, bytes_for(problem, prepared), [&](const kernels::KernelSet& set, void* scratch) {
        jvp(problem, prepared, set, scratch, saved, gamma, tgamma, tbeta);
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
    valid.separate({{"dgamma", dgamma}}, {{"ddx", ddx}, {"dy", dy}, {"x", x}});
    valid.separate({{"ddy", ddy}, {"dx", dx}, {"dgamma", dgamma}});
    valid.kept("dgamma", dgamma, params, "ddy");
    // ddy needs ddx and x, and dx all three: what one is written over, the other must have been read by then.
    const bool ddy_first = valid.ok() && (identical(dx, ddx) || identical(dx, x));
    if (ddy_first) valid.kept("ddy", ddy, {{"ddx", ddx}, {"dy", dy}, {"x", x}}, "dx");
    if (!valid.ok()) return valid.status();
    if (valid.empty()) return cpu().fill(dgamma, 0);

    const View written_ddy = ddy, written_dx = dx;
    const Problem to_dy{Op::batch_norm_jvp, valid, options, {&x, &ddx, &written_ddy}};
    const Problem to_x{Op::batch_norm_double_backward, valid, options, {&x, &dy, &written_dx, nullptr, nullptr, &ddx}};
    PreparedParts parts_to_dy(to_dy), parts_to_x(to_x);
    const std::size_t bytes_to_dy = bytes_for(to_dy, parts_to_dy), bytes_to_x = bytes_for(to_x, parts_to_x);
    const auto write = [&](const kernels::KernelSet& set, void* scratch) {
        if (ddy_first) jvp(to_dy, parts_to_dy, set, scratch, saved, gamma, ddgamma, ddbeta);
        each_part(to_x, parts_to_x, set, scratch, [&](const Run& run, const Part& part, const Totals& totals) {
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
        if (!ddy_first) jvp(to_dy, parts_to_dy, set, scratch, saved, gamma, ddgamma, ddbeta);
    };
    return with_memory(to_x, bytes_to_x > bytes_to_dy ? bytes_to_x : bytes_to_dy, write);
}

}  // namespace batchnorm
