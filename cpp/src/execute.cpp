#include "execute.hpp"

#include "isa.hpp"

namespace batchnorm {
namespace {

bool goes_back(Op op) noexcept {
    return op != Op::batch_norm && op != Op::batch_norm_inference && op != Op::moments && op != Op::normalize;
}

// Operands that op reads all along.
int tensors(Op op) noexcept { return goes_back(op) ? 2 : 1; }

// Of normalize and grad_sums they are only checked.
bool counts_weights(Op op) noexcept { return op != Op::normalize && op != Op::grad_sums; }

std::size_t measure(const Problem& problem, const PreparedParts& prepared) noexcept {
    std::size_t most = 0;
    for (int i = 0; i < prepared.parts.count; ++i) {
        Arena arena;
        Totals(arena, problem, prepared.parts);
        prepared.at[i]->lay_out(arena, problem, false);
        if (arena.bytes() > most) most = arena.bytes();
    }
    return most;
}

}  // namespace

// A mask lies as the box does, and must do so for all functions.
Box box_of(const Problem& problem, const Part& part) noexcept {
    const Box box = problem.box_of(part);
    if (box.plane == 1 || sums(problem.op, problem.options) > 0 || problem.mask) return box;
    const Box to_write = problem.box_of(part, written_planes(box.dtype, box.elements() * item_size(box.dtype)));
    return to_write.direct() ? to_write : box;  // short rows are packed one by one
}

// They may all have to be packed: a view that repeats one element is never direct.
std::size_t measure_any(Problem problem) noexcept {
    View repeated = *problem.views[role_x];
    for (std::int64_t& stride : repeated.stride) stride = 0;
    const auto any = [&](Role role, bool has) { problem.views[role] = has ? &repeated : nullptr; };
    any(role_dy, goes_back(problem.op));
    any(role_out, problem.op != Op::moments && problem.op != Op::grad_sums);
    any(role_residual, problem.options.residual || problem.options.dresidual);
    any(role_y, problem.options.activation != Activation::none);
    any(role_v, problem.op == Op::batch_norm_double_backward);
    any(role_weights, problem.options.weights && counts_weights(problem.op));
    PreparedParts prepared(problem);
    // Nor are weights then uniform, one for each row, for which they need not be packed.
    for (int i = 0; i < prepared.parts.count; ++i) prepared.at[i]->box.operand[role_weights].uniform = false;
    return measure(problem, prepared);
}

std::size_t bytes_for(const Problem& problem, const PreparedParts& prepared) noexcept {
    return problem.options.workspace.data ? measure_any(problem) : measure(problem, prepared);
}

const kernels::KernelSet* find_kernels(const Problem& problem, std::size_t bytes, Status& status) noexcept {
    const kernels::KernelSet* set = active_kernels(status);
    const Workspace& workspace = problem.options.workspace;
    if (!set || !workspace.data || workspace.bytes >= bytes) return set;
    status = failure(Code::invalid_value, "%s: workspace has %zu bytes, expected at least %zu",
                     problem.valid.function(), workspace.bytes, bytes);
    return nullptr;
}

const kernels::TypeKernels& kernels_of(const kernels::KernelSet& set, DType dtype) noexcept {
    switch (dtype) {
        case DType::f64: return *set.f64;
        case DType::f16: return *set.f16;
        case DType::bf16: return *set.bf16;
        case DType::f32: break;
    }
    return *set.f32;
}

Plan plan_of(const Problem& problem, const Prepared& prepared) noexcept {
    const int more = problem.has(role_residual) + problem.has(role_y) + problem.has(role_v) + problem.has(role_weights);
    const Plan plan = make_plan(prepared.box, prepared.chunks, tensors(problem.op),
                                sums(problem.op, problem.options) > 0, prepared.team.threads, more);
    const bool writes = problem.op != Op::moments && problem.op != Op::grad_sums;
    return writes ? plan : to_reduce_alone(plan, prepared.box, prepared.team.threads);
}

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

Column count_of(const Stages& stages, const Options& options) noexcept {
    return {options.weights ? stages.memory.count : nullptr, static_cast<double>(stages.box.values())};
}

}  // namespace batchnorm
