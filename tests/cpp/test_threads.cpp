// The same bits for any number of threads, whoever runs them.
#include "calls.hpp"
#include "check.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <mutex>
#include <set>
#include <thread>

namespace {

// A thread for each task. `dropped` is a task that is not run, -1 for none.
struct Threads {
    int dropped = -1;
    std::mutex mutex;
    int runs = 0, tasks = 0;
    std::set<std::thread::id> workers;

    batchnorm::Executor executor(int threads) {
        return {this, threads, [](void* context, int tasks, void (*task)(void*, int), void* state) {
                    static_cast<Threads*>(context)->run(tasks, task, state);
                }};
    }

  private:
    void run(int n, void (*task)(void*, int), void* state) {
        ++runs;
        tasks = n;
        std::vector<std::thread> threads;
        for (int i = 0; i < n; ++i)
            threads.emplace_back([&, i] {
                if (i == dropped) return;
                {
                    const std::lock_guard lock(mutex);
                    workers.insert(std::this_thread::get_id());
                }
                task(state, i);
            });
        for (std::thread& thread : threads) thread.join();
    }
};

// Of every plan: slabs of channels, two passes, chunks that cut planes, batches and rows, groups, packed operands.
std::vector<Setup> setups() {
    std::vector<Setup> all = {
        {{6, 16, 7, 7}, {1}},
        {{6, 7, 7, 16}, {-1}},
        {{3, 2, 5, 4}, {1}},  // fewer channels than threads
        {{5, 7}, {1}},
        {{4, 6, 9, 5}, {0, 1}},
        {{4, 9, 6, 5}, {0, 2}},
        {{8, 9, 4}, {0, 2}},
        {{6, 16, 49}, {1}, DType::f64},
        {{6, 16, 49}, {1}, DType::f32, Layout::channels_last, Layout::contiguous, Layout::transposed},
        {{6, 49, 16}, {-1}, DType::f64, Layout::every_second, Layout::records, Layout::every_second},
    };
    if (quick()) return all;
    all.insert(all.end(), {
                              {{40, 3, 1000}, {1}},
                              {{1, 2, 70000}, {1}},
                              {{2, 20000, 2}, {-1}},
                              {{300, 260}, {1}},
                              {{3, 5000}, {1}},
                              {{300, 260}, {1}, DType::f64, Layout::padded, Layout::transposed, Layout::contiguous},
                          });
    return all;
}

void same_bits_for_any_thread_count() {
    for (const Setup& setup : setups()) {
        Example e(setup);
        for (const Op op : all_ops) {
            std::vector<unsigned char> expected;
            for (const int threads : {1, 2, 3, 7}) {
                Call call = e.call();
                call.options.threads = threads;
                context = std::string(name(op)) + " " + text(setup) + " threads " + std::to_string(threads);
                e.reset();
                CHECK(run(op, call).ok());
                if (threads == 1)
                    expected = e.written();
                else
                    CHECK(e.written() == expected);
                if (threads == 1) continue;  // the executor is for several

                Threads own;
                call.options.executor = own.executor(threads);
                e.reset();
                CHECK(run(op, call).ok());
                CHECK(e.written() == expected);
                CHECK(own.runs > 0);
                CHECK(own.tasks == threads);
                CHECK(static_cast<int>(own.workers.size()) >= threads);
            }
        }
    }
}

// Without one of its workers a call leaves out that worker's part and no other: the parts are disjoint, none is empty,
// and together they are the whole.
void work_is_shared() {
    for (const Setup& setup :
         {Setup{{64, 64, 7, 7}, {1}}, Setup{{40, 3, 1000}, {1}}, Setup{{2, 40000, 2}, {-1}}, Setup{{300, 260}, {1}}})
        for (const int threads : {2, 3}) {
            Example e(setup);
            Call call = e.call();
            context = text(setup) + " shared by " + std::to_string(threads);
            call.options.threads = threads;
            std::size_t missing = 0;
            for (int dropped = 0; dropped < threads; ++dropped) {
                Threads own;
                own.dropped = dropped;
                call.options.executor = own.executor(threads);
                e.reset();
                CHECK(run(Op::batch_norm_inference, call).ok());
                std::size_t untouched = 0;
                const std::vector<unsigned char> y = e.out.bytes();
                for (std::size_t i = 0; i < y.size(); i += 4)
                    untouched += std::all_of(&y[i], &y[i] + 4, [](auto byte) { return byte == Tensor::sentinel; });
                CHECK(untouched > 0);
                missing += untouched;
            }
            CHECK(missing == e.out.size());
        }
}

// Left to choose, a call uses the executor's threads for large work and none for small.
void threads_by_default() {
    Example large({{40, 3, 4000}, {1}}), small({{4, 3, 5}, {1}});
    context = "default";
    Threads own;
    Call call = large.call();
    call.options.executor = own.executor(5);
    CHECK(run(Op::batch_norm, call).ok());
    CHECK(own.tasks == 5);
    Threads unused;
    call = small.call();
    call.options.executor = unused.executor(5);
    CHECK(run(Op::batch_norm, call).ok());
    CHECK(unused.runs == 0);
}

// Calls from several threads at once do not disturb each other.
void concurrent_calls() {
    context = "concurrent";
    const Setup setup{{6, 16, 49}, {1}};
    Example reference(setup);
    CHECK(run(Op::batch_norm, reference.call()).ok());
    const std::vector<unsigned char> expected = reference.out.bytes();
    std::vector<Example> examples(4, Example(setup));
    std::vector<std::thread> threads;
    std::vector<int> good(examples.size());
    for (std::size_t i = 0; i < examples.size(); ++i)
        threads.emplace_back([&, i] {
            Call call = examples[i].call();
            call.options.threads = 2;
            for (int repeat = 0; repeat < 20; ++repeat) {
                examples[i].reset();
                good[i] += run(Op::batch_norm, call).ok() && examples[i].out.bytes() == expected;
            }
        });
    for (std::thread& thread : threads) thread.join();
    for (const int count : good) CHECK(count == 20);
}

// In the child of a fork OpenMP's threads are gone; the library computes all the same.
void child_of_a_fork() {
    if (quick()) return;  // qemu itself fails there
    context = "fork";
    Example e({{6, 16, 49}, {1}});
    Call call = e.call();
    call.options.threads = 3;
    CHECK(run(Op::batch_norm, call).ok());
    const std::vector<unsigned char> expected = e.out.bytes();
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);  // a child that hangs fails
        e.reset();
        _exit(run(Op::batch_norm, call).ok() && e.out.bytes() == expected ? 0 : 1);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace

int main() {
    // First, while no thread of another case is ending: it may hold a lock of the sanitizers' allocator, which the
    // child would then inherit locked.
    child_of_a_fork();
    same_bits_for_any_thread_count();
    work_is_shared();
    threads_by_default();
    concurrent_calls();
    return report();
}
