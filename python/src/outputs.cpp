#include "outputs.hpp"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <nanobind/ndarray.h>
#include <numpy/arrayobject.h>

#include <algorithm>
#include <cstring>

#include "arrays.hpp"
#include "buffers.hpp"

namespace {

nb::object checked(PyObject* made) {
    if (!made) throw nb::python_error();
    return nb::steal(made);
}

void* allocate(void*, std::size_t bytes) { return buffers::acquire(bytes); }

void* allocate_zeros(void*, std::size_t count, std::size_t item) {
    std::size_t bytes;
    if (__builtin_mul_overflow(count, item, &bytes)) return nullptr;
    void* const data = buffers::acquire(bytes);
    if (data) std::memset(data, 0, bytes);
    return data;
}

void free_data(void*, void* data, std::size_t) {
    if (data) buffers::release(data);
}

// For ndarray.resize.
void* reallocate(void*, void* data, std::size_t bytes) {
    void* const larger = buffers::acquire(bytes);
    if (!larger || !data) return larger;
    const std::size_t old = buffers::size(data);
    std::memcpy(larger, data, old < bytes ? old : bytes);
    buffers::release(data);
    return larger;
}

PyDataMem_Handler handler = {"batchnorm", 1, {nullptr, allocate, allocate_zeros, reallocate, free_data}};

// The handler as NumPy wants it. Never freed: arrays may outlive all else.
nb::handle numpy_handler;

// Arrays made in its scope by this thread lie in buffers: they own their memory like any other, and can be resized.
class InBuffers {
  public:
    InBuffers() : before_(checked(PyDataMem_SetHandler(numpy_handler.ptr()))) {}
    ~InBuffers() { Py_XDECREF(PyDataMem_SetHandler(before_.ptr())); }
    InBuffers(const InBuffers&) = delete;

  private:
    nb::object before_;
};

nb::object new_like(nb::handle like) {
    return checked(PyArray_NewLikeArray(reinterpret_cast<PyArrayObject*>(like.ptr()), NPY_KEEPORDER, nullptr, 0));
}

// 0 where they are too many to count: such a view repeats its elements, and the allocator says that it cannot be had.
std::size_t bytes_of(const batchnorm::View& view) {
    std::int64_t bytes = batchnorm::item_size(view.dtype);
    for (int d = 0; d < view.rank; ++d)
        if (__builtin_mul_overflow(bytes, view.shape[d], &bytes)) return 0;
    return static_cast<std::size_t>(bytes);
}

// A tensor of a buffer takes some microseconds more than one of PyTorch's own memory.
constexpr std::size_t least_tensor_bytes = std::size_t{512} << 10;

}  // namespace

void init_outputs() {
    if (PyArray_ImportNumPyAPI() < 0) throw nb::python_error();
    numpy_handler = checked(PyCapsule_New(&handler, "mem_handler", nullptr)).release();
}

nb::object numpy_empty(const std::vector<std::int64_t>& shape, batchnorm::DType dtype) {
    npy_intp sizes[batchnorm::max_rank];
    std::copy(shape.begin(), shape.end(), sizes);
    const int type = dtype == batchnorm::DType::f32 ? NPY_FLOAT32 : NPY_FLOAT64;  // results have no other
    return checked(PyArray_SimpleNew(static_cast<int>(shape.size()), sizes, type));
}

nb::object numpy_bytes(std::int64_t count) {
    npy_intp size = count;
    if (static_cast<std::size_t>(count) < buffers::least_bytes) return checked(PyArray_SimpleNew(1, &size, NPY_UINT8));
    const InBuffers scope;
    return checked(PyArray_SimpleNew(1, &size, NPY_UINT8));
}

std::uint8_t* bytes_of(nb::handle numpy_array) {
    return static_cast<std::uint8_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(numpy_array.ptr())));
}

nb::object numpy_output(nb::handle like, const batchnorm::View& view) {
    if (bytes_of(view) < buffers::least_bytes) return new_like(like);
    const InBuffers scope;
    return new_like(like);
}

nb::object torch_output(nb::handle torch, nb::handle like, const batchnorm::View& view) {
    const nb::object empty_like = torch.attr("empty_like");
    // A subclass says itself what is like it.
    if (bytes_of(view) < least_tensor_bytes || !like.type().is(torch.attr("Tensor"))) return empty_like(like);
    const nb::object shaped = empty_like(like, nb::arg("device") = "meta");
    std::size_t shape[batchnorm::max_rank];
    std::int64_t strides[batchnorm::max_rank];
    for (int d = 0; d < view.rank; ++d) {
        shape[d] = static_cast<std::size_t>(view.shape[d]);
        strides[d] = nb::cast<std::int64_t>(shaped.attr("stride")(d));
    }
    void* const data = buffers::acquire(bytes_of(view));
    if (!data) raise(PyExc_MemoryError, "no memory for a result of %zu bytes", bytes_of(view));
    const nb::capsule owner(data, buffers::release);
    const auto code =
        view.dtype == batchnorm::DType::bf16 ? nb::dlpack::dtype_code::Bfloat : nb::dlpack::dtype_code::Float;
    const nb::dlpack::dtype dtype{static_cast<std::uint8_t>(code),
                                  static_cast<std::uint8_t>(8 * batchnorm::item_size(view.dtype)), 1};
    return nb::cast(nb::ndarray<nb::pytorch>(data, static_cast<std::size_t>(view.rank), shape, owner, strides, dtype));
}
