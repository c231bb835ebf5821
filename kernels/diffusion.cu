// Denoising, and what is decided by it: the numbers of positions along their trajectories, the laws of the last steps, drafts
// judged by densities (src/backend/gaussian.rs, whose order of operations this follows).
//
// A warp takes a goal, a lane a number. f32 arithmetic is that of the CPU operation by operation; normals, exponentials and
// densities are f64 on both sides, whose logarithms, sines and exponentials differ by a unit or two in the last place. So a
// normal or a deviation is the same f32 on both, or a neighbour where the f64 lies half-way between two; sums run in the order
// of the numbers.
#include "common.cuh"
#include "philox.cuh"

namespace {

constexpr uint32_t kAll = 0xffffffffu;
constexpr float kClip = 5.0f;         // CLIP of src/backend/gaussian.rs
constexpr uint32_t kProposals = 100;  // PROPOSALS of it

__device__ __forceinline__ Numbers numbers_of(const WeftImage &image, uint32_t position, uint32_t purpose,
                                              uint32_t round) {
  return {{image.seed_low, image.seed_high}, position, image.stream, purpose | round << 8};
}

// Standard normal `channel` of its kind (Box and Muller, 1958).
__device__ __forceinline__ float normal(const Numbers &numbers, uint32_t channel) {
  const uint4 words = numbers.block(channel / 4);
  const uint32_t first = channel % 4 < 2 ? words.x : words.z, second = channel % 4 < 2 ? words.y : words.w;
  const double radius = sqrt(-2.0 * log((double(first) + 0.5) / 4294967296.0));
  double sine, cosine;
  sincospi(2.0 * ((double(second) + 0.5) / 4294967296.0), &sine, &cosine);
  return float(radius * (channel % 2 == 0 ? cosine : sine));
}

// mean + exp(log deviation) * normal.
__device__ __forceinline__ float at(float mean, float log_deviation, float normal) {
  return __fadd_rn(mean, __fmul_rn(float(exp(double(log_deviation))), normal));
}

// The sum over the first `count` lanes, in their order; the same in every lane.
__device__ __forceinline__ double ordered_sum(double sum, double value, uint32_t count) {
  for (uint32_t lane = 0; lane < count; ++lane) sum += __shfl_sync(kAll, value, lane);
  return sum;
}

// The trajectories of a step's goals.
struct Trajectories {
  WeftStep step;
  const float *given;  // [level][positions][channels], null for the image's own normals
  uint32_t positions;
  float *x;     // [predictions][channels]
  float *laws;  // [images * positions][2 * channels + 2]
  uint32_t channels;

  __device__ __forceinline__ float *law(const WeftGoal &goal) const {
    return laws + size_t(goal.image * positions + goal.position) * (2 * channels + 2);
  }

  __device__ __forceinline__ float noise(const WeftGoal &goal, const WeftImage &image, uint32_t level,
                                         uint32_t channel) const {
    if (given) return given[(size_t(level) * positions + goal.position) * channels + channel];
    return normal(numbers_of(image, goal.position, PURPOSE_DENOISE, level), channel);
  }

  // Into both branches.
  __device__ __forceinline__ void write(const WeftGoal &goal, uint32_t channel, float value) const {
    x[size_t(goal.conditional) * channels + channel] = value;
    if (goal.unconditional != WEFT_NONE) x[size_t(goal.unconditional) * channels + channel] = value;
  }
};

// Mean and logarithm of the deviation of a number after a step.
__device__ __forceinline__ float2 posterior(const WeftDenoising &d, float x, float noise, float between) {
  const float far = __fdiv_rn(__fsub_rn(x, __fmul_rn(d.noise, noise)), d.signal);
  const float clean = fminf(fmaxf(far, -kClip), kClip);
  const float share = __fmul_rn(__fadd_rn(between, 1.0f), 0.5f);
  const float variance = __fadd_rn(__fmul_rn(share, d.high), __fmul_rn(__fsub_rn(1.0f, share), d.low));
  return make_float2(__fadd_rn(__fmul_rn(d.from_x0, clean), __fmul_rn(d.from_xt, x)), __fmul_rn(0.5f, variance));
}

// Two laws of a position: what its numbers should be drawn from, and what they were drawn from.
struct Laws {
  const float *p, *q;
  uint32_t channels;

  // Of a law without the constant that all laws share; `inside` for lanes that have a number.
  static __device__ __forceinline__ double term(float mean, float log_deviation, float x, double temper, bool inside) {
    if (!inside) return 0.0;
    const double log = log_deviation;
    const double residual = (double(x) - double(mean)) / (exp(log) * temper);
    return -0.5 * residual * residual - log;
  }

  // log p - log q of the numbers that `x` gives.
  template <typename X>
  __device__ __forceinline__ double log_ratio(double temper, X &&x) const {
    double of_p = 0.0, of_q = 0.0;
    for (uint32_t first = 0; first < channels; first += 32) {
      const uint32_t channel = first + threadIdx.x, count = min(channels - first, 32u);
      const bool inside = threadIdx.x < count;
      const uint32_t c = inside ? channel : first;
      // A number is read by the lane alone that may replace it.
      const float value = inside ? x(channel) : 0.0f;
      of_p = ordered_sum(of_p, term(p[c], p[channels + c], value, temper, inside), count);
      of_q = ordered_sum(of_q, term(q[c], q[channels + c], value, temper, inside), count);
    }
    return of_p - of_q;
  }

  __device__ __forceinline__ double spread(const float *law) const {
    return double(law[2 * channels]) + double(law[2 * channels + 1]);
  }
};

}  // namespace

// Where trajectories begin: a block of a warp for each goal.
extern "C" __global__ void __launch_bounds__(32)
    begin_denoising(WeftStep step, uint32_t level, const float *given, uint32_t positions, float *x, float *laws,
                    uint32_t channels) {
  if (blockIdx.x >= step.counts->goals) return;
  const Trajectories t = {step, given, positions, x, laws, channels};
  const WeftGoal goal = step.goals[blockIdx.x];
  const WeftImage image = step.images[goal.image];
  for (uint32_t channel = threadIdx.x; channel < channels; channel += 32)
    t.write(goal, channel, t.noise(goal, image, level, channel));
  if (threadIdx.x < 2) t.law(goal)[2 * channels + threadIdx.x] = 0.0f;
}

// A step of denoising: a block of a warp for each goal.
extern "C" __global__ void __launch_bounds__(32)
    denoise(WeftStep step, WeftDenoising denoising, const float *given, uint32_t positions, const float *predicted,
            float *x, float *laws, uint32_t channels) {
  if (blockIdx.x >= step.counts->goals) return;
  const Trajectories t = {step, given, positions, x, laws, channels};
  const WeftGoal goal = step.goals[blockIdx.x];
  const WeftImage image = step.images[goal.image];
  const float log_temperature = float(log(double(image.temperature)));
  const float *conditional = predicted + size_t(goal.conditional) * 2 * channels;
  const float *other = predicted + size_t(goal.unconditional) * 2 * channels;
  float *law = t.law(goal);
  double wide = 0.0;
  for (uint32_t first = 0; first < channels; first += 32) {
    const uint32_t channel = first + threadIdx.x, count = min(channels - first, 32u);
    float log_deviation = 0.0f;
    if (threadIdx.x < count) {
      float noise = conditional[channel];
      if (goal.unconditional != WEFT_NONE)
        noise = __fadd_rn(other[channel], __fmul_rn(goal.guidance, __fsub_rn(noise, other[channel])));
      const float before = x[size_t(goal.conditional) * channels + channel];
      const float2 moments = posterior(denoising, before, noise, conditional[channels + channel]);
      log_deviation = __fadd_rn(moments.y, log_temperature);
      law[channel] = moments.x;
      law[channels + channel] = log_deviation;
      if (denoising.level > 0)
        t.write(goal, channel, at(moments.x, log_deviation, t.noise(goal, image, denoising.level, channel)));
    }
    wide = ordered_sum(wide, log_deviation, count);
  }
  if (denoising.level > 0 && threadIdx.x == 0) {
    const double spread = double(law[2 * channels]) + double(law[2 * channels + 1]) + wide;
    const float high = float(spread);
    law[2 * channels] = high;
    law[2 * channels + 1] = float(spread - double(high));
  }
}

// Settles the numbers of goals: a block of a warp for each. A verdict is 1 for what passed or was drawn, else 0.
extern "C" __global__ void __launch_bounds__(32)
    settle(WeftStep step, WeftSettlement settlement, uint32_t positions, const float *laws, const float *drafted,
           float *latents, float *verdicts, uint32_t channels) {
  if (blockIdx.x >= step.counts->goals) return;
  const WeftGoal goal = step.goals[blockIdx.x];
  const WeftImage image = step.images[goal.image];
  const size_t place = size_t(goal.image) * positions + goal.position, cols = 2 * channels + 2;
  const Laws both = {laws + place * cols, drafted + place * cols, channels};
  float *x = latents + place * channels;
  // A draw of p with the normals of a purpose and round.
  const auto drawn = [&](uint32_t purpose, uint32_t round, uint32_t c) {
    return at(both.p[c], both.p[channels + c], normal(numbers_of(image, goal.position, purpose, round), c));
  };
  bool passes = true;
  if (goal.fate == WEFT_FATE_DRAW) {
    for (uint32_t c = threadIdx.x; c < channels; c += 32)
      x[c] = settlement.noise ? drawn(PURPOSE_DENOISE, 0, c) : both.p[c];
  } else {
    double log_sigma = 0.0;
    if (settlement.sigma != WEFT_SIGMA_ONE) log_sigma = both.spread(both.q) - both.spread(both.p);
    if (settlement.sigma == WEFT_SIGMA_CODE) log_sigma = -log_sigma;
    const double ratio = both.log_ratio(settlement.temper, [&](uint32_t c) { return x[c]; }) + log_sigma;
    const float chance = unit(numbers_of(image, goal.position, PURPOSE_ACCEPT, 0).block(0).x);
    passes = log(double(chance)) < ratio;
    if (!passes) {
      // Proposals from p, taken with probability 1 - q / (Sigma p); the last is taken as it is.
      uint32_t round = 0;
      for (; round < kProposals; ++round) {
        const auto y = [&](uint32_t c) { return drawn(PURPOSE_RESIDUAL, round, c); };
        const double share = exp(-both.log_ratio(1.0, y) - log_sigma);
        // The uniform of a round lies behind its normals.
        const uint4 behind = numbers_of(image, goal.position, PURPOSE_RESIDUAL, round).block((channels + 3) / 4);
        if (double(unit(behind.x)) < 1.0 - share) break;
      }
      for (uint32_t c = threadIdx.x; c < channels; c += 32) x[c] = drawn(PURPOSE_RESIDUAL, round, c);
    }
  }
  if (threadIdx.x == 0) verdicts[blockIdx.x] = passes ? 1.0f : 0.0f;
}
