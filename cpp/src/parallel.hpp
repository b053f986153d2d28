// Threads: the only part of the library that knows where they come from.
#pragma once

#include <batchnorm/core.hpp>

#include <cstdint>

#include "range.hpp"

namespace batchnorm {

struct Team {
    int threads = 1;
    Executor executor{};  // used if it has a run function
};

// Calls work(state, worker) for each worker in [0, team.threads), and returns when all are done.
void run_team(const Team& team, void (*work)(void* state, int worker), void* state) noexcept;

// The tasks of [0, tasks) that are a worker's share.
constexpr Range share_of(std::int64_t tasks, int threads, int worker) noexcept {
    const std::int64_t share = tasks / threads, extra = tasks % threads;
    const std::int64_t begin = worker * share + (worker < extra ? worker : extra);
    return {begin, begin + share + (worker < extra)};
}

// Shares out the tasks [0, tasks): body(range, worker) for each worker's range.
template <class Body>
void parallel_ranges(const Team& team, std::int64_t tasks, const Body& body) noexcept {
    struct State {
        const Body& body;
        std::int64_t tasks;
        int threads;
    } state{body, tasks, team.threads};
    run_team(
        team,
        [](void* opaque, int worker) {
            const State& s = *static_cast<const State*>(opaque);
            if (const Range range = share_of(s.tasks, s.threads, worker); range.size() > 0) s.body(range, worker);
        },
        &state);
}

enum class Order { forwards, backwards };

// What is left of a share of tasks. Whoever takes one from either end has it alone.
class Share {
  public:
    static constexpr std::int64_t most_tasks = std::int64_t{1} << 31;

    void start(Range tasks) noexcept { left_ = packed(tasks); }

    // The first task or the last one; -1 if there is none.
    std::int64_t take(Order order) noexcept {
        for (std::uint64_t left = __atomic_load_n(&left_, __ATOMIC_RELAXED);;) {
            const Range tasks{static_cast<std::int64_t>(left >> 32), static_cast<std::int64_t>(left & 0xffffffff)};
            if (tasks.size() == 0) return -1;
            const bool first = order == Order::forwards;
            const Range rest{tasks.begin + first, tasks.end - !first};
            if (__atomic_compare_exchange_n(&left_, &left, packed(rest), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
                return first ? tasks.begin : rest.end;
        }
    }

  private:
    static std::uint64_t packed(Range tasks) noexcept {
        return static_cast<std::uint64_t>(tasks.begin) << 32 | static_cast<std::uint64_t>(tasks.end);
    }

    alignas(64) std::uint64_t left_;  // no std::atomic, which would be set to 0 for all shares that there might be
};

// Calls body(task, worker) for each task in [0, tasks): a worker's own share in order, then, where there are several
// tasks for each worker, what others have left of theirs, from the other end. Threads are seldom equally fast.
template <class Body>
void parallel_for(const Team& team, std::int64_t tasks, Order order, const Body& body) noexcept {
    constexpr int most_shares = 64;  // of more workers some have one together
    constexpr std::int64_t few_tasks = 4;
    Share shares[most_shares];
    struct State {
        const Body& body;
        Share* shares;
        std::int64_t tasks, step;
        int count, helped;
        Order order;
    } state{body, shares, tasks, 1 + (tasks - 1) / Share::most_tasks, 0, 0, order};
    state.count = team.threads < most_shares ? team.threads : most_shares;
    state.helped = tasks > few_tasks * team.threads ? state.count : 1;
    for (int i = 0; i < state.count; ++i) shares[i].start(share_of(ceil_div(tasks, state.step), state.count, i));
    run_team(
        team,
        [](void* opaque, int worker) {
            const State& s = *static_cast<const State*>(opaque);
            const Order against = s.order == Order::forwards ? Order::backwards : Order::forwards;
            for (int i = 0; i < s.helped; ++i) {
                Share& share = s.shares[(worker + i) % s.count];
                for (std::int64_t some; (some = share.take(i == 0 ? s.order : against)) >= 0;)
                    for (std::int64_t t = some * s.step; t < (some + 1) * s.step && t < s.tasks; ++t) s.body(t, worker);
            }
        },
        &state);
}
template <class Body>
void parallel_for(const Team& team, std::int64_t tasks, const Body& body) noexcept {
    parallel_for(team, tasks, Order::forwards, body);
}

}  // namespace batchnorm
