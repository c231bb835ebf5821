// CUB's primitives, as a program uses them: a sort and a histogram within blocks, and a scan in one pass over memory, whose
// blocks look back at the ones before them.

#include <cub/agent/single_pass_scan_operators.cuh>
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>
#include <cub/warp/warp_exchange.cuh>
#include <cub/warp/warp_merge_sort.cuh>

constexpr int THREADS = 64;
constexpr int ITEMS = 3;
constexpr int TILE = THREADS * ITEMS;

// Sorts each block's tile of pairs by the keys, the values of equal keys in their order.
extern "C" __global__ void __launch_bounds__(THREADS) sort_tiles(float *keys, unsigned *values) {
    using Sort = cub::BlockRadixSort<float, THREADS, ITEMS, unsigned, 6>;
    __shared__ typename Sort::TempStorage storage;
    float key[ITEMS];
    unsigned value[ITEMS];
    cub::LoadDirectBlocked(threadIdx.x, keys + blockIdx.x * TILE, key);
    cub::LoadDirectBlocked(threadIdx.x, values + blockIdx.x * TILE, value);
    Sort(storage).SortBlockedToStriped(key, value);
    cub::StoreDirectStriped<THREADS>(threadIdx.x, keys + blockIdx.x * TILE, key);
    cub::StoreDirectStriped<THREADS>(threadIdx.x, values + blockIdx.x * TILE, value);
}

// Counts the bytes of each block's tile.
extern "C" __global__ void __launch_bounds__(THREADS) count_bytes(const unsigned char *bytes, unsigned *counts) {
    using Histogram = cub::BlockHistogram<unsigned char, THREADS, ITEMS, 256, cub::BLOCK_HISTO_ATOMIC>;
    __shared__ typename Histogram::TempStorage storage;
    __shared__ unsigned bins[256];
    unsigned char byte[ITEMS];
    cub::LoadDirectStriped<THREADS>(threadIdx.x, bytes + blockIdx.x * TILE, byte);
    Histogram(storage).Histogram(byte, bins);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += THREADS) counts[blockIdx.x * 256 + i] = bins[i];
}

using State = cub::ScanTileState<int>;

// Prepares `state`, (tiles + 32) words of 64 bits.
extern "C" __global__ void scan_begin(void *state, int tiles) {
    State tile_state;
    tile_state.Init(tiles, state, 0);
    tile_state.InitializeStatus(tiles);
}

// The sums of everything up to each number, in one pass.
extern "C" __global__ void __launch_bounds__(THREADS) scan_tiles(const int *x, int *out, int n, void *state, int tiles) {
    using Load = cub::BlockLoad<int, THREADS, ITEMS, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
    using Store = cub::BlockStore<int, THREADS, ITEMS, cub::BLOCK_STORE_WARP_TRANSPOSE>;
    using Scan = cub::BlockScan<int, THREADS, cub::BLOCK_SCAN_WARP_SCANS>;
    using Prefix = cub::TilePrefixCallbackOp<int, cuda::std::plus<>, State>;
    __shared__ union {
        typename Load::TempStorage load;
        typename Store::TempStorage store;
        struct {
            typename Prefix::TempStorage prefix;
            typename Scan::TempStorage scan;
        } sum;
    } storage;
    State tile_state;
    tile_state.Init(tiles, state, 0);
    int item[ITEMS];
    const int start = blockIdx.x * TILE, valid = min(TILE, n - start);
    Load(storage.load).Load(x + start, item, valid, 0);
    __syncthreads();
    if (blockIdx.x == 0) {
        int total;
        Scan(storage.sum.scan).InclusiveSum(item, item, total);
        if (threadIdx.x == 0) tile_state.SetInclusive(0, total);
    } else {
        Prefix prefix(tile_state, storage.sum.prefix, cuda::std::plus<>{}, static_cast<int>(blockIdx.x));
        Scan(storage.sum.scan).InclusiveSum(item, item, prefix);
    }
    __syncthreads();
    Store(storage.store).Store(out + start, item, valid);
}

// Sorts each warp's keys, and leaves them striped over its lanes.
extern "C" __global__ void __launch_bounds__(THREADS) sort_warps(int *keys) {
    using Sort = cub::WarpMergeSort<int, ITEMS, 32>;
    using Exchange = cub::WarpExchange<int, ITEMS, 32>;
    constexpr int WARPS = THREADS / 32;
    __shared__ typename Sort::TempStorage sorting[WARPS];
    __shared__ typename Exchange::TempStorage exchanging[WARPS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int *mine = keys + (blockIdx.x * WARPS + warp) * 32 * ITEMS;
    // The merge reads one key past the last, and does not use it.
    for (int i = threadIdx.x; i < sizeof(sorting) / 4; i += THREADS) reinterpret_cast<int *>(sorting)[i] = 0;
    __syncthreads();
    int key[ITEMS];
    cub::LoadDirectBlocked(lane, mine, key);
    Sort(sorting[warp]).Sort(key, [](int a, int b) { return a < b; });
    Exchange(exchanging[warp]).BlockedToStriped(key, key);
    cub::StoreDirectStriped<32>(lane, mine, key);
}
