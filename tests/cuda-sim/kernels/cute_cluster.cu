// A matrix product for a cluster of two blocks, see cute_specialised.cuh.
#include "cute_specialised.cuh"

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    cute_multicast(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                   const __grid_constant__ CUtensorMap map_c, int k) {
  specialised<2>(map_a, map_b, map_c, k);
}
