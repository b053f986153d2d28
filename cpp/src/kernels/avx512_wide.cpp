#include "vec_avx512_wide.hpp"

#include "kernels-inl.hpp"

namespace batchnorm::kernels {

constinit const TypeKernels avx512_wide_table = type_kernels<float>;

}  // namespace batchnorm::kernels
