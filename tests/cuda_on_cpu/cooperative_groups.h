// Barriers of clusters and of whole grids.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
    static void sync() { cuda_on_cpu::sync(cuda_on_cpu::Meeting::cluster_sync); }
    static unsigned block_rank() { return cuda_on_cpu::cluster_rank(); }
    static unsigned num_blocks() { return cuda_on_cpu::cluster_size(); }
};

struct grid_group {
    static void sync() { cuda_on_cpu::sync(cuda_on_cpu::Meeting::grid_sync); }
};

inline cluster_group this_cluster() { return {}; }
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
