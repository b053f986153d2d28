// A problem on the CPU: the memory, the kernels and the plan of each of its parts.
#pragma once

#include <optional>

#include "arena.hpp"
#include "problem.hpp"
#include "run.hpp"
#include "status.hpp"

namespace batchnorm {

// A part's box, for the CPU.
Box box_of(const Problem& problem, const Part& part) noexcept;

// Everything that is known of a part of a problem before it has memory.
struct Prepared {
    Box box;
    Chunks chunks;
    Team team;

    Prepared(const Problem& problem, const Part& part) noexcept
        : box(box_of(problem, part)),
          chunks(box),
          team(make_team(problem.options, box.elements(),
                         elements_per_thread(box, sums(problem.op, problem.options) > 0))) {}

    Memory lay_out(Arena& arena, const Problem& problem, bool stream) const noexcept {
        return Memory(arena, box, chunks, team.threads, sums(problem.op, problem.options), stream);
    }
};

// A problem's parts, and what is known of each.
struct PreparedParts {
    const Parts parts;
    std::optional<Prepared> at[2];

    explicit PreparedParts(const Problem& problem) noexcept : parts(problem.parts()) {
        for (int i = 0; i < parts.count; ++i) at[i].emplace(problem, parts.at[i]);
    }
};

// Totals of dgamma and dbeta over groups, one for each combination of the kept axes, and a place to sort a part's by.
struct Totals {
    double *dgamma = nullptr, *dbeta = nullptr, *sorted = nullptr;

    Totals(Arena& arena, const Problem& problem, const Parts& parts) noexcept {
        if (parts.at[0].groups == 0) return;
        dgamma = arena.take<double>(problem.valid.statistics());
        dbeta = arena.take<double>(problem.valid.statistics());
        sorted = arena.take<double>(problem.valid.statistics() * parts.at[0].groups);
    }
};

// The workspace that a problem's op needs for any operands of x's shape.
std::size_t measure_any(Problem problem) noexcept;
// The bytes that a problem is to be given: what it needs, or what measure_any() tells where they are the caller's.
std::size_t bytes_for(const Problem& problem, const PreparedParts& prepared) noexcept;

// The kernels in use; failing that, or if the caller's workspace is too small, why not.
const kernels::KernelSet* find_kernels(const Problem& problem, std::size_t bytes, Status& status) noexcept;
// Those of the box's type, and the plan of a part.
const kernels::TypeKernels& kernels_of(const kernels::KernelSet& set, DType dtype) noexcept;
Plan plan_of(const Problem& problem, const Prepared& prepared) noexcept;

// Finds the kernels, gets the memory and calls body(kernels, memory).
template <class Body>
Status with_memory(const Problem& problem, std::size_t bytes, const Body& body) noexcept {
    Status status;
    const kernels::KernelSet* set = find_kernels(problem, bytes, status);
    if (!set) return status;
    const Scratch scratch(problem.options.workspace, bytes);
    if (!scratch.data())
        return failure(Code::out_of_memory, "%s: no memory for a workspace of %zu bytes", problem.valid.function(),
                       bytes);
    body(*set, scratch.data());
    return status;
}

// Plans each part of the problem and calls body(run, part, totals).
template <class Body>
void each_part(const Problem& problem, PreparedParts& prepared_parts, const kernels::KernelSet& set, void* scratch,
               const Body& body) noexcept {
    const Parts& parts = prepared_parts.parts;
    std::uint8_t* mask = problem.mask;
    for (int i = 0; i < parts.count; ++i) {
        const Part& part = parts.at[i];
        Prepared& prepared = *prepared_parts.at[i];
        prepared.box.mask = mask;
        if (mask) mask += prepared.box.mask_bytes();
        Arena arena(scratch);
        const Totals totals(arena, problem, parts);
        const Plan plan = plan_of(problem, prepared);
        const Memory memory = prepared.lay_out(arena, problem, plan.stream);
        const kernels::TypeKernels& kernels = kernels_of(set, prepared.box.dtype);
        const Stages stages{
            prepared.box,          prepared.chunks, kernels,      problem.is_full() ? kernels.full : kernels.plain,
            problem.epilogue,      memory,          plan.reading, plan.stream,
            plan.looks_up_quickly, plan.ahead};
        body(Run{stages, plan, prepared.team}, part, totals);
    }
}

// One column of gradients, added up over the groups of all parts where there are some.
void store_param_grad(const Box& box, const double* values, const Part& part, double* totals, double* sorted,
                      const MutParam& to) noexcept;

// The count behind each statistic: forward's, if it is in memory, or M.
Column count_of(const Stages& stages, const Options& options) noexcept;

// The CPU, as a backend.
const Backend& cpu() noexcept;

}  // namespace batchnorm
