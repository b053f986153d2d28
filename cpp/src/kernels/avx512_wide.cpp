#include "vec_avx512_wide.hpp"

#include "kernels-inl.hpp"

namespace batchnorm::kernels {

constinit const WideTable avx512_wide_table = {type_kernels<float>, type_kernels<double>};

}  // namespace batchnorm::kernels
