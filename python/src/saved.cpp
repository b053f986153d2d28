#include "saved.hpp"

#include "calls.hpp"
#include "outputs.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

namespace {

template <class Data>
auto contiguous(Data* data, const std::vector<std::int64_t>& shape) {
    batchnorm::BasicView<std::conditional_t<std::is_const_v<Data>, const void, void>> view;
    view.data = data;
    view.dtype = batchnorm::DType::f64;
    view.rank = static_cast<int>(shape.size());
    std::int64_t stride = sizeof(double);
    for (int d = view.rank; d-- > 0;) {
        view.shape[d] = shape[static_cast<std::size_t>(d)];
        view.stride[d] = stride;
        stride *= view.shape[d];
    }
    return view;
}

std::size_t size(const std::vector<std::int64_t>& shape) {
    std::size_t n = 1;
    for (const std::int64_t s : shape) n *= static_cast<std::size_t>(s);
    return n;
}

// A copy of a statistic, in C order; fills in the shape if it is the first.
std::vector<double> copy_statistic(const char* argument, nb::handle object, std::vector<std::int64_t>* shape,
                                   const std::vector<std::int64_t>& expected) {
    const nb::object numpy = nb::module_::import_("numpy");
    nb::object array;
    try {
        array =
            numpy.attr("ascontiguousarray")(object, numpy.attr("float64")).attr("reshape")(numpy.attr("shape")(object));
    } catch (nb::python_error&) {
        raise(PyExc_TypeError, "%s is %s, expected an array or a sequence of numbers", argument,
              nb::type_name(object.type()).c_str());
    }
    const Array imported = Array::tensor(argument, array, {});
    const batchnorm::View& view = imported.view();
    const std::vector<std::int64_t> own(view.shape, view.shape + view.rank);
    if (shape)
        *shape = own;
    else if (own != expected)
        raise(PyExc_ValueError, "%s has shape %s, expected mean's shape", argument,
              nb::str(nb::object(array.attr("shape"))).c_str());
    std::vector<double> values(size(own));
    if (!values.empty()) std::memcpy(values.data(), view.data, values.size() * sizeof(double));
    return values;
}

// A view of a member, which keeps its owner alive.
nb::object as_array(nb::handle self, std::vector<double>& values) {
    const Saved& saved = nb::cast<const Saved&>(self);
    std::vector<std::size_t> shape(saved.shape.begin(), saved.shape.end());
    if (saved.kind == Kind::torch)
        return nb::cast(nb::ndarray<nb::pytorch, double>(values.data(), shape.size(), shape.data(), self));
    return nb::cast(nb::ndarray<nb::numpy, double>(values.data(), shape.size(), shape.data(), self));
}

nb::object mean_of(nb::handle self) {
    Saved& saved = nb::cast<Saved&>(self);
    return saved.on_gpu ? saved.on_gpu->mean.object() : as_array(self, saved.mean);
}

nb::object inv_std_of(nb::handle self) {
    Saved& saved = nb::cast<Saved&>(self);
    return saved.on_gpu ? saved.on_gpu->inv_std.object() : as_array(self, saved.inv_std);
}

nb::object count_of(nb::handle self) {
    Saved& saved = nb::cast<Saved&>(self);
    if (saved.on_gpu && saved.on_gpu->counts) return saved.on_gpu->counts->object();
    if (!saved.counts.empty()) return as_array(self, saved.counts);
    return saved.count > 0 ? nb::object(nb::float_(saved.count)) : nb::none();
}

nb::object var_of(nb::handle self) {
    Saved& saved = nb::cast<Saved&>(self);
    if (saved.on_gpu) return saved.on_gpu->var ? saved.on_gpu->var->object() : nb::none();
    return saved.var.size() == saved.mean.size() ? as_array(self, saved.var) : nb::none();
}

nb::object mask_of(const Saved& saved) {
    if (saved.mask.is_none() || saved.on_gpu || saved.kind != Kind::torch) return saved.mask;
    return nb::module_::import_("torch").attr("from_numpy")(saved.mask);
}

// A mask made by hand, or out of a pickle: bytes, one after the other.
nb::object import_mask(nb::handle object) {
    if (object.is_none()) return nb::none();
    const nb::object numpy = nb::module_::import_("numpy");
    nb::object array = numpy.attr("asarray")(object);
    if (!array.attr("dtype").equal(numpy.attr("dtype")("uint8")))
        raise(PyExc_TypeError, "mask has dtype %s, expected uint8, 8 elements to the byte",
              nb::str(nb::object(array.attr("dtype"))).c_str());
    return numpy.attr("ascontiguousarray")(array).attr("reshape")(-1);
}

nb::object import_mask(nb::handle object, const Place& place) {
    if (object.is_none()) return nb::none();
    const Kind kind = kind_of(object);
    const int device = kind == Kind::none || kind == Kind::numpy ? on_cpu : ways(kind).device("mask", object);
    if (kind != place.kind || device != place.device)
        raise(PyExc_ValueError, "mask is on %s, expected %s on %s, as mean is", device_text(device).c_str(),
              name(place.kind), device_text(place.device).c_str());
    if (!object.attr("dtype").equal(ways(kind).dtype("uint8")))
        raise(PyExc_TypeError, "mask has dtype %s, expected uint8, 8 elements to the byte",
              text(object.attr("dtype")).c_str());
    return ways(kind).flat(object);
}

bool is_on_gpu(nb::handle object) {
    const Kind kind = kind_of(object);
    return kind != Kind::none && kind != Kind::numpy && ways(kind).device("statistics", object) != on_cpu;
}

// Of an array or a sequence; -1 of others.
int rank_of(nb::handle object) {
    if (nb::isinstance<nb::list>(object) || nb::isinstance<nb::tuple>(object)) return 1;
    return nb::hasattr(object, "shape") ? static_cast<int>(nb::len(nb::object(object.attr("shape")))) : -1;
}

std::vector<std::int64_t> shape_of(const Array& array) {
    return {array.view().shape, array.view().shape + array.view().rank};
}

}  // namespace

// A list may change.
static nb::object fixed(nb::object axis) { return PyList_Check(axis.ptr()) ? nb::tuple(axis) : std::move(axis); }

Saved::Saved(const std::vector<std::int64_t>& shape_, nb::object axis_, double count_, bool has_counts,
             const Place& place)
    : count(count_), shape(shape_), axis(fixed(std::move(axis_))), kind(place.kind) {
    if (place.on_gpu()) {
        const auto made = [&] { return Array::statistic(shape, place); };
        on_gpu.reset(new OnGpu{made(), made(), made(), {}, place.device});
        if (has_counts) on_gpu->counts.emplace(made());
        return;
    }
    mean.resize(size(shape));
    inv_std.resize(mean.size());
    var.resize(mean.size());
    if (has_counts) counts.resize(mean.size());
}

Saved::Saved(nb::object mean_, nb::object inv_std_, nb::object var_, nb::object count_, nb::object axis_,
             nb::object group_size_, nb::object activation_, nb::object negative_slope_, nb::object mask_,
             nb::object weights_)
    : axis(fixed(std::move(axis_))),
      group_size(parse_group_size(group_size_)),
      activation(parse_activation(activation_)),
      negative_slope(parse_number("negative_slope", negative_slope_)),
      weights(weights_) {
    parse_axes(axis);
    // One of rank 0 is that of a single statistic, or one for all.
    const int rank = rank_of(count_);
    const bool has_counts = is_on_gpu(count_) || rank > 0 || (rank == 0 && rank_of(mean_) == 0);
    if (is_on_gpu(mean_)) {
        const Call call("mean", mean_, nb::none());
        const Place& place = call.place();
        on_gpu.reset(new OnGpu{
            Array::copy("mean", mean_, place), Array::copy("inv_std", inv_std_, place), {}, {}, place.device});
        shape = shape_of(on_gpu->mean);
        if (!var_.is_none()) on_gpu->var.emplace(Array::copy("var", var_, place));
        if (has_counts) on_gpu->counts.emplace(Array::copy("count", count_, place));
        const auto check_shape = [&](const char* argument, const Array& array) {
            if (shape_of(array) != shape)
                raise(PyExc_ValueError, "%s has shape %s, expected mean's shape", argument,
                      text(array.object().attr("shape")).c_str());
        };
        check_shape("inv_std", on_gpu->inv_std);
        if (on_gpu->var) check_shape("var", *on_gpu->var);
        if (on_gpu->counts) check_shape("count", *on_gpu->counts);
        kind = place.kind;
        mask = import_mask(mask_, place);
    } else {
        mean = copy_statistic("mean", mean_, &shape, {});
        inv_std = copy_statistic("inv_std", inv_std_, nullptr, shape);
        if (!var_.is_none()) var = copy_statistic("var", var_, nullptr, shape);
        if (has_counts) counts = copy_statistic("count", count_, nullptr, shape);
        for (const double one : counts)
            if (!(one >= 0)) raise(PyExc_ValueError, "count must not be negative, got %g", one);
        mask = import_mask(mask_);
    }
    if (count_.is_none() || has_counts) return;
    count = parse_number("count", count_);
    if (!(count > 0)) raise(PyExc_ValueError, "count must be positive, got %g", count);
}

std::uint8_t* Saved::mask_data() const {
    return on_gpu ? static_cast<std::uint8_t*>(ways(kind).data(mask)) : bytes_of(mask);
}

void Saved::set_count(double all) {
    counts.clear();
    if (on_gpu) on_gpu->counts.reset();
    count = all;
}

void Saved::add_counts(const Place& place) {
    if (on_gpu)
        on_gpu->counts.emplace(Array::statistic(shape, place));
    else
        counts.resize(mean.size());
}

batchnorm::MutStats Saved::outputs() {
    batchnorm::MutStats stats;
    if (on_gpu) {
        stats = {on_gpu->mean.mut_view(), on_gpu->inv_std.mut_view(), on_gpu->var->mut_view()};
        if (on_gpu->counts) stats.count = on_gpu->counts->mut_view();
    } else {
        stats = {contiguous(mean.data(), shape), contiguous(inv_std.data(), shape), contiguous(var.data(), shape)};
        if (!counts.empty()) stats.count = contiguous(counts.data(), shape);
    }
    if (!mask.is_none()) stats.mask = mask_data();
    return stats;
}

batchnorm::Param Saved::variance() const {
    return var.size() == mean.size() ? contiguous(var.data(), shape) : batchnorm::Param{};
}

batchnorm::Stats Saved::statistics(const Place& place) const {
    const int device = on_gpu ? on_gpu->device : on_cpu;
    if (device != place.device)
        raise(PyExc_ValueError, "saved is on %s, expected %s, as x is", device_text(device).c_str(),
              device_text(place.device).c_str());
    batchnorm::Stats stats;
    if (on_gpu) {
        stats = {on_gpu->mean.view(), on_gpu->inv_std.view()};
        // One count for all is told by x itself, on which the library does not look at this one.
        if (on_gpu->counts) stats.count = on_gpu->counts->view();
        if (kind == place.kind) {
            place.scope->touch(on_gpu->mean.object());
            place.scope->touch(on_gpu->inv_std.object());
            if (on_gpu->counts) place.scope->touch(on_gpu->counts->object());
        }
    } else {
        stats = {contiguous(mean.data(), shape), contiguous(inv_std.data(), shape)};
        if (!counts.empty() || mean.empty())
            stats.count = contiguous(counts.data(), shape);
        else if (count > 0)
            stats.count = batchnorm::view(&count, {});
    }
    return stats;
}

batchnorm::Stats Saved::inputs(const batchnorm::View& x, const Place& place) const {
    batchnorm::Stats stats = statistics(place);
    if (activation == batchnorm::Activation::none || mask.is_none()) return stats;
    batchnorm::Options options;
    options.group_size = group_size;
    std::size_t bytes = 0;
    check(batchnorm::core::mask_bytes(x, parse_axes(axis), options, bytes));
    const auto own = nb::cast<std::size_t>(mask.attr("shape")[0]);
    if (own != bytes || (!mask_layout.empty() && mask_layout != memory_layout(x)))
        raise(PyExc_ValueError,
              "x has not the shape and strides of forward's x, which saved.mask (%zu bytes) follows: expected that "
              "array, or one laid out like it",
              own);
    if (on_gpu && kind == place.kind) place.scope->touch(mask);
    stats.mask = mask_data();
    return stats;
}

const Saved& as_saved(nb::handle object) {
    if (!nb::isinstance<Saved>(object))
        raise(PyExc_TypeError, "saved is %s, expected bn.Saved", nb::type_name(object.type()).c_str());
    return nb::cast<const Saved&>(object);
}

batchnorm::Activation parse_activation(nb::handle activation) {
    using batchnorm::Activation;
    if (activation.is_none()) return Activation::none;
    if (!nb::isinstance<nb::str>(activation))
        raise(PyExc_TypeError, "activation is %s, expected None, 'relu' or 'leaky_relu'",
              nb::type_name(activation.type()).c_str());
    const auto is = [&](const char* name) { return PyUnicode_CompareWithASCIIString(activation.ptr(), name) == 0; };
    if (is("relu")) return Activation::relu;
    if (is("leaky_relu")) return Activation::leaky_relu;
    raise(PyExc_ValueError, "activation %s is unknown, expected None, 'relu' or 'leaky_relu'",
          nb::repr(activation).c_str());
}

nb::object activation_name(batchnorm::Activation activation) {
    switch (activation) {
        case batchnorm::Activation::none: break;
        case batchnorm::Activation::relu: return nb::str("relu");
        case batchnorm::Activation::leaky_relu: return nb::str("leaky_relu");
    }
    return nb::none();
}

std::int64_t parse_group_size(nb::handle group_size) {
    if (group_size.is_none()) return 0;
    if (!PyIndex_Check(group_size.ptr()))
        raise(PyExc_TypeError, "group_size must be an int or None, got %s", nb::type_name(group_size.type()).c_str());
    const Py_ssize_t size = PyNumber_AsSsize_t(group_size.ptr(), nullptr);
    if (size == -1 && PyErr_Occurred()) throw nb::python_error();
    if (size < 1) raise(PyExc_ValueError, "group_size must be at least 1, got %zd", size);
    return size;
}

void bind_saved(nb::module_& module) {
    nb::class_<Saved>(module, "Saved",
                      "What forward leaves for backward: the statistics that it used, and its settings.\n\n"
                      "Statistics are float64 arrays of the kept axes' shape, (C,) for one axis, after the groups if\n"
                      "there is a group_size, and on a GPU if x is. It can be made by hand, from values that are\n"
                      "copied: Saved(mean, inv_std, axis=1).")
        .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, nb::object,
                      nb::object, nb::object>(),
             nb::arg("mean"), nb::arg("inv_std"), nb::arg("var").none() = nb::none(),
             nb::arg("count").none() = nb::none(), nb::kw_only(), nb::arg("axis") = 1,
             nb::arg("group_size").none() = nb::none(), nb::arg("activation").none() = nb::none(),
             nb::arg("negative_slope") = 0.01, nb::arg("mask").none() = nb::none(),
             nb::arg("weights").none() = nb::none())
        .def_prop_ro("mean", &mean_of, "The mean of each statistic's values.")
        .def_prop_ro("inv_std", &inv_std_of, "1 / sqrt(var + eps).")
        .def_prop_ro("var", &var_of, "The biased variance (divided by count); None if it is not known.")
        .def_prop_ro(
            "count", &count_of,
            "How many values are behind each statistic, or their weight; an array of the statistics' shape if\n"
            "there are weights or groups; None if it is not known.")
        .def_prop_ro(
            "axis", [](const Saved& self) { return self.axis; }, "The axis, or axes, that keep statistics.")
        .def_prop_ro(
            "group_size",
            [](const Saved& self) { return self.group_size ? nb::object(nb::int_(self.group_size)) : nb::none(); },
            "Samples of a group, or None.")
        .def_prop_ro(
            "activation", [](const Saved& self) { return activation_name(self.activation); },
            "None, 'relu' or 'leaky_relu'.")
        .def_prop_ro(
            "negative_slope", [](const Saved& self) { return self.negative_slope; }, "leaky_relu's slope below 0.")
        .def_prop_ro("mask", &mask_of,
                     "What the activation let through: uint8, a bit for each element, the first in the lowest, in x's\n"
                     "memory order, each contiguous run of elements padded to whole bytes; or None.")
        .def_prop_ro(
            "weights", [](const Saved& self) { return self.weights; }, "Forward's weights, or None.")
        .def("_without_activation",
             [](const Saved& self) {
                 Saved plain(self);
                 plain.activation = batchnorm::Activation::none;
                 plain.mask = nb::none();
                 return plain;
             })
        .def("__repr__",
             [](nb::handle self) {
                 const Saved& saved = nb::cast<const Saved&>(self);
                 nb::object text = nb::str("Saved(mean={!r}, inv_std={!r}, var={!r}, count={!r}, axis={!r}")
                                       .format(self.attr("mean"), self.attr("inv_std"), self.attr("var"),
                                               self.attr("count"), self.attr("axis"));
                 if (saved.group_size) text = text + nb::str(", group_size={!r}").format(self.attr("group_size"));
                 if (saved.activation != batchnorm::Activation::none)
                     text = text + nb::str(", activation={!r}, negative_slope={!r}, mask={!r}")
                                       .format(self.attr("activation"), self.attr("negative_slope"), self.attr("mask"));
                 if (!saved.weights.is_none()) text = text + nb::str(", weights={!r}").format(self.attr("weights"));
                 return text + nb::str(")");
             })
        .def("__getstate__",
             [](nb::handle self) {
                 const Saved& saved = nb::cast<const Saved&>(self);
                 return nb::make_tuple(self.attr("mean"), self.attr("inv_std"), self.attr("var"), self.attr("count"),
                                       self.attr("axis"), self.attr("group_size"), self.attr("activation"),
                                       self.attr("negative_slope"), saved.mask, self.attr("weights"),
                                       static_cast<int>(saved.kind), saved.mask_layout);
             })
        .def("__setstate__", [](Saved& self, const nb::tuple& state) {
            new (&self) Saved(state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7], state[8],
                              state[9]);
            self.kind = static_cast<Kind>(nb::cast<int>(state[10]));
            self.mask_layout = nb::cast<std::vector<std::int64_t>>(state[11]);
        });
}
