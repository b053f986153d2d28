// JAX's arrays on GPUs, which cannot be written to but when they are new, and whose streams are its own.
#pragma once

#include "kind.hpp"

bool is_jax(nb::handle object);
const Ways& jax_ways();
