// batchnorm._core: the library's functions on Python's arrays. It converts arguments, releases the GIL and calls; the
// checks are the library's, and the signatures that users see are functional.py's.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <batchnorm/core.hpp>

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

Options options(nb::handle threads, nb::handle eps = {}) {
    Options options;
    options.threads = parse_threads(threads);
    if (eps.is_valid()) options.eps = parse_number("eps", eps);
    return options;
}

// M, the number of values behind each statistic of this shape; 0 where there are none.
double values_behind(const batchnorm::View& x, const std::vector<std::int64_t>& shape) {
    double values = 1;
    for (int d = 0; d < x.rank; ++d) values *= static_cast<double>(x.shape[d]);
    for (const std::int64_t size : shape) values = size > 0 ? values / static_cast<double>(size) : 0;
    return values;
}

nb::tuple batch_norm(nb::object x_, nb::object gamma_, nb::object beta_, nb::object axis, nb::object eps,
                     nb::object out_, nb::object threads) {
    const Options opts = options(threads, eps);
    const Axes axes = parse_axes(axis);
    const Array x = Array::tensor("x", x_);
    const Array gamma = Array::param("gamma", gamma_, x.kind()), beta = Array::param("beta", beta_, x.kind());
    const Array out = Array::output("out", out_, x);
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    nb::object saved = nb::cast(Saved(shape, axis, values_behind(x.view(), shape), x.kind()));
    const batchnorm::MutStats stats = nb::cast<Saved&>(saved).outputs();
    compute([&] { return core::batch_norm(x.view(), axes, gamma.view(), beta.view(), out.mut_view(), stats, opts); });
    return nb::make_tuple(out.object(), saved);
}

nb::tuple batch_norm_backward(nb::object dy_, nb::object x_, nb::object saved_, nb::object gamma_, nb::object out_,
                              nb::object threads) {
    const Saved& saved = as_saved(saved_);
    const Options opts = options(threads);
    const Axes axes = parse_axes(saved.axis);
    const Array x = Array::tensor("x", x_), dy = Array::tensor("dy", dy_, x.kind());
    const Array gamma = Array::param("gamma", gamma_, x.kind());
    const Array out = Array::output("out", out_, x);
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    const Array dgamma = Array::param_grad(gamma, x, shape), dbeta = Array::param_grad(gamma, x, shape);
    compute([&] {
        return core::batch_norm_backward(dy.view(), x.view(), axes, saved.inputs(), gamma.view(), out.mut_view(),
                                         dgamma.mut_view(), dbeta.mut_view(), opts);
    });
    return nb::make_tuple(out.object(), dgamma.object(), dbeta.object());
}

nb::object batch_norm_inference(nb::object x_, nb::object mean_, nb::object var_, nb::object gamma_, nb::object beta_,
                                nb::object axis, nb::object eps, nb::object out_, nb::object threads) {
    const Options opts = options(threads, eps);
    const Axes axes = parse_axes(axis);
    const Array x = Array::tensor("x", x_);
    const Array mean = Array::param("mean", mean_, x.kind()), var = Array::param("var", var_, x.kind());
    const Array gamma = Array::param("gamma", gamma_, x.kind()), beta = Array::param("beta", beta_, x.kind());
    const Array out = Array::output("out", out_, x);
    compute([&] {
        return core::batch_norm_inference(x.view(), axes, mean.view(), var.view(), gamma.view(), beta.view(),
                                          out.mut_view(), opts);
    });
    return out.object();
}

nb::tuple batch_norm_inference_backward(nb::object dy_, nb::object x_, nb::object mean_, nb::object var_,
                                        nb::object gamma_, nb::object axis, nb::object eps, nb::object out_,
                                        nb::object threads) {
    const Options opts = options(threads, eps);
    const Axes axes = parse_axes(axis);
    const Array x = Array::tensor("x", x_), dy = Array::tensor("dy", dy_, x.kind());
    const Array mean = Array::param("mean", mean_, x.kind()), var = Array::param("var", var_, x.kind());
    const Array gamma = Array::param("gamma", gamma_, x.kind());
    const Array out = Array::output("out", out_, x);
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    const Array dgamma = Array::param_grad(gamma, x, shape), dbeta = Array::param_grad(gamma, x, shape);
    compute([&] {
        return core::batch_norm_inference_backward(dy.view(), x.view(), axes, mean.view(), var.view(), gamma.view(),
                                                   out.mut_view(), dgamma.mut_view(), dbeta.mut_view(), opts);
    });
    return nb::make_tuple(out.object(), dgamma.object(), dbeta.object());
}

nb::tuple moments(nb::object x_, nb::object axis, nb::object threads) {
    const Options opts = options(threads);
    const Axes axes = parse_axes(axis);
    const Array x = Array::tensor("x", x_);
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    const Array mean = Array::statistic(shape, x.kind()), m2 = Array::statistic(shape, x.kind());
    double count = 0;
    compute([&] {
        return core::moments(x.view(), axes, {mean.mut_view(), m2.mut_view(), batchnorm::view(&count, {})}, opts);
    });
    return nb::make_tuple(mean.object(), m2.object(), count);
}

nb::tuple normalize(nb::object x_, nb::object mean_, nb::object m2_, nb::object count_, nb::object gamma_,
                    nb::object beta_, nb::object axis, nb::object eps, nb::object out_, nb::object threads) {
    const Options opts = options(threads, eps);
    const Axes axes = parse_axes(axis);
    const Array x = Array::tensor("x", x_);
    const Array mean = Array::param("mean", mean_, x.kind()), m2 = Array::param("m2", m2_, x.kind());
    const Array count = Array::param("count", count_, x.kind());
    const Array gamma = Array::param("gamma", gamma_, x.kind()), beta = Array::param("beta", beta_, x.kind());
    const Array out = Array::output("out", out_, x);
    const double values = count.view().rank == 0 ? nb::cast<double>(nb::float_(count_)) : 0;
    nb::object saved = nb::cast(Saved(kept_shape(x.view(), axes), axis, values, x.kind()));
    const batchnorm::MutStats stats = nb::cast<Saved&>(saved).outputs();
    compute([&] {
        return core::normalize(x.view(), axes, {mean.view(), m2.view(), count.view()}, gamma.view(), beta.view(),
                               out.mut_view(), stats, opts);
    });
    return nb::make_tuple(out.object(), saved);
}

nb::tuple grad_sums(nb::object dy_, nb::object x_, nb::object saved_, nb::object threads) {
    const Saved& saved = as_saved(saved_);
    const Options opts = options(threads);
    const Axes axes = parse_axes(saved.axis);
    const Array x = Array::tensor("x", x_), dy = Array::tensor("dy", dy_, x.kind());
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    const Array sum_dy = Array::statistic(shape, x.kind()), sum_dy_xmu = Array::statistic(shape, x.kind());
    double count = 0;
    compute([&] {
        return core::grad_sums(dy.view(), x.view(), axes, saved.inputs(),
                               {batchnorm::view(&count, {}), sum_dy.mut_view(), sum_dy_xmu.mut_view()}, opts);
    });
    return nb::make_tuple(count, sum_dy.object(), sum_dy_xmu.object());
}

nb::tuple input_grad(nb::object dy_, nb::object x_, nb::object saved_, nb::object count_, nb::object sum_dy_,
                     nb::object sum_dy_xmu_, nb::object gamma_, nb::object out_, nb::object threads) {
    const Saved& saved = as_saved(saved_);
    const Options opts = options(threads);
    const Axes axes = parse_axes(saved.axis);
    const Array x = Array::tensor("x", x_), dy = Array::tensor("dy", dy_, x.kind());
    const Array count = Array::param("sums.count", count_, x.kind());
    const Array sum_dy = Array::param("sums.sum_dy", sum_dy_, x.kind());
    const Array sum_dy_xmu = Array::param("sums.sum_dy_xmu", sum_dy_xmu_, x.kind());
    const Array gamma = Array::param("gamma", gamma_, x.kind());
    const Array out = Array::output("out", out_, x);
    const std::vector<std::int64_t> shape = kept_shape(x.view(), axes);
    const Array dgamma = Array::param_grad(gamma, x, shape), dbeta = Array::param_grad(gamma, x, shape);
    compute([&] {
        return core::input_grad(dy.view(), x.view(), axes, saved.inputs(),
                                {count.view(), sum_dy.view(), sum_dy_xmu.view()}, gamma.view(), out.mut_view(),
                                dgamma.mut_view(), dbeta.mut_view(), opts);
    });
    return nb::make_tuple(out.object(), dgamma.object(), dbeta.object());
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (int i = 0; const char* name = batchnorm::available_isa(i); ++i) names.emplace_back(name);
    return names;
}

}  // namespace

NB_MODULE(_core, m) {
    using namespace nb::literals;
    init_outputs();
    bind_saved(m);

    m.def("batch_norm", &batch_norm, "x"_a.none(), "gamma"_a.none(), "beta"_a.none(), "axis"_a.none(), "eps"_a.none(),
          "out"_a.none(), "threads"_a.none());
    m.def("batch_norm_backward", &batch_norm_backward, "dy"_a.none(), "x"_a.none(), "saved"_a.none(), "gamma"_a.none(),
          "out"_a.none(), "threads"_a.none());
    m.def("batch_norm_inference", &batch_norm_inference, "x"_a.none(), "mean"_a.none(), "var"_a.none(),
          "gamma"_a.none(), "beta"_a.none(), "axis"_a.none(), "eps"_a.none(), "out"_a.none(), "threads"_a.none());
    m.def("batch_norm_inference_backward", &batch_norm_inference_backward, "dy"_a.none(), "x"_a.none(), "mean"_a.none(),
          "var"_a.none(), "gamma"_a.none(), "axis"_a.none(), "eps"_a.none(), "out"_a.none(), "threads"_a.none());
    m.def("moments", &moments, "x"_a.none(), "axis"_a.none(), "threads"_a.none());
    m.def("normalize", &normalize, "x"_a.none(), "mean"_a.none(), "m2"_a.none(), "count"_a.none(), "gamma"_a.none(),
          "beta"_a.none(), "axis"_a.none(), "eps"_a.none(), "out"_a.none(), "threads"_a.none());
    m.def("grad_sums", &grad_sums, "dy"_a.none(), "x"_a.none(), "saved"_a.none(), "threads"_a.none());
    m.def("input_grad", &input_grad, "dy"_a.none(), "x"_a.none(), "saved"_a.none(), "count"_a.none(), "sum_dy"_a.none(),
          "sum_dy_xmu"_a.none(), "gamma"_a.none(), "out"_a.none(), "threads"_a.none());

    bind_higher_order(m);

    m.def("clear_cache", &buffers::clear, nb::call_guard<nb::gil_scoped_release>());
    m.def("version", &batchnorm::version);
    m.def("isa", [] { return batchnorm::isa() ? nb::object(nb::str(batchnorm::isa())) : nb::none(); });
    m.def("available_isas", &available_isas);
    m.def("threading", &batchnorm::threading);
    m.def("get_num_threads", &batchnorm::get_num_threads);
    m.def(
        "set_num_threads",
        [](nb::object threads) {
            if (threads.is_none()) raise(PyExc_TypeError, "threads must be an int, got None");
            check(core::set_num_threads(parse_threads(threads)));
        },
        "threads"_a.none());
}
