#include "arrays.hpp"

#include <cstdarg>
#include <cstdint>
#include <cstring>
#include <optional>

#include "outputs.hpp"

using batchnorm::DType;

namespace {

// What is looked up in NumPy once. Never freed: Python may be gone when it would be. Not initialized as C++ does it,
// under a lock: looking up imports, which lets other threads run, and one that waited for the lock with the GIL would
// wait for ever. Two threads may both do it.
struct NumPy {
    nb::object ndarray, asarray, float64, float64_dtype, float32_dtype, float16_dtype, uint16, empty, masked_array;

    static const NumPy& get() {
        static const NumPy* numpy = nullptr;
        if (!numpy) numpy = new NumPy;
        return *numpy;
    }

  private:
    NumPy() {
        const nb::object np = nb::module_::import_("numpy");
        ndarray = np.attr("ndarray");
        asarray = np.attr("asarray");
        float64 = np.attr("float64");
        float64_dtype = np.attr("dtype")(float64);
        float32_dtype = np.attr("dtype")(np.attr("float32"));
        float16_dtype = np.attr("dtype")(np.attr("float16"));
        uint16 = np.attr("uint16");
        empty = np.attr("empty");
        masked_array = np.attr("ma").attr("MaskedArray");
    }
};

bool is_instance(nb::handle object, nb::handle type) {
    const int result = PyObject_IsInstance(object.ptr(), type.ptr());
    if (result < 0) throw nb::python_error();
    return result == 1;
}

bool is_numpy(nb::handle object) {
    return PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(NumPy::get().ndarray.ptr()));
}

bool is_masked(nb::handle array) {
    const NumPy& np = NumPy::get();
    return array.type().ptr() != np.ndarray.ptr() && is_instance(array, np.masked_array);
}

// The same of PyTorch, once the process has imported it: before, nothing can be a tensor.
struct Torch {
    nb::object module, tensor, float32, float64, float16, bfloat16, strided;

    static const Torch* get() {
        static const Torch* torch = nullptr;
        if (torch) return torch;
        PyObject* const module = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
        // Both: another thread may be amid the import.
        if (module && nb::hasattr(module, "Tensor") && nb::hasattr(module, "strided"))
            torch = new Torch(nb::borrow(module));
        return torch;
    }

  private:
    explicit Torch(nb::object torch)
        : module(torch),
          tensor(torch.attr("Tensor")),
          float32(torch.attr("float32")),
          float64(torch.attr("float64")),
          float16(torch.attr("float16")),
          bfloat16(torch.attr("bfloat16")),
          strided(torch.attr("strided")) {}
};

bool is_torch(nb::handle object) {
    const Torch* const torch = Torch::get();
    return torch && is_instance(object, torch->tensor);
}

Kind kind_of(nb::handle object) {
    if (is_numpy(object)) return Kind::numpy;
    return is_torch(object) ? Kind::torch : Kind::none;
}

std::string text(nb::handle object) { return nb::str(object).c_str(); }
std::string type_text(nb::handle object) { return nb::type_name(object.type()).c_str(); }

// NumPy's bfloat16 is ml_dtypes', of kind V; that package is the user's, and known by the name alone.
bool is_bfloat16(nb::handle dtype) {
    return text(dtype.attr("name")) == "bfloat16" && nb::cast<bool>(dtype.attr("isnative"));
}

// Whether a parameter may have a dtype: long double, a foreign byte order and other bfloats too.
bool is_float(nb::handle dtype, Kind kind) {
    if (kind == Kind::torch) return nb::cast<bool>(dtype.attr("is_floating_point"));
    return text(dtype.attr("kind")) == "f" || text(dtype.attr("name")).rfind("bfloat", 0) == 0;
}

// The library's name for a dtype that it reads as it is.
std::optional<DType> native_type(nb::handle dtype, Kind kind) {
    if (kind == Kind::torch) {
        const Torch& torch = *Torch::get();
        if (dtype.is(torch.float32)) return DType::f32;
        if (dtype.is(torch.float64)) return DType::f64;
        if (dtype.is(torch.float16)) return DType::f16;
        if (dtype.is(torch.bfloat16)) return DType::bf16;
        return std::nullopt;
    }
    const NumPy& np = NumPy::get();
    if (dtype.is(np.float32_dtype)) return DType::f32;
    if (dtype.is(np.float64_dtype)) return DType::f64;
    if (dtype.is(np.float16_dtype)) return DType::f16;
    if (is_bfloat16(dtype)) return DType::bf16;
    return std::nullopt;
}

bool requires_grad(nb::handle object, Kind kind) {
    return kind == Kind::torch && nb::cast<bool>(object.attr("requires_grad"));
}

constexpr const char* accepted = "expected float32, float64, float16 or bfloat16";

// The type that a buffer's format tells, in native byte order.
std::optional<DType> type_of(const char* format) {
    constexpr char native = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>';
    if (*format == '@' || *format == '=' || *format == '^' || *format == native) ++format;
    if (format[0] == '\0' || format[1] != '\0') return std::nullopt;
    switch (*format) {
        case 'f': return DType::f32;
        case 'd': return DType::f64;
        case 'e': return DType::f16;
        default: return std::nullopt;
    }
}

}  // namespace

const char* name(Kind kind) {
    switch (kind) {
        case Kind::numpy: return "a NumPy array";
        case Kind::torch: return "a torch tensor";
        case Kind::none: break;
    }
    return "no array";
}

void raise(PyObject* error, const char* format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    PyErr_SetString(error, message);
    throw nb::python_error();
}

void check(const batchnorm::Status& status) {
    using batchnorm::Code;
    switch (status.code) {
        case Code::ok: return;
        case Code::invalid_value: raise(PyExc_ValueError, "%s", status.message);
        case Code::invalid_type: raise(PyExc_TypeError, "%s", status.message);
        case Code::unavailable: raise(PyExc_RuntimeError, "%s", status.message);
        case Code::out_of_memory: raise(PyExc_MemoryError, "%s", status.message);
    }
}

// ------------------------------------------------------------------------------------------------------------ import

bool Array::read_buffer(nb::handle array) {
    if (PyObject_GetBuffer(array.ptr(), &buffer_, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
        PyErr_Clear();  // a dtype that the buffer protocol cannot tell
        buffer_.obj = nullptr;
        return false;
    }
    return true;
}

bool Array::read_numpy() {
    if (read_buffer(object_)) {
        if (const std::optional<DType> type = type_of(buffer_.format)) {
            view_.dtype = *type;
            return true;
        }
        PyBuffer_Release(&buffer_);
        buffer_.obj = nullptr;
    }
    if (!is_bfloat16(object_.attr("dtype"))) return false;
    view_.dtype = DType::bf16;
    return read_buffer(object_.attr("view")(NumPy::get().uint16));
}

void Array::import_numpy(const char* argument, bool writable) {
    if (is_masked(object_))
        raise(PyExc_TypeError, "%s is a masked array, expected a plain one: its mask would be lost", argument);
    if (!read_numpy())
        raise(PyExc_TypeError, "%s has dtype %s, %s (astype converts)", argument, text(object_.attr("dtype")).c_str(),
              accepted);
    if (writable && buffer_.readonly) raise(PyExc_ValueError, "%s is read-only", argument);
    if (buffer_.ndim > batchnorm::max_rank)
        raise(PyExc_ValueError, "%s has %d axes, expected at most %d", argument, buffer_.ndim, batchnorm::max_rank);
    view_.data = buffer_.buf;
    view_.rank = buffer_.ndim;
    for (int d = 0; d < view_.rank; ++d) {
        view_.shape[d] = buffer_.shape[d];
        view_.stride[d] = buffer_.strides[d];
    }
}

void Array::import_torch(const char* argument) {
    if (requires_grad(object_, Kind::torch))
        raise(PyExc_TypeError, "%s requires grad, which this function would lose: pass %s.detach()", argument,
              argument);
    if (!nb::cast<bool>(object_.attr("is_cpu")))
        raise(PyExc_RuntimeError, "%s is on device %s, and this build computes on the CPU alone", argument,
              text(object_.attr("device")).c_str());
    const Torch& torch = *Torch::get();
    const nb::object dtype = object_.attr("dtype");
    const std::optional<DType> type = native_type(dtype, Kind::torch);
    if (!type) raise(PyExc_TypeError, "%s has dtype %s, %s (to() converts)", argument, text(dtype).c_str(), accepted);
    if (const nb::object layout = object_.attr("layout"); !layout.is(torch.strided))
        raise(PyExc_TypeError, "%s has layout %s, expected torch.strided", argument, text(layout).c_str());

    if (nb::cast<bool>(object_.attr("is_neg")()))
        raise(PyExc_TypeError, "%s is a negated view, whose memory has the other sign: pass %s.resolve_neg()", argument,
              argument);

    // Asked one by one: a DLPack capsule takes three times as long.
    const nb::tuple shape(object_.attr("shape")), strides(object_.attr("stride")());
    if (shape.size() > static_cast<std::size_t>(batchnorm::max_rank))
        raise(PyExc_ValueError, "%s has %zu axes, expected at most %d", argument, shape.size(), batchnorm::max_rank);
    view_.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(object_.attr("data_ptr")()));
    view_.dtype = *type;
    view_.rank = static_cast<int>(shape.size());
    for (int d = 0; d < view_.rank; ++d) {
        view_.shape[d] = nb::cast<std::int64_t>(shape[d]);
        view_.stride[d] = nb::cast<std::int64_t>(strides[d]) * batchnorm::item_size(view_.dtype);
    }
}

void Array::import(const char* argument, nb::handle object, Kind kind, bool writable) {
    object_ = nb::borrow(object);
    kind_ = kind_of(object);
    if (kind_ == Kind::none)
        raise(PyExc_TypeError, "%s is %s, expected a NumPy array or a torch tensor (numpy.asarray converts)", argument,
              type_text(object).c_str());
    if (kind != Kind::none && kind != kind_)
        raise(PyExc_TypeError, "%s is %s, expected %s, as x is", argument, name(kind_), name(kind));
    if (kind_ == Kind::numpy)
        import_numpy(argument, writable);
    else
        import_torch(argument);
}

// ------------------------------------------------------------------------------------------------------------- kinds

Array Array::tensor(const char* argument, nb::handle object, Kind kind) {
    Array array;
    array.import(argument, object, kind, false);
    return array;
}

Array Array::output(const char* argument, nb::handle out, const Array& like) {
    Array array;
    if (!out.is_none()) {
        array.import(argument, out, like.kind(), true);
        return array;
    }
    const nb::object fresh = like.kind() == Kind::numpy ? numpy_output(like.object_, like.view_)
                                                        : torch_output(Torch::get()->module, like.object_, like.view_);
    array.import(argument, fresh, like.kind(), true);
    return array;
}

Array Array::param(const char* argument, nb::handle object, Kind kind) {
    Array array;
    if (object.is_none()) return array;
    const NumPy& np = NumPy::get();
    const Kind own = kind_of(object);
    if (own == Kind::none) {
        nb::object converted;
        try {
            converted = np.asarray(object, np.float64);
        } catch (nb::python_error&) {
            raise(PyExc_TypeError, "%s is %s, expected an array, a sequence of numbers or a number", argument,
                  type_text(object).c_str());
        }
        array.import(argument, converted, Kind::numpy, false);
        array.converted_ = true;
        return array;
    }
    if (own != kind || is_masked(object)) {
        array.import(argument, object, kind, false);  // says what is wrong
        return array;
    }
    const nb::object dtype = object.attr("dtype");
    if (native_type(dtype, own) || requires_grad(object, own)) {
        array.import(argument, object, kind, false);
        return array;
    }
    if (!is_float(dtype, own))
        raise(PyExc_TypeError, "%s has dtype %s, expected a float type", argument, text(dtype).c_str());
    const nb::object converted = own == Kind::torch ? object.attr("double")() : object.attr("astype")(np.float64);
    array.import(argument, converted, kind, false);
    array.cast_to_ = dtype;
    return array;
}

Array Array::weights(nb::handle object, const Array& x) {
    Array array;
    const NumPy& np = NumPy::get();
    const bool is_double = x.view_.dtype == DType::f64;
    const Kind own = kind_of(object);
    if (own != Kind::none && own != x.kind_) array.import("weights", object, x.kind_, false);  // says what is wrong
    if (own != Kind::none && is_masked(object))
        raise(PyExc_TypeError, "weights is a masked array, expected a plain one");
    nb::object converted;
    if (own == Kind::torch) {
        const Torch& torch = *Torch::get();
        if (nb::cast<bool>(object.attr("is_complex")()))
            raise(PyExc_TypeError, "weights is complex, expected real numbers or bools");
        converted = object.attr("to")(is_double ? torch.float64 : torch.float32);
    } else {
        try {
            converted = np.asarray(object);
        } catch (nb::python_error&) {
            raise(PyExc_TypeError, "weights is %s, expected an array of numbers or bools", type_text(object).c_str());
        }
        const std::string kind = text(converted.attr("dtype").attr("kind"));
        if (kind != "b" && kind != "i" && kind != "u" && !is_float(converted.attr("dtype"), Kind::numpy))
            raise(PyExc_TypeError, "weights has dtype %s, expected real numbers or bools",
                  text(converted.attr("dtype")).c_str());
        converted = np.asarray(converted, is_double ? np.float64_dtype : np.float32_dtype);
    }
    array.import("weights", converted, own == Kind::torch ? Kind::torch : Kind::numpy, false);
    return array;
}

Array Array::fresh(const std::vector<std::int64_t>& shape, DType dtype, Kind kind) {
    Array array;
    array.import("array", numpy_empty(shape, dtype), Kind::numpy, true);
    array.kind_ = kind;
    return array;
}

Array Array::statistic(const std::vector<std::int64_t>& shape, Kind kind) { return fresh(shape, DType::f64, kind); }

Array Array::param_grad(const Array& param, const Array& x, const std::vector<std::int64_t>& shape) {
    // A list or a number has no type of its own.
    const bool typed = param.kind_ != Kind::none && !param.converted_;
    const DType type = typed ? param.view_.dtype : x.view_.dtype;
    if (batchnorm::item_size(type) > 2) {
        Array array = fresh(shape, type, x.kind_);
        if (typed) array.cast_to_ = param.cast_to_;
        return array;
    }
    if (!typed) return fresh(shape, DType::f32, x.kind_);
    nb::list sizes;
    for (const std::int64_t size : shape) sizes.append(size);
    const nb::object dtype = param.object_.attr("dtype");
    const nb::object made = x.kind_ == Kind::torch ? Torch::get()->module.attr("empty")(sizes, nb::arg("dtype") = dtype)
                                                   : NumPy::get().empty(sizes, dtype);
    Array array;
    array.import("array", made, x.kind_, true);
    return array;
}

nb::object Array::object() const {
    nb::object result = object_;
    if (kind_ == Kind::torch && is_numpy(result)) result = Torch::get()->module.attr("from_numpy")(result);
    if (!cast_to_.is_valid()) return result;
    return kind_ == Kind::torch ? result.attr("to")(cast_to_) : result.attr("astype")(cast_to_);
}

batchnorm::MutView Array::mut_view() const {
    batchnorm::MutView view;
    view.data = const_cast<void*>(view_.data);  // imported as writable
    view.dtype = view_.dtype;
    view.rank = view_.rank;
    std::memcpy(view.shape, view_.shape, sizeof view.shape);
    std::memcpy(view.stride, view_.stride, sizeof view.stride);
    return view;
}

Array::Array(Array&& other) noexcept
    : object_(std::move(other.object_)),
      kind_(other.kind_),
      converted_(other.converted_),
      view_(other.view_),
      buffer_(other.buffer_),
      cast_to_(std::move(other.cast_to_)) {
    other.buffer_.obj = nullptr;
}

Array::~Array() {
    if (buffer_.obj) PyBuffer_Release(&buffer_);
}

// ----------------------------------------------------------------------------------------------------------- numbers

batchnorm::Axes parse_axes(nb::handle axis) {
    const auto one = [](nb::handle object) {
        if (!PyIndex_Check(object.ptr()) || PyBool_Check(object.ptr()))
            raise(PyExc_TypeError, "axis must be an int or a tuple of ints, got %s", type_text(object).c_str());
        const Py_ssize_t value = PyNumber_AsSsize_t(object.ptr(), nullptr);  // clips
        if (value == -1 && PyErr_Occurred()) throw nb::python_error();
        constexpr Py_ssize_t limit = 1 << 30;  // far out of any range
        return static_cast<int>(value > limit ? limit : value < -limit ? -limit : value);
    };
    if (PyIndex_Check(axis.ptr())) return {one(axis)};
    if (!PyTuple_Check(axis.ptr()) && !PyList_Check(axis.ptr())) one(axis);
    batchnorm::Axes axes{};
    for (nb::handle object : nb::borrow<nb::sequence>(axis)) {
        if (axes.count == batchnorm::max_rank) raise(PyExc_ValueError, "axis has more than %d entries", axes.count);
        axes.axis[axes.count++] = one(object);
    }
    return axes;
}

std::vector<std::int64_t> kept_shape(const batchnorm::View& x, const batchnorm::Axes& axes) {
    bool kept[batchnorm::max_rank] = {};
    for (int i = 0; i < axes.count; ++i) {
        const int axis = axes.axis[i] < 0 ? axes.axis[i] + x.rank : axes.axis[i];
        if (axis >= 0 && axis < x.rank) kept[axis] = true;  // the library refuses the others
    }
    std::vector<std::int64_t> shape;
    for (int d = 0; d < x.rank; ++d)
        if (kept[d]) shape.push_back(x.shape[d]);
    return shape;
}

std::vector<std::int64_t> memory_layout(const batchnorm::View& x) {
    std::vector<std::int64_t> layout(x.shape, x.shape + x.rank);
    for (int d = 0; d < x.rank; ++d) layout.push_back(x.shape[d] > 1 ? x.stride[d] : 0);
    return layout;
}

double parse_number(const char* argument, nb::handle object) {
    const double value = PyFloat_AsDouble(object.ptr());
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        raise(PyExc_TypeError, "%s must be a number, got %s", argument, type_text(object).c_str());
    }
    return value;
}

int parse_threads(nb::handle object) {
    if (object.is_none()) return 0;
    if (!PyIndex_Check(object.ptr()))
        raise(PyExc_TypeError, "threads must be an int or None, got %s", type_text(object).c_str());
    const Py_ssize_t threads = PyNumber_AsSsize_t(object.ptr(), nullptr);
    if (threads == -1 && PyErr_Occurred()) throw nb::python_error();
    if (threads < 1 || threads > 65536) raise(PyExc_ValueError, "threads must be from 1 to 65536, got %zd", threads);
    return static_cast<int>(threads);
}
