// The matrix products with bf16 weights on Hopper: bulk copies by a warp that does nothing else, mbarriers, wgmma with
// the weights in registers.
//
// The packed weight is the one of the other variants: what a lane gives to mma.m16n8k16 is what it gives to a warp's 16
// rows of wgmma. So is the operand: panels of 64-byte rows in the swizzle of a matrix descriptor.
//
// The order of the sums is that of the other variants too, but how wgmma and mma.sync add inside a step is not
// documented and may differ in the last bit. So a weight is made for the one or the other, and all products with it, for one row
// or for 500, are of one kind.
#include "linear.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void copy_bulk(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// A K-major operand in rows of 64 bytes with the 64-byte swizzle: groups of eight rows are 512 bytes apart.
__device__ __forceinline__ uint64_t descriptor(uint32_t address) {
  return (uint64_t(address) & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(512 >> 4) << 32 | uint64_t(2) << 62;
}

// d[64][kN] += a[64][16] b[kN][16]: a warp gives 16 rows of a and gets those of d, in the layout of mma.m16n8k16.
template <int kN>
__device__ __forceinline__ void wgmma(float (*d)[4], uint4 a, uint64_t b);
template <>
__device__ __forceinline__ void wgmma<8>(float (*d)[4], uint4 a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma<48>(float (*d)[4], uint4 a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23}, "
      "{%24, %25, %26, %27}, %28, 1, 1, 1, 0;"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),
        "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b));
}
template <>
__device__ __forceinline__ void wgmma<64>(float (*d)[4], uint4 a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),
        "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
        "+f"(d[7][2]), "+f"(d[7][3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b));
}

// kSpan tokens for each wgmma, kSpans of them; two warp groups multiply kNT times 64 outputs each.
template <int kNT, int kSpan, int kSpans, int kStages>
struct Hopper {
  static constexpr int kThreads = 384;
  static constexpr int kRows = kSpan * kSpans;
  static constexpr int kMT = kRows / 8;
  static constexpr int kKS = 64;
  static constexpr int kTiles = 8 * kNT;
  static constexpr int kTileBytes = kKS / 16 * 512;
  static constexpr int kWeightBytes = kTiles * kTileBytes;
  static constexpr int kPanelBytes = kRows * 64;
  static constexpr int kStageBytes = kWeightBytes + 2 * kPanelBytes;
  using End = Sums<Bf16, 256, kNT, kMT>;
  static_assert(kPanelBytes % 512 == 0 && kSpan * 64 % 512 == 0, "the swizzle repeats every 512 bytes");
  static_assert(kStages * kStageBytes + 1024 <= 227 * 1024, "what a multiprocessor gives to a block");

  struct Place {  // of the block
    uint32_t row_block, part, column_block, tile_a, tile_b, k, steps, stages;
  };

  __device__ static __forceinline__ void run(const LinearArgs &args) {
    extern __shared__ __align__(1024) uint8_t storage[];  // the barriers lie behind the ring
    const uint32_t ring = shared_address(storage), full = ring + kStages * kStageBytes, empty = full + kStages * 8;
    const bool swiglu = args.epilogue == LINEAR_SWIGLU;
    Place at;
    at.row_block = blockIdx.x % args.row_blocks;
    const uint32_t rest = blockIdx.x / args.row_blocks;
    at.part = rest % args.parts;
    at.column_block = rest / args.parts;
    at.tile_a = at.column_block * (swiglu ? 8 : kTiles);
    at.tile_b = swiglu ? at.tile_a : at.tile_a + 8;
    at.k = at.part * args.part;
    at.steps = (min(args.k, at.k + args.part) - at.k + 15) / 16;
    at.stages = (at.steps + 3) / 4;

    const uint32_t end = weft_rows(args.rows), begin = at.row_block * kRows;
    if (begin >= end) return;
    const uint32_t rows = min(end - begin, uint32_t(kRows));
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; i++) {
        barrier_init(full + i * 8, 1);
        barrier_init(empty + i * 8, 8);
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    clear(args, at, ring, rows, swiglu);
    __syncthreads();

    if (threadIdx.x < 128) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
      if (threadIdx.x == 0) produce(args, at, ring, full, empty, begin, rows, swiglu);
      return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const uint32_t thread = threadIdx.x - 128, warp = thread / 32, lane = thread % 32;
    float sums[kNT][kMT][4];
    clear_sums(sums);
    consume(sums, at, ring, full, empty, warp, lane);
    if (args.parts > 1 &&
        !End::add_parts(args, sums, at.column_block * args.row_blocks + at.row_block, at.part, thread, 0, rows))
      return;
    End::finish(args, sums, (at.tile_a + warp) * 16, (at.tile_b + warp) * 16, begin, rows, 0, 0, lane);
  }

  // What no copy reaches, rows and tiles past the ends, is zero in all stages.
  __device__ static __forceinline__ void clear(const LinearArgs &args, const Place &at, uint32_t ring, uint32_t rows,
                                               bool swiglu) {
    auto zero = [](uint32_t address) {
      asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
    };
#pragma unroll 1
    for (uint32_t stage = 0; stage < kStages; stage++) {
      const uint32_t base = ring + stage * kStageBytes;
#pragma unroll 1
      for (uint32_t i = rows * 4 + threadIdx.x; i < kRows * 4; i += kThreads) {
        zero(base + kWeightBytes + i * 16);
        zero(base + kWeightBytes + kPanelBytes + i * 16);
      }
#pragma unroll 1
      for (uint32_t q = 0; q < kTiles; q++)
        if ((q < 8 ? at.tile_a + q : at.tile_b + q - 8) >= args.tiles)
#pragma unroll 1
          for (uint32_t i = threadIdx.x; i < kTileBytes / 16; i += kThreads) zero(base + q * kTileBytes + i * 16);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // for wgmma, which reads as copies write
  }

  // One thread copies: the units of each tile, and the rows of each panel, are contiguous.
  __device__ static __forceinline__ void produce(const LinearArgs &args, const Place &at, uint32_t ring, uint32_t full,
                                                 uint32_t empty, uint32_t begin, uint32_t rows, bool swiglu) {
    const uint32_t units = (args.k + 15) / 16;
    const uint32_t left_a = min(args.tiles - min(args.tiles, at.tile_a), 8u);
    const uint32_t left_b = kNT == 1 ? 0 : min(args.tiles - min(args.tiles, at.tile_b), 8u);
    const uint4 *x = args.x + (size_t(at.k / 32) * args.room + begin) * 4;
    const uint4 *a = args.a + (size_t(at.tile_a) * units + at.k / 16) * 32;
    const uint4 *b = (swiglu ? args.b : args.a) + (size_t(at.tile_b) * units + at.k / 16) * 32;
    uint32_t stage = 0, parity = 1;  // the first round finds the stages free
#pragma unroll 1
    for (uint32_t i = 0; i < at.stages; i++) {
      const uint32_t steps = min(at.steps - i * 4, 4u);
      const uint32_t to = ring + stage * kStageBytes, barrier = full + stage * 8;
      barrier_wait(empty + stage * 8, parity);
      barrier_expect(barrier, (left_a + left_b) * steps * 512 + 2 * rows * 64);
#pragma unroll 1
      for (uint32_t q = 0; q < left_a; q++)
        copy_bulk(to + q * kTileBytes, a + (size_t(q) * units + i * 4) * 32, steps * 512, barrier);
      if (kNT == 2)
#pragma unroll 1
        for (uint32_t q = 8; q < 8 + left_b; q++)
          copy_bulk(to + q * kTileBytes, b + (size_t(q - 8) * units + i * 4) * 32, steps * 512, barrier);
#pragma unroll 1
      for (uint32_t panel = 0; panel < 2; panel++) {
        // Past the last panel any numbers do: the weights there are zero.
        const uint32_t source = steps > 2 ? i * 2 + panel : i * 2;
        copy_bulk(to + kWeightBytes + panel * kPanelBytes, x + size_t(source) * args.room * 4, rows * 64, barrier);
      }
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }

  __device__ static __forceinline__ void consume(float (&sums)[kNT][kMT][4], const Place &at, uint32_t ring,
                                                 uint32_t full, uint32_t empty, uint32_t warp, uint32_t lane) {
    uint32_t stage = 0, parity = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < at.stages; i++) {
      const uint32_t from = ring + stage * kStageBytes, weights = from + warp * kTileBytes + lane * 16;
      const uint32_t steps = min(at.steps - i * 4, 4u);
      barrier_wait(full + stage * 8, parity);
      uint4 a[kNT][4];
#pragma unroll
      for (int j = 0; j < kNT; j++)
#pragma unroll
        for (int step = 0; step < 4; step++)
          a[j][step] =
              step < steps ? load_shared_16(weights + j * 8 * kTileBytes + step * 512) : make_uint4(0, 0, 0, 0);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int step = 0; step < 4; step++) {
        const uint32_t panel = from + kWeightBytes + step / 2 * kPanelBytes + step % 2 * 32;
#pragma unroll
        for (int j = 0; j < kNT; j++)
#pragma unroll
          for (int span = 0; span < kSpans; span++)
            wgmma<kSpan>(&sums[j][span * kSpan / 8], a[j][step], descriptor(panel + span * kSpan * 64));
      }
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      if (lane == 0) barrier_arrive(empty + stage * 8);
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
};

#else

// Elsewhere the entry points are there and do nothing: the host does not launch them.
template <int, int, int, int>
struct Hopper {
  static constexpr int kThreads = 384;
  __device__ static __forceinline__ void run(const LinearArgs &) {}
};

#endif

// Named by the rows of a block; `_two` multiplies two weights side by side.
WEFT_LINEAR_ENTRY(weft_linear_hopper_8, 1, Hopper<1, 8, 1, 8>)
WEFT_LINEAR_ENTRY(weft_linear_hopper_48, 1, Hopper<1, 48, 1, 8>)
WEFT_LINEAR_ENTRY(weft_linear_hopper_96, 1, Hopper<1, 48, 2, 6>)
WEFT_LINEAR_ENTRY(weft_linear_hopper_144, 1, Hopper<1, 48, 3, 6>)
WEFT_LINEAR_ENTRY(weft_linear_hopper_two_8, 1, Hopper<2, 8, 1, 6>)
WEFT_LINEAR_ENTRY(weft_linear_hopper_two_48, 1, Hopper<2, 48, 1, 5>)
WEFT_LINEAR_ENTRY(weft_linear_hopper_two_96, 1, Hopper<2, 48, 2, 4>)
