#include "saved.hpp"

#include <nanobind/ndarray.h>

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
    const Array imported = Array::tensor(argument, array, Kind::numpy);
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

nb::object count_of(const Saved& saved) { return saved.count > 0 ? nb::object(nb::float_(saved.count)) : nb::none(); }

nb::object var_of(nb::handle self) {
    Saved& saved = nb::cast<Saved&>(self);
    return saved.var.size() == saved.mean.size() ? as_array(self, saved.var) : nb::none();
}

}  // namespace

Saved::Saved(const std::vector<std::int64_t>& shape_, nb::object axis_, double count_, Kind kind_)
    : mean(size(shape_)),
      inv_std(mean.size()),
      var(mean.size()),
      count(count_),
      shape(shape_),
      axis(std::move(axis_)),
      kind(kind_) {}

Saved::Saved(nb::object mean_, nb::object inv_std_, nb::object var_, nb::object count_, nb::object axis_)
    : axis(axis_) {
    parse_axes(axis);
    mean = copy_statistic("mean", mean_, &shape, {});
    inv_std = copy_statistic("inv_std", inv_std_, nullptr, shape);
    if (!var_.is_none()) var = copy_statistic("var", var_, nullptr, shape);
    if (count_.is_none()) return;
    count = parse_number("count", count_);
    if (!(count > 0)) raise(PyExc_ValueError, "count must be positive, got %g", count);
}

batchnorm::MutStats Saved::outputs() {
    return {contiguous(mean.data(), shape), contiguous(inv_std.data(), shape), contiguous(var.data(), shape)};
}

batchnorm::Stats Saved::inputs() const { return {contiguous(mean.data(), shape), contiguous(inv_std.data(), shape)}; }

void bind_saved(nb::module_& module) {
    nb::class_<Saved>(module, "Saved",
                      "What forward leaves for backward: the statistics that it used, and its settings.\n\n"
                      "Statistics are float64 arrays of the kept axes' shape, (C,) for one axis. It can be made by\n"
                      "hand, from values that are copied: Saved(mean, inv_std, axis=1).")
        .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object>(), nb::arg("mean"),
             nb::arg("inv_std"), nb::arg("var").none() = nb::none(), nb::arg("count").none() = nb::none(),
             nb::kw_only(), nb::arg("axis") = 1)
        .def_prop_ro(
            "mean", [](nb::handle self) { return as_array(self, nb::cast<Saved&>(self).mean); },
            "The mean of each statistic's values.")
        .def_prop_ro(
            "inv_std", [](nb::handle self) { return as_array(self, nb::cast<Saved&>(self).inv_std); },
            "1 / sqrt(var + eps).")
        .def_prop_ro("var", &var_of, "The biased variance (divided by count); None if it is not known.")
        .def_prop_ro("count", &count_of, "How many values are behind each statistic; None if it is not known.")
        .def_prop_ro(
            "axis", [](const Saved& self) { return self.axis; }, "The axis, or axes, that keep statistics.")
        .def("__repr__",
             [](nb::handle self) {
                 return nb::str("Saved(mean={!r}, inv_std={!r}, var={!r}, count={!r}, axis={!r})")
                     .format(self.attr("mean"), self.attr("inv_std"), self.attr("var"), self.attr("count"),
                             self.attr("axis"));
             })
        .def("__getstate__",
             [](nb::handle self) {
                 return nb::make_tuple(self.attr("mean"), self.attr("inv_std"), self.attr("var"), self.attr("count"),
                                       self.attr("axis"), static_cast<int>(nb::cast<const Saved&>(self).kind));
             })
        .def("__setstate__", [](Saved& self, const nb::tuple& state) {
            new (&self) Saved(state[0], state[1], state[2], state[3], state[4]);
            self.kind = static_cast<Kind>(nb::cast<int>(state[5]));
        });
}
