// The instruction sets of this build, and the one in use.
#pragma once

#include <batchnorm/core.hpp>

#include "kernels/table.hpp"

namespace batchnorm {

struct Isa {
    const char* name;
    kernels::KernelSet kernels;
    bool (*supported)() noexcept;  // by this processor and its operating system
};

// All that this build has, best first; isa_<architecture>.cpp. Of several with one name the first that is supported is
// it.
struct IsaList {
    const Isa* isa;
    int count;
};
IsaList built_isas() noexcept;

// The kernels in use; null, with the reason in status, if BATCHNORM_ISA asks for what is not there.
const kernels::KernelSet* active_kernels(Status& status) noexcept;

}  // namespace batchnorm
