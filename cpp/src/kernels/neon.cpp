#include "vec_neon.hpp"

#include "kernels-inl.hpp"

namespace batchnorm::kernels {

constinit const KernelTable neon_table = table;

}  // namespace batchnorm::kernels
