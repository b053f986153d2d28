// The CUDA part's functions: a plan for each piece of work, and its launches.
#include <cstdio>

#include "kernels.hpp"
#include "pieces.cuh"
#include "values.cuh"

namespace batchnorm::cuda {
namespace {

// What is known of a device. Asked for at each call: the driver has it at hand.
struct Device {
    int multiprocessors = 1, shared_of_block = 48 << 10, shared_of_multiprocessor = 48 << 10, capability = 0;
    int cooperative = 0;

    cudaError_t ask() noexcept {
        int device;
        if (const cudaError_t error = cudaGetDevice(&device)) return error;
        const auto get = [&](int& value, cudaDeviceAttr attribute) {
            return cudaDeviceGetAttribute(&value, attribute, device);
        };
        if (const cudaError_t error = get(multiprocessors, cudaDevAttrMultiProcessorCount)) return error;
        if (const cudaError_t error = get(shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin)) return error;
        if (const cudaError_t error = get(shared_of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor))
            return error;
        if (const cudaError_t error = get(cooperative, cudaDevAttrCooperativeLaunch)) return error;
        return get(capability, cudaDevAttrComputeCapabilityMajor);
    }
    bool has_clusters() const noexcept { return capability >= 9; }
};

// Blocks of a launch, at most: enough for all multiprocessors of any device many times over.
constexpr int64_t most_blocks = int64_t{1} << 20;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the system takes of a multiprocessor's shared memory for each block.
constexpr int64_t reserved_bytes = 1024;

struct Launch {
    int64_t blocks;
    int64_t shared;
    Pass pass;
};

const TypeKernels& kernels_of(DType dtype) noexcept {
    switch (dtype) {
        case DType::f64: return f64_kernels;
        case DType::f16: return f16_kernels;
        case DType::bf16: return bf16_kernels;
        case DType::f32: break;
    }
    return f32_kernels;
}

bool goes_back(Op op) noexcept {
    return op != Op::batch_norm && op != Op::batch_norm_inference && op != Op::moments && op != Op::normalize;
}
bool reduces(Op op) noexcept { return op != Op::batch_norm_inference && op != Op::normalize && op != Op::input_grad; }
bool applies(const Work& work) noexcept { return work.writes && work.op != Op::moments && work.op != Op::grad_sums; }

// A result in the place of what it is made of would be written by one block and read by another.
bool overwrites_parameters(const Work& work) noexcept {
    const auto bounds = [&](const Values& values, const char*& first, const char*& last) {
        first = last = values.data;
        for (int d = 0; d < work.box.kept_rank && !values.one_for_all; ++d) {
            const int64_t extent = (work.box.kept_shape[d] - 1) * values.stride[d];
            (extent < 0 ? first : last) += extent;
        }
        last += item_size(values.dtype) - 1;
    };
    for (const Values* written :
         {&work.to_mean, &work.to_inv_std, &work.to_var, &work.to_count, &work.to_dgamma, &work.to_dbeta})
        for (const Values* read : {&work.gamma, &work.beta, &work.mean, &work.inv_std, &work.var, &work.count}) {
            if (!written->data || !read->data) continue;
            const char *a, *a_last, *b, *b_last;
            bounds(*written, a, a_last);
            bounds(*read, b, b_last);
            if (a <= b_last && b <= a_last) return true;
        }
    return false;
}

// Whether all operands have all their packs whole, aligned as for a uint4, and along one dimension of each level but
// the rows', along which they are direct: channels and planes are two there.
bool is_packed(const Work& work) noexcept {
    const Box& box = work.box;
    if (box.operand[role_weights].data || box.level[box.row_level()].count % pack_size != 0) return false;
    for (const LevelName level : {group, outer, channel, inner})
        if (level != box.row_level() && box.level[level].rank > 1) return false;
    for (const Operand& operand : box.operand) {
        if (!operand.data) continue;
        int64_t places = reinterpret_cast<int64_t>(operand.data);
        for (const LevelName level : {group, outer, channel})
            if (level != box.row_level()) places |= operand.stride[level][0];
        if (!operand.direct || places % static_cast<int64_t>(sizeof(uint4)) != 0) return false;
    }
    return true;
}

using Kernel = void (*)(Work, Pass);

Kernel kernel_of(const Work& work) noexcept {
    const PatternKernels& kernels = kernels_of(work.box.dtype).of[work.box.pattern];
    return (goes_back(work.op) ? kernels.backward : kernels.forward)[is_packed(work)];
}

// As much shared memory as there is: always the same, since other threads may be launching this kernel too.
cudaError_t allow_shared(Kernel kernel, const Device& device) noexcept {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_of_block);
}

// As CUDA wants it.
struct Config {
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};

    explicit Config(const Launch& plan, cudaStream_t stream = nullptr) noexcept {
        config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
        config.blockDim = dim3(block_threads);
        config.dynamicSmemBytes = static_cast<std::size_t>(plan.shared);
        config.stream = stream;
        config.attrs = &attribute;
        if (!plan.pass.keeps() || plan.pass.team == TeamOf::block) return;
        config.numAttrs = 1;
        if (plan.pass.team == TeamOf::cluster) {
            attribute.id = cudaLaunchAttributeClusterDimension;
            attribute.val.clusterDim.x = static_cast<unsigned>(plan.pass.blocks);
            attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        } else {
            attribute.id = cudaLaunchAttributeCooperative;
            attribute.val.cooperative = 1;
        }
    }
    Config(const Config&) = delete;
};

// Whether all blocks of a team can be on the device at once.
bool team_fits(Kernel kernel, const Launch& plan, const Device& device) noexcept {
    int fitting = 0;
    cudaError_t error = allow_shared(kernel, device);
    if (error == cudaSuccess && plan.pass.team == TeamOf::cluster) {
        const Config config(plan);
        error = cudaOccupancyMaxActiveClusters(&fitting, kernel, &config.config);
    } else if (error == cudaSuccess) {
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fitting, kernel, block_threads,
                                                              static_cast<std::size_t>(plan.shared));
    }
    if (error != cudaSuccess) {
        cudaGetLastError();  // nobody else is to find it
        return false;
    }
    return plan.pass.team == TeamOf::grid ? static_cast<int64_t>(fitting) * device.multiprocessors >= plan.blocks
                                          : fitting > 0;
}

// How the tensor can be kept on chip between reducing it and applying to it; false if it cannot, or if too few blocks
// would be busy.
bool plan_on_chip(const Work& work, const Device& device, Launch& launch) noexcept {
    if (!reduces(work.op) || !applies(work) || overwrites_parameters(work)) return false;
    const PatternKernels& kernels = kernels_of(work.box.dtype).of[work.box.pattern];
    const int64_t first = ceil_div(kernels_of(work.box.dtype).reduce_bytes(work.box), 16) * 16;
    const int64_t chunk = kernels.chunk_bytes(work), operands = goes_back(work.op) ? 2 : 1;
    const int64_t chunks = work.chunks_of_unit, all_units = work.pieces / chunks;
    const auto shared_for = [&](int64_t kept) { return first + kept * operands * chunk; };
    // Two blocks on a multiprocessor, so that one reads while the other waits; or else one.
    const int64_t for_one_of_two = device.shared_of_multiprocessor / 2 - reserved_bytes;
    const int64_t largest = device.shared_of_block;

    const Kernel kernel = kernel_of(work);
    for (const int64_t limit : {for_one_of_two < largest ? for_one_of_two : largest, largest}) {
        for (int64_t size = 1; size <= (device.has_clusters() ? 8 : 1); size *= 2) {
            const int64_t shared = shared_for(ceil_div(chunks, size)), busy = all_units * size;
            // More blocks than chunks would be idle; fewer than half of the multiprocessors leave the rest so.
            const bool enough = 2 * busy >= device.multiprocessors || 2 * size > chunks;
            if (shared > limit || !enough) continue;
            launch = {
                busy < most_blocks ? busy : most_blocks,
                shared,
                {true, true, size > 1 ? TeamOf::cluster : TeamOf::block, static_cast<unsigned>(size), first, chunk}};
            if (team_fits(kernel, launch, device)) return true;
        }
    }
    if (!device.cooperative) return false;
    const int64_t all = work.pieces;
    for (const int64_t at_once : {2, 1}) {
        const int64_t most = device.multiprocessors * at_once, blocks = all < most ? all : most;
        const int64_t shared = shared_for(ceil_div(all, blocks));
        if (shared > device.shared_of_multiprocessor / at_once - reserved_bytes || shared > largest) continue;
        launch = {blocks, shared, {true, true, TeamOf::grid, static_cast<unsigned>(blocks), first, chunk}};
        if (team_fits(kernel, launch, device)) return true;
    }
    return false;
}

Launch plan_pass(const Work& work, bool reduces) noexcept {
    const int64_t all = work.pieces;
    const int64_t shared = reduces
                               ? kernels_of(work.box.dtype).reduce_bytes(work.box)
                               : work.tile.packs * pack_size * coefficient_count * static_cast<int64_t>(sizeof(float));
    const int64_t blocks = all < most_blocks ? all : most_blocks;
    return {blocks, shared, {reduces, !reduces, TeamOf::grid, static_cast<unsigned>(blocks), 0, 0}};
}

cudaError_t launch_tensor(const Work& work, const Launch& plan, const Device& device, cudaStream_t stream) noexcept {
    const Kernel kernel = kernel_of(work);
    if (const cudaError_t error = allow_shared(kernel, device)) return error;
    const Config config(plan, stream);
    return cudaLaunchKernelEx(&config.config, kernel, work, plan.pass);
}

struct Shape {
    int rank;
    int64_t size[max_rank];
};

// The indices from 0 to count - 1 that are this thread's: of all blocks' one after the other.
template <class Step>
__device__ void for_own_indices(int64_t count, const Step& step) {
    const int64_t all = static_cast<int64_t>(gridDim.x) * block_threads;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(block_threads) + threadIdx.x; i < count; i += all) step(i);
}

__global__ void fill_values(const __grid_constant__ Values to, const __grid_constant__ Shape shape, int64_t count,
                            double value) {
    for_own_indices(count,
                    [&](int64_t i) { store_double(address_of(to, shape.size, shape.rank, i), to.dtype, value); });
}

// dgamma and dbeta over the groups of a part, and of those before.
__global__ void add_groups(const __grid_constant__ Work work) {
    const int64_t n = work.box.statistics() / work.groups;
    const auto add = [&](int64_t i, const double* of_groups, double* totals, const Values& to) {
        double total = work.first ? 0 : totals[i];
        for (int64_t g = 0; g < work.groups; ++g) total += of_groups[g * n + i];
        totals[i] = total;
        if (!work.last || !to.data) return;
        // The kept axes' shape, after that of the groups.
        const char* const at = to.one_for_all
                                   ? to.data
                                   : to.data + odometer(work.box.kept_shape + 1, to.stride, work.box.kept_rank - 1, i);
        store_double(const_cast<char*>(at), to.dtype, total);
    };
    for_own_indices(n, [&](int64_t i) {
        add(i, work.dgamma, work.dgamma_total, work.to_dgamma);
        add(i, work.dbeta, work.dbeta_total, work.to_dbeta);
    });
}

template <class Kernel, class... Args>
cudaError_t launch_plain(Kernel kernel, int64_t blocks, cudaStream_t stream, const Args&... args) noexcept {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks));
    config.blockDim = dim3(block_threads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, args...);
}

cudaError_t launch_all(const Work& work, cudaStream_t stream) noexcept {
    Device device;
    if (const cudaError_t error = device.ask()) return error;
    Launch plan;
    if (plan_on_chip(work, device, plan)) {
        if (const cudaError_t error = launch_tensor(work, plan, device, stream)) return error;
    } else {
        if (reduces(work.op))
            if (const cudaError_t error = launch_tensor(work, plan_pass(work, true), device, stream)) return error;
        const int64_t blocks = ceil_div(work.box.statistics(), block_warps);
        if (const cudaError_t error = launch_plain(kernels_of(work.box.dtype).finish, blocks, stream, work))
            return error;
        if (applies(work))
            if (const cudaError_t error = launch_tensor(work, plan_pass(work, false), device, stream)) return error;
    }
    if (work.groups == 0 || !goes_back(work.op) || work.op == Op::grad_sums) return cudaSuccess;
    return launch_plain(add_groups, ceil_div(work.box.statistics() / work.groups, block_threads), stream, work);
}

// ------------------------------------------------------------------------------------------------------- the table

// What CUDA says, or null. An error that a launch left is taken away: the next call is not to find it.
const char* text(cudaError_t error) noexcept {
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();
    return cudaGetErrorString(error);
}

const char* unavailable_because() noexcept {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) return "there is no NVIDIA driver, or none as new as this CUDA part";
    if (error != cudaSuccess) return text(error);
    return count > 0 ? nullptr : "no CUDA device";
}

int device_count() noexcept {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* device_name(int device) noexcept {
    static thread_local cudaDeviceProp properties;
    if (device < 0 || device >= device_count()) return nullptr;
    return cudaGetDeviceProperties(&properties, device) == cudaSuccess ? properties.name : nullptr;
}

const char* get_device(int& device) noexcept { return text(cudaGetDevice(&device)); }
const char* set_device(int device) noexcept { return text(cudaSetDevice(device)); }
const char* synchronize(Stream stream) noexcept {
    return text(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}
const char* run(const Work& work, Stream stream) noexcept {
    return text(launch_all(work, static_cast<cudaStream_t>(stream)));
}

const char* fill(const Values& to, const int64_t (&shape)[max_rank], int rank, double value, Stream stream) noexcept {
    Shape sizes{rank, {}};
    int64_t count = 1;
    for (int d = 0; d < rank; ++d) count *= sizes.size[d] = shape[d];
    if (count == 0) return nullptr;
    const int64_t blocks = ceil_div(count, block_threads);
    return text(launch_plain(fill_values, blocks, static_cast<cudaStream_t>(stream), to, sizes, count, value));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const Table batchnorm_cuda_table = {
    sizeof(Work), unavailable_because, device_count, device_name, get_device, set_device, synchronize, run, fill,
};

}  // namespace batchnorm::cuda
