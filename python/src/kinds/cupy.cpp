#include "cupy.hpp"

#include "numpy.hpp"

using batchnorm::DType;

namespace {

struct CuPy {
    nb::object module, ndarray;

    static const CuPy* get() {
        static const CuPy* cupy = nullptr;
        if (cupy) return cupy;
        const nb::object module = imported("cupy", {"ndarray", "cuda", "empty_like"});
        if (module.is_valid()) cupy = new CuPy{module, module.attr("ndarray")};
        return cupy;
    }
};

void* data_of(nb::handle array) {
    return reinterpret_cast<void*>(nb::cast<std::uintptr_t>(array.attr("data").attr("ptr")));
}

// Its memory pool has a part for each stream: what is made in the scope is used again on that stream alone.
class CuPyScope final : public Scope {
  public:
    CuPyScope(int device, std::optional<Stream> wanted) {
        const nb::object cuda = CuPy::get()->module.attr("cuda");
        entered_.enter(cuda.attr("Device")(device));
        const nb::object current = cuda.attr("get_current_stream")();
        stream = reinterpret_cast<Stream>(nb::cast<std::uintptr_t>(current.attr("ptr")));
        if (!wanted || *wanted == stream) return;
        stream = *wanted;
        entered_.enter(cuda.attr("ExternalStream")(reinterpret_cast<std::uintptr_t>(stream), device));
    }

  private:
    Entered entered_;
};

class CuPyWays final : public Ways {
  public:
    void read(const char* argument, nb::handle array, Stream, Facts& facts) const override {
        const nb::object dtype = array.attr("dtype");
        const std::optional<DType> type = numpy_type(dtype);
        if (!type)
            raise(PyExc_TypeError, "%s has dtype %s, %s (astype converts)", argument, text(dtype).c_str(),
                  accepted_types);
        facts.device = device(argument, array);
        facts.view.dtype = *type;
        facts.view.data = data_of(array);
        set_shape(argument, array.attr("shape"), array.attr("strides"), 1, facts.view);
    }
    int device(const char*, nb::handle array) const override { return nb::cast<int>(array.attr("device").attr("id")); }
    std::unique_ptr<Scope> enter(nb::handle, int device, std::optional<Stream> stream) const override {
        return std::make_unique<CuPyScope>(device, stream);
    }
    nb::object empty(const std::vector<std::int64_t>& shape, nb::handle dtype, int) const override {
        nb::list sizes;
        for (const std::int64_t size : shape) sizes.append(size);
        return cupy().attr("empty")(nb::tuple(sizes), dtype);
    }
    nb::object empty_like(nb::handle array) const override { return cupy().attr("empty_like")(array); }
    void* data(nb::handle array) const override { return data_of(array); }
    nb::object full(double value, int) const override {
        return cupy().attr("full")(nb::make_tuple(), value, "float64");
    }
    nb::object from_numpy(nb::handle array, int) const override { return cupy().attr("asarray")(array); }
    nb::object cast(nb::handle array, nb::handle dtype) const override {
        return array.attr("astype")(dtype, nb::arg("copy") = false);
    }
    nb::object copy(nb::handle array) const override {
        return cupy().attr("array")(array, "float64", nb::arg("copy") = true, nb::arg("order") = "C");
    }
    nb::object flat(nb::handle array) const override {
        return cupy().attr("ascontiguousarray")(array).attr("reshape")(-1);
    }

  private:
    static const nb::object& cupy() { return CuPy::get()->module; }
};

}  // namespace

bool is_cupy(nb::handle object) {
    const CuPy* const cupy = CuPy::get();
    return cupy && is_instance(object, cupy->ndarray);
}

const Ways& cupy_ways() {
    static const CuPyWays ways;
    return ways;
}
