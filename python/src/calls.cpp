#include "calls.hpp"

#include "kinds/torch.hpp"

namespace cuda = batchnorm::cuda;

Call::Call(const char* argument, nb::handle x, nb::handle stream, const char* on_cpu_alone)
    : requested_(parse_stream(stream)),
      first_(Array::tensor(argument, x, {Kind::none, on_cpu, requested_.value_or(nullptr), nullptr})) {
    place_ = {first_.kind(), first_.device(), nullptr, nullptr};
    if (place_.kind == Kind::torch) refuse_trace(argument);
    if (!place_.on_gpu()) {
        if (requested_)
            raise(PyExc_ValueError, "stream is given, but %s is on the CPU, where there are none", argument);
        if (place_.kind == Kind::jax) scope_ = ways(place_.kind).enter(x, on_cpu, std::nullopt);
        return;
    }
    if (on_cpu_alone)
        raise(PyExc_RuntimeError, "%s computes on the CPU alone, and %s is on %s", on_cpu_alone, argument,
              device_text(place_.device).c_str());
    scope_ = ways(place_.kind).enter(x, place_.device, requested_);
    place_.stream = scope_->stream;
    place_.scope = scope_.get();
    scope_->touch(x);
    int before = 0;
    check(cuda::get_device(before));
    if (before == place_.device) return;
    check(cuda::set_device(place_.device));
    device_before_ = before;
}

Call::~Call() {
    if (device_before_ != on_cpu) cuda::set_device(device_before_);
}

Array Call::make_workspace(batchnorm::Op op, const batchnorm::Axes& axes, batchnorm::Options& options) const {
    // What is wrong with the arguments is the function's to say, with its name.
    std::size_t bytes = 0;
    if (!cuda::workspace_bytes(op, first_.view(), axes, options, bytes).ok()) bytes = 0;
    Array workspace = Array::bytes(static_cast<std::int64_t>(bytes), place_);
    options.workspace = {workspace.mut_view().data, bytes};
    return workspace;
}

batchnorm::Status Call::finish(const batchnorm::Status& launched) const noexcept {
    return launched.ok() && ways(place_.kind).waits() ? cuda::synchronize(place_.stream) : launched;
}
