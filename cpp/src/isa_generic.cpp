#include "isa.hpp"

namespace batchnorm {
namespace {

bool always() noexcept { return true; }

constexpr Isa scalar = {"scalar", kernels::all_of(kernels::scalar_table), always};

}  // namespace

IsaList built_isas() noexcept { return {&scalar, 1}; }

}  // namespace batchnorm
