// Blocks of a cluster that use each other's shared memory: through cooperative groups, and by the PTX of their own.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cstdint>

namespace cg = cooperative_groups;

// Each block's values go to its neighbour; the threads of both count in the first block's memory.
extern "C" __global__ void __cluster_dims__(2, 1, 1) exchange(const int* x, int* out, int* counts) {
  __shared__ int values[64], count;
  auto cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank();
  values[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  if (threadIdx.x == 0) count = 0;
  cluster.sync();
  const int* other = cluster.map_shared_rank(values, rank ^ 1);
  out[blockIdx.x * 64 + threadIdx.x] = other[threadIdx.x] + 1000 * cluster.num_blocks() + 100000 * cluster.query_shared_rank(other);
  atomicAdd(cluster.map_shared_rank(&count, 0), 1);
  cluster.sync();
  if (rank == 0 && threadIdx.x == 0) counts[blockIdx.x / 2] = count;
}

// A histogram whose bins are spread over the blocks of a cluster of any size.
extern "C" __global__ void spread_histogram(int* bins, int per_block, const int* x, int n) {
  extern __shared__ int own[];
  auto cluster = cg::this_cluster();
  for (int i = threadIdx.x; i < per_block; i += blockDim.x) own[i] = 0;
  cluster.sync();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    atomicAdd(cluster.map_shared_rank(own, x[i] / per_block) + x[i] % per_block, 1);
  cluster.sync();
  for (int i = threadIdx.x; i < per_block; i += blockDim.x)
    atomicAdd(&bins[cluster.block_rank() * per_block + i], own[i]);
}

// The sum of a cluster's values, gathered by its first block.
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_sum(const int* x, int* out) {
  __shared__ int part, parts[4];
  auto cluster = cg::this_cluster();
  auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  const int sum = cg::reduce(warp, x[blockIdx.x * 128 + threadIdx.x], cg::plus<int>());
  if (warp.thread_rank() == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) part = parts[0] + parts[1] + parts[2] + parts[3];
  cluster.sync();
  if (cluster.block_rank() == 0 && threadIdx.x == 0) {
    int total = 0;
    for (int rank = 0; rank < 4; rank++) total += *cluster.map_shared_rank(&part, rank);
    out[blockIdx.x / 4] = total;
  }
  cluster.sync();
}

__device__ __forceinline__ unsigned shared_address(const void* p) { return __cvta_generic_to_shared(p); }

__device__ __forceinline__ unsigned at_rank(unsigned address, unsigned rank) {
  unsigned out;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(address), "r"(rank));
  return out;
}

__device__ __forceinline__ void wait_for(unsigned barrier, unsigned parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "AGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN; }" ::"r"(barrier), "r"(parity) : "memory");
}

// Every block puts a number into every other block's inbox: by a store and an arrival there, by st.async, and as a bulk
// copy from its own shared memory. out[block][way][sender]
extern "C" __global__ void __cluster_dims__(2, 2, 1) inboxes(int* out) {
  __shared__ alignas(16) int stored[4], sent[4], copied[16], packet[4];
  __shared__ uint64_t arrivals, bytes;
  auto cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), lane = threadIdx.x;
  if (lane == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 4;" ::"r"(shared_address(&arrivals)));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&bytes)));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], 80;" ::"r"(shared_address(&bytes)) : "memory");
  }
  if (lane < 4) packet[lane] = 100 * rank + lane;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  cluster.sync();
  if (lane < 4) {
    const unsigned inbox = at_rank(shared_address(&stored[rank]), lane);
    asm volatile("st.relaxed.cluster.shared::cluster.u32 [%0], %1;" ::"r"(inbox), "r"(10 * rank + lane) : "memory");
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(at_rank(shared_address(&arrivals), lane)) : "memory");
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];"
                 ::"r"(at_rank(shared_address(&sent[rank]), lane)), "r"(7 * rank + lane), "r"(at_rank(shared_address(&bytes), lane)) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], 16, [%2];"
                 ::"r"(at_rank(shared_address(&copied[4 * rank]), lane)), "r"(shared_address(packet)), "r"(at_rank(shared_address(&bytes), lane)) : "memory");
  }
  wait_for(shared_address(&arrivals), 0);
  wait_for(shared_address(&bytes), 0);
  const int block = blockIdx.y * gridDim.x + blockIdx.x;
  if (lane < 4) {
    out[block * 12 + lane] = stored[lane];
    out[block * 12 + 4 + lane] = sent[lane];
    out[block * 12 + 8 + lane] = copied[4 * lane + lane];
  }
  cluster.sync();
}
