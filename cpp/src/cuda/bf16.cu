#include "kernels.cuh"

namespace batchnorm::cuda {

const TypeKernels bf16_kernels = kernels_of_type<BFloat16>();

}  // namespace batchnorm::cuda
