// New arrays for results.
#pragma once

#include <nanobind/nanobind.h>
#include <batchnorm/core.hpp>

#include <vector>

namespace nb = nanobind;

// Before all others, once.
void init_outputs();

// A new NumPy array in C order.
nb::object numpy_empty(const std::vector<std::int64_t>& shape, batchnorm::DType dtype);

// A new NumPy array of bytes; where an array's are.
nb::object numpy_bytes(std::int64_t count);
std::uint8_t* bytes_of(nb::handle numpy_array);

// What np.empty_like(like, subok=False) gives, large ones in memory that is used again. `view` is like's.
nb::object numpy_output(nb::handle like, const batchnorm::View& view);

// What torch.empty_like(like) gives, likewise.
nb::object torch_output(nb::handle torch, nb::handle like, const batchnorm::View& view);
