#include "kind.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "cupy.hpp"
#include "jax.hpp"
#include "numpy.hpp"
#include "torch.hpp"

const char* name(Kind kind) {
    switch (kind) {
        case Kind::numpy: return "a NumPy array";
        case Kind::torch: return "a torch tensor";
        case Kind::cupy: return "a CuPy array";
        case Kind::jax: return "a JAX array";
        case Kind::none: break;
    }
    return "no array";
}

Kind kind_of(nb::handle object) {
    if (is_numpy(object)) return Kind::numpy;
    if (is_torch(object)) return Kind::torch;
    if (is_cupy(object)) return Kind::cupy;
    return is_jax(object) ? Kind::jax : Kind::none;
}

const Ways& ways(Kind kind) {
    if (kind == Kind::torch) return torch_ways();
    if (kind == Kind::cupy) return cupy_ways();
    if (kind == Kind::jax) return jax_ways();
    raise(PyExc_SystemError, "%s is on no GPU", name(kind));
}

std::string device_text(int device) { return device == on_cpu ? "the CPU" : "cuda:" + std::to_string(device); }

void raise(PyObject* error, const char* format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    // What did not fit may have been cut within a character.
    const nb::object whole =
        nb::steal(PyUnicode_DecodeUTF8(message, static_cast<Py_ssize_t>(std::strlen(message)), "ignore"));
    if (whole.is_valid()) PyErr_SetObject(error, whole.ptr());
    throw nb::python_error();
}

std::string text(nb::handle object) { return nb::str(object).c_str(); }
std::string type_text(nb::handle object) { return nb::type_name(object.type()).c_str(); }

bool is_instance(nb::handle object, nb::handle type) {
    const int result = PyObject_IsInstance(object.ptr(), type.ptr());
    if (result < 0) throw nb::python_error();
    return result == 1;
}

nb::object imported(const char* module, std::initializer_list<const char*> attributes) {
    PyObject* const found = PyDict_GetItemString(PyImport_GetModuleDict(), module);
    if (!found) return {};
    for (const char* const attribute : attributes)
        if (!nb::hasattr(found, attribute)) return {};
    return nb::borrow(found);
}

void set_shape(const char* argument, nb::handle shape, nb::handle strides, std::int64_t unit, batchnorm::View& view) {
    const nb::tuple sizes(shape), steps(strides);
    if (sizes.size() > static_cast<std::size_t>(batchnorm::max_rank))
        raise(PyExc_ValueError, "%s has %zu axes, expected at most %d", argument, sizes.size(), batchnorm::max_rank);
    view.rank = static_cast<int>(sizes.size());
    for (int d = 0; d < view.rank; ++d) {
        view.shape[d] = nb::cast<std::int64_t>(sizes[d]);
        view.stride[d] = nb::cast<std::int64_t>(steps[d]) * unit;
    }
}

nb::object Entered::enter(nb::object context) {
    nb::object entered = context.attr("__enter__")();
    contexts_.push_back(std::move(context));
    return entered;
}

Entered::~Entered() {
    // An exception may be on its way: what __exit__ itself raises is shown, and no more.
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (std::size_t i = contexts_.size(); i-- > 0;) {
        try {
            contexts_[i].attr("__exit__")(nb::none(), nb::none(), nb::none());
        } catch (nb::python_error& error) {
            error.discard_as_unraisable("leaving a CUDA stream or device");
        }
    }
    PyErr_Restore(type, value, traceback);
}
