#include "kernels.cuh"

namespace batchnorm::cuda {

const TypeKernels f16_kernels = kernels_of_type<Half>();

}  // namespace batchnorm::cuda
