// How the bindings call the library.
#pragma once

#include "arrays.hpp"

// Runs a call of the library without the GIL, and raises what it reports.
template <class Call>
void compute(const Call& call) {
    batchnorm::Status status;
    {
        const nb::gil_scoped_release release;
        status = call();
    }
    check(status);
}
