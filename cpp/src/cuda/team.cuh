// Blocks that work on the same statistics and wait for each other: those of a cluster, or of the whole grid.
#pragma once

#include <cooperative_groups.h>

#include "work.hpp"

namespace batchnorm::cuda {

enum class TeamOf : unsigned char { block, cluster, grid };

struct Team {
    TeamOf of;
    int64_t index, count;  // which team, of how many
    int64_t rank, size;    // which block of the team, of how many

    __device__ Team(TeamOf kind, int64_t blocks) : of(kind), size(kind == TeamOf::grid ? gridDim.x : blocks) {
        index = blockIdx.x / size;
        count = gridDim.x / size;
        rank = blockIdx.x % size;
    }

    // All blocks see what each of them has written before.
    __device__ void wait() const {
        switch (of) {
            case TeamOf::block: return __syncthreads();
            case TeamOf::cluster: return wait_for_cluster();
            case TeamOf::grid: return cooperative_groups::this_grid().sync();
        }
    }

  private:
    __device__ static void wait_for_cluster() {
// Older devices have none, and are not asked to.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
        cooperative_groups::this_cluster().sync();
#endif
    }
};

}  // namespace batchnorm::cuda
