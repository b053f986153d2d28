#include "arrays.hpp"

#include <cstdint>
#include <cstring>
#include <optional>

#include "kinds/numpy.hpp"
#include "kinds/torch.hpp"
#include "outputs.hpp"

using batchnorm::DType;

namespace {

bool is_float(nb::handle dtype, Kind kind) {
    return kind == Kind::torch ? nb::cast<bool>(dtype.attr("is_floating_point")) : is_numpy_float(dtype);
}

// The library's name for a dtype that it reads as it is.
std::optional<DType> native_type(nb::handle dtype, Kind kind) {
    return kind == Kind::torch ? torch_type(dtype) : numpy_type(dtype);
}

// Whether arrays of a kind are taken: those of x's, and NumPy's beside JAX's on the CPU, which cannot be written to and
// hold no float64 unless JAX was told so.
bool fits(Kind kind, const Place& place) {
    return kind == place.kind || (kind == Kind::numpy && place.kind == Kind::jax && !place.on_gpu());
}

// That an array is where the call's others are.
void check_place(const char* argument, Kind kind, int device, const Place& place) {
    if (place.kind == Kind::none) return;
    if (!fits(kind, place))
        raise(PyExc_TypeError, "%s is %s, expected %s, as x is", argument, name(kind), name(place.kind));
    if (device != place.device)
        raise(PyExc_ValueError, "%s is on %s, expected %s, as x is", argument, device_text(device).c_str(),
              device_text(place.device).c_str());
}

void set_contiguous(batchnorm::View& view, const std::vector<std::int64_t>& shape, DType dtype) {
    view.dtype = dtype;
    view.rank = static_cast<int>(shape.size());
    std::int64_t stride = batchnorm::item_size(dtype);
    for (int d = view.rank; d-- > 0; stride *= view.shape[d]) {
        view.shape[d] = shape[static_cast<std::size_t>(d)];
        view.stride[d] = stride;
    }
}

const char* type_name(DType dtype) { return dtype == DType::f64 ? "float64" : "float32"; }

}  // namespace

void check(const batchnorm::Status& status) {
    using batchnorm::Code;
    switch (status.code) {
        case Code::ok: return;
        case Code::invalid_value: raise(PyExc_ValueError, "%s", status.message);
        case Code::invalid_type: raise(PyExc_TypeError, "%s", status.message);
        case Code::unavailable:
        case Code::device_error: raise(PyExc_RuntimeError, "%s", status.message);
        case Code::out_of_memory: raise(PyExc_MemoryError, "%s", status.message);
    }
}

// ------------------------------------------------------------------------------------------------------------ import

void Array::import_numpy(const char* argument, bool writable) {
    if (is_masked(object_))
        raise(PyExc_TypeError, "%s is a masked array, expected a plain one: its mask would be lost", argument);
    const std::optional<DType> type = read_numpy(object_, buffer_);
    if (!type)
        raise(PyExc_TypeError, "%s has dtype %s, %s (astype converts)", argument, text(object_.attr("dtype")).c_str(),
              accepted_types);
    view_.dtype = *type;
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

void Array::import_facts(const char* argument, const Place& place, bool writable) {
    Facts facts;
    if (kind_ == Kind::torch)
        read_torch(argument, object_, facts);
    else
        ways(kind_).read(argument, object_, place.stream, facts);
    check_place(argument, kind_, facts.device, place);
    if (facts.device != on_cpu && !place.on_gpu())
        if (const char* const why_not = batchnorm::cuda::unavailable_because())
            raise(PyExc_RuntimeError, "%s is on %s: %s", argument, device_text(facts.device).c_str(), why_not);
    if (writable && facts.read_only)
        raise(PyExc_ValueError, "%s is %s, which cannot be written to", argument, name(kind_));
    view_ = facts.view;
    device_ = facts.device;
    owner_ = std::move(facts.owner);
    if (place.scope) place.scope->touch(object_);
}

void Array::import(const char* argument, nb::handle object, const Place& place, bool writable) {
    object_ = nb::borrow(object);
    kind_ = kind_of(object);
    if (kind_ == Kind::none)
        raise(PyExc_TypeError,
              "%s is %s, expected a NumPy array, a torch tensor, a JAX array, or a CuPy array (numpy.asarray converts)",
              argument, type_text(object).c_str());
    if (kind_ == Kind::numpy) {
        check_place(argument, kind_, on_cpu, place);
        import_numpy(argument, writable);
    } else {
        if (place.kind != Kind::none && place.kind != kind_) check_place(argument, kind_, on_cpu, place);
        import_facts(argument, place, writable);
    }
}

void Array::own(nb::object fresh, const std::vector<std::int64_t>& shape, DType dtype, const Place& place) {
    set_contiguous(view_, shape, dtype);
    view_.data = ways(place.kind).data(fresh);
    object_ = std::move(fresh);
    kind_ = place.kind;
    device_ = place.device;
    if (place.scope) place.scope->touch(object_);
}

// ------------------------------------------------------------------------------------------------------------- kinds

Array Array::tensor(const char* argument, nb::handle object, const Place& place) {
    Array array;
    array.import(argument, object, place, false);
    return array;
}

Array Array::output(const char* argument, nb::handle out, const Array& like, const Place& place) {
    Array array;
    if (!out.is_none()) {
        array.import(argument, out, place, true);
        array.given_out_ = true;
        return array;
    }
    if (place.on_gpu()) {
        array.import(argument, ways(place.kind).empty_like(like.object_), place, false);
        return array;
    }
    if (place.kind == Kind::jax) {
        // It becomes JAX's when it has its values: JAX fills what it makes itself.
        array.import(argument, numpy_output(NumPy::get().asarray(like.object_), like.view_), {}, true);
        array.kind_ = place.kind;
        return array;
    }
    const nb::object fresh = like.kind() == Kind::numpy ? numpy_output(like.object_, like.view_)
                                                        : torch_output(Torch::get()->module, like.object_, like.view_);
    array.import(argument, fresh, place, true);
    return array;
}

Array Array::on_cpu_from(const char* argument, nb::handle object) {
    Array array;
    const NumPy& np = NumPy::get();
    nb::object given, converted;
    try {
        given = np.asarray(object);
        if (!is_numpy_text(given.attr("dtype"))) converted = np.asarray(given, np.float64);
    } catch (nb::python_error&) {
        converted.reset();
    }
    if (!converted.is_valid())
        raise(PyExc_TypeError, "%s is %s, expected an array, a sequence of numbers or a number", argument,
              type_text(object).c_str());
    array.import(argument, converted, {}, false);
    array.converted_ = true;
    return array;
}

Array Array::param(const char* argument, nb::handle object, const Place& place) {
    Array array;
    if (object.is_none()) return array;
    const Kind own = kind_of(object);
    if (own == Kind::none) {
        Array values = on_cpu_from(argument, object);
        if (!place.on_gpu()) return values;
        const Ways& to = ways(place.kind);
        const batchnorm::View& view = values.view_;
        if (view.rank == 0)
            array.own(to.full(*static_cast<const double*>(view.data), place.device), {}, DType::f64, place);
        else
            array.own(to.from_numpy(values.object_.attr("copy")(), place.device), {view.shape, view.shape + view.rank},
                      DType::f64, place);
        array.converted_ = true;
        return array;
    }
    if (!fits(own, place) || is_masked(object)) {
        array.import(argument, object, place, false);  // says what is wrong
        return array;
    }
    const nb::object dtype = object.attr("dtype");
    if (native_type(dtype, own) || (own == Kind::torch && requires_grad(object))) {
        array.import(argument, object, place, false);
        return array;
    }
    if (!is_float(dtype, own))
        raise(PyExc_TypeError, "%s has dtype %s, expected a float type", argument, text(dtype).c_str());
    nb::object converted;
    if (own == Kind::numpy)
        converted = object.attr("astype")(NumPy::get().float64);
    else
        converted = ways(own).cast(object, ways(own).dtype("float64"));
    array.import(argument, converted, place, false);
    array.cast_to_ = dtype;
    return array;
}

namespace {

[[noreturn]] void refuse_weights(nb::handle dtype) {
    raise(PyExc_TypeError, "weights has dtype %s, expected real numbers or bools", text(dtype).c_str());
}

// That weights are not all 0 only because they were converted.
void check_not_lost(nb::handle given, nb::handle converted, bool is_double) {
    const auto any = [](nb::handle array) { return PyObject_IsTrue(nb::object(array.attr("any")()).ptr()) == 1; };
    if (converted.is(given) || any(converted) || !any(given)) return;
    raise(PyExc_ValueError, "weights has numbers so small that all are 0 in %s, expected larger ones",
          is_double ? "float64" : "float32, which x's arithmetic is in");
}

}  // namespace

Array Array::weights(nb::handle object, const Array& x, const Place& place) {
    Array array;
    const NumPy& np = NumPy::get();
    const bool is_double = x.view_.dtype == DType::f64;
    const Kind own = kind_of(object);
    if (own != Kind::none && own != place.kind) check_place("weights", own, on_cpu, place);
    if (own != Kind::none && is_masked(object))
        raise(PyExc_TypeError, "weights is a masked array, expected a plain one");
    if (own != Kind::none && own != Kind::numpy) {
        const Ways& of = ways(own);
        const int device = of.device("weights", object);
        if (own == Kind::torch && nb::cast<bool>(object.attr("is_complex")()))
            raise(PyExc_TypeError, "weights is complex, expected real numbers or bools");
        if (own != Kind::torch && !is_numpy_real(object.attr("dtype"))) refuse_weights(object.attr("dtype"));
        check_place("weights", own, device, place);
        const nb::object cast = of.cast(object, of.dtype(is_double ? "float64" : "float32"));
        array.import("weights", cast, place, false);
        if (!place.on_gpu()) check_not_lost(object, cast, is_double);
        return array;
    }
    nb::object converted;
    try {
        converted = np.asarray(object);
    } catch (nb::python_error&) {
        raise(PyExc_TypeError, "weights is %s, expected an array of numbers or bools", type_text(object).c_str());
    }
    if (!is_numpy_real(converted.attr("dtype"))) refuse_weights(converted.attr("dtype"));
    const nb::object given = converted;
    converted = np.asarray(given, is_double ? np.float64_dtype : np.float32_dtype);
    check_not_lost(given, converted, is_double);
    if (place.on_gpu())
        array.import("weights", ways(place.kind).from_numpy(converted.attr("copy")(), place.device), place, false);
    else
        array.import("weights", converted, {}, false);
    return array;
}

Array Array::fresh(const std::vector<std::int64_t>& shape, DType dtype, const Place& place) {
    Array array;
    if (place.on_gpu()) {
        const Ways& of = ways(place.kind);
        array.own(of.empty(shape, of.dtype(type_name(dtype)), place.device), shape, dtype, place);
        return array;
    }
    array.import("array", numpy_empty(shape, dtype), {}, true);
    array.kind_ = place.kind;
    return array;
}

Array Array::statistic(const std::vector<std::int64_t>& shape, const Place& place) {
    Array array = fresh(shape, DType::f64, place);
    if (!place.on_gpu() && place.kind == Kind::jax) array.kind_ = Kind::numpy;
    return array;
}

Array Array::copy(const char* argument, nb::handle object, const Place& place) {
    Array array = param(argument, object, place);
    const batchnorm::View& view = array.view_;
    Array copied;
    copied.own(ways(place.kind).copy(array.object_), {view.shape, view.shape + view.rank}, DType::f64, place);
    return copied;
}

Array Array::bytes(std::int64_t count, const Place& place) {
    const Ways& of = ways(place.kind);
    Array array;
    array.own(of.empty({count}, of.dtype("uint8"), place.device), {}, DType::f64, place);
    return array;
}

Array Array::param_grad(const Array& param, const Array& x, const std::vector<std::int64_t>& shape,
                        const Place& place) {
    // A list or a number has no type of its own.
    const bool typed = param.kind_ != Kind::none && !param.converted_;
    const DType type = typed ? param.view_.dtype : x.view_.dtype;
    if (batchnorm::item_size(type) > 2) {
        Array array = fresh(shape, type, place);
        if (typed) array.cast_to_ = param.cast_to_;
        return array;
    }
    if (!typed) return fresh(shape, DType::f32, place);
    const nb::object dtype = param.object_.attr("dtype");
    Array array;
    if (place.on_gpu()) {
        array.own(ways(place.kind).empty(shape, dtype, place.device), shape, type, place);
        return array;
    }
    nb::list sizes;
    for (const std::int64_t size : shape) sizes.append(size);
    const nb::object made = x.kind_ == Kind::torch ? Torch::get()->module.attr("empty")(sizes, nb::arg("dtype") = dtype,
                                                                                        nb::arg("device") = "cpu")
                                                   : NumPy::get().empty(sizes, dtype);
    array.import("array", made, place, true);
    array.kind_ = place.kind;
    return array;
}

void Array::tell_written() const {
    if (given_out_ && kind_ == Kind::torch) ::tell_written(object_);
}

nb::object Array::object() const {
    tell_written();
    nb::object result = object_;
    if (kind_ == Kind::torch && is_numpy(result)) result = Torch::get()->module.attr("from_numpy")(result);
    if (kind_ == Kind::jax && is_numpy(result)) result = ways(kind_).from_numpy(result, on_cpu);
    if (!cast_to_.is_valid()) return result;
    return kind_ == Kind::numpy ? nb::object(result.attr("astype")(cast_to_)) : ways(kind_).cast(result, cast_to_);
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
      owner_(std::move(other.owner_)),
      kind_(other.kind_),
      device_(other.device_),
      converted_(other.converted_),
      given_out_(other.given_out_),
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
        if (value == -1 && PyErr_Occurred()) {
            PyErr_Clear();  // an array of several, say
            raise(PyExc_TypeError, "axis must be an int or a tuple of ints, got %s", type_text(object).c_str());
        }
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
        const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError);
        PyErr_Clear();
        if (too_large) raise(PyExc_ValueError, "%s is larger than any float64", argument);
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
    constexpr Py_ssize_t most = batchnorm::max_threads;
    if (threads < 1 || threads > most) raise(PyExc_ValueError, "threads must be from 1 to %zd, got %zd", most, threads);
    return static_cast<int>(threads);
}

std::optional<Stream> parse_stream(nb::handle object) {
    if (object.is_none()) return std::nullopt;
    nb::object handle = nb::borrow(object);
    if (nb::hasattr(object, "__cuda_stream__")) {
        const nb::tuple pair(object.attr("__cuda_stream__")());
        if (pair.size() != 2 || !PyIndex_Check(nb::object(pair[0]).ptr()) ||
            !nb::int_(nb::object(pair[0])).equal(nb::int_(0)))
            raise(PyExc_ValueError, "stream's __cuda_stream__() gives %s, expected (0, handle)",
                  nb::repr(pair).c_str());
        handle = pair[1];
    }
    if (!PyIndex_Check(handle.ptr()) || PyBool_Check(handle.ptr()))
        raise(PyExc_TypeError,
              "stream is %s, expected an int (the value of a cudaStream_t) or an object with "
              "__cuda_stream__()",
              type_text(object).c_str());
    const nb::object index = nb::steal(PyNumber_Index(handle.ptr()));
    if (!index.is_valid()) throw nb::python_error();
    const unsigned long long stream = PyLong_AsUnsignedLongLong(index.ptr());
    if (PyErr_Occurred()) {
        PyErr_Clear();
        raise(PyExc_ValueError, "stream is %s, expected the value of a cudaStream_t", nb::str(index).c_str());
    }
    return reinterpret_cast<Stream>(stream);
}
