#include "isa.hpp"

namespace batchnorm {
namespace {

bool always() noexcept { return true; }  // NEON is part of the 64-bit architecture

constexpr Isa isas[] = {
    {"neon", kernels::all_of(kernels::neon_table), always},
    {"scalar", kernels::all_of(kernels::scalar_table), always},
};

}  // namespace

IsaList built_isas() noexcept { return {isas, 2}; }

}  // namespace batchnorm
