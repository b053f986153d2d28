#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
#include "kernels/half.hpp"

struct CUstream_st {};

thread_local constinit uint3 threadIdx{}, blockIdx{};
thread_local constinit dim3 blockDim, gridDim;

// Saves the registers that a called function must keep, and the stack pointer to *from; then goes on where the stack
// `to` was left. ucontext's swapcontext would make a system call each time.
extern "C" void cuda_on_cpu_switch(void** from, void* to);

#if defined __x86_64__
constexpr std::size_t frame_words = 8, frame_return = 6;  // the word above the return address aligns the stack
__asm__(R"(
    .text
    .globl cuda_on_cpu_switch
    .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
    .size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");
#elif defined __aarch64__
constexpr std::size_t frame_words = 20, frame_return = 11;
__asm__(R"(
    .text
    .globl cuda_on_cpu_switch
    .type cuda_on_cpu_switch, %function
cuda_on_cpu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]; stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]; stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
    mov x2, sp; str x2, [x0]; mov sp, x1
    ldp x19, x20, [sp, #0]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]; ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]
    add sp, sp, #160; ret
    .size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");
#else
#error "cuda_on_cpu_switch is written for x86-64 and AArch64"
#endif

namespace cuda_on_cpu {
namespace {

constexpr unsigned warp_size = 32, max_block_threads = 1024, max_sm_threads = 2048, max_sm_blocks = 32;
constexpr std::size_t default_shared = 48 << 10, reserved_shared = 1 << 10;  // the system's share of each block
constexpr std::size_t max_allocation = std::size_t{4} << 30;                 // so that running out can be tested
constexpr char garbage = '\xCD';

[[noreturn]] void die(const std::string& message) {
    std::fprintf(stderr, "cuda_on_cpu: %s\n", message.c_str());
    std::abort();
}

// The emulated device.

std::size_t setting(const char* variable, std::size_t otherwise) {
    const char* text = std::getenv(variable);
    if (!text || !*text) return otherwise;
    char* end;
    const unsigned long value = std::strtoul(text, &end, 10);
    if (*end || value > INT_MAX) die(std::string(variable) + "=" + text + " is not a number");
    return value;
}

std::size_t device_count() { return setting("CUDA_ON_CPU_DEVICES", 1); }
std::size_t sm_count() { return setting("CUDA_ON_CPU_SMS", 4); }
std::size_t sm_shared() { return setting("CUDA_ON_CPU_SHARED", 233472); }
std::size_t block_shared() { return std::max(sm_shared(), reserved_shared) - reserved_shared; }
std::size_t capability() { return setting("CUDA_ON_CPU_CAPABILITY", 90); }
bool has_clusters() { return capability() >= 90; }

bool backward() {
    const char* text = std::getenv("CUDA_ON_CPU_ORDER");
    const std::string order = text ? text : "forward";
    if (order != "forward" && order != "backward") die("CUDA_ON_CPU_ORDER=" + order + " is not forward or backward");
    return order == "backward";
}

thread_local int device_in_use = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t record(cudaError_t error) {
    if (error) last_error = error;
    return error;
}

// For calls that do the same on every device, if there is one.
cudaError_t check(bool valid) {
    if (device_count() == 0) return record(cudaErrorNoDevice);
    return record(valid ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t check_device(int device) {
    if (device_count() == 0) return record(cudaErrorNoDevice);
    return record(device >= 0 && static_cast<std::size_t>(device) < device_count() ? cudaSuccess
                                                                                   : cudaErrorInvalidDevice);
}

// What cudaFuncSetAttribute sets.
struct KernelLimits {
    std::size_t shared = default_shared;
    bool large_clusters = false;
};

std::mutex limits_mutex;
std::map<const void*, KernelLimits> limits_by_kernel;

KernelLimits limits_of(const void* kernel) {
    const std::lock_guard lock(limits_mutex);
    return limits_by_kernel[kernel];
}

std::size_t volume(dim3 d) { return std::size_t{d.x} * d.y * d.z; }

std::size_t blocks_per_sm(const KernelLimits& limits, std::size_t threads, std::size_t shared) {
    if (threads > max_block_threads || shared > std::min(limits.shared, block_shared())) return 0;
    const std::size_t warps = (threads + warp_size - 1) / warp_size;
    return std::min(
        {std::size_t{max_sm_blocks}, max_sm_threads / (warps * warp_size), sm_shared() / (shared + reserved_shared)});
}

// A launch's configuration, checked as a device would.
struct Shape {
    dim3 grid, block, cluster;
    std::size_t shared;
    bool cooperative = false, clustered = false;
    std::size_t clusters_at_once = 0;  // as many as the device has room for
    cudaError_t error;

    Shape(const cudaLaunchConfig_t& config, const void* kernel)
        : grid(config.gridDim), block(config.blockDim), shared(config.dynamicSmemBytes) {
        error = read_attributes(config);
        if (!error) error = check_shape(limits_of(kernel));
    }

  private:
    cudaError_t read_attributes(const cudaLaunchConfig_t& config) {
        for (unsigned i = 0; i < config.numAttrs; ++i) {
            const cudaLaunchAttribute& attribute = config.attrs[i];
            if (attribute.id == cudaLaunchAttributeCooperative) {
                cooperative = attribute.val.cooperative != 0;
            } else if (attribute.id == cudaLaunchAttributeClusterDimension) {
                clustered = true;
                cluster = dim3(attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z);
            } else {
                return cudaErrorInvalidValue;
            }
        }
        return cudaSuccess;
    }

    cudaError_t check_shape(const KernelLimits& limits) {
        const bool grid_fits = grid.x <= INT_MAX && grid.y <= 65535 && grid.z <= 65535 && volume(grid) > 0;
        const bool block_fits = block.z <= 64 && volume(block) > 0 && volume(block) <= max_block_threads;
        if (!grid_fits || !block_fits) return cudaErrorInvalidConfiguration;
        if (shared > std::min(limits.shared, block_shared())) return cudaErrorInvalidValue;
        if (clustered) {
            if (!has_clusters()) return cudaErrorNotSupported;
            if (cluster.z > 16 || volume(cluster) == 0 || volume(cluster) > (limits.large_clusters ? 16 : 8))
                return cudaErrorInvalidClusterSize;
            if (grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) return cudaErrorInvalidConfiguration;
        }
        clusters_at_once = sm_count() * blocks_per_sm(limits, volume(block), shared) / volume(cluster);
        return cudaSuccess;
    }
};

// Stacks, which wait for the next launch on their OS thread. The lowest page of each is a guard: an overflow must not
// write into another fiber's stack unseen. It also keeps the stacks' tops from all being in the same lines of the
// cache.
class Stacks {
  public:
    ~Stacks() {
        for (char* stack : stacks_) munmap(stack, guard_ + size);
    }
    // The end of a stack, from where it grows.
    char* top(std::size_t i) {
        if (i == stacks_.size()) stacks_.push_back(map());
        // Fibers end without returning from their last function, which AddressSanitizer does not see.
        ASAN_UNPOISON_MEMORY_REGION(stacks_[i] + guard_, size);
        return stacks_[i] + guard_ + size;
    }

  private:
    static constexpr std::size_t size = 64 << 10;

    char* map() const {
        void* stack = mmap(nullptr, guard_ + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED || mprotect(stack, guard_, PROT_NONE)) die("no memory for the stacks of fibers");
        return static_cast<char*>(stack);
    }

    const std::size_t guard_ = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    std::vector<char*> stacks_;
};

thread_local Stacks stacks;

const char* name(Meeting meeting) {
    switch (meeting) {
        case Meeting::syncthreads: return "__syncthreads";
        case Meeting::cluster_sync: return "this_cluster().sync";
        case Meeting::grid_sync: return "this_grid().sync";
        case Meeting::syncwarp: return "__syncwarp";
        case Meeting::ballot: return "__ballot_sync";
        case Meeting::shfl: return "__shfl_sync";
        case Meeting::shfl_down: return "__shfl_down_sync";
        case Meeting::shfl_xor: return "__shfl_xor_sync";
    }
    return "?";
}

struct Block {
    uint3 index;
    unsigned rank;             // in its cluster
    std::vector<char> shared;  // of just its size, where a sanitizer sees accesses beyond
};

static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 16, "shared memory is aligned as for uint4");

struct Fiber {
    enum State { ready, waits, ended };

    void* stack;
    uint3 index;
    std::size_t number;  // in the launch's fibers
    unsigned lane;
    State state = ready;
    // While it waits:
    Meeting meeting = Meeting::syncthreads;
    unsigned mask = 0, source = 0;
    std::uint64_t value = 0;   // given to other lanes
    std::uint64_t result = 0;  // got from them
};

// A barrier of threads that follow each other in the launch's fibers.
struct Barrier {
    std::size_t first, count, arrived = 0;
    bool any = false;  // of what the threads brought along, for __syncthreads_or
};

[[noreturn]] void enter();

// The blocks of a launch that run together, and their threads: all, or a cluster, or a block.
class Running {
  public:
    static thread_local Running* now;

    Running(const Shape& shape, const std::function<void()>& thread)
        : shape_(shape),
          thread_(thread),
          backward_(backward()),
          block_threads_(volume(shape.block)),
          cluster_threads_(block_threads_ * volume(shape.cluster)) {}

    const Shape& shape() const { return shape_; }
    Fiber& fiber() const { return *current_; }
    Block& block() { return blocks_[current_->number / block_threads_]; }

    void run_grid() {
        const dim3 clusters(shape_.grid.x / shape_.cluster.x, shape_.grid.y / shape_.cluster.y,
                            shape_.grid.z / shape_.cluster.z);
        const std::size_t count = volume(clusters);
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t at = backward_ && !shape_.cooperative ? count - 1 - i : i;
            add_cluster(position(at, clusters));
            if (!shape_.cooperative) run_blocks();
        }
        if (shape_.cooperative) run_blocks();
    }

    // Runs the current fiber's kernel, on its own stack.
    void run_thread() {
        thread_();
        current_->state = Fiber::ended;
        leave();
    }

    bool sync(Meeting meeting, bool predicate) {
        if (meeting == Meeting::grid_sync && !shape_.cooperative)
            die("this_grid().sync() in a launch that is not cooperative");
        Barrier& barrier = meeting == Meeting::grid_sync      ? grid_
                           : meeting == Meeting::cluster_sync ? clusters_[current_->number / cluster_threads_]
                                                              : block_barriers_[current_->number / block_threads_];
        Fiber& self = *current_;
        self.meeting = meeting;
        self.state = Fiber::waits;
        barrier.any |= predicate;
        if (++barrier.arrived == barrier.count) {
            barrier.arrived = 0;
            for (std::size_t i = 0; i < barrier.count; ++i) fibers_[barrier.first + i].result = barrier.any;
            barrier.any = false;
            release(barrier.first, barrier.count, ~0u);
        }
        leave();
        return self.result != 0;
    }

    std::uint64_t exchange(Meeting meeting, unsigned mask, std::uint64_t value, unsigned source) {
        Fiber& self = *current_;
        if (!(mask >> self.lane & 1)) die(std::string(name(meeting)) + "() by a lane that its mask does not name");
        self.meeting = meeting;
        self.mask = mask;
        self.value = value;
        self.source = source;
        self.state = Fiber::waits;
        meet(self);
        leave();
        return self.result;
    }

  private:
    static uint3 position(std::size_t i, dim3 size) {
        return {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
                static_cast<unsigned>(i / size.x / size.y)};
    }

    void add_cluster(uint3 cluster) {
        const dim3 size = shape_.cluster;
        clusters_.push_back({fibers_.size(), cluster_threads_});
        for (std::size_t rank = 0; rank < volume(size); ++rank) {
            const uint3 in = position(rank, size);
            block_barriers_.push_back({fibers_.size(), block_threads_});
            blocks_.push_back({{cluster.x * size.x + in.x, cluster.y * size.y + in.y, cluster.z * size.z + in.z},
                               static_cast<unsigned>(rank),
                               std::vector<char>(shape_.shared, garbage)});
            for (std::size_t i = 0; i < block_threads_; ++i) add_fiber(i);
        }
    }

    void add_fiber(std::size_t i) {
        // As if `enter` had just called cuda_on_cpu_switch.
        void** frame = reinterpret_cast<void**>(stacks.top(fibers_.size())) - frame_words;
        std::fill_n(frame, frame_words, nullptr);
        frame[frame_return] = reinterpret_cast<void*>(enter);
        fibers_.push_back({.stack = frame,
                           .index = position(i, shape_.block),
                           .number = fibers_.size(),
                           .lane = static_cast<unsigned>(i % warp_size)});
    }

    void run_blocks() {
        grid_ = {0, fibers_.size()};
        release(0, fibers_.size(), ~0u);
        for (std::vector<Fiber*> turn; !ready_.empty(); turn.clear()) {
            turn.swap(ready_);
            for (Fiber* fiber : turn) enter_fiber(*fiber);
        }
        for (const Fiber& fiber : fibers_)
            if (fiber.state != Fiber::ended) die_of_deadlock();
        fibers_.clear();
        blocks_.clear();
        block_barriers_.clear();
        clusters_.clear();
    }

    void enter_fiber(Fiber& fiber) {
        current_ = &fiber;
        threadIdx = fiber.index;
        blockIdx = block().index;
        cuda_on_cpu_switch(&scheduler_, fiber.stack);
    }

    // The current fiber goes on when it is ready and its turn comes.
    void leave() { cuda_on_cpu_switch(&current_->stack, scheduler_); }

    // Makes fibers ready: of the `count` ones from `first` on those whose bits, repeated for each 32, are set in mask.
    void release(std::size_t first, std::size_t count, unsigned mask) {
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t at = backward_ ? count - 1 - i : i;
            if (!(mask >> at % warp_size & 1)) continue;
            fibers_[first + at].state = Fiber::ready;
            ready_.push_back(&fibers_[first + at]);
        }
    }

    // If `last` is the last lane that its mask names: gives all of them their results and lets them go on.
    void meet(const Fiber& last) {
        const std::size_t first = last.number - last.lane;
        const std::size_t in_block = first % block_threads_;
        const std::size_t lanes = std::min<std::size_t>(warp_size, block_threads_ - in_block);
        Fiber* const warp = &fibers_[first];
        std::uint64_t ballot = 0;
        for (unsigned lane = 0; lane < warp_size; ++lane) {
            if (!(last.mask >> lane & 1)) continue;
            // Other lanes than these have not come yet, have ended, or do not exist.
            if (lane >= lanes || warp[lane].state != Fiber::waits || warp[lane].meeting != last.meeting ||
                warp[lane].mask != last.mask)
                return;
            ballot |= std::uint64_t{warp[lane].value != 0} << lane;
        }
        for (unsigned lane = 0; lane < lanes; ++lane) {
            if (!(last.mask >> lane & 1)) continue;
            const unsigned source = warp[lane].source;
            if (last.meeting == Meeting::ballot)
                warp[lane].result = ballot;
            else if (last.mask >> source & 1)
                warp[lane].result = warp[source].value;
            else  // what CUDA leaves undefined
                std::memset(&warp[lane].result, garbage, sizeof warp[lane].result);
        }
        release(first, lanes, last.mask);
    }

    [[noreturn]] void die_of_deadlock() {
        std::map<std::string, std::pair<std::size_t, const Fiber*>> places;  // where, how many, who is the first
        for (const Fiber& fiber : fibers_) {
            char mask[32];
            std::snprintf(mask, sizeof mask, "0x%08x", fiber.mask);
            std::string place = "have ended";
            if (fiber.state == Fiber::waits)
                place = std::string("wait in ") + name(fiber.meeting) +
                        (fiber.meeting < Meeting::syncwarp ? "()" : std::string("(") + mask + ")");
            auto& [count, first] = places[place];
            if (count++ == 0) first = &fiber;
        }
        std::string message = "deadlock:";
        for (const auto& [place, who] : places) {
            const uint3 block = blocks_[who.second->number / block_threads_].index, thread = who.second->index;
            char line[256];
            std::snprintf(line, sizeof line,
                          "\n    %zu threads %s, the first is thread (%u, %u, %u) of block (%u, %u, %u)", who.first,
                          place.c_str(), thread.x, thread.y, thread.z, block.x, block.y, block.z);
            message += line;
        }
        die(message);
    }

    const Shape& shape_;
    const std::function<void()>& thread_;
    const bool backward_;
    const std::size_t block_threads_, cluster_threads_;
    std::vector<Fiber> fibers_;
    std::vector<Block> blocks_;
    std::vector<Barrier> block_barriers_, clusters_;
    Barrier grid_{};
    std::vector<Fiber*> ready_;
    Fiber* current_ = nullptr;
    void* scheduler_ = nullptr;  // the OS thread's own stack
};

thread_local Running* Running::now = nullptr;

void enter() {
    Running::now->run_thread();
    die("an ended fiber goes on");
}

Running& running() {
    if (!Running::now) die("a device function outside a kernel");
    return *Running::now;
}

}  // namespace

char* shared_memory() { return running().block().shared.data(); }
bool sync(Meeting meeting, bool predicate) { return running().sync(meeting, predicate); }
std::uint64_t exchange(Meeting meeting, unsigned mask, std::uint64_t value, unsigned source) {
    return running().exchange(meeting, mask, value, source);
}
unsigned lane() { return running().fiber().lane; }
unsigned cluster_rank() { return running().block().rank; }
unsigned cluster_size() { return static_cast<unsigned>(volume(running().shape().cluster)); }

void require_whole_warp(int width) {
    if (width != static_cast<int>(warp_size)) die("a shuffle of width " + std::to_string(width));
}

cudaError_t launch(const cudaLaunchConfig_t* config, const void* kernel, const std::function<void()>& thread) {
    if (const cudaError_t error = check(config && kernel)) return error;
    if (Running::now) die("a launch by a kernel");
    const Shape shape(*config, kernel);
    if (shape.error) return record(shape.error);
    if (shape.clusters_at_once == 0) return record(cudaErrorLaunchOutOfResources);
    if (shape.cooperative && volume(shape.grid) > shape.clusters_at_once * volume(shape.cluster))
        return record(cudaErrorCooperativeLaunchTooLarge);
    blockDim = shape.block;
    gridDim = shape.grid;
    Running all(shape, thread);
    Running::now = &all;
    all.run_grid();
    Running::now = nullptr;
    return cudaSuccess;
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

// Errors and devices.

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
        case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
        case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
        case cudaErrorNotSupported: return "operation not supported";
        case cudaErrorInvalidClusterSize: return "cluster misconfiguration";
        case cudaErrorUnknown: break;
    }
    return "unknown error";
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
    *count = static_cast<int>(device_count());
    return check(true);
}

cudaError_t cudaGetDevice(int* device) {
    *device = device_in_use;
    return check(true);
}

cudaError_t cudaSetDevice(int device) {
    const cudaError_t error = check_device(device);
    if (!error) device_in_use = device;
    return error;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (const cudaError_t error = check_device(device)) return error;
    std::size_t found = 0;
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: found = sm_count(); break;
        case cudaDevAttrL2CacheSize: found = setting("CUDA_ON_CPU_L2", 50 << 20); break;
        case cudaDevAttrComputeCapabilityMajor: found = capability() / 10; break;
        case cudaDevAttrComputeCapabilityMinor: found = capability() % 10; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: found = sm_shared(); break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: found = block_shared(); break;
        case cudaDevAttrCooperativeLaunch: found = 1; break;
        case cudaDevAttrClusterLaunch: found = has_clusters(); break;
        default: return record(cudaErrorInvalidValue);
    }
    *value = static_cast<int>(found);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    *properties = {"CUDA on the CPU"};
    return check_device(device);
}

cudaError_t cudaDeviceSynchronize() { return check(true); }

// Streams: calls have ended when they return, so there is nothing to wait for.

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = nullptr;
    if (const cudaError_t error = check(true)) return error;
    *stream = new CUstream_st;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (!stream) return record(cudaErrorInvalidResourceHandle);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return check(true); }

// Memory: the host's, of just the size asked for, where a sanitizer sees accesses beyond.

constexpr std::align_val_t device_alignment{256};

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    if (const cudaError_t error = check(memory)) return error;
    *memory = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (bytes <= max_allocation) *memory = operator new(bytes, device_alignment, std::nothrow);
    if (!*memory) return record(cudaErrorMemoryAllocation);
    std::memset(*memory, garbage, bytes);
    return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
    operator delete(memory, device_alignment);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
    if (const cudaError_t error = check(bytes == 0 || (to && from))) return error;
    if (bytes) std::memmove(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
    if (const cudaError_t error = check(bytes == 0 || memory)) return error;
    if (bytes) std::memset(memory, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
    return cudaMemset(memory, value, bytes);
}

// Kernels.

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    const bool sets_shared = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (!sets_shared && attribute != cudaFuncAttributeNonPortableClusterSizeAllowed)
        return record(cudaErrorInvalidValue);
    const bool fits = !sets_shared || (value >= 0 && static_cast<std::size_t>(value) <= block_shared());
    if (const cudaError_t error = check(kernel && fits)) return error;
    const std::lock_guard lock(limits_mutex);
    KernelLimits& limits = limits_by_kernel[kernel];
    if (sets_shared)
        limits.shared = static_cast<std::size_t>(value);
    else
        limits.large_clusters = value != 0;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          std::size_t shared) {
    if (const cudaError_t error = check(kernel && threads > 0)) return error;
    *blocks = static_cast<int>(blocks_per_sm(limits_of(kernel), static_cast<std::size_t>(threads), shared));
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
    if (const cudaError_t error = check(kernel && config)) return error;
    const Shape shape(*config, kernel);
    *clusters = static_cast<int>(shape.clusters_at_once);
    return record(shape.error);
}

// 16-bit types.

float __half2float(__half value) { return to_float(Half{value.bits}); }
__half __float2half_rn(float value) { return {from_float<Half>(value).bits}; }
float __bfloat162float(__nv_bfloat16 value) { return to_float(BFloat16{value.bits}); }
__nv_bfloat16 __float2bfloat16_rn(float value) { return {from_float<BFloat16>(value).bits}; }
