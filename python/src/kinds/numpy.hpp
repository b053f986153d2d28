// NumPy's arrays, and its dtypes, which CuPy and JAX use too.
#pragma once

#include "kind.hpp"

// What is looked up in NumPy once. Never freed: Python may be gone when it would be. Not initialized as C++ does it,
// under a lock: looking up imports, which lets other threads run, and one that waited for the lock with the GIL would
// wait for ever. Two threads may both do it.
struct NumPy {
    nb::object ndarray, asarray, float64, float64_dtype, float32_dtype, float16_dtype, uint16, empty, masked_array;

    static const NumPy& get() {
        static const NumPy* numpy = nullptr;
        if (!numpy) numpy = new NumPy;
        return *numpy;
    }

  private:
    NumPy();
};

inline bool is_numpy(nb::handle object) {
    return PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(NumPy::get().ndarray.ptr()));
}

bool is_masked(nb::handle array);

// The library's name for a dtype that it reads as it is; whether a parameter may have it.
std::optional<batchnorm::DType> numpy_type(nb::handle dtype);
bool is_numpy_float(nb::handle dtype);
// Whether its values are real numbers or bools.
bool is_numpy_real(nb::handle dtype);
bool is_numpy_text(nb::handle dtype);

// A NumPy array's memory. buffer is to be released; not set if the array has none that the library can read.
std::optional<batchnorm::DType> read_numpy(nb::handle array, Py_buffer& buffer);
