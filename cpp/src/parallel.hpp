// Threads: the only part of the library that knows where they come from.
#pragma once

#include <batchnorm/core.hpp>

#include "range.hpp"

namespace batchnorm {

struct Team {
    int threads = 1;
    Executor executor{};  // used if it has a run function
};

// Calls work(state, worker) for each worker in [0, team.threads), and returns when all are done.
void run_team(const Team& team, void (*work)(void* state, int worker), void* state) noexcept;

// Shares out the tasks [0, tasks): body(range, worker) for each worker's range.
template <class Body>
void parallel_ranges(const Team& team, std::int64_t tasks, const Body& body) noexcept {
    struct State {
        const Body& body;
        std::int64_t tasks, threads;
    } state{body, tasks, team.threads};
    run_team(
        team,
        [](void* opaque, int worker) {
            const State& s = *static_cast<const State*>(opaque);
            const std::int64_t share = s.tasks / s.threads, extra = s.tasks % s.threads;
            const std::int64_t begin = worker * share + (worker < extra ? worker : extra);
            if (const Range range{begin, begin + share + (worker < extra)}; range.size() > 0) s.body(range, worker);
        },
        &state);
}

// Calls body(task, worker) for each task in [0, tasks); a worker's tasks are consecutive and in order.
template <class Body>
void parallel_for(const Team& team, std::int64_t tasks, const Body& body) noexcept {
    parallel_ranges(team, tasks, [&](Range range, int worker) {
        for (std::int64_t task = range.begin; task < range.end; ++task) body(task, worker);
    });
}

}  // namespace batchnorm
