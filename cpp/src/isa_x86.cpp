#include <cpuid.h>

#include "isa.hpp"

namespace batchnorm {
namespace {

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Leaf(unsigned leaf, unsigned subleaf) noexcept { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

constexpr bool bit(unsigned word, int i) noexcept { return (word >> i & 1) != 0; }

// The register states that the operating system saves: without it an instruction set is of no use.
unsigned saved_states() noexcept {
    if (!bit(Leaf(1, 0).c, 27)) return 0;  // OSXSAVE: XGETBV exists
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool has_avx2() noexcept {
    const unsigned xmm_ymm = 0x6;
    const Leaf one(1, 0), seven(7, 0);
    return (saved_states() & xmm_ymm) == xmm_ymm && bit(one.c, 28) /* AVX */ && bit(one.c, 12) /* FMA */ &&
           bit(one.c, 29) /* F16C */ && bit(seven.b, 5) /* AVX2 */;
}

bool has_avx512() noexcept {
    const unsigned xmm_to_zmm = 0xe6;
    const Leaf seven(7, 0);
    return has_avx2() && (saved_states() & xmm_to_zmm) == xmm_to_zmm && bit(seven.b, 16) /* F */ &&
           bit(seven.b, 30) /* BW */ && bit(seven.b, 31) /* VL */;
}

struct Vendor {
    unsigned b, d, c;
};
constexpr Vendor intel{0x756e6547, 0x49656e69, 0x6c65746e}, amd{0x68747541, 0x69746e65, 0x444d4163};
bool is_of(const Vendor& vendor) noexcept {
    const Leaf own(0, 0);
    return own.b == vendor.b && own.d == vendor.d && own.c == vendor.c;
}

// On Intel's processors these are used for float32 alone; float64's sums gain by them (docs/experiments.md), whole
// calls were not measured.
bool has_intel_avx512() noexcept { return has_avx512() && is_of(intel); }

// Units of 512 bits have AMD's processors from Zen 5 (family 26) on, but of Zen 5 not those for notebooks, Strix Point
// and Krackan Point. (CPUID has a bit for that, leaf 0x8000001a, which virtual machines hide.)
bool has_wide_avx512() noexcept {
    const Leaf one(1, 0);
    const unsigned family = (one.a >> 8 & 0xf) + (one.a >> 20 & 0xff), model = one.a >> 16 & 0xf;  // by sixteens
    const bool split = family == 26 && (model == 2 || model == 6);
    return has_avx512() && is_of(amd) && family >= 26 && !split;
}

bool always() noexcept { return true; }

using kernels::avx512_table, kernels::avx512_wide_table;

constexpr Isa isas[] = {
    {"avx512",
     {&avx512_wide_table.f32, &avx512_wide_table.f64, &avx512_table.f16, &avx512_table.bf16},
     has_wide_avx512},
    {"avx512", {&avx512_wide_table.f32, &avx512_table.f64, &avx512_table.f16, &avx512_table.bf16}, has_intel_avx512},
    {"avx512", kernels::all_of(avx512_table), has_avx512},
    {"avx2", kernels::all_of(kernels::avx2_table), has_avx2},
    {"scalar", kernels::all_of(kernels::scalar_table), always},
};

}  // namespace

IsaList built_isas() noexcept { return {isas, 5}; }

}  // namespace batchnorm
