// The derivatives of batch_norm beyond its gradients.
#pragma once

#include <nanobind/nanobind.h>

void bind_higher_order(nanobind::module_& module);
