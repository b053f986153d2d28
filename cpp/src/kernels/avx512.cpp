#include "vec_avx512.hpp"

#include "kernels-inl.hpp"

namespace batchnorm::kernels {

constinit const KernelTable avx512_table = table;

}  // namespace batchnorm::kernels
