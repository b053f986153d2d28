#include "vec_scalar.hpp"

#include "kernels-inl.hpp"

namespace batchnorm::kernels {

constinit const KernelTable scalar_table = table_of<float, double, Half, BFloat16>;

}  // namespace batchnorm::kernels
