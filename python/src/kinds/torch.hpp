// PyTorch's tensors, on the CPU and on GPUs.
#pragma once

#include "dlpack.hpp"

// What is looked up in PyTorch once, after the process has imported it.
struct Torch {
    nb::object module, tensor, float32, float64, float16, bfloat16, strided;
    ReadDLTensor read;  // null where this PyTorch has none
    nb::object is_tracing, dispatch_modes, forward_ad, increment_version;

    static const Torch* get();

  private:
    explicit Torch(nb::object torch);
};

bool is_torch(nb::handle object);

std::optional<batchnorm::DType> torch_type(nb::handle dtype);
bool requires_grad(nb::handle tensor);
// Raises TypeError for a tensor that PyTorch traces: it records its own functions, and would take the memory of results
// for values.
void refuse_trace(const char* argument);
// For autograd, which refuses to go back through what was overwritten.
void tell_written(nb::handle tensor);

// What its ways' read does, which tensors on the CPU go through too.
void read_torch(const char* argument, nb::handle tensor, Facts& facts);

const Ways& torch_ways();
