// How tasks are shared out: each to one worker, whatever helps whom.
#include "../../cpp/src/parallel.hpp"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.hpp"

namespace {

using batchnorm::Order;
using batchnorm::Range;
using batchnorm::Team;

// An executor that calls one worker after the other.
void one_by_one(void*, int threads, void (*work)(void*, int), void* state) {
    for (int worker = 0; worker < threads; ++worker) work(state, worker);
}
Team in_turn(int threads) {
    Team team;
    team.threads = threads;
    team.executor.run = one_by_one;
    return team;
}

struct Taken {
    std::int64_t task;
    int worker;
    bool operator==(const Taken&) const = default;
};

std::vector<Taken> taken(const Team& team, std::int64_t tasks, Order order) {
    std::vector<Taken> all;
    batchnorm::parallel_for(team, tasks, order, [&](std::int64_t task, int worker) { all.push_back({task, worker}); });
    return all;
}

void shares() {
    for (const int threads : {1, 2, 3, 16, 65})
        for (const std::int64_t tasks : {0, 1, 2, 15, 64, 1000}) {
            std::int64_t next = 0;
            for (int worker = 0; worker < threads; ++worker) {
                const Range share = batchnorm::share_of(tasks, threads, worker);
                CHECK(share.begin == next && share.size() >= tasks / threads && share.size() <= tasks / threads + 1);
                next = share.end;
            }
            CHECK(next == tasks);
        }
}

// Of few tasks nobody takes another's.
void few_tasks() {
    CHECK(taken(in_turn(1), 3, Order::forwards) == (std::vector<Taken>{{0, 0}, {1, 0}, {2, 0}}));
    CHECK(taken(in_turn(1), 3, Order::backwards) == (std::vector<Taken>{{2, 0}, {1, 0}, {0, 0}}));
    CHECK(taken(in_turn(2), 3, Order::forwards) == (std::vector<Taken>{{0, 0}, {1, 0}, {2, 1}}));
    CHECK(taken(in_turn(2), 3, Order::backwards) == (std::vector<Taken>{{1, 0}, {0, 0}, {2, 1}}));
    CHECK(taken(in_turn(2), 0, Order::forwards).empty());
}

// The first worker is done with its own before the others start, so it takes theirs from the other end.
void many_tasks() {
    const std::vector<Taken> forwards = taken(in_turn(3), 15, Order::forwards);
    const std::int64_t want[] = {0, 1, 2, 3, 4, 9, 8, 7, 6, 5, 14, 13, 12, 11, 10};
    CHECK(forwards.size() == 15);
    for (std::size_t i = 0; i < forwards.size(); ++i) CHECK((forwards[i] == Taken{want[i], 0}));
    const std::vector<Taken> backwards = taken(in_turn(3), 15, Order::backwards);
    const std::int64_t against[] = {4, 3, 2, 1, 0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14};
    CHECK(backwards.size() == 15);
    for (std::size_t i = 0; i < backwards.size(); ++i) CHECK((backwards[i] == Taken{against[i], 0}));
}

// Threads that race for them: each task is done once; and a worker that lags is helped.
void each_task_once() {
    for (const int threads : {2, 3, 8, 70})
        for (const std::int64_t tasks : {1, 7, 1000, 50000}) {
            std::vector<std::atomic<int>> done(static_cast<std::size_t>(tasks));
            batchnorm::parallel_for({threads, {}}, tasks, Order::forwards,
                                    [&](std::int64_t task, int) { ++done[static_cast<std::size_t>(task)]; });
            for (const std::atomic<int>& times : done) CHECK(times == 1);
        }
    // The first task lasts until all others are done: if it is the first worker's, that does no other one; if not, that
    // came when nothing was left.
    std::atomic<int> done{0}, by_first{0};
    batchnorm::parallel_for({2, {}}, 100, [&](std::int64_t task, int worker) {
        const auto most = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (task == 0 && done < 99 && std::chrono::steady_clock::now() < most) std::this_thread::yield();
        by_first += worker == 0;
        ++done;
    });
    CHECK(done == 100 && by_first <= 1);
}

}  // namespace

int main() {
    shares();
    few_tasks();
    many_tasks();
    each_task_once();
    return report();
}
