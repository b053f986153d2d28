// An engine with its own memory and its own threads: no function of <batchnorm/core.hpp> allocates.
//
// With the argument `planted` it allocates between the calls, to show that this would be seen.
#include <batchnorm/core.hpp>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <tuple>
#include <vector>

// ------------------------------------------------------------------------------------------------------ allocations

static std::atomic<int> allocations{0};

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t n) {
    ++allocations;
    return __libc_malloc(n);
}
void* calloc(std::size_t n, std::size_t size) {
    ++allocations;
    return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t n) {
    ++allocations;
    return __libc_realloc(p, n);
}
void* memalign(std::size_t alignment, std::size_t n) {
    ++allocations;
    return __libc_memalign(alignment, n);
}
void* aligned_alloc(std::size_t alignment, std::size_t n) { return memalign(alignment, n); }
int posix_memalign(void** p, std::size_t alignment, std::size_t n) { return (*p = memalign(alignment, n)) ? 0 : 12; }
}

// ---------------------------------------------------------------------------------------------------------- threads

namespace bn = batchnorm;

namespace {

// Threads that wait for work; the caller is the first of them.
class Pool {
  public:
    explicit Pool(int threads) {
        for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { serve(i); });
    }
    ~Pool() {
        start(0, nullptr, nullptr);
        for (std::thread& thread : threads_) thread.join();
    }

    bn::Executor executor() {
        return {this, static_cast<int>(threads_.size()) + 1,
                [](void* pool, int tasks, void (*task)(void*, int), void* state) {
                    static_cast<Pool*>(pool)->run(tasks, task, state);
                }};
    }
    int runs() const { return runs_; }

  private:
    using Task = void (*)(void* state, int index);

    void run(int tasks, Task task, void* state) {
        ++runs_;
        start(tasks, task, state);
        work(0, tasks, task, state);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
    }
    void start(int tasks, Task task, void* state) {
        const std::lock_guard lock(mutex_);
        tasks_ = tasks;
        task_ = task;
        state_ = state;
        busy_ = static_cast<int>(threads_.size());
        ++round_;
        begin_.notify_all();
    }
    void work(int first, int tasks, Task task, void* state) const {
        for (int i = first; i < tasks; i += static_cast<int>(threads_.size()) + 1) task(state, i);
    }
    void serve(int index) {
        for (int round = 1;; ++round) {
            std::unique_lock lock(mutex_);
            begin_.wait(lock, [&] { return round_ >= round; });
            const auto [tasks, task, state] = std::tuple(tasks_, task_, state_);
            lock.unlock();
            if (!task) return;
            work(index, tasks, task, state);
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable begin_, done_;
    std::vector<std::thread> threads_;
    int round_ = 0, busy_ = 0, tasks_ = 0, runs_ = 0;
    Task task_ = nullptr;
    void* state_ = nullptr;
};

}  // namespace

// ------------------------------------------------------------------------------------------------------------- main

int main(int argc, char**) {
    const bool planted = argc > 1;
    constexpr int samples = 8, channels = 6, plane = 50, n = samples * channels * plane;
    std::vector<float> x(n), dy(n), y(n), dx(n), gamma(channels, 1.5f);
    for (std::size_t i = 0; i < n; ++i) {
        x[i] = static_cast<float>(i * i % 31);
        dy[i] = static_cast<float>(i * 7 % 13);
    }
    std::vector<double> mean(channels), inv_std(channels), var(channels), m2(channels), count(1), sum_dy(channels),
        sum_dy_xmu(channels), dgamma(channels), dbeta(channels);

    // Strides in bytes: a plane in reverse makes the library pack, too.
    bn::View xs = bn::view(x.data(), {samples, channels, plane}), dys = bn::view(dy.data(), {samples, channels, plane});
    dys.data = dy.data() + plane - 1;
    dys.stride[2] = -4;
    const bn::MutView ys = bn::view(y.data(), {samples, channels, plane}),
                      dxs = bn::view(dx.data(), {samples, channels, plane});
    const auto of_channels = [](auto& v) { return bn::view(v.data(), {channels}); };
    const bn::MutView means = of_channels(mean), inv_stds = of_channels(inv_std), vars = of_channels(var),
                      m2s = of_channels(m2), counts = bn::view(count.data(), {}), sum_dys = of_channels(sum_dy),
                      sum_dy_xmus = of_channels(sum_dy_xmu), dgammas = of_channels(dgamma), dbetas = of_channels(dbeta);
    const bn::Param gammas = of_channels(gamma);

    Pool pool(3);
    bn::Options options;
    options.executor = pool.executor();
    options.threads = 3;
    constexpr bn::Op ops[] = {bn::Op::batch_norm,
                              bn::Op::batch_norm_backward,
                              bn::Op::batch_norm_inference,
                              bn::Op::batch_norm_inference_backward,
                              bn::Op::moments,
                              bn::Op::normalize,
                              bn::Op::grad_sums,
                              bn::Op::input_grad};
    // And with everything on: residuals in dy's place, weights, groups of 3 samples, a mask.
    std::vector<float> weights(static_cast<std::size_t>(samples * plane), 0.5f), dresidual(n);
    const bn::View weighing = bn::view(weights.data(), {samples, plane});
    const bn::MutView dresiduals = bn::view(dresidual.data(), {samples, channels, plane});
    constexpr int groups = 3;
    std::vector<double> of_groups(groups * channels * 4);
    const auto of_group = [&](int i) { return bn::view(of_groups.data() + i * groups * channels, {groups, channels}); };
    bn::Options full = options, back = options;
    full.activation = back.activation = bn::Activation::leaky_relu;
    full.group_size = back.group_size = 3;
    full.weights = back.weights = &weighing;
    full.residual = &dys;
    back.dresidual = &dresiduals;
    std::size_t mask_bytes = 0, full_bytes = 0, back_bytes = 0;
    if (!bn::core::mask_bytes(xs, 1, full, mask_bytes).ok() ||
        !bn::core::workspace_bytes(bn::Op::batch_norm, xs, 1, full, full_bytes).ok() ||
        !bn::core::workspace_bytes(bn::Op::batch_norm_backward, xs, 1, back, back_bytes).ok())
        return 2;
    std::vector<std::uint8_t> mask(mask_bytes);

    std::size_t needed = std::max(full_bytes, back_bytes);
    for (const bn::Op op : ops) {
        std::size_t bytes = 0;
        if (!bn::core::workspace_bytes(op, xs, 1, options, bytes).ok()) return 2;
        needed = std::max(needed, bytes);
    }
    std::vector<unsigned char> workspace(needed);
    options.workspace = full.workspace = back.workspace = {workspace.data(), workspace.size()};

    namespace core = bn::core;
    const int before = allocations;
    const bn::Stats saved = {means, inv_stds};
    std::size_t bytes = 0;
    const bn::Status statuses[] = {
        core::mask_bytes(xs, 1, full, bytes),
        core::batch_norm(xs, 1, gammas, {}, ys, {of_group(0), of_group(1), of_group(2), of_group(3), mask.data()},
                         full),
        core::batch_norm_backward(dys, xs, 1, {of_group(0), of_group(1), of_group(3), mask.data()}, gammas, dxs,
                                  dgammas, dbetas, back),
        core::workspace_bytes(bn::Op::batch_norm, xs, 1, options, bytes),
        core::batch_norm(xs, 1, gammas, {}, ys, {means, inv_stds, vars}, options),
        core::batch_norm_backward(dys, xs, 1, saved, gammas, dxs, dgammas, dbetas, options),
        core::batch_norm_inference(xs, 1, means, vars, gammas, {}, ys, options),
        core::batch_norm_inference_backward(dys, xs, 1, means, vars, gammas, dxs, dgammas, dbetas, options),
        core::moments(xs, 1, {means, m2s, counts}, options),
        core::normalize(xs, 1, {means, m2s, counts}, gammas, {}, ys, {}, options),
        core::grad_sums(dys, xs, 1, saved, {counts, sum_dys, sum_dy_xmus}, options),
        core::input_grad(dys, xs, 1, saved, {counts, sum_dys, sum_dy_xmus}, gammas, dxs, dgammas, dbetas, options),
        core::set_num_threads(2),
    };
    const int isas = bn::isa() && bn::available_isa(0) && bn::version() && bn::threading() && bn::get_num_threads();
    void* volatile kept[2] = {};
    if (planted) kept[0] = std::malloc(100), kept[1] = operator new(100);
    const int counted = allocations - before;
    std::free(kept[0]);
    operator delete(kept[1]);

    for (const bn::Status& status : statuses)
        if (!status.ok()) return std::puts(status.message), 3;
    double sum = 0;
    for (const float value : y) sum += static_cast<double>(value);
    for (std::size_t i = 0; i < groups * channels; ++i)
        if (!(of_groups[3 * groups * channels + i] == (i < 2 * channels ? 75 : 50)))
            return std::puts("wrong weights of groups"), 4;
    if (!isas || !(sum > -1e-2 && sum < 1e-2)) return std::puts("wrong results"), 4;  // beta is 0
    if (pool.runs() == 0) return std::puts("the executor was not used"), 5;
    std::printf("%s, %d allocations, %d runs of the executor\n", bn::isa(), counted, pool.runs());
    return counted ? 1 : 0;
}
