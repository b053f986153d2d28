#include "kernels.cuh"

namespace batchnorm::cuda {

const TypeKernels f64_kernels = kernels_of_type<double>();

}  // namespace batchnorm::cuda
