// How the bindings call the library.
#pragma once

#include <memory>
#include <optional>

#include "arrays.hpp"

// Runs a call of the library without the GIL, and raises what it reports.
template <class Function>
void compute(const Function& function) {
    batchnorm::Status status;
    {
        const nb::gil_scoped_release release;
        status = function();
    }
    check(status);
}

// A call: where it computes, which its first array tells. While there is one on a GPU, that is the thread's device, and
// the arrays' library is set to the call's stream.
class Call {
  public:
    // on_cpu_alone: the name of a function that there is none of for GPUs, which is then a RuntimeError.
    Call(const char* argument, nb::handle x, nb::handle stream, const char* on_cpu_alone = nullptr);
    Call(const Call&) = delete;
    ~Call();

    const Array& first() const { return first_; }
    const Place& place() const { return place_; }

    // The function of core.hpp or that of cuda.hpp, with these arguments before the stream and the options.
    template <auto OnCpu, auto OnGpu, class... Arguments>
    void run(batchnorm::Op op, const batchnorm::Axes& axes, batchnorm::Options& options,
             const Arguments&... arguments) const {
        if (!place_.on_gpu()) return compute([&] { return OnCpu(arguments..., options); });
        const Array workspace = make_workspace(op, axes, options);
        compute([&] { return finish(OnGpu(arguments..., place_.stream, options)); });
    }

  private:
    Array make_workspace(batchnorm::Op op, const batchnorm::Axes& axes, batchnorm::Options& options) const;
    batchnorm::Status finish(const batchnorm::Status& launched) const noexcept;

    std::optional<Stream> requested_;
    Array first_;
    Place place_;
    std::unique_ptr<Scope> scope_;
    int device_before_ = on_cpu;  // where it was another
};
