// bn.Saved: what forward leaves for backward.
#pragma once

#include <string>
#include <vector>

#include "arrays.hpp"

// Owns its statistics; Python's arrays of them are made when asked for, which keeps a small call short.
struct Saved {
    std::vector<double> mean, inv_std, var;  // var: empty if it is not known
    double count = 0;                        // 0: not known
    std::vector<std::int64_t> shape;
    nb::object axis;
    Kind kind = Kind::numpy;

    // For forward to fill.
    Saved(const std::vector<std::int64_t>& shape, nb::object axis, double count, Kind kind);
    // By hand.
    Saved(nb::object mean, nb::object inv_std, nb::object var, nb::object count, nb::object axis);

    batchnorm::MutStats outputs();
    batchnorm::Stats inputs() const;
};

void bind_saved(nb::module_& module);
