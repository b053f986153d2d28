// From Python's arrays to the library's views, and back.
#pragma once

#include <nanobind/nanobind.h>
#include <batchnorm/core.hpp>

#include <vector>

#include "kinds/kind.hpp"

namespace nb = nanobind;

// What a call's arrays have in common: those of its first one. A call that has none yet has no kind.
struct Place {
    Kind kind = Kind::none;
    int device = on_cpu;
    Stream stream = nullptr;       // of the call, on a GPU
    const Scope* scope = nullptr;  // likewise

    bool on_gpu() const { return device != on_cpu; }
};

// Raises what a status says.
void check(const batchnorm::Status& status);

// The library's view of an array's memory, which it keeps alive.
class Array {
  public:
    // A tensor: an array of float32, float64, float16 or bfloat16.
    static Array tensor(const char* argument, nb::handle object, const Place& place);
    // A tensor to write to: `out`, or a new one like `like` if out is None.
    static Array output(const char* argument, nb::handle out, const Array& like, const Place& place);
    // gamma, beta, mean, ...: an array of any float type, a sequence or a number; None is absent.
    static Array param(const char* argument, nb::handle object, const Place& place);
    // weights=: an array of x's kind, or a sequence, of numbers or bools, in the type that the library takes beside x.
    static Array weights(nb::handle object, const Array& x, const Place& place);
    // A new array for a parameter's gradient: of its type, else float32, or float64 beside float64 data.
    static Array param_grad(const Array& param, const Array& x, const std::vector<std::int64_t>& shape,
                            const Place& place);
    // A new float64 array of x's kind; NumPy's, where that is JAX on the CPU.
    static Array statistic(const std::vector<std::int64_t>& shape, const Place& place);
    // On a GPU: a copy, as float64 in C order.
    static Array copy(const char* argument, nb::handle object, const Place& place);
    // On a GPU: new bytes. Only mut_view().data tells where they are.
    static Array bytes(std::int64_t count, const Place& place);

    Array(Array&& other) noexcept;
    Array& operator=(Array&&) = delete;
    ~Array();

    const batchnorm::View& view() const { return view_; }
    batchnorm::MutView mut_view() const;
    Kind kind() const { return kind_; }
    int device() const { return device_; }
    // After a computation: the array itself, in the type that the user should see.
    nb::object object() const;
    // Likewise: tells autograd that `out` was written to, as object() does.
    void tell_written() const;

  private:
    Array() = default;
    void import(const char* argument, nb::handle object, const Place& place, bool writable);
    void import_numpy(const char* argument, bool writable);
    void import_facts(const char* argument, const Place& place, bool writable);
    // A new array on a GPU, in C order.
    void own(nb::object fresh, const std::vector<std::int64_t>& shape, batchnorm::DType dtype, const Place& place);
    static Array fresh(const std::vector<std::int64_t>& shape, batchnorm::DType dtype, const Place& place);
    static Array on_cpu_from(const char* argument, nb::handle object);

    nb::object object_, owner_;
    Kind kind_ = Kind::none;
    int device_ = on_cpu;
    bool converted_ = false;  // from a sequence or a number: no type of the user's own
    bool given_out_ = false;
    batchnorm::View view_;
    Py_buffer buffer_{};  // of a NumPy array
    nb::object cast_to_;  // the dtype that object() converts to, where it is another than the memory's
};

// The shape of x and how its axes lie in memory: tensors that agree in it have the same masks.
std::vector<std::int64_t> memory_layout(const batchnorm::View& x);

// axis= as the library has it; the shape of the statistics that those axes of x keep.
batchnorm::Axes parse_axes(nb::handle axis);
std::vector<std::int64_t> kept_shape(const batchnorm::View& x, const batchnorm::Axes& axes);

double parse_number(const char* argument, nb::handle object);
int parse_threads(nb::handle object);  // None is 0
std::optional<Stream> parse_stream(nb::handle object);
