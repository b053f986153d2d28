// What each function does on the CPU: which stages, around which statistics.
#include "execute.hpp"

namespace batchnorm {
namespace {

// A part of a problem, about to run.
struct Job {
    const Problem& problem;
    const Run& run;
    const Part& part;
    const Totals& totals;
    const Stages& stages = run.stages;
    const Memory& memory = stages.memory;

    const double* load(const Param& param, double* to) const noexcept {
        return load_array(stages.box, part.own(param), to);
    }
    Column gamma() const noexcept { return load_column(stages.box, part.shared(*problem.gamma), 1, memory.gamma); }
    Column beta() const noexcept { return load_column(stages.box, part.shared(*problem.beta), 0, memory.beta); }
    // The caller's count.
    Column count() const noexcept { return load_column(stages.box, part.own(*problem.count), 1, memory.count); }
    // M, or the caller's where elements have weights.
    Column count_or_size() const noexcept { return problem.options.weights ? count() : size(); }
    // M, or what reducing found where elements have weights.
    Column size() const noexcept { return count_of(stages, problem.options); }

    void store(const double* values, const MutParam& to) const noexcept { store({values, 0}, to); }
    void store(const Column& values, const MutParam& to) const noexcept {
        store_column(stages.box, values, part.own(to));
    }
    void store_statistics(const Column& count) const noexcept {
        store(memory.mean, *problem.to_mean);
        store(memory.spread, *problem.to_var);
        store(memory.inv_std, *problem.to_inv_std);
        store(count, *problem.to_count);
    }
    // dgamma and dbeta, from sums that are already there. The former are sums of dy * (x - mean), of which xhat is
    // `scales`.
    void store_param_grads(const double* scales) const noexcept {
        store_param_grad(stages.box, memory.sum_dy, part, totals.dbeta, totals.sorted, *problem.to_dbeta);
        for (int64_t s = 0; s < stages.box.statistics(); ++s) memory.sum_dy_xmu[s] *= scales[s];
        store_param_grad(stages.box, memory.sum_dy_xmu, part, totals.dgamma, totals.sorted, *problem.to_dgamma);
    }

    // reduce, merge and then(g, channels), with weights or without.
    template <class Apply, class Then>
    void normalize_by_own_moments(const Then& then) const noexcept {
        if (problem.options.weights)
            run.traverse<WeightedMomentSums, Apply>([&](int64_t g, Range channels) {
                stages.merge_weighted_moments(g, channels);
                then(g, channels);
            });
        else
            run.traverse<MomentSums, Apply>([&](int64_t g, Range channels) {
                stages.merge_moments(g, channels);
                then(g, channels);
            });
    }
};

void batch_norm(const Job& job) noexcept {
    const Stages& stages = job.stages;
    const Column scale = job.gamma(), shift = job.beta(), count = job.size();
    job.normalize_by_own_moments<Normalize>([&](int64_t g, Range channels) {
        stages.variance_from_m2(g, channels, count);
        stages.inv_std_from_variance(g, channels, job.problem.options.eps);
        stages.normalize_coefficients(g, channels, scale, shift);
    });
    job.store_statistics(count);
}

void moments(const Job& job) noexcept {
    const Stages& stages = job.stages;
    if (job.problem.options.weights)
        job.run.reduce<WeightedMomentSums>(
            [&](int64_t g, Range channels) { stages.merge_weighted_moments(g, channels); });
    else
        job.run.reduce<MomentSums>([&](int64_t g, Range channels) { stages.merge_moments(g, channels); });
    job.store(job.memory.mean, *job.problem.to_mean);
    job.store(job.memory.spread, *job.problem.to_m2);
    job.store(job.size(), *job.problem.to_count);
}

void normalize(const Job& job) noexcept {
    const Stages& stages = job.stages;
    job.load(*job.problem.mean, job.memory.mean);
    job.load(*job.problem.m2, job.memory.spread);
    const Column count = job.count(), scale = job.gamma(), shift = job.beta();
    job.run.each_statistic(1, [&](int64_t g, Range channels) {
        stages.variance_from_m2(g, channels, count);
        stages.inv_std_from_variance(g, channels, job.problem.options.eps);
        stages.normalize_coefficients(g, channels, scale, shift);
    });
    if (job.problem.writes) job.run.apply<Normalize>();
    job.store_statistics(count);
}

void batch_norm_inference(const Job& job) noexcept {
    const Stages& stages = job.stages;
    job.load(*job.problem.mean, job.memory.mean);
    job.load(*job.problem.var, job.memory.spread);
    const Column scale = job.gamma(), shift = job.beta();
    job.run.each_statistic(1, [&](int64_t g, Range channels) {
        stages.inv_std_from_variance(g, channels, job.problem.options.eps);
        stages.normalize_coefficients(g, channels, scale, shift);
    });
    job.run.apply<Normalize>();
}

void batch_norm_backward(const Job& job) noexcept {
    const Stages& stages = job.stages;
    job.load(*job.problem.mean, job.memory.mean);
    job.load(*job.problem.inv_std, job.memory.inv_std);
    const Column scale = job.gamma(), count = job.count_or_size();
    job.run.traverse<GradientSums, InputGrad>([&](int64_t g, Range channels) {
        stages.merge_gradients(g, channels);
        stages.input_grad_coefficients(g, channels, scale, count);
    });
    job.store_param_grads(job.memory.inv_std);
}

void batch_norm_backward_from_output(const Job& job) noexcept {
    const Stages& stages = job.stages;
    const Memory& memory = job.memory;
    const double zero = 0, one = 1;
    const Param &beta = *job.problem.beta, &gamma = *job.problem.gamma;
    load_array(stages.box, job.part.shared(absent(beta) ? view(&zero, {}) : beta), memory.mean);
    job.load(*job.problem.inv_std, memory.inv_std);
    load_array(stages.box, job.part.shared(absent(gamma) ? view(&one, {}) : gamma), memory.gamma);
    for (int64_t s = 0; s < stages.box.statistics(); ++s) memory.spread[s] = 1 / memory.gamma[s];
    const Column count = job.count_or_size();
    job.run.traverse<GradientSums, InputGrad>([&](int64_t g, Range channels) {
        stages.merge_gradients(g, channels);
        stages.from_output_coefficients(g, channels, count);
    });
    job.store_param_grads(memory.spread);
}

void grad_sums(const Job& job) noexcept {
    const Stages& stages = job.stages;
    job.load(*job.problem.mean, job.memory.mean);
    job.run.reduce<GradientSums>([&](int64_t g, Range channels) { stages.merge_gradients(g, channels); });
    job.store(job.memory.sum_dy, *job.problem.to_sum_dy);
    job.store(job.memory.sum_dy_xmu, *job.problem.to_sum_dy_xmu);
    job.store(job.count_or_size(), *job.problem.to_count);
}

void input_grad(const Job& job) noexcept {
    const Stages& stages = job.stages;
    const Memory& memory = job.memory;
    job.load(*job.problem.mean, memory.mean);
    job.load(*job.problem.inv_std, memory.inv_std);
    job.load(*job.problem.sum_dy, memory.sum_dy);
    job.load(*job.problem.sum_dy_xmu, memory.sum_dy_xmu);
    const Column count = job.count(), scale = job.gamma();
    if (job.problem.writes) {
        job.run.each_statistic(
            1, [&](int64_t g, Range channels) { stages.input_grad_coefficients(g, channels, scale, count); });
        job.run.apply<InputGrad>();
    }
    job.store_param_grads(memory.inv_std);
}

void batch_norm_inference_backward(const Job& job) noexcept {
    const Stages& stages = job.stages;
    job.load(*job.problem.mean, job.memory.mean);
    job.load(*job.problem.var, job.memory.spread);
    const Column scale = job.gamma();
    job.run.each_statistic(
        1, [&](int64_t g, Range channels) { stages.inv_std_from_variance(g, channels, job.problem.options.eps); });
    if (job.problem.is_full())
        job.run.traverse<GradientSums, ScaleActivated>([&](int64_t g, Range channels) {
            stages.merge_gradients(g, channels);
            stages.scale_activated_coefficients(g, channels, scale);
        });
    else
        job.run.traverse<GradientSums, Scale>([&](int64_t g, Range channels) {
            stages.merge_gradients(g, channels);
            stages.scale_coefficients(g, channels, scale);
        });
    job.store_param_grads(job.memory.inv_std);
}

void run_job(const Job& job) noexcept {
    switch (job.problem.op) {
        case Op::batch_norm: return batch_norm(job);
        case Op::moments: return moments(job);
        case Op::normalize: return normalize(job);
        case Op::batch_norm_inference: return batch_norm_inference(job);
        case Op::batch_norm_backward: return batch_norm_backward(job);
        case Op::batch_norm_backward_from_output: return batch_norm_backward_from_output(job);
        case Op::grad_sums: return grad_sums(job);
        case Op::input_grad: return input_grad(job);
        case Op::batch_norm_inference_backward: return batch_norm_inference_backward(job);
        case Op::batch_norm_jvp:
        case Op::batch_norm_double_backward: break;  // higher_order.cpp
    }
}

class Cpu final : public Backend {
  public:
    Status run(const Problem& problem) const noexcept override {
        PreparedParts prepared(problem);
        const std::size_t bytes = bytes_for(problem, prepared);
        return with_memory(problem, bytes, [&](const kernels::KernelSet& set, void* scratch) {
            each_part(problem, prepared, set, scratch, [&](const Run& run, const Part& part, const Totals& totals) {
                run_job({problem, run, part, totals});
            });
        });
    }
    Status fill(const MutParam& param, double value) const noexcept override {
        batchnorm::fill(param, value);
        return {};
    }
    bool sees_values() const noexcept override { return true; }
};

constexpr Cpu the_cpu;

}  // namespace

const Backend& cpu() noexcept { return the_cpu; }

}  // namespace batchnorm
