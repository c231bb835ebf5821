// Rows that are looked up, kept, selected and copied: what a step says is read where it lies in device memory.
//
// One block per row of the output; rows beyond the count have no work. Columns are moved N at a time: 4 when they are a
// multiple of 4, else 1 (the entries named _ragged).
#include "floats.cuh"
#include "operand.cuh"

template <int N>
__device__ __forceinline__ void copy_row(const float *from, float *to, uint32_t cols) {
  const Floats<N> *source = reinterpret_cast<const Floats<N> *>(from);
  Floats<N> *target = reinterpret_cast<Floats<N> *>(to);
  for (uint32_t at = threadIdx.x; at < cols / N; at += blockDim.x) target[at] = source[at];
}

// out[m] = tokens[canvas] + row_table[row] + col_table[col] + bias[sequence], summed in this order.
template <int N>
__device__ __forceinline__ void embed_row(const WeftStep &step, const float *__restrict__ tokens,
                                          const float *__restrict__ row_table, const float *__restrict__ col_table,
                                          const float *__restrict__ bias, const uint32_t *__restrict__ canvas,
                                          uint32_t positions, float *__restrict__ out, uint32_t cols) {
  if (blockIdx.x >= step.counts->rows) return;
  const WeftRow row = step.rows[blockIdx.x];
  const WeftSequence sequence = step.sequences[row.sequence];
  // The tokens of a draft tree's nodes lie behind those of the grid.
  const uint32_t place = row.kind == WEFT_SLOT_SCRATCH ? sequence.width * sequence.height + row.slot : row.at;
  const uint32_t token = canvas[sequence.image * positions + place];
  const Floats<N> *a = reinterpret_cast<const Floats<N> *>(tokens + (size_t)token * cols);
  const Floats<N> *b = reinterpret_cast<const Floats<N> *>(row_table + (size_t)(row.at / sequence.width) * cols);
  const Floats<N> *c = reinterpret_cast<const Floats<N> *>(col_table + (size_t)(row.at % sequence.width) * cols);
  const Floats<N> *d = reinterpret_cast<const Floats<N> *>(bias + (size_t)row.sequence * cols);
  Floats<N> *to = reinterpret_cast<Floats<N> *>(out + (size_t)blockIdx.x * cols);
  for (uint32_t at = threadIdx.x; at < cols / N; at += blockDim.x) {
    const Floats<N> va = a[at], vb = b[at], vc = c[at], vd = d[at];
    Floats<N> sum;
#pragma unroll
    for (int j = 0; j < N; ++j) sum.v[j] = va.v[j] + vb.v[j] + vc.v[j] + vd.v[j];
    to[at] = sum;
  }
}

// Row m of x predicts the position after it: of the prompt's only the last does, of a draft tree's those are kept that
// `positions` counts behind the grid.
template <int N>
__device__ __forceinline__ void keep_state(const WeftStep &step, const float *__restrict__ x, uint32_t positions,
                                           float *__restrict__ states, uint32_t cols) {
  if (blockIdx.x >= step.counts->rows) return;
  const WeftRow row = step.rows[blockIdx.x];
  const WeftSequence sequence = step.sequences[row.sequence];
  const uint32_t grid = sequence.width * sequence.height;
  uint32_t next = row.slot + 1;
  if (row.kind == WEFT_SLOT_PREFIX) {
    if (next != sequence.prefix_len) return;
    next = 0;
  } else if (row.kind == WEFT_SLOT_SCRATCH) {
    next = grid + row.slot;
  } else if (row.kind == WEFT_SLOT_OPEN || next >= grid) {
    return;
  }
  if (next >= positions) return;
  copy_row<N>(x + (size_t)blockIdx.x * cols, states + (size_t)(row.sequence * positions + next) * cols, cols);
}

// out[m] = table[inputs[m]]; the rows of `behind` follow the `room` of the table.
template <int N>
__device__ __forceinline__ void gather_row(const WeftStep &step, const float *__restrict__ table,
                                           const float *__restrict__ behind, uint32_t room, float *__restrict__ out,
                                           uint32_t cols) {
  if (blockIdx.x >= step.counts->rows) return;
  const uint32_t from = step.inputs[blockIdx.x];
  const float *found = from < room ? table + (size_t)from * cols : behind + (size_t)(from - room) * cols;
  copy_row<N>(found, out + (size_t)blockIdx.x * cols, cols);
}

// out[m] = latents of the row's position, zeros of a row that has none.
template <int N>
__device__ __forceinline__ void gather_latent(const WeftStep &step, const float *__restrict__ latents,
                                              uint32_t positions, float *__restrict__ out, uint32_t cols) {
  if (blockIdx.x >= step.counts->rows) return;
  const WeftRow row = step.rows[blockIdx.x];
  float *to = out + (size_t)blockIdx.x * cols;
  if (row.kind == WEFT_SLOT_OPEN && row.at != WEFT_NONE) {
    const uint32_t place = step.sequences[row.sequence].image * positions + row.at;
    copy_row<N>(latents + (size_t)place * cols, to, cols);
  } else {
    for (uint32_t at = threadIdx.x; at < cols; at += blockDim.x) to[at] = 0.0f;
  }
}

// out[i] = x[predictions[i]].
template <int N>
__device__ __forceinline__ void select_row(const WeftStep &step, const float *__restrict__ x, float *__restrict__ out,
                                           uint32_t cols) {
  if (blockIdx.x >= step.counts->predictions) return;
  copy_row<N>(x + (size_t)step.predictions[blockIdx.x] * cols, out + (size_t)blockIdx.x * cols, cols);
}

// out[i] = [states[source.state]; tokens[canvas[source.token]]].
template <int N>
__device__ __forceinline__ void gather_source(const WeftStep &step, const float *__restrict__ states,
                                              const float *__restrict__ tokens, const uint32_t *__restrict__ canvas,
                                              const WeftOut &out, uint32_t cols) {
  if (blockIdx.x >= step.counts->sources) return;
  const WeftSource source = step.sources[blockIdx.x];
  const auto copy = [&](const float *from, uint32_t column) {
    const Floats<N> *of = reinterpret_cast<const Floats<N> *>(from);
    for (uint32_t at = threadIdx.x; at < cols / N; at += blockDim.x) {
      const Floats<N> values = of[at];  // in one load
      store(out, blockIdx.x, 2 * cols, column + at * N, values.v);
    }
  };
  copy(states + (size_t)source.state * cols, 0);
  copy(tokens + (size_t)canvas[source.token] * cols, cols);
}

// x[to] = x[from]; targets lie beyond the rows in use, so that no row is both.
template <int N>
__device__ __forceinline__ void copy_one(const WeftStep &step, float *x, uint32_t cols) {
  if (blockIdx.x >= step.counts->copies) return;
  const WeftCopy copy = step.copies[blockIdx.x];
  copy_row<N>(x + (size_t)copy.from * cols, x + (size_t)copy.to * cols, cols);
}

#define WEFT_ROWS(SUFFIX, N)                                                                                          \
  extern "C" __global__ void embed##SUFFIX(WeftStep step, const float *tokens, const float *row_table,                \
                                           const float *col_table, const float *bias, const uint32_t *canvas,         \
                                           uint32_t positions, float *out, uint32_t cols) {                           \
    embed_row<N>(step, tokens, row_table, col_table, bias, canvas, positions, out, cols);                             \
  }                                                                                                                   \
  extern "C" __global__ void keep_states##SUFFIX(WeftStep step, const float *x, uint32_t positions, float *states,    \
                                                 uint32_t cols) {                                                     \
    keep_state<N>(step, x, positions, states, cols);                                                                  \
  }                                                                                                                   \
  extern "C" __global__ void gather_rows##SUFFIX(WeftStep step, const float *table, const float *behind,              \
                                                 uint32_t room, float *out, uint32_t cols) {                          \
    gather_row<N>(step, table, behind, room, out, cols);                                                              \
  }                                                                                                                   \
  extern "C" __global__ void gather_latents##SUFFIX(WeftStep step, const float *latents, uint32_t positions,          \
                                                    float *out, uint32_t cols) {                                      \
    gather_latent<N>(step, latents, positions, out, cols);                                                            \
  }                                                                                                                   \
  extern "C" __global__ void select_rows##SUFFIX(WeftStep step, const float *x, float *out, uint32_t cols) {          \
    select_row<N>(step, x, out, cols);                                                                                \
  }                                                                                                                   \
  extern "C" __global__ void gather_sources##SUFFIX(WeftStep step, const float *states, const float *tokens,          \
                                                    const uint32_t *canvas, WeftOut out, uint32_t cols) {              \
    gather_source<N>(step, states, tokens, canvas, out, cols);                                                        \
  }                                                                                                                   \
  extern "C" __global__ void copy_rows##SUFFIX(WeftStep step, float *x, uint32_t cols) { copy_one<N>(step, x, cols); }

WEFT_ROWS(, 4)
WEFT_ROWS(_ragged, 1)
