// batchnorm._core: the library's functions on Python's arrays. It converts arguments, releases the GIL and calls; the
// checks are the library's, and the signatures that users see are functional.py's.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <batchnorm/cuda.hpp>

#include <optional>

#include "arrays.hpp"
#include "buffers.hpp"
#include "calls.hpp"
#include "higher_order.hpp"
#include "outputs.hpp"
#include "saved.hpp"

using batchnorm::Axes;
using batchnorm::Options;

namespace {

namespace core = batchnorm::core;
namespace cuda = batchnorm::cuda;
using batchnorm::Op;

// The options of a call, and the arrays that they point to.
class Extras {
  public:
    Options options;

    explicit Extras(const Call& call, nb::handle threads, nb::handle eps = {})
        : x_(call.first()), place_(call.place()) {
        options.threads = parse_threads(threads);
        if (eps.is_valid()) options.eps = parse_number("eps", eps);
    }
    // As forward had them.
    Extras(const Call& call, nb::handle threads, const Saved& saved) : Extras(call, threads) {
        options.activation = saved.activation;
        options.negative_slope = saved.negative_slope;
        options.group_size = saved.group_size;
        weigh(saved.weights);
    }
    Extras(const Extras&) = delete;

    void activate(nb::handle activation, nb::handle negative_slope) {
        options.activation = parse_activation(activation);
        options.negative_slope = parse_number("negative_slope", negative_slope);
    }
    void weigh(nb::handle weights) {
        if (weights.is_none()) return;
        weights_.emplace(Array::weights(weights, x_, place_));
        options.weights = &weights_->view();
    }
    void add_residual(nb::handle residual) {
        if (residual.is_none()) return;
        residual_.emplace(Array::tensor("residual", residual, place_));
        options.residual = &residual_->view();
    }
    void go_back_by(nb::handle y) {
        if (y.is_none()) return;
        y_.emplace(Array::tensor("y", y, place_));
        options.activation_output = &y_->view();
    }
    // out is dx, or dx and dresidual, if the latter is needed.
    Array output(nb::handle out, nb::handle need_dresidual) {
        const int truth = PyObject_IsTrue(need_dresidual.ptr());
        if (truth < 0) {
            PyErr_Clear();
            raise(PyExc_TypeError, "need_dresidual must be a bool, got %s", type_text(need_dresidual).c_str());
        }
        const bool needed = truth == 1, pair = nb::isinstance<nb::tuple>(out);
        if (pair && (!needed || nb::len(out) != 2))
            raise(PyExc_TypeError, "out is a tuple of %zu, expected %s", nb::len(out),
                  needed ? "dx or (dx, dresidual)" : "dx (or need_dresidual=True)");
        const nb::object first = pair ? nb::object(out[0]) : nb::borrow(out);
        const nb::object second = pair ? nb::object(out[1]) : nb::none();
        Array dx = Array::output("out", first, x_, place_);
        if (needed) {
            dresidual_.emplace(Array::output(pair ? "out" : "dresidual", second, x_, place_));
            dresidual_view_ = dresidual_->mut_view();
            options.dresidual = &dresidual_view_;
        }
        return dx;
    }
    nb::object dresidual() const { return dresidual_ ? dresidual_->object() : nb::none(); }
    nb::object weights() const { return weights_ ? weights_->object() : nb::none(); }

  private:
    const Array& x_;
    const Place& place_;
    std::optional<Array> weights_, residual_, y_, dresidual_;
    batchnorm::MutView dresidual_view_;
};

// The shape of the statistics of x: the groups first, if there are any.
std::vector<std::int64_t> stat_shape(const batchnorm::View& x, const Axes& axes, std::int64_t group_size) {
    std::vector<std::int64_t> shape = kept_shape(x, axes);
    // The library refuses what has too many axes.
    if (group_size > 0 && x.rank > 0 && shape.size() < static_cast<std::size_t>(batchnorm::max_rank))
        shape.insert(shape.begin(), x.shape[0] / group_size + (x.shape[0] % group_size != 0));
    return shape;
}

// M, the number of values behind each statistic of this shape; 0 where there are none.
double values_behind(const batchnorm::View& x, const std::vector<std::int64_t>& shape) {
    double values = 1;
    for (int d = 0; d < x.rank; ++d) values *= static_cast<double>(x.shape[d]);
    for (const std::int64_t size : shape) values = size > 0 ? values / static_cast<double>(size) : 0;
    return values;
}

// M again, also where there are no statistics.
double values_of(const batchnorm::View& x, const Axes& axes) {
    double values = 1;
    for (int d = 0; d < x.rank; ++d) {
        bool kept = false;
        for (int i = 0; i < axes.count; ++i) kept |= axes.axis[i] == d || axes.axis[i] + x.rank == d;
        if (!kept) values *= static_cast<double>(x.shape[d]);
    }
    return values;
}

// A new Saved for forward over x, with a mask if it activates (and that cannot be told from the output).
nb::object new_saved(const Call& call, const Axes& axes, nb::object axis, const Extras& extras, bool with_mask) {
    const Options& options = extras.options;
    const Array& x = call.first();
    const Place& place = call.place();
    const std::vector<std::int64_t> shape = stat_shape(x.view(), axes, options.group_size);
    const bool counts = options.weights || options.group_size > 0;
    nb::object object =
        nb::cast(Saved(shape, std::move(axis), counts ? 0 : values_behind(x.view(), shape), counts, place));
    Saved& saved = nb::cast<Saved&>(object);
    saved.group_size = options.group_size;
    saved.activation = options.activation;
    saved.negative_slope = options.negative_slope;
    saved.weights = extras.weights();
    if (options.activation == batchnorm::Activation::none || !with_mask) return object;
    Options geometry;
    geometry.group_size = options.group_size;
    std::size_t bytes = 0;
    check(core::mask_bytes(x.view(), axes, geometry, bytes));
    const auto count = static_cast<std::int64_t>(bytes);
    saved.mask = place.on_gpu() ? Array::bytes(count, place).object() : numpy_bytes(count);
    saved.mask_layout = memory_layout(x.view());
    return object;
}

nb::tuple batch_norm(nb::object x_, nb::object gamma_, nb::object beta_, nb::object axis, nb::object eps,
                     nb::object group_size, nb::object weights, nb::object activation, nb::object negative_slope,
                     nb::object residual, nb::object out_, nb::object threads, nb::object stream) {
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    Extras extras(call, threads, eps);
    extras.activate(activation, negative_slope);
    extras.options.group_size = parse_group_size(group_size);
    const Axes axes = parse_axes(axis);
    extras.weigh(weights);
    extras.add_residual(residual);
    const Array gamma = Array::param("gamma", gamma_, place), beta = Array::param("beta", beta_, place);
    const Array out = Array::output("out", out_, x, place);
    nb::object saved = new_saved(call, axes, axis, extras, true);
    const batchnorm::MutStats stats = nb::cast<Saved&>(saved).outputs();
    call.run<core::batch_norm, cuda::batch_norm>(Op::batch_norm, axes, extras.options, x.view(), axes, gamma.view(),
                                                 beta.view(), out.mut_view(), stats);
    return nb::make_tuple(out.object(), saved);
}

nb::tuple batch_norm_backward(nb::object dy_, nb::object x_, nb::object saved_, nb::object gamma_,
                              nb::object need_dresidual, nb::object out_, nb::object threads, nb::object stream) {
    const Saved& saved = as_saved(saved_);
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    const Axes axes = parse_axes(saved.axis);
    const Array dy = Array::tensor("dy", dy_, place);
    Extras extras(call, threads, saved);
    const Array gamma = Array::param("gamma", gamma_, place);
    const Array out = extras.output(out_, need_dresidual);
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    const Array dgamma = Array::param_grad(gamma, x, shape, place), dbeta = Array::param_grad(gamma, x, shape, place);
    const batchnorm::Stats stats = saved.inputs(x.view(), place);
    call.run<core::batch_norm_backward, cuda::batch_norm_backward>(Op::batch_norm_backward, axes, extras.options,
                                                                   dy.view(), x.view(), axes, stats, gamma.view(),
                                                                   out.mut_view(), dgamma.mut_view(), dbeta.mut_view());
    return nb::make_tuple(out.object(), dgamma.object(), dbeta.object(), extras.dresidual());
}

nb::object batch_norm_inference(nb::object x_, nb::object mean_, nb::object var_, nb::object gamma_, nb::object beta_,
                                nb::object axis, nb::object eps, nb::object activation, nb::object negative_slope,
                                nb::object residual, nb::object out_, nb::object threads, nb::object stream) {
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    Extras extras(call, threads, eps);
    extras.activate(activation, negative_slope);
    const Axes axes = parse_axes(axis);
    extras.add_residual(residual);
    const Array mean = Array::param("mean", mean_, place), var = Array::param("var", var_, place);
    const Array gamma = Array::param("gamma", gamma_, place), beta = Array::param("beta", beta_, place);
    const Array out = Array::output("out", out_, x, place);
    call.run<core::batch_norm_inference, cuda::batch_norm_inference>(Op::batch_norm_inference, axes, extras.options,
                                                                     x.view(), axes, mean.view(), var.view(),
                                                                     gamma.view(), beta.view(), out.mut_view());
    return out.object();
}

nb::tuple batch_norm_inference_backward(nb::object dy_, nb::object x_, nb::object mean_, nb::object var_,
                                        nb::object gamma_, nb::object y, nb::object axis, nb::object eps,
                                        nb::object activation, nb::object negative_slope, nb::object need_dresidual,
                                        nb::object out_, nb::object threads, nb::object stream) {
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    Extras extras(call, threads, eps);
    extras.activate(activation, negative_slope);
    const Axes axes = parse_axes(axis);
    const Array dy = Array::tensor("dy", dy_, place);
    extras.go_back_by(y);
    const Array mean = Array::param("mean", mean_, place), var = Array::param("var", var_, place);
    const Array gamma = Array::param("gamma", gamma_, place);
    const Array out = extras.output(out_, need_dresidual);
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    const Array dgamma = Array::param_grad(gamma, x, shape, place), dbeta = Array::param_grad(gamma, x, shape, place);
    call.run<core::batch_norm_inference_backward, cuda::batch_norm_inference_backward>(
        Op::batch_norm_inference_backward, axes, extras.options, dy.view(), x.view(), axes, mean.view(), var.view(),
        gamma.view(), out.mut_view(), dgamma.mut_view(), dbeta.mut_view());
    return nb::make_tuple(out.object(), dgamma.object(), dbeta.object(), extras.dresidual());
}

nb::object batch_norm_inplace(nb::object x_, nb::object gamma_, nb::object beta_, nb::object axis, nb::object eps,
                              nb::object group_size, nb::object weights, nb::object activation,
                              nb::object negative_slope, nb::object threads, nb::object stream) {
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    Extras extras(call, threads, eps);
    extras.activate(activation, negative_slope);
    extras.options.group_size = parse_group_size(group_size);
    const Axes axes = parse_axes(axis);
    const Array out = Array::output("x", x_, x, place);  // says whether it can be written to
    extras.weigh(weights);
    const Array gamma = Array::param("gamma", gamma_, place), beta = Array::param("beta", beta_, place);
    nb::object saved = new_saved(call, axes, axis, extras, false);
    const batchnorm::MutStats stats = nb::cast<Saved&>(saved).outputs();
    call.run<core::batch_norm_inplace, cuda::batch_norm_inplace>(Op::batch_norm, axes, extras.options, out.mut_view(),
                                                                 axes, gamma.view(), beta.view(), stats);
    out.tell_written();
    return saved;
}

nb::tuple batch_norm_backward_from_output(nb::object dy_, nb::object y_, nb::object saved_, nb::object gamma_,
                                          nb::object beta_, nb::object out_, nb::object threads, nb::object stream) {
    const Saved& saved = as_saved(saved_);
    const Call call("y", y_, stream);
    const Array& y = call.first();
    const Place& place = call.place();
    const Axes axes = parse_axes(saved.axis);
    const Array dy = Array::tensor("dy", dy_, place);
    Extras extras(call, threads, saved);
    const Array gamma = Array::param("gamma", gamma_, place), beta = Array::param("beta", beta_, place);
    const Array out = Array::output("out", out_, y, place);
    const std::vector<std::int64_t> shape = kept_shape(y.view(), axes);
    const Array dgamma = Array::param_grad(gamma, y, shape, place), dbeta = Array::param_grad(gamma, y, shape, place);
    const batchnorm::Stats stats = saved.statistics(place);
    call.run<core::batch_norm_backward_from_output, cuda::batch_norm_backward_from_output>(
        Op::batch_norm_backward_from_output, axes, extras.options, dy.view(), y.view(), axes, stats, gamma.view(),
        beta.view(), out.mut_view(), dgamma.mut_view(), dbeta.mut_view());
    return nb::make_tuple(out.object(), dgamma.object(), dbeta.object());
}

// The counts of moments and gradient sums: an array where each statistic has its own, else a number.
struct Counts {
    std::optional<Array> array;
    double same;
    bool on_gpu;

    Counts(const std::vector<std::int64_t>& shape, const Options& options, double values, const Place& place)
        : same(values), on_gpu(place.on_gpu()) {
        if (options.weights || options.group_size > 0) array.emplace(Array::statistic(shape, place));
    }
    batchnorm::MutParam output() {
        if (array) return array->mut_view();
        return on_gpu ? batchnorm::MutParam{} : batchnorm::view(&same, {});
    }
    nb::object object() const { return array ? array->object() : nb::float_(same); }
};

// A number of values on a GPU's array: the library sees those of arrays on the CPU alone.
void check_count(const char* argument, nb::handle count, const Call& call) {
    const batchnorm::View& x = call.first().view();
    if (!call.place().on_gpu() || !(PyFloat_Check(count.ptr()) || PyLong_Check(count.ptr()))) return;
    for (int d = 0; d < x.rank; ++d)
        if (x.shape[d] == 0) return;
    if (const double value = parse_number(argument, count); !(value > 0))
        raise(PyExc_ValueError, "%s must be positive, got %g", argument, value);
}

nb::tuple moments(nb::object x_, nb::object axis, nb::object group_size, nb::object weights, nb::object threads,
                  nb::object stream) {
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    Extras extras(call, threads);
    extras.options.group_size = parse_group_size(group_size);
    const Axes axes = parse_axes(axis);
    extras.weigh(weights);
    const std::vector<std::int64_t> shape = stat_shape(x.view(), axes, extras.options.group_size);
    const Array mean = Array::statistic(shape, place), m2 = Array::statistic(shape, place);
    Counts count(shape, extras.options, values_of(x.view(), axes), place);
    call.run<core::moments, cuda::moments>(Op::moments, axes, extras.options, x.view(), axes,
                                           batchnorm::MutMoments{mean.mut_view(), m2.mut_view(), count.output()});
    return nb::make_tuple(mean.object(), m2.object(), count.object());
}

nb::tuple normalize(nb::object x_, nb::object mean_, nb::object m2_, nb::object count_, nb::object gamma_,
                    nb::object beta_, nb::object axis, nb::object eps, nb::object group_size, nb::object weights,
                    nb::object activation, nb::object negative_slope, nb::object residual, nb::object out_,
                    nb::object threads, nb::object stream) {
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    Extras extras(call, threads, eps);
    extras.activate(activation, negative_slope);
    extras.options.group_size = parse_group_size(group_size);
    const Axes axes = parse_axes(axis);
    extras.weigh(weights);  // for backward; here they are only checked
    extras.add_residual(residual);
    const Array mean = Array::param("mean", mean_, place), m2 = Array::param("m2", m2_, place);
    const Array count = Array::param("count", count_, place);
    check_count("normalize: count", count_, call);
    const Array gamma = Array::param("gamma", gamma_, place), beta = Array::param("beta", beta_, place);
    const Array out = Array::output("out", out_, x, place);
    nb::object object = new_saved(call, axes, axis, extras, true);
    Saved& saved = nb::cast<Saved&>(object);
    // An array on a GPU stays there, whatever its rank.
    const bool one_for_all = count.view().rank == 0 && !(extras.options.weights && saved.shape.empty());
    if (one_for_all && !(place.on_gpu() && kind_of(count_) != Kind::none))
        saved.set_count(nb::cast<double>(nb::float_(count_)));
    else
        saved.add_counts(place);
    const batchnorm::MutStats stats = saved.outputs();
    call.run<core::normalize, cuda::normalize>(Op::normalize, axes, extras.options, x.view(), axes,
                                               batchnorm::Moments{mean.view(), m2.view(), count.view()}, gamma.view(),
                                               beta.view(), out.mut_view(), stats);
    return nb::make_tuple(out.object(), object);
}

nb::tuple grad_sums(nb::object dy_, nb::object x_, nb::object saved_, nb::object threads, nb::object stream) {
    const Saved& saved = as_saved(saved_);
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    const Axes axes = parse_axes(saved.axis);
    const Array dy = Array::tensor("dy", dy_, place);
    Extras extras(call, threads, saved);
    const std::vector<std::int64_t> shape = stat_shape(x.view(), axes, saved.group_size);
    const Array sum_dy = Array::statistic(shape, place), sum_dy_xmu = Array::statistic(shape, place);
    Counts count(shape, extras.options, values_of(x.view(), axes), place);
    const batchnorm::Stats stats = saved.inputs(x.view(), place);
    call.run<core::grad_sums, cuda::grad_sums>(
        Op::grad_sums, axes, extras.options, dy.view(), x.view(), axes, stats,
        batchnorm::MutGradSums{count.output(), sum_dy.mut_view(), sum_dy_xmu.mut_view()});
    return nb::make_tuple(count.object(), sum_dy.object(), sum_dy_xmu.object());
}

nb::tuple input_grad(nb::object dy_, nb::object x_, nb::object saved_, nb::object count_, nb::object sum_dy_,
                     nb::object sum_dy_xmu_, nb::object gamma_, nb::object need_dresidual, nb::object out_,
                     nb::object threads, nb::object stream) {
    const Saved& saved = as_saved(saved_);
    const Call call("x", x_, stream);
    const Array& x = call.first();
    const Place& place = call.place();
    const Axes axes = parse_axes(saved.axis);
    const Array dy = Array::tensor("dy", dy_, place);
    Extras extras(call, threads, saved);
    const Array count = Array::param("sums.count", count_, place);
    check_count("input_grad: sums.count", count_, call);
    const Array sum_dy = Array::param("sums.sum_dy", sum_dy_, place);
    const Array sum_dy_xmu = Array::param("sums.sum_dy_xmu", sum_dy_xmu_, place);
    const Array gamma = Array::param("gamma", gamma_, place);
    const Array out = extras.output(out_, need_dresidual);
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    const Array dgamma = Array::param_grad(gamma, x, shape, place), dbeta = Array::param_grad(gamma, x, shape, place);
    const batchnorm::Stats stats = saved.inputs(x.view(), place);
    call.run<core::input_grad, cuda::input_grad>(Op::input_grad, axes, extras.options, dy.view(), x.view(), axes, stats,
                                                 batchnorm::GradSums{count.view(), sum_dy.view(), sum_dy_xmu.view()},
                                                 gamma.view(), out.mut_view(), dgamma.mut_view(), dbeta.mut_view());
    return nb::make_tuple(out.object(), dgamma.object(), dbeta.object(), extras.dresidual());
}

void update_running(nb::object running_mean, nb::object running_var, nb::object saved_, double momentum,
                    bool unbiased) {
    const Saved& saved = as_saved(saved_);
    if (running_var.is_none()) raise(PyExc_TypeError, "running_var is None, expected an array like running_mean");
    const Call call("running_mean", running_mean, nb::none(), "update_running");
    const Place& place = call.place();
    const Array mean = Array::output("running_mean", running_mean, call.first(), place);
    const Array var = Array::output("running_var", running_var, call.first(), place);
    const batchnorm::Stats stats = saved.statistics(place);
    compute([&] {
        return core::update_running(mean.mut_view(), var.mut_view(), stats.mean, saved.variance(), stats.count,
                                    momentum, unbiased);
    });
    mean.tell_written();
    var.tell_written();
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (int i = 0; const char* name = batchnorm::available_isa(i); ++i) names.emplace_back(name);
    return names;
}

}  // namespace

NB_MODULE(_core, m) {
    using namespace nb::literals;
    // What a module still holds when the interpreter ends is not lost: a Saved in a global variable, say.
    nb::set_leak_warnings(false);
    init_outputs();
    bind_saved(m);

    m.def("batch_norm", &batch_norm, "x"_a.none(), "gamma"_a.none(), "beta"_a.none(), "axis"_a.none(), "eps"_a.none(),
          "group_size"_a.none(), "weights"_a.none(), "activation"_a.none(), "negative_slope"_a.none(),
          "residual"_a.none(), "out"_a.none(), "threads"_a.none(), "stream"_a.none());
    m.def("batch_norm_backward", &batch_norm_backward, "dy"_a.none(), "x"_a.none(), "saved"_a.none(), "gamma"_a.none(),
          "need_dresidual"_a.none(), "out"_a.none(), "threads"_a.none(), "stream"_a.none());
    m.def("batch_norm_inference", &batch_norm_inference, "x"_a.none(), "mean"_a.none(), "var"_a.none(),
          "gamma"_a.none(), "beta"_a.none(), "axis"_a.none(), "eps"_a.none(), "activation"_a.none(),
          "negative_slope"_a.none(), "residual"_a.none(), "out"_a.none(), "threads"_a.none(), "stream"_a.none());
    m.def("batch_norm_inference_backward", &batch_norm_inference_backward, "dy"_a.none(), "x"_a.none(), "mean"_a.none(),
          "var"_a.none(), "gamma"_a.none(), "y"_a.none(), "axis"_a.none(), "eps"_a.none(), "activation"_a.none(),
          "negative_slope"_a.none(), "need_dresidual"_a.none(), "out"_a.none(), "threads"_a.none(), "stream"_a.none());
    m.def("batch_norm_inplace", &batch_norm_inplace, "x"_a.none(), "gamma"_a.none(), "beta"_a.none(), "axis"_a.none(),
          "eps"_a.none(), "group_size"_a.none(), "weights"_a.none(), "activation"_a.none(), "negative_slope"_a.none(),
          "threads"_a.none(), "stream"_a.none());
    m.def("batch_norm_backward_from_output", &batch_norm_backward_from_output, "dy"_a.none(), "y"_a.none(),
          "saved"_a.none(), "gamma"_a.none(), "beta"_a.none(), "out"_a.none(), "threads"_a.none(), "stream"_a.none());
    m.def("moments", &moments, "x"_a.none(), "axis"_a.none(), "group_size"_a.none(), "weights"_a.none(),
          "threads"_a.none(), "stream"_a.none());
    m.def("normalize", &normalize, "x"_a.none(), "mean"_a.none(), "m2"_a.none(), "count"_a.none(), "gamma"_a.none(),
          "beta"_a.none(), "axis"_a.none(), "eps"_a.none(), "group_size"_a.none(), "weights"_a.none(),
          "activation"_a.none(), "negative_slope"_a.none(), "residual"_a.none(), "out"_a.none(), "threads"_a.none(),
          "stream"_a.none());
    m.def("grad_sums", &grad_sums, "dy"_a.none(), "x"_a.none(), "saved"_a.none(), "threads"_a.none(),
          "stream"_a.none());
    m.def("input_grad", &input_grad, "dy"_a.none(), "x"_a.none(), "saved"_a.none(), "count"_a.none(), "sum_dy"_a.none(),
          "sum_dy_xmu"_a.none(), "gamma"_a.none(), "need_dresidual"_a.none(), "out"_a.none(), "threads"_a.none(),
          "stream"_a.none());

    m.def("update_running", &update_running, "running_mean"_a.none(), "running_var"_a.none(), "saved"_a.none(),
          "momentum"_a, "unbiased"_a);

    bind_higher_order(m);

    m.def("cuda_unavailable_because", [] {
        const char* const why_not = cuda::unavailable_because();
        return why_not ? nb::object(nb::str(why_not)) : nb::none();
    });
    m.def("cuda_device_count", &cuda::device_count);
    m.def(
        "cuda_device_name",
        [](int device) {
            const char* const name = cuda::device_name(device);
            return name ? nb::object(nb::str(name)) : nb::none();
        },
        "device"_a);

    m.def("clear_cache", &buffers::clear, nb::call_guard<nb::gil_scoped_release>());
    m.def("version", &batchnorm::version);
    m.def("isa", [] { return batchnorm::isa() ? nb::object(nb::str(batchnorm::isa())) : nb::none(); });
    m.def("available_isas", &available_isas);
    m.def("threading", &batchnorm::threading);
    m.def("get_num_threads", &batchnorm::get_num_threads);
    m.def(
        "set_num_threads",
        [](nb::object threads) {
            if (!PyIndex_Check(threads.ptr()))
                raise(PyExc_TypeError, "threads must be an int, got %s", type_text(threads).c_str());
            check(core::set_num_threads(parse_threads(threads)));
        },
        "threads"_a.none());
}
