// DLPack's structures (https://dmlc.github.io/dlpack, version 1.3), as far as arrays are read from them.
#pragma once

#include "kind.hpp"

// What a capsule starts with.
struct DLTensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t rank;
    std::uint8_t type_code, bits;
    std::uint16_t lanes;
    std::int64_t *shape, *strides;  // strides: in elements; null: C order
    std::uint64_t byte_offset;
};

inline constexpr int dl_cpu = 1, dl_cuda = 2, dl_cuda_managed = 13;

std::optional<batchnorm::DType> type_of(const DLTensor& tensor);

// Of one of a type that is taken, and no more axes than max_rank.
void set_view(const DLTensor& tensor, batchnorm::DType type, batchnorm::View& view);

// Fills in a tensor of a Python object, whose memory and shape it points to; not 0: a Python error is set.
using ReadDLTensor = int (*)(void* object, DLTensor* to);

// How objects of exactly this type are read without a capsule; null if the library that they are of does not say.
ReadDLTensor reader_of(nb::handle type);
