#include "parallel.hpp"

#include <pthread.h>

#include <atomic>

namespace batchnorm {
namespace {

// A thread for every call: the way without OpenMP, and in the child of a fork, where OpenMP's threads are gone and a
// parallel region would wait for them for ever. A thread that cannot be had is done without.
struct Worker {
    pthread_t thread;
    void (*work)(void*, int);
    void* state;
    int index;
    bool started;
};

void run_posix_threads(int threads, void (*work)(void*, int), void* state) noexcept {
    constexpr int most = 64;
    Worker workers[most];
    for (int begin = 0; begin < threads; begin += most) {
        const int n = threads - begin < most ? threads - begin : most;
        for (int i = 1; i < n; ++i) {
            workers[i] = {{}, work, state, begin + i, false};
            const auto start = [](void* opaque) -> void* {
                Worker& worker = *static_cast<Worker*>(opaque);
                worker.work(worker.state, worker.index);
                return nullptr;
            };
            workers[i].started = pthread_create(&workers[i].thread, nullptr, start, &workers[i]) == 0;
        }
        work(state, begin);
        for (int i = 1; i < n; ++i) {
            if (workers[i].started)
                pthread_join(workers[i].thread, nullptr);
            else
                work(state, workers[i].index);
        }
    }
}

}  // namespace
}  // namespace batchnorm

#ifdef _OPENMP

#include <omp.h>

namespace batchnorm {
namespace {

std::atomic<bool> in_forked_child{false};

// Any fork counts, since another library may have started OpenMP's threads.
[[maybe_unused]] const int watch_forks =
    pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });

void run_threads(int threads, void (*work)(void*, int), void* state) noexcept {
    if (in_forked_child.load(std::memory_order_relaxed)) return run_posix_threads(threads, work, state);
#pragma omp parallel num_threads(threads)
    // OpenMP may give fewer threads than it was asked for.
    for (int worker = omp_get_thread_num(); worker < threads; worker += omp_get_num_threads()) work(state, worker);
}

}  // namespace

const char* threading() noexcept { return "OpenMP"; }

}  // namespace batchnorm

#else

namespace batchnorm {
namespace {

void run_threads(int threads, void (*work)(void*, int), void* state) noexcept {
    run_posix_threads(threads, work, state);
}

}  // namespace

const char* threading() noexcept { return "POSIX threads"; }

}  // namespace batchnorm

#endif

namespace batchnorm {

void run_team(const Team& team, void (*work)(void*, int), void* state) noexcept {
    if (team.threads == 1)
        work(state, 0);
    else if (team.executor.run)
        team.executor.run(team.executor.context, team.threads, work, state);
    else
        run_threads(team.threads, work, state);
}

}  // namespace batchnorm
