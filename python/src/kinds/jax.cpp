#include "jax.hpp"

#include "dlpack.hpp"
#include "numpy.hpp"

using batchnorm::DType;

namespace {

struct Jax {
    nb::object module, array, numpy;

    static const Jax* get() {
        static const Jax* jax = nullptr;
        if (jax) return jax;
        const nb::object module = imported("jax", {"Array", "numpy", "default_device"});
        if (module.is_valid()) jax = new Jax{module, module.attr("Array"), module.attr("numpy")};
        return jax;
    }
};

// What JAX gives out of an array; it does not of one that was deleted (or donated), or that several devices hold.
template <class Export>
nb::object exported(const char* argument, const Export& give) {
    try {
        return give();
    } catch (nb::python_error& error) {
        if (!error.matches(PyExc_Exception)) throw;  // an interruption
        const std::string reason = text(error.value());
        raise(PyExc_ValueError,
              "%s is a JAX array that cannot be exported: it was deleted or donated, or is on several devices (%s)",
              argument, reason.c_str());
    }
}

// Without enable_x64, JAX makes float32 of float64, silently: statistics would be.
class JaxScope final : public Scope {
  public:
    JaxScope(nb::handle x, std::optional<Stream> wanted) {
        const nb::object& jax = Jax::get()->module;
        stream = wanted.value_or(nullptr);
        if (nb::hasattr(jax, "enable_x64"))
            entered_.enter(jax.attr("enable_x64")(true));
        else
            entered_.enter(nb::module_::import_("jax.experimental").attr("enable_x64")());
        const nb::object devices(x.attr("devices")());
        entered_.enter(jax.attr("default_device")(nb::borrow(*nb::iter(devices))));
    }

  private:
    Entered entered_;
};

class JaxWays final : public Ways {
  public:
    void read(const char* argument, nb::handle array, Stream stream, Facts& facts) const override {
        facts.device = device(argument, array);
        facts.read_only = true;
        if (facts.device == on_cpu && !nb::cast<bool>(array.attr("is_deleted")()))
            array.attr("block_until_ready")();  // raises what computing it did
        facts.owner = exported(argument, [&] {
            if (facts.device == on_cpu) return array.attr("__dlpack__")();
            // DLPack's number of the default stream is 1.
            const auto number = stream ? reinterpret_cast<std::uintptr_t>(stream) : 1;
            return array.attr("__dlpack__")(nb::arg("stream") = number);
        });
        const auto* const tensor = static_cast<const DLTensor*>(PyCapsule_GetPointer(facts.owner.ptr(), "dltensor"));
        if (!tensor) throw nb::python_error();
        const std::optional<DType> type = type_of(*tensor);
        if (!type)
            raise(PyExc_TypeError, "%s has dtype %s, %s (astype converts)", argument, text(array.attr("dtype")).c_str(),
                  accepted_types);
        if (tensor->rank > batchnorm::max_rank)
            raise(PyExc_ValueError, "%s has %d axes, expected at most %d", argument, tensor->rank, batchnorm::max_rank);
        set_view(*tensor, *type, facts.view);
    }
    int device(const char* argument, nb::handle array) const override {
        if (!nb::hasattr(array, "__dlpack_device__"))
            raise(PyExc_TypeError,
                  "%s is traced by JAX (jit, grad, vmap), which has no values yet: call this function outside, or "
                  "through jax.pure_callback",
                  argument);
        const nb::tuple device(exported(argument, [&] { return array.attr("__dlpack_device__")(); }));
        const int type = nb::cast<int>(nb::int_(nb::object(device[0])));
        return type == dl_cuda || type == dl_cuda_managed ? nb::cast<int>(nb::int_(nb::object(device[1]))) : on_cpu;
    }
    std::unique_ptr<Scope> enter(nb::handle x, int, std::optional<Stream> stream) const override {
        return std::make_unique<JaxScope>(x, stream);
    }
    // JAX fills them, on a stream of its own.
    nb::object empty(const std::vector<std::int64_t>& shape, nb::handle dtype, int) const override {
        nb::list sizes;
        for (const std::int64_t size : shape) sizes.append(size);
        return jnp().attr("empty")(nb::tuple(sizes), dtype).attr("block_until_ready")();
    }
    nb::object empty_like(nb::handle array) const override {
        return jnp().attr("empty")(array.attr("shape"), array.attr("dtype")).attr("block_until_ready")();
    }
    void* data(nb::handle array) const override {
        return reinterpret_cast<void*>(nb::cast<std::uintptr_t>(array.attr("unsafe_buffer_pointer")()));
    }
    nb::object full(double value, int) const override {
        return jnp().attr("full")(nb::make_tuple(), value, "float64").attr("block_until_ready")();
    }
    nb::object from_numpy(nb::handle array, int device) const override {
        // Keeps the memory, where that starts a cache line.
        if (device == on_cpu) {
            const nb::object& jax = Jax::get()->module;
            nb::object made = jax.attr("device_put")(array);
            if (nb::hasattr(made, "block_until_ready")) return made.attr("block_until_ready")();
            // While a function is traced that uses the result as a constant.
            Entered scope;
            scope.enter(jax.attr("ensure_compile_time_eval")());
            return jax.attr("device_put")(array).attr("block_until_ready")();
        }
        return jnp().attr("asarray")(array).attr("block_until_ready")();
    }
    nb::object cast(nb::handle array, nb::handle dtype) const override {
        return array.attr("astype")(dtype).attr("block_until_ready")();
    }
    nb::object copy(nb::handle array) const override {
        return jnp().attr("array")(array, "float64").attr("block_until_ready")();
    }
    nb::object flat(nb::handle array) const override { return array.attr("reshape")(-1).attr("block_until_ready")(); }
    bool waits() const override { return true; }

  private:
    static const nb::object& jnp() { return Jax::get()->numpy; }
};

}  // namespace

bool is_jax(nb::handle object) {
    const Jax* const jax = Jax::get();
    return jax && is_instance(object, jax->array);
}

const Ways& jax_ways() {
    static const JaxWays ways;
    return ways;
}
