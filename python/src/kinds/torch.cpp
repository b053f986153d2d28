#include "torch.hpp"

using batchnorm::DType;

Torch::Torch(nb::object torch)
    : module(torch),
      tensor(torch.attr("Tensor")),
      float32(torch.attr("float32")),
      float64(torch.attr("float64")),
      float16(torch.attr("float16")),
      bfloat16(torch.attr("bfloat16")),
      strided(torch.attr("strided")),
      read(reader_of(tensor)),
      is_tracing(torch.attr("jit").attr("is_tracing")),
      dispatch_modes(torch.attr("_C").attr("_len_torch_dispatch_stack")),
      forward_ad(torch.attr("autograd").attr("forward_ad")),
      increment_version(nb::getattr(torch.attr("autograd").attr("graph"), "increment_version", nb::none())) {}

const Torch* Torch::get() {
    static const Torch* torch = nullptr;
    if (torch) return torch;
    if (nb::object module = imported("torch", {"Tensor", "strided", "jit"}); module.is_valid())
        torch = new Torch(std::move(module));
    return torch;
}

bool is_torch(nb::handle object) {
    const Torch* const torch = Torch::get();
    return torch && is_instance(object, torch->tensor);
}

std::optional<DType> torch_type(nb::handle dtype) {
    const Torch& torch = *Torch::get();
    if (dtype.is(torch.float32)) return DType::f32;
    if (dtype.is(torch.float64)) return DType::f64;
    if (dtype.is(torch.float16)) return DType::f16;
    if (dtype.is(torch.bfloat16)) return DType::bf16;
    return std::nullopt;
}

bool requires_grad(nb::handle tensor) { return nb::cast<bool>(tensor.attr("requires_grad")); }

void refuse_trace(const char* argument) {
    const Torch& torch = *Torch::get();
    const char* tracer = nullptr;
    if (nb::cast<bool>(torch.is_tracing())) tracer = "torch.jit";
    if (nb::cast<int>(torch.dispatch_modes()) > 0) {
        const nb::object fx = imported("torch.fx.experimental.proxy_tensor", {"get_proxy_mode"});
        if (fx.is_valid() && !fx.attr("get_proxy_mode")().is_none()) tracer = "torch.fx";
    }
    if (tracer)
        raise(PyExc_TypeError, "%s is traced by %s, which cannot record this function: call it outside the trace",
              argument, tracer);
}

void tell_written(nb::handle tensor) {
    const nb::object& increment_version = Torch::get()->increment_version;
    const bool keeps_version = !nb::cast<bool>(tensor.attr("is_inference")());
    if (keeps_version && !increment_version.is_none()) increment_version(tensor);
}

namespace {

void* data_of(nb::handle tensor) {
    return reinterpret_cast<void*>(nb::cast<std::uintptr_t>(tensor.attr("data_ptr")()));
}

// In a tenth of a microsecond. False: the tensor has to be asked, as one of a subclass, which may answer otherwise.
bool read_dlpack(nb::handle tensor, Facts& facts) {
    const Torch& torch = *Torch::get();
    if (!torch.read || !tensor.type().is(torch.tensor)) return false;
    DLTensor got;
    if (torch.read(tensor.ptr(), &got) != 0) {
        PyErr_Clear();
        return false;
    }
    const std::optional<DType> type = type_of(got);
    const bool on_gpu = got.device_type == dl_cuda;
    if (!type || got.rank > batchnorm::max_rank || (!on_gpu && got.device_type != dl_cpu)) return false;
    if (on_gpu) facts.device = got.device_id;
    set_view(got, *type, facts.view);
    return true;
}

}  // namespace

void read_torch(const char* argument, nb::handle tensor, Facts& facts) {
    if (requires_grad(tensor))
        raise(PyExc_TypeError,
              "%s requires grad, which this function would lose: pass %s.detach(), or use batchnorm.torch", argument,
              argument);
    const nb::object& forward_ad = Torch::get()->forward_ad;
    if (nb::cast<int>(forward_ad.attr("_current_level")) >= 0 &&
        !forward_ad.attr("unpack_dual")(tensor).attr("tangent").is_none())
        raise(PyExc_TypeError,
              "%s has a tangent, which this function would lose: use batchnorm.torch, or batch_norm_jvp", argument);
    if (nb::cast<bool>(tensor.attr("is_neg")()))
        raise(PyExc_TypeError, "%s is a negated view, whose memory has the other sign: pass %s.resolve_neg()", argument,
              argument);
    if (read_dlpack(tensor, facts)) return;
    // Subclasses, an older PyTorch's tensors and what is to be refused are asked one by one: a DLPack capsule takes
    // three times as long.
    if (!nb::cast<bool>(tensor.attr("is_cpu"))) {
        if (!nb::cast<bool>(tensor.attr("is_cuda")))
            raise(PyExc_RuntimeError, "%s is on device %s, expected the CPU or a CUDA device", argument,
                  text(tensor.attr("device")).c_str());
        facts.device = nb::cast<int>(tensor.attr("get_device")());
    }
    const Torch& torch = *Torch::get();
    const nb::object dtype = tensor.attr("dtype");
    const std::optional<DType> type = torch_type(dtype);
    if (!type)
        raise(PyExc_TypeError, "%s has dtype %s, %s (to() converts)", argument, text(dtype).c_str(), accepted_types);
    if (const nb::object layout = tensor.attr("layout"); !layout.is(torch.strided))
        raise(PyExc_TypeError, "%s has layout %s, expected torch.strided", argument, text(layout).c_str());
    facts.view.dtype = *type;
    facts.view.data = data_of(tensor);
    set_shape(argument, tensor.attr("shape"), tensor.attr("stride")(), batchnorm::item_size(*type), facts.view);
}

namespace {

class TorchScope final : public Scope {
  public:
    TorchScope(int device, std::optional<Stream> wanted) {
        const nb::object cuda = Torch::get()->module.attr("cuda");
        current_ = cuda.attr("current_stream")(device);
        stream = reinterpret_cast<Stream>(nb::cast<std::uintptr_t>(current_.attr("cuda_stream")));
        if (!wanted || *wanted == stream) return;
        stream = *wanted;
        other_ = stream ? cuda.attr("ExternalStream")(reinterpret_cast<std::uintptr_t>(stream), device)
                        : cuda.attr("default_stream")(device);
        // New tensors are then the other stream's, so that their memory is not still in use by the current one.
        entered_.enter(cuda.attr("stream")(other_));
    }

    void touch(nb::handle tensor) const override {
        if (!other_.is_valid()) return;
        tensor.attr("record_stream")(other_);
        tensor.attr("record_stream")(current_);
    }

  private:
    nb::object current_, other_;
    Entered entered_;
};

class TorchWays final : public Ways {
  public:
    void read(const char* argument, nb::handle tensor, Stream, Facts& facts) const override {
        read_torch(argument, tensor, facts);
    }
    int device(const char*, nb::handle tensor) const override {
        return nb::cast<bool>(tensor.attr("is_cuda")) ? nb::cast<int>(tensor.attr("get_device")()) : on_cpu;
    }
    std::unique_ptr<Scope> enter(nb::handle, int device, std::optional<Stream> stream) const override {
        return std::make_unique<TorchScope>(device, stream);
    }
    nb::object empty(const std::vector<std::int64_t>& shape, nb::handle dtype, int device) const override {
        nb::list sizes;
        for (const std::int64_t size : shape) sizes.append(size);
        return torch().attr("empty")(sizes, nb::arg("dtype") = dtype, nb::arg("device") = device_text(device).c_str());
    }
    nb::object empty_like(nb::handle tensor) const override { return torch().attr("empty_like")(tensor); }
    void* data(nb::handle tensor) const override { return data_of(tensor); }
    nb::object dtype(const char* name) const override { return torch().attr(name); }
    nb::object full(double value, int device) const override {
        return torch().attr("full")(nb::make_tuple(), value, nb::arg("dtype") = Torch::get()->float64,
                                    nb::arg("device") = device_text(device).c_str());
    }
    nb::object from_numpy(nb::handle array, int device) const override {
        // From pageable memory, which the driver has copied when it returns.
        return torch().attr("as_tensor")(array).attr("to")(device_text(device).c_str(), nb::arg("non_blocking") = true);
    }
    nb::object cast(nb::handle tensor, nb::handle dtype) const override { return tensor.attr("to")(dtype); }
    nb::object copy(nb::handle tensor) const override {
        return tensor.attr("to")(Torch::get()->float64, nb::arg("copy") = true).attr("contiguous")();
    }
    nb::object flat(nb::handle tensor) const override { return tensor.attr("contiguous")().attr("reshape")(-1); }

  private:
    static const nb::object& torch() { return Torch::get()->module; }
};

}  // namespace

const Ways& torch_ways() {
    static const TorchWays ways;
    return ways;
}
