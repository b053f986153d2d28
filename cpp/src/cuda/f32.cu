#include "kernels.cuh"

namespace batchnorm::cuda {

const TypeKernels f32_kernels = kernels_of_type<float>();

}  // namespace batchnorm::cuda
