#include "higher_order.hpp"

#include "calls.hpp"
#include "saved.hpp"

namespace {

namespace core = batchnorm::core;
using batchnorm::Axes;
using batchnorm::Options;

// Forward's settings. The library knows no others here, and would say so of an option, which the user did not give.
Options options_of(const char* function, nb::handle threads, const Saved& saved) {
    const bool activates = saved.activation != batchnorm::Activation::none;
    if (activates || !saved.weights.is_none())
        raise(PyExc_ValueError, "%s: saved has %s, expected that of a forward without", function,
              activates ? "an activation" : "weights");
    Options options;
    options.threads = parse_threads(threads);
    options.group_size = saved.group_size;
    return options;
}

nb::object batch_norm_jvp(nb::object tx_, nb::object x_, nb::object saved_, nb::object gamma_, nb::object tgamma_,
                          nb::object tbeta_, nb::object out_, nb::object threads) {
    const Saved& saved = as_saved(saved_);
    const Axes axes = parse_axes(saved.axis);
    const Call call("x", x_, nb::none(), "batch_norm_jvp");
    const Array& x = call.first();
    const Place& place = call.place();
    const Array tx = Array::tensor("tx", tx_, place);
    const Options options = options_of("batch_norm_jvp", threads, saved);
    const Array gamma = Array::param("gamma", gamma_, place);
    const Array tgamma = Array::param("tgamma", tgamma_, place), tbeta = Array::param("tbeta", tbeta_, place);
    const Array out = Array::output("out", out_, x, place);
    const batchnorm::Stats stats = saved.inputs(x.view(), place);
    compute([&] {
        return core::batch_norm_jvp(tx.view(), x.view(), axes, stats, gamma.view(), tgamma.view(), tbeta.view(),
                                    out.mut_view(), options);
    });
    return out.object();
}

nb::tuple batch_norm_double_backward(nb::object ddx_, nb::object dy_, nb::object x_, nb::object saved_,
                                     nb::object gamma_, nb::object ddgamma_, nb::object ddbeta_, nb::object out,
                                     nb::object threads) {
    const Saved& saved = as_saved(saved_);
    const Axes axes = parse_axes(saved.axis);
    const Call call("x", x_, nb::none(), "batch_norm_double_backward");
    const Array& x = call.first();
    const Place& place = call.place();
    const Array dy = Array::tensor("dy", dy_, place);
    const Array ddx = Array::tensor("ddx", ddx_, place);
    const Options options = options_of("batch_norm_double_backward", threads, saved);
    const Array gamma = Array::param("gamma", gamma_, place);
    const Array ddgamma = Array::param("ddgamma", ddgamma_, place);
    const Array ddbeta = Array::param("ddbeta", ddbeta_, place);
    nb::object to_dy = nb::none(), to_x = nb::none();
    if (!out.is_none()) {
        if (!nb::isinstance<nb::tuple>(out) || nb::len(out) != 2)
            raise(PyExc_TypeError, "out is %s, expected a tuple (ddy, dx)", nb::type_name(out.type()).c_str());
        to_dy = out[0];
        to_x = out[1];
    }
    const Array ddy = Array::output("ddy", to_dy, x, place), dx = Array::output("dx", to_x, x, place);
    const Array dgamma = Array::param_grad(gamma, x, kept_shape(x.view(), axes), place);
    const batchnorm::Stats stats = saved.inputs(x.view(), place);
    compute([&] {
        return core::batch_norm_double_backward(ddx.view(), dy.view(), x.view(), axes, stats, gamma.view(),
                                                ddgamma.view(), ddbeta.view(), ddy.mut_view(), dx.mut_view(),
                                                dgamma.mut_view(), options);
    });
    return nb::make_tuple(ddy.object(), dx.object(), dgamma.object());
}

}  // namespace

void bind_higher_order(nb::module_& module) {
    using namespace nb::literals;
    module.def("batch_norm_jvp", &batch_norm_jvp, "tx"_a.none(), "x"_a.none(), "saved"_a.none(), "gamma"_a.none(),
               "tgamma"_a.none(), "tbeta"_a.none(), "out"_a.none(), "threads"_a.none());
    module.def("batch_norm_double_backward", &batch_norm_double_backward, "ddx"_a.none(), "dy"_a.none(), "x"_a.none(),
               "saved"_a.none(), "gamma"_a.none(), "ddgamma"_a.none(), "ddbeta"_a.none(), "out"_a.none(),
               "threads"_a.none());
}
