#include "vec_neon.hpp"

#include "kernels-inl.hpp"

namespace batchnorm::kernels {

constinit const KernelTable neon_table = table_of<float, double, Half, BFloat16>;

}  // namespace batchnorm::kernels
