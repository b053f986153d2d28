#include "isa.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "status.hpp"

namespace batchnorm {
namespace {

const Isa* choose() noexcept {
    const IsaList built = built_isas();
    const char* wanted = std::getenv("BATCHNORM_ISA");
    const bool any = !wanted || !*wanted;
    for (int i = 0; i < built.count; ++i)
        if ((any || std::strcmp(wanted, built.isa[i].name) == 0) && built.isa[i].supported()) return &built.isa[i];
    return nullptr;
}

// Chosen once: a process computes with one instruction set.
const Isa* chosen() noexcept {
    static const Isa* const isa = choose();
    return isa;
}

}  // namespace

const char* isa() noexcept { return chosen() ? chosen()->name : nullptr; }

const char* available_isa(int i) noexcept {
    const IsaList built = built_isas();
    const char* last = "";
    for (int k = 0; k < built.count; ++k) {
        const char* const name = built.isa[k].name;
        if (!built.isa[k].supported() || std::strcmp(name, last) == 0) continue;
        if (i-- == 0) return name;
        last = name;
    }
    return nullptr;
}

const kernels::KernelSet* active_kernels(Status& status) noexcept {
    if (const Isa* isa = chosen()) return &isa->kernels;
    char names[64] = "";
    for (int i = 0, at = 0; available_isa(i); ++i)
        at +=
            std::snprintf(names + at, sizeof names - static_cast<std::size_t>(at), i ? ", %s" : "%s", available_isa(i));
    status = failure(Code::unavailable,
                     "BATCHNORM_ISA=%.40s is not an instruction set that this processor and build have: %s",
                     std::getenv("BATCHNORM_ISA"), names);
    return nullptr;
}

}  // namespace batchnorm
