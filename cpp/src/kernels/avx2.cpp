#include "vec_avx2.hpp"

#include "kernels-inl.hpp"

namespace batchnorm::kernels {

constinit const KernelTable avx2_table = table_of<float, double, Half, BFloat16>;

}  // namespace batchnorm::kernels
