// As much of CUDA's runtime as the library uses, on the CPU: a .cu file compiled as C++ with this folder in the include
// path runs without a GPU. Each thread of a kernel is a fiber, and a launch has ended when it returns. What would hang
// or be undefined on a GPU (barriers and shuffles that not all threads reach) aborts with a message.
//
// Kernels get dynamic shared memory from cuda_on_cpu::shared_memory(). There is no __shared__.
//
// The environment describes the device, and is read at each call:
//     CUDA_ON_CPU_DEVICES=1        0: there is none
//     CUDA_ON_CPU_CAPABILITY=90    major * 10 + minor
//     CUDA_ON_CPU_SMS=4
//     CUDA_ON_CPU_SHARED=233472    bytes of shared memory of an SM; a block can have 1 KB less
//     CUDA_ON_CPU_L2=52428800      bytes of L2 cache
//     CUDA_ON_CPU_ORDER=forward    or backward: in what order blocks, and threads between barriers, run
#pragma once

// Both: the first for std::, the second for the global names.
#include <math.h>
#include <cmath>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// Types and variables of kernels.

struct uint3 {
    unsigned x, y, z;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the fiber that runs: a launch stays on its OS thread, and several of these may launch at once.
extern thread_local constinit uint3 threadIdx, blockIdx;
extern thread_local constinit dim3 blockDim, gridDim;

// Host API.

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchFailure = 719,
    cudaErrorCooperativeLaunchTooLarge = 720,
    cudaErrorNotSupported = 801,
    cudaErrorInvalidClusterSize = 912,
    cudaErrorUnknown = 999,
};

enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrClusterLaunch = 120,
};

enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributeNonPortableClusterSizeAllowed = 13,
};

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4 };

union cudaLaunchAttributeValue {
    struct {
        unsigned x, y, z;
    } clusterDim;
    int cooperative;
};

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};

typedef struct CUstream_st* cudaStream_t;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

struct cudaDeviceProp {
    char name[256];
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);

cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* memory, int value, std::size_t bytes);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream = nullptr);

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          std::size_t shared);
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config);

template <class T>
cudaError_t cudaMalloc(T** memory, std::size_t bytes) {
    return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <class... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Params...), int threads,
                                                          std::size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads,
                                                         shared);
}

template <class... Params>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*kernel)(Params...), const cudaLaunchConfig_t* config) {
    return cudaOccupancyMaxActiveClusters(clusters, reinterpret_cast<const void*>(kernel), config);
}

namespace cuda_on_cpu {

// 16-byte aligned memory of the calling thread's block, which starts as bytes 0xCD.
char* shared_memory();

// Where a thread waits for others.
enum class Meeting { syncthreads, cluster_sync, grid_sync, syncwarp, ballot, shfl, shfl_down, shfl_xor };

// For all threads of the block, the cluster or the grid.
bool sync(Meeting meeting, bool predicate = false);

// For the lanes of the warp that mask names. Returns source's value, or of a ballot which values are not 0.
std::uint64_t exchange(Meeting meeting, unsigned mask, std::uint64_t value, unsigned source);

void require_whole_warp(int width);
unsigned lane();
unsigned cluster_rank();
unsigned cluster_size();

cudaError_t launch(const cudaLaunchConfig_t* config, const void* kernel, const std::function<void()>& thread);

template <class T>
concept Shuffled = std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, long long> ||
                   std::same_as<T, float> || std::same_as<T, double>;

template <Shuffled T>
T shuffle(Meeting meeting, unsigned mask, T value, unsigned source, int width) {
    require_whole_warp(width);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = exchange(meeting, mask, bits, source);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace cuda_on_cpu

// Converts the arguments to the parameters' types once, as CUDA does; each thread then gets its own copy.
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
    const auto launch = [&](Params... params) {
        return cuda_on_cpu::launch(config, reinterpret_cast<const void*>(kernel), [&] { kernel(params...); });
    };
    return launch(std::forward<Args>(args)...);
}

// Device functions.

inline void __syncthreads() { cuda_on_cpu::sync(cuda_on_cpu::Meeting::syncthreads); }
inline int __syncthreads_or(int predicate) {
    return cuda_on_cpu::sync(cuda_on_cpu::Meeting::syncthreads, predicate != 0);
}

inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::exchange(cuda_on_cpu::Meeting::syncwarp, mask, 0, 0); }

// Fibers of a launch share an OS thread, which sees its own writes. Only the compiler must not move them.
inline void __threadfence() { __asm__ volatile("" ::: "memory"); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return static_cast<unsigned>(cuda_on_cpu::exchange(cuda_on_cpu::Meeting::ballot, mask, predicate != 0, 0));
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(std::uint64_t{a} * b >> 32); }

// Lanes whose source is beyond the warp's ends keep their own value. Widths other than a warp's abort.

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return cuda_on_cpu::shuffle(cuda_on_cpu::Meeting::shfl, mask, value, static_cast<unsigned>(source) % 32, width);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = cuda_on_cpu::lane(), source = delta < 32 - lane ? lane + delta : lane;
    return cuda_on_cpu::shuffle(cuda_on_cpu::Meeting::shfl_down, mask, value, source, width);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
    const unsigned lane = cuda_on_cpu::lane(), source = lane ^ static_cast<unsigned>(lane_mask);
    return cuda_on_cpu::shuffle(cuda_on_cpu::Meeting::shfl_xor, mask, value, source < 32 ? source : lane, width);
}

inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
