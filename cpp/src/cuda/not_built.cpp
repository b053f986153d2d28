#include "work.hpp"

namespace batchnorm::cuda {

const Table* load(const char*& why_not) noexcept {
    why_not = "this build has no CUDA part: no nvcc of version 12.8 or newer was found, or BATCHNORM_CUDA was OFF";
    return nullptr;
}

}  // namespace batchnorm::cuda
