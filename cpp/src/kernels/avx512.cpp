#include "vec_avx512.hpp"

#include "kernels-inl.hpp"

namespace batchnorm::kernels {

constinit const KernelTable avx512_table = table_of<float, double, Half, BFloat16>;

}  // namespace batchnorm::kernels
