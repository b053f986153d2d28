// The libraries whose arrays are taken. What is particular to one lies in the file of its name beside this one.
#pragma once

#include <nanobind/nanobind.h>
#include <batchnorm/cuda.hpp>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace nb = nanobind;

enum class Kind { none, numpy, torch, cupy, jax };

const char* name(Kind kind);

// A library is known only once the process has imported it: before, nothing can be an array of its.
Kind kind_of(nb::handle object);

inline constexpr int on_cpu = -1;  // as a device

// "the CPU" or "cuda:0".
std::string device_text(int device);

// Raises TypeError, ValueError or RuntimeError with a printf-style message.
[[noreturn, gnu::format(printf, 2, 3)]] void raise(PyObject* error, const char* format, ...);

std::string text(nb::handle object);
std::string type_text(nb::handle object);

bool is_instance(nb::handle object, nb::handle type);

using batchnorm::cuda::Stream;

// An array, as it says itself.
struct Facts {
    batchnorm::View view;
    int device = on_cpu;
    bool read_only = false;
    nb::object owner;  // to be kept as long as the view is used, beside the array
};

// A library set to a device and to a stream, on which it makes and converts arrays, until this is destroyed.
class Scope {
  public:
    Stream stream = nullptr;

    virtual ~Scope() = default;
    // An array that work on the stream reads or writes. Its memory must not be used again for another stream before.
    virtual void touch(nb::handle) const {}
};

// What a library does with arrays on GPUs, JAX on the CPU too; in a scope, unless it says otherwise.
class Ways {
  public:
    virtual ~Ways() = default;

    // Also without a scope. Work on the stream comes after what is still computing the array.
    virtual void read(const char* argument, nb::handle array, Stream stream, Facts& facts) const = 0;
    virtual int device(const char* argument, nb::handle array) const = 0;

    // That of the device of x, and of its current stream there if none is asked for.
    virtual std::unique_ptr<Scope> enter(nb::handle x, int device, std::optional<Stream> stream) const = 0;

    // New arrays, of undefined content, in C order and like another.
    virtual nb::object empty(const std::vector<std::int64_t>& shape, nb::handle dtype, int device) const = 0;
    virtual nb::object empty_like(nb::handle array) const = 0;
    // Where their elements are.
    virtual void* data(nb::handle array) const = 0;
    // A dtype by its name.
    virtual nb::object dtype(const char* name) const { return nb::str(name); }

    // Without waiting, as far as the library can.
    virtual nb::object full(double value, int device) const = 0;  // float64, of rank 0
    virtual nb::object from_numpy(nb::handle array, int device) const = 0;
    virtual nb::object cast(nb::handle array, nb::handle dtype) const = 0;
    virtual nb::object copy(nb::handle array) const = 0;  // as float64, in C order
    virtual nb::object flat(nb::handle array) const = 0;  // of rank 1, in C order

    // Whether results may be used only once they are there: the library knows nothing of the stream.
    virtual bool waits() const { return false; }
};

// Of a kind that has arrays on GPUs.
const Ways& ways(Kind kind);

// Objects whose __enter__ was called, for their __exit__ in the other order.
class Entered {
  public:
    Entered() = default;
    Entered(const Entered&) = delete;
    ~Entered();
    nb::object enter(nb::object context);

  private:
    std::vector<nb::object> contexts_;
};

// A module that the process has imported, and that has these attributes already: another thread may be amid the import.
nb::object imported(const char* module, std::initializer_list<const char*> attributes);

// Fills in the rank, the shape and the strides, which come in units of so many bytes.
void set_shape(const char* argument, nb::handle shape, nb::handle strides, std::int64_t unit, batchnorm::View& view);

inline constexpr const char* accepted_types = "expected float32, float64, float16 or bfloat16";
