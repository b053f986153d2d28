// CuPy's arrays.
#pragma once

#include "kind.hpp"

bool is_cupy(nb::handle object);
const Ways& cupy_ways();
