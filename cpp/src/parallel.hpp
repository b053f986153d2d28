// Threads: the only part of the library that knows where they come from.
#pragma once

#include <batchnorm/core.hpp>

namespace batchnorm {

struct Team {
    int threads = 1;
    Executor executor{};  // used if it has a run function
};

// Calls work(state, worker) for each worker in [0, team.threads), and returns when all are done.
void run_team(const Team& team, void (*work)(void* state, int worker), void* state) noexcept;

// Calls body(task, worker) for each task in [0, tasks); a worker's tasks are consecutive and in order.
template <class Body>
void parallel_for(const Team& team, std::int64_t tasks, const Body& body) noexcept {
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
            const std::int64_t end = begin + share + (worker < extra);
            for (std::int64_t task = begin; task < end; ++task) s.body(task, worker);
        },
        &state);
}

}  // namespace batchnorm
