// The emulation itself: what the tests of kernels rely on.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cooperative_groups.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace cg = cooperative_groups;

namespace {

int passed = 0, failed = 0;

#define CHECK(condition)                                                               \
    do {                                                                               \
        const bool holds = (condition);                                                \
        ++(holds ? passed : failed);                                                   \
        if (!holds) std::printf("%s:%d: %s failed\n", __FILE__, __LINE__, #condition); \
    } while (false)

// Memory of the device with a copy of host values.
template <class T>
class Device {
  public:
    explicit Device(const std::vector<T>& values) : count_(values.size()) {
        CHECK(cudaMalloc(&data_, count_ * sizeof(T)) == cudaSuccess);
        CHECK(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
    }
    explicit Device(std::size_t count) : Device(std::vector<T>(count)) {}
    Device(const Device&) = delete;
    ~Device() { cudaFree(data_); }
    T* data() const { return data_; }
    std::vector<T> values() const {
        std::vector<T> values(count_);
        CHECK(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
        return values;
    }

  private:
    std::size_t count_;
    T* data_ = nullptr;
};

struct Launch {
    cudaLaunchConfig_t config{};
    cudaLaunchAttribute attributes[2];

    Launch(dim3 grid, dim3 block, std::size_t shared = 0) {
        config.gridDim = grid;
        config.blockDim = block;
        config.dynamicSmemBytes = shared;
        config.attrs = attributes;
    }
    Launch& cooperative() {
        attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
        attributes[config.numAttrs++].val.cooperative = 1;
        return *this;
    }
    Launch& cluster(unsigned x, unsigned y = 1, unsigned z = 1) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs++].val.clusterDim = {x, y, z};
        return *this;
    }
    template <class... Params, class... Args>
    cudaError_t operator()(void (*kernel)(Params...), Args... args) const {
        return cudaLaunchKernelEx(&config, kernel, args...);
    }
};

__device__ unsigned flat(dim3 size, uint3 at) { return (at.z * size.y + at.y) * size.x + at.x; }
__device__ unsigned thread_number() { return flat(blockDim, {threadIdx.x, threadIdx.y, threadIdx.z}); }
__device__ unsigned block_number() { return flat(gridDim, {blockIdx.x, blockIdx.y, blockIdx.z}); }

__global__ void empty() {}

// Each round reverses the block's values through shared memory.
__global__ void __launch_bounds__(1024) reverse(unsigned* out, int rounds) {
    unsigned* shared = reinterpret_cast<unsigned*>(cuda_on_cpu::shared_memory());
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z, t = thread_number();
    unsigned value = t;
    for (int i = 0; i < rounds; ++i) {
        shared[t] = value;
        __syncthreads();
        value = shared[threads - 1 - t];
        __syncthreads();
    }
    out[block_number() * threads + t] = value;
}

void test_barriers() {
    for (const int rounds : {1, 4}) {
        const dim3 grid(3, 2, 2), block(5, 7, 3);
        Device<unsigned> out(12 * 105);
        CHECK(Launch(grid, block, 105 * sizeof(unsigned))(reverse, out.data(), rounds) == cudaSuccess);
        const std::vector<unsigned> values = out.values();
        bool right = true;
        for (unsigned i = 0; i < values.size(); ++i) right &= values[i] == (rounds % 2 ? 104 - i % 105 : i % 105);
        CHECK(right);
    }
    Device<unsigned> out(100 * 256);
    const auto start = std::chrono::steady_clock::now();
    CHECK(Launch(100, 256, 1024)(reverse, out.data(), 15) == cudaSuccess);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    std::printf("100 blocks of 256 threads with 30 barriers: %.1f ms\n", took.count());
}

__global__ void garbage(int* wrong) {
    const char* shared = cuda_on_cpu::shared_memory();
    if (reinterpret_cast<std::uintptr_t>(shared) % 16) ++*wrong;
    *wrong += shared[threadIdx.x] != '\xCD';
    __syncthreads();
    cuda_on_cpu::shared_memory()[threadIdx.x] = 0;
}

void test_launches_of_several_threads() {
    std::vector<std::thread> threads;
    std::vector<std::vector<unsigned>> out(4, std::vector<unsigned>(20 * 64));
    for (auto& values : out)
        threads.emplace_back([&values] { Launch(20, 64, 64 * sizeof(unsigned))(reverse, values.data(), 9); });
    for (std::thread& thread : threads) thread.join();
    bool right = true;
    for (const auto& values : out)
        for (unsigned i = 0; i < values.size(); ++i) right &= values[i] == 63 - i % 64;
    CHECK(right);
}

void test_shared_starts_as_garbage() {
    Device<int> wrong(1);
    CHECK(Launch(3, 40, 40)(garbage, wrong.data()) == cudaSuccess);
    CHECK(wrong.values()[0] == 0);
}

// What thread t gets of the values t + 1, in each way.
template <class T>
__global__ void shuffles(T* out) {
    const unsigned t = threadIdx.x;
    const T value = static_cast<T>(t + 1);
    T* to = out + t * 6;
    to[0] = __shfl_xor_sync(~0u, value, 5);
    to[1] = __shfl_down_sync(~0u, value, 3);
    to[2] = __shfl_sync(~0u, value, 7);
    to[3] = __shfl_sync(~0u, value, static_cast<int>(t * 3), 32);
    // The halves of a warp, one after the other.
    const unsigned half = t % 32 < 16 ? 0xffffu : 0xffff0000u;
    to[4] = __shfl_xor_sync(half, value, 8);
    if (t % 32 < 16) to[4] += __shfl_xor_sync(half, to[4], 1);
    __syncwarp();
    to[5] = static_cast<T>(__ballot_sync(~0u, t % 3 == 0) >> 8);
}

template <class T>
void test_shuffles() {
    Device<T> out(96 * 6);
    CHECK(Launch(1, 96)(shuffles<T>, out.data()) == cudaSuccess);
    const std::vector<T> values = out.values();
    for (unsigned t = 0; t < 96; ++t) {
        const unsigned warp = t / 32 * 32, lane = t % 32;
        unsigned ballot = 0;
        for (unsigned i = 0; i < 32; ++i) ballot |= ((warp + i) % 3 == 0 ? 1u : 0u) << i;
        const unsigned half = lane < 16 ? (t ^ 8) + (t ^ 9) + 2 : (t ^ 8) + 1;
        const unsigned expected[] = {
            warp + (lane ^ 5) + 1, lane < 29 ? t + 4 : t + 1, warp + 8, warp + t * 3 % 32 + 1, half, ballot >> 8};
        for (unsigned i = 0; i < 6; ++i) CHECK(values[t * 6 + i] == static_cast<T>(expected[i]));
    }
}

__global__ void cluster_sums(unsigned* scratch, unsigned* out) {
    const cg::cluster_group cluster = cg::this_cluster();
    if (threadIdx.x == 0) scratch[block_number()] = block_number() + 1;
    cluster.sync();
    // The cluster is 2 x 1 x 2 blocks.
    const unsigned x = blockIdx.x / 2 * 2, z = blockIdx.z / 2 * 2;
    unsigned sum = 0;
    for (unsigned i = 0; i < 4; ++i) sum += scratch[flat(gridDim, {x + i % 2, blockIdx.y, z + i / 2})];
    const unsigned rank = blockIdx.x % 2 + blockIdx.z % 2 * 2;
    const bool right = cluster.block_rank() == rank && cluster.num_blocks() == 4;
    out[block_number() * blockDim.x + threadIdx.x] = right ? sum : 0;
}

__global__ void grid_sums(const unsigned* in, unsigned* scratch, unsigned* out) {
    for (unsigned round = 0; round < 3; ++round) {
        if (threadIdx.x == 0) scratch[blockIdx.x] = in[blockIdx.x] + round;
        __threadfence();
        cg::this_grid().sync();
        unsigned sum = 0;
        for (unsigned i = 0; i < gridDim.x; ++i) sum += scratch[i];
        out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
        cg::this_grid().sync();
    }
}

void test_clusters_and_grids() {
    Device<unsigned> scratch(4 * 3 * 4), out(4 * 3 * 4 * 33);
    CHECK(Launch(dim3(4, 3, 4), 33).cluster(2, 1, 2)(cluster_sums, scratch.data(), out.data()) == cudaSuccess);
    const std::vector<unsigned> values = out.values();
    for (unsigned i = 0; i < values.size(); ++i) {
        const unsigned block = i / 33, x = block % 4 / 2 * 2, y = block / 4 % 3, z = block / 12 / 2 * 2;
        const unsigned first = (z * 3 + y) * 4 + x;
        CHECK(values[i] == 4 * first + 2 + 2 * 12 + 4);
    }
    std::vector<unsigned> in(8);
    std::iota(in.begin(), in.end(), 1);
    const Device<unsigned> numbers(in), all(8), sums(8 * 1024);
    for (const bool clustered : {false, true}) {
        Launch launch(8, 1024);
        launch.cooperative();
        if (clustered) launch.cluster(4);
        CHECK(launch(grid_sums, static_cast<const unsigned*>(numbers.data()), all.data(), sums.data()) == cudaSuccess);
        for (const unsigned sum : sums.values()) CHECK(sum == 36 + 2 * 8);
    }
}

__global__ void number(int* next, int* out) { out[blockIdx.x * blockDim.x + threadIdx.x] = (*next)++; }

void test_order() {
    const Device<int> next(1), out(64);
    CHECK(Launch(2, 32)(number, next.data(), out.data()) == cudaSuccess);
    const char* order = std::getenv("CUDA_ON_CPU_ORDER");
    const bool backward = order && order == std::string("backward");
    const std::vector<int> values = out.values();
    for (int i = 0; i < 64; ++i) CHECK(values[static_cast<std::size_t>(i)] == (backward ? 63 - i : i));
}

void test_refused() {
    const auto refused = [](const Launch& launch, cudaError_t expected) {
        return launch(empty) == expected && cudaGetLastError() == expected && cudaGetLastError() == cudaSuccess;
    };
    CHECK(refused(Launch(0, 32), cudaErrorInvalidConfiguration));
    CHECK(refused(Launch(1, 0), cudaErrorInvalidConfiguration));
    CHECK(refused(Launch(1, 1025), cudaErrorInvalidConfiguration));
    CHECK(refused(Launch(dim3(1, 65536), 32), cudaErrorInvalidConfiguration));
    CHECK(refused(Launch(4, 32).cluster(3), cudaErrorInvalidConfiguration));
    CHECK(refused(Launch(16, 32).cluster(16), cudaErrorInvalidClusterSize));
    CHECK(cudaFuncSetAttribute(empty, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess);
    CHECK(refused(Launch(16, 32).cluster(16), cudaSuccess));
    CHECK(refused(Launch(32, 32).cluster(32), cudaErrorInvalidClusterSize));

    int most = 0, blocks = 0, clusters = 0;
    CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
    CHECK(most == 232448);
    const auto bytes = static_cast<std::size_t>(most);
    CHECK(refused(Launch(1, 32, 48 << 10), cudaSuccess));
    CHECK(refused(Launch(1, 32, (48 << 10) + 1), cudaErrorInvalidValue));
    CHECK(cudaFuncSetAttribute(empty, cudaFuncAttributeMaxDynamicSharedMemorySize, most + 1) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CHECK(cudaFuncSetAttribute(empty, cudaFuncAttributeMaxDynamicSharedMemorySize, most) == cudaSuccess);
    CHECK(refused(Launch(1, 32, bytes), cudaSuccess));
    CHECK(refused(Launch(1, 32, bytes + 1), cudaErrorInvalidValue));

    // 4 SMs of 2048 threads.
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, empty, 250, 0) == cudaSuccess && blocks == 8);
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, empty, 64, bytes / 2 - 512) == cudaSuccess);
    CHECK(blocks == 2);
    CHECK(refused(Launch(32, 256).cooperative(), cudaSuccess));
    CHECK(refused(Launch(33, 256).cooperative(), cudaErrorCooperativeLaunchTooLarge));
    CHECK(refused(Launch(5, 32, bytes).cooperative(), cudaErrorCooperativeLaunchTooLarge));
    Launch launch(8, 256, bytes);
    launch.cluster(2);
    CHECK(cudaOccupancyMaxActiveClusters(&clusters, empty, &launch.config) == cudaSuccess && clusters == 2);
    CHECK(refused(Launch(8, 256, bytes).cluster(8), cudaErrorLaunchOutOfResources));

    setenv("CUDA_ON_CPU_CAPABILITY", "86", 1);
    CHECK(refused(Launch(4, 32).cluster(2), cudaErrorNotSupported));
    CHECK(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, 0) == cudaSuccess && clusters == 0);
    unsetenv("CUDA_ON_CPU_CAPABILITY");
    setenv("CUDA_ON_CPU_DEVICES", "0", 1);
    CHECK(refused(Launch(1, 32), cudaErrorNoDevice));
    CHECK(cudaGetDeviceCount(&blocks) == cudaErrorNoDevice && blocks == 0);
    unsetenv("CUDA_ON_CPU_DEVICES");
    CHECK(cudaGetLastError() == cudaErrorNoDevice);
    CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
    void* memory = nullptr;
    CHECK(cudaMalloc(&memory, std::size_t{1} << 40) == cudaErrorMemoryAllocation && !memory);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
}

__global__ void ends_before_barrier() {
    if (threadIdx.x != 3) __syncthreads();
}
__global__ void waits_elsewhere() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        cg::this_cluster().sync();
}
__global__ void lane_missing() {
    if (threadIdx.x % 32 != 5) __shfl_xor_sync(~0u, 1, 1);
}
__global__ void another_shuffle() {
    if (threadIdx.x % 2)
        __shfl_xor_sync(~0u, 1, 1);
    else
        __shfl_sync(~0u, 1, 1);
}
__global__ void whole_warp() { __shfl_down_sync(~0u, 1.0f, 1); }
__global__ void not_in_mask() { __shfl_down_sync(1u, 1.0f, 1); }
__global__ void narrow() { __shfl_down_sync(~0u, 1.0f, 1, 16); }
__global__ void syncs_grid() { cg::this_grid().sync(); }
__global__ void block_ends_early() {
    if (blockIdx.x != 1) cg::this_grid().sync();
}
__global__ void recurses(volatile int* out, int depth) {
    volatile int local[64] = {};
    local[depth % 64] = depth;
    if (depth > 0) recurses(local, depth - 1);
    *out = local[depth % 64];
}

// What a child process that runs the launch says before a signal ends it.
template <class Run>
std::string last_words(Run run) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        run();
        _exit(0);
    }
    close(ends[1]);
    std::string text;
    char part[256];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) text.append(part, static_cast<std::size_t>(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return (WIFSIGNALED(status) ? "signal: " : "exit: ") + text;
}

void test_loud_errors() {
    const auto says = [](const Launch& launch, void (*kernel)(), const std::string& words) {
        const std::string text = last_words([&] { launch(kernel); });
        const bool right = text.starts_with("signal: ") && text.find("cuda_on_cpu: ") < text.find(words) &&
                           text.find(words) != std::string::npos;
        if (!right) std::printf("%s\n    instead of %s\n", text.c_str(), words.c_str());
        return right;
    };
    CHECK(says(Launch(1, 64), ends_before_barrier, "1 threads have ended, the first is thread (3, 0, 0)"));
    CHECK(says(Launch(1, 64), ends_before_barrier, "63 threads wait in __syncthreads()"));
    CHECK(says(Launch(1, 64), waits_elsewhere, "32 threads wait in this_cluster().sync()"));
    CHECK(says(Launch(1, 64), lane_missing, "62 threads wait in __shfl_xor_sync(0xffffffff)"));
    CHECK(says(Launch(1, 64), another_shuffle, "32 threads wait in __shfl_sync(0xffffffff)"));
    CHECK(says(Launch(1, 40), whole_warp, "8 threads wait in __shfl_down_sync(0xffffffff)"));
    CHECK(says(Launch(1, 32), not_in_mask, "by a lane that its mask does not name"));
    CHECK(says(Launch(1, 32), narrow, "width 16"));
    CHECK(says(Launch(1, 32), syncs_grid, "not cooperative"));
    CHECK(says(Launch(4, 32).cooperative(), block_ends_early,
               "32 threads have ended, the first is thread (0, 0, 0) of "
               "block (1, 0, 0)"));
    CHECK(last_words([] { __syncthreads(); }).starts_with("signal: cuda_on_cpu: "));
#ifndef __SANITIZE_ADDRESS__  // which ends the process its own way
    volatile int out = 0;
    CHECK(last_words([&] { Launch(1, 2)(recurses, &out, 100000); }).starts_with("signal: "));
#endif
}

void test_half_types() {
    bool right = true;
    for (unsigned bits = 0; bits < 65536; ++bits) {
        const auto b = static_cast<unsigned short>(bits);
        const float half = __half2float(__ushort_as_half(b)), bfloat = __bfloat162float(__ushort_as_bfloat16(b));
        right &= std::isnan(half) || __half_as_ushort(__float2half_rn(half)) == b;
        right &= std::isnan(bfloat) || __bfloat16_as_ushort(__float2bfloat16_rn(bfloat)) == b;
    }
    CHECK(right);
    const auto half = [](float value) { return __half_as_ushort(__float2half_rn(value)); };
    const auto bfloat = [](float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); };
    constexpr float infinity = std::numeric_limits<float>::infinity();
    CHECK(half(1 + 0x1p-11f) == 0x3c00 && half(1 + 0x3p-11f) == 0x3c02);  // ties
    CHECK(half(0x1p-25f) == 0 && half(0x1.8p-24f) == 2 && half(-0x1p-24f) == 0x8001);
    CHECK(half(65519) == 0x7bff && half(65520) == 0x7c00 && half(-infinity) == 0xfc00);
    CHECK(bfloat(1 + 0x1p-8f) == 0x3f80 && bfloat(1 + 0x3p-8f) == 0x3f82 && bfloat(infinity) == 0x7f80);
    CHECK(std::isnan(__half2float(__float2half_rn(NAN))) && std::isnan(__bfloat162float(__float2bfloat16_rn(NAN))));
    static_assert(sizeof(__half) == 2 && sizeof(__nv_bfloat16) == 2 && sizeof(uint4) == 16 && alignof(uint4) == 16);
}

}  // namespace

int main() {
    test_barriers();
    test_launches_of_several_threads();
    test_shared_starts_as_garbage();
    test_shuffles<int>();
    test_shuffles<unsigned>();
    test_shuffles<long long>();
    test_shuffles<float>();
    test_shuffles<double>();
    test_clusters_and_grids();
    test_order();
    test_refused();
    test_half_types();
    test_loud_errors();
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
