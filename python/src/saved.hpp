// bn.Saved: what forward leaves for backward.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arrays.hpp"

// Owns its statistics; Python's arrays of them are made when asked for, which keeps a small call short. Those of an
// array on a GPU are arrays there.
struct Saved {
    struct OnGpu {
        Array mean, inv_std;
        std::optional<Array> var, counts;
        int device;
    };

    std::vector<double> mean, inv_std, var;  // var: empty if it is not known
    std::vector<double> counts;              // where each statistic has a count of its own
    double count = 0;                        // else of all; 0: not known
    std::shared_ptr<OnGpu> on_gpu;           // in the place of the vectors; the same of a copy
    std::vector<std::int64_t> shape;
    nb::object axis;
    Kind kind = Kind::numpy;
    // Forward's settings.
    std::int64_t group_size = 0;  // 0: none
    batchnorm::Activation activation = batchnorm::Activation::none;
    double negative_slope = 0.01;
    nb::object mask = nb::none(), weights = nb::none();
    std::vector<std::int64_t> mask_layout;  // memory_layout of forward's x; empty if it is not known

    // For forward to fill. counts: each statistic has a count of its own.
    Saved(const std::vector<std::int64_t>& shape, nb::object axis, double count, bool counts, const Place& place);
    // By hand.
    Saved(nb::object mean, nb::object inv_std, nb::object var, nb::object count, nb::object axis, nb::object group_size,
          nb::object activation, nb::object negative_slope, nb::object mask, nb::object weights);

    // One count for all, or room for one for each.
    void set_count(double all);
    void add_counts(const Place& place);

    batchnorm::MutStats outputs();
    // What update_running takes besides statistics(), on the CPU.
    batchnorm::Param variance() const;
    // For a backward that needs no mask; statistics on another device are a ValueError.
    batchnorm::Stats statistics(const Place& place) const;
    // For a backward over x; a mask that cannot fit x is a ValueError, too.
    batchnorm::Stats inputs(const batchnorm::View& x, const Place& place) const;

  private:
    std::uint8_t* mask_data() const;
};

const Saved& as_saved(nb::handle object);

// activation= and group_size= as the library has them, and back.
batchnorm::Activation parse_activation(nb::handle activation);
std::int64_t parse_group_size(nb::handle group_size);
nb::object activation_name(batchnorm::Activation activation);

void bind_saved(nb::module_& module);
