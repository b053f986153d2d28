// What the bindings share.
#pragma once

#include "arrays.hpp"
#include "saved.hpp"

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

inline const Saved& as_saved(nb::handle object) {
    if (!nb::isinstance<Saved>(object))
        raise(PyExc_TypeError, "saved is %s, expected bn.Saved", nb::type_name(object.type()).c_str());
    return nb::cast<const Saved&>(object);
}
