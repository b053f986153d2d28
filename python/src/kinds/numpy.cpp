#include "numpy.hpp"

using batchnorm::DType;

NumPy::NumPy() {
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

bool is_masked(nb::handle array) {
    const NumPy& np = NumPy::get();
    return array.type().ptr() != np.ndarray.ptr() && is_instance(array, np.masked_array);
}

namespace {

// NumPy's bfloat16 is ml_dtypes', of kind V; that package is the user's, and known by the name alone.
// Which dtype has it is remembered: NumPy puts that together anew each time, in Python.
bool is_bfloat16(nb::handle dtype) {
    static PyObject* known = nullptr;
    if (dtype.ptr() == known) return true;
    if (text(dtype.attr("name")) != "bfloat16" || !nb::cast<bool>(dtype.attr("isnative"))) return false;
    if (!known) known = dtype.inc_ref().ptr();
    return true;
}

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

bool read_buffer(nb::handle array, Py_buffer& buffer) {
    if (PyObject_GetBuffer(array.ptr(), &buffer, PyBUF_STRIDES | PyBUF_FORMAT) == 0) return true;
    PyErr_Clear();  // a dtype that the buffer protocol cannot tell
    buffer.obj = nullptr;
    return false;
}

}  // namespace

// Long double, a foreign byte order and other bfloats too.
bool is_numpy_float(nb::handle dtype) {
    return text(dtype.attr("kind")) == "f" || text(dtype.attr("name")).rfind("bfloat", 0) == 0;
}

bool is_numpy_real(nb::handle dtype) {
    const std::string kind = text(dtype.attr("kind"));
    return kind == "b" || kind == "i" || kind == "u" || is_numpy_float(dtype);
}

bool is_numpy_text(nb::handle dtype) {
    const std::string kind = text(dtype.attr("kind"));
    return kind == "U" || kind == "S";
}

std::optional<DType> numpy_type(nb::handle dtype) {
    const NumPy& np = NumPy::get();
    if (dtype.is(np.float32_dtype)) return DType::f32;
    if (dtype.is(np.float64_dtype)) return DType::f64;
    if (dtype.is(np.float16_dtype)) return DType::f16;
    if (is_bfloat16(dtype)) return DType::bf16;
    // One out of a pickle is equal, but not the same object.
    if (dtype.equal(np.float32_dtype)) return DType::f32;
    if (dtype.equal(np.float64_dtype)) return DType::f64;
    if (dtype.equal(np.float16_dtype)) return DType::f16;
    return std::nullopt;
}

std::optional<DType> read_numpy(nb::handle array, Py_buffer& buffer) {
    if (read_buffer(array, buffer)) {
        if (const std::optional<DType> type = type_of(buffer.format)) return type;
        PyBuffer_Release(&buffer);
        buffer.obj = nullptr;
    }
    if (!is_bfloat16(array.attr("dtype")) || !read_buffer(array.attr("view")(NumPy::get().uint16), buffer))
        return std::nullopt;
    return DType::bf16;
}
