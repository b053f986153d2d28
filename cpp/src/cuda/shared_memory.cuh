// The dynamic shared memory of the calling thread's block.
#pragma once

#include <cuda_runtime.h>

namespace batchnorm::cuda {

#ifdef __CUDACC__
__device__ inline char* shared_memory() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}
#else
// Kernels as a C++ compiler sees them, for tests without a GPU.
inline char* shared_memory() { return cuda_on_cpu::shared_memory(); }
#endif

}  // namespace batchnorm::cuda
