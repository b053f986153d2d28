#include "dlpack.hpp"

using batchnorm::DType;

std::optional<DType> type_of(const DLTensor& tensor) {
    constexpr int dl_float = 2, dl_bfloat = 4;
    if (tensor.lanes != 1) return std::nullopt;
    if (tensor.type_code == dl_bfloat && tensor.bits == 16) return DType::bf16;
    if (tensor.type_code != dl_float) return std::nullopt;
    if (tensor.bits == 16) return DType::f16;
    if (tensor.bits == 32) return DType::f32;
    return tensor.bits == 64 ? std::optional(DType::f64) : std::nullopt;
}

void set_view(const DLTensor& tensor, DType type, batchnorm::View& view) {
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view.dtype = type;
    view.rank = tensor.rank;
    std::int64_t stride = 1;
    for (int d = view.rank; d-- > 0; stride *= tensor.shape[d]) {
        view.shape[d] = tensor.shape[d];
        view.stride[d] = (tensor.strides ? tensor.strides[d] : stride) * batchnorm::item_size(type);
    }
}

namespace {

// What __dlpack_c_exchange_api__ points to.
struct DLPackExchangeAPI {
    std::uint32_t major, minor;
    const DLPackExchangeAPI* prev_api;
    void *allocate, *managed_from_object, *managed_to_object;
    ReadDLTensor dltensor_from_object;  // may be null
    void* current_stream;
};

}  // namespace

ReadDLTensor reader_of(nb::handle type) {
    const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (api && api->major != 1) api = api->prev_api;
    return api ? api->dltensor_from_object : nullptr;
}
