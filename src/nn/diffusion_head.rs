//! The diffusion head of MAR (arXiv 2406.11838): a residual MLP, shifted, scaled and gated by a condition (AdaLN), that
//! predicts the noise in the numbers of a position, and their variance, from the position's state `z`.
//!
//! `c = silu(time(t) + cond(z))`, `x = inp(x)`, then blocks `x + gate(c) down(silu(up(norm(x) (1 + scale(c)) + shift(c))))`
//! and an output that is shifted and scaled in the same way. All steps of a diffusion are ops of the backend, one after
//! another: nothing crosses to the host between them, and nothing is allocated.

use super::Loader;
use super::diffusion::Schedule;
use crate::backend::{Backend, Epilogue, Error as BackendError, Grouping};
use crate::checkpoint::Error;
use half::bf16;

const EPS: f32 = 1e-6;
/// Frequencies of the embedding of time, each a cosine and a sine.
const FREQUENCIES: usize = 32;

/// A linear layer with a bias.
struct Affine<B: Backend> {
    weight: B::Weight,
    /// `[1, out]`.
    bias: B::Tensor,
}

/// `norm(x) (1 + scale(c)) + shift(c)`.
struct Modulated<B: Backend> {
    norm: (B::Vector, B::Vector),
    shift: Affine<B>,
    scale: Affine<B>,
}

struct Block<B: Backend> {
    input: Modulated<B>,
    up: Affine<B>,
    down: Affine<B>,
    gate: Affine<B>,
}

/// The network.
pub struct Head<B: Backend> {
    inp: Affine<B>,
    cond: Affine<B>,
    time1: Affine<B>,
    time2: Affine<B>,
    blocks: Vec<Block<B>>,
    last: Modulated<B>,
    out: Affine<B>,
    channels: usize,
    state: usize,
    width: usize,
}

/// What a head knows of the steps of a schedule.
pub struct Steps<B: Backend> {
    /// The schedule.
    pub schedule: Schedule,
    /// Embeddings of its times, `[steps, width]`.
    times: B::Tensor,
}

/// What passes of a head need, allocated once for the largest: `rows` are those of the states.
pub struct Scratch<B: Backend> {
    /// What the states add to the condition, `[rows, width]`.
    condition: B::Tensor,
    /// The condition of a step, activated.
    c: B::Tensor,
    /// The product of a layer, before its bias: `[rows, width]`, and that of the output.
    product: B::Tensor,
    last: B::Tensor,
    /// The residual stream.
    h: B::Tensor,
    normed: B::Tensor,
    shifted: B::Tensor,
    scale: B::Tensor,
    inner: B::Tensor,
    /// `[rows, channels]`: the trajectories.
    x: B::Tensor,
    /// `[rows, 2 * channels]`: noise, then place of the variance.
    predicted: B::Tensor,
}

/// Where the laws of positions go, and the normals of their trajectories if they are not those of the image.
pub struct Trajectories<'a, B: Backend> {
    /// Positions of an image.
    pub positions: usize,
    /// See [`Backend::begin_denoising`].
    pub normals: Option<&'a B::Tensor>,
    /// `[images * positions, 2 * channels + 2]`.
    pub laws: &'a mut B::Tensor,
}

impl<B: Backend> Affine<B> {
    /// Rows `part` of `parts` of `{name}.weight` and `{name}.bias`, which have `parts * out` rows.
    fn part(
        loader: &Loader<'_, B>,
        name: &str,
        (part, parts): (usize, usize),
        (out, inner): (usize, usize),
    ) -> Result<Self, Error> {
        let weight = loader.tensors.take::<bf16>(&format!("{name}.weight"), &[parts * out, inner])?;
        let bias = loader.host(&format!("{name}.bias"), &[parts * out])?;
        let backend = loader.backend;
        let mut row = backend.tensor(1, out)?;
        backend.upload(&bias[part * out..][..out], &mut row);
        Ok(Self { weight: backend.weight(&weight[part * out * inner..][..out * inner], out, inner)?, bias: row })
    }

    fn load(loader: &Loader<'_, B>, name: &str, out: usize, inner: usize) -> Result<Self, Error> {
        Self::part(loader, name, (0, 1), (out, inner))
    }

    /// `out = x W^T + bias`, and SiLU of that if `activate`; `product` is scratch as wide as `out`.
    fn forward(&self, backend: &B, x: &B::Tensor, activate: bool, product: &mut B::Tensor, out: &mut B::Tensor) {
        backend.linear(x, &self.weight, product, Epilogue::Store, Grouping::One);
        backend.add_row(product, &self.bias, 0, activate, out);
    }
}

impl<B: Backend> Modulated<B> {
    /// Into `s.shifted`, of `s.h` under the condition `s.c`.
    fn forward(&self, backend: &B, s: &mut Scratch<B>) {
        backend.layer_norm(&s.h, &self.norm.0, &self.norm.1, EPS, &mut s.normed);
        self.shift.forward(backend, &s.c, false, &mut s.product, &mut s.shifted);
        self.scale.forward(backend, &s.c, false, &mut s.product, &mut s.scale);
        backend.add(&mut s.shifted, &s.normed);
        backend.add_product(&mut s.shifted, &s.normed, &s.scale);
    }
}

impl<B: Backend> Scratch<B> {
    /// Rows that there is room for.
    fn new(backend: &B, rows: usize, width: usize, channels: usize) -> Result<Self, BackendError> {
        let tensor = |cols: usize| backend.tensor(rows, cols);
        let operand = |cols: usize| backend.operand(rows, cols);
        Ok(Self {
            condition: tensor(width)?,
            c: operand(width)?,
            product: tensor(width)?,
            last: tensor(2 * channels)?,
            h: tensor(width)?,
            normed: tensor(width)?,
            shifted: tensor(width)?,
            scale: tensor(width)?,
            inner: operand(width)?,
            x: tensor(channels)?,
            predicted: tensor(2 * channels)?,
        })
    }
}

impl<B: Backend> Head<B> {
    /// Loads `{name}.*` for states of `state` numbers: `depth` blocks of `width`, for positions of `channels` numbers.
    pub fn load(
        loader: &Loader<'_, B>,
        name: &str,
        state: usize,
        (depth, width): (usize, usize),
        channels: usize,
    ) -> Result<Self, Error> {
        let affine = |part: &str, out: usize, inner: usize| Affine::load(loader, &format!("{name}.{part}"), out, inner);
        let modulation = |place: &str, part: usize, parts: usize| {
            Affine::part(loader, &format!("{name}.{place}modulation"), (part, parts), (width, width))
        };
        let block = |index: usize| {
            let place = format!("blocks.{index}.");
            let norm = |part: &str| loader.vector(&format!("{name}.{place}norm.{part}"), width);
            Ok(Block {
                input: Modulated {
                    norm: (norm("weight")?, norm("bias")?),
                    shift: modulation(&place, 0, 3)?,
                    scale: modulation(&place, 1, 3)?,
                },
                gate: modulation(&place, 2, 3)?,
                up: affine(&format!("{place}up"), width, width)?,
                down: affine(&format!("{place}down"), width, width)?,
            })
        };
        let constant = |value: f32| loader.backend.vector(&vec![bf16::from_f32(value); width]);
        Ok(Self {
            inp: affine("inp", width, channels)?,
            cond: affine("cond", width, state)?,
            time1: affine("time1", width, 2 * FREQUENCIES)?,
            time2: affine("time2", width, width)?,
            blocks: (0..depth).map(block).collect::<Result<_, Error>>()?,
            last: Modulated {
                norm: (constant(1.0)?, constant(0.0)?),
                shift: modulation("", 0, 2)?,
                scale: modulation("", 1, 2)?,
            },
            out: affine("out", 2 * channels, width)?,
            channels,
            state,
            width,
        })
    }

    /// Scratch for passes of up to `rows` rows.
    pub fn scratch(&self, backend: &B, rows: usize) -> Result<Scratch<B>, BackendError> {
        Scratch::new(backend, rows, self.width, self.channels)
    }

    /// Prepares a schedule.
    pub fn steps(&self, backend: &B, schedule: Schedule) -> Result<Steps<B>, BackendError> {
        let angle = |time: usize, at: usize| time as f64 * (-(1e4f64.ln()) * at as f64 / FREQUENCIES as f64).exp();
        let mut embedded = Vec::with_capacity(2 * FREQUENCIES * schedule.len());
        for &time in &schedule.times {
            embedded.extend((0..FREQUENCIES).map(|at| angle(time, at).cos() as f32));
            embedded.extend((0..FREQUENCIES).map(|at| angle(time, at).sin() as f32));
        }
        let tensor = |cols: usize| backend.tensor(schedule.len(), cols);
        let mut x = backend.operand(schedule.len(), 2 * FREQUENCIES)?;
        backend.upload(&embedded, &mut x);
        let mut hidden = backend.operand(schedule.len(), self.width)?;
        let (mut product, mut times) = (tensor(self.width)?, tensor(self.width)?);
        self.time1.forward(backend, &x, true, &mut product, &mut hidden);
        self.time2.forward(backend, &hidden, false, &mut product, &mut times);
        Ok(Steps { schedule, times })
    }

    /// Noise and place of the variance in the rows `s.x` at a step, into `s.predicted`.
    fn predict(&self, backend: &B, steps: &Steps<B>, step: usize, s: &mut Scratch<B>) {
        backend.add_row(&s.condition, &steps.times, step, true, &mut s.c);
        self.inp.forward(backend, &s.x, false, &mut s.product, &mut s.h);
        for block in &self.blocks {
            block.input.forward(backend, s);
            block.up.forward(backend, &s.shifted, true, &mut s.product, &mut s.inner);
            // What was shifted is done with.
            block.down.forward(backend, &s.inner, false, &mut s.product, &mut s.shifted);
            block.gate.forward(backend, &s.c, false, &mut s.product, &mut s.scale);
            backend.add_product(&mut s.h, &s.scale, &s.shifted);
        }
        self.last.forward(backend, s);
        self.out.forward(backend, &s.shifted, false, &mut s.last, &mut s.predicted);
    }

    /// The network's output for rows `x` `[rows, channels]` of these states `[rows, hidden]` at one step: noise, then place
    /// of the variance, `[rows, 2 * channels]`.
    pub fn outputs(
        &self,
        backend: &B,
        steps: &Steps<B>,
        step: usize,
        states: &[f32],
        x: &[f32],
    ) -> Result<Vec<f32>, BackendError> {
        let rows = x.len() / self.channels;
        let mut s = self.scratch(backend, rows)?;
        let mut z = backend.operand(rows, self.state)?;
        backend.upload(states, &mut z);
        self.cond.forward(backend, &z, false, &mut s.product, &mut s.condition);
        backend.upload(x, &mut s.x);
        self.predict(backend, steps, step, &mut s);
        Ok(backend.read(&s.predicted)?.into_owned())
    }

    /// Denoises the step's goals from the states `[predictions, hidden]`, all steps of the schedule but the last draw: its
    /// laws are the result.
    pub fn denoise(
        &self,
        backend: &B,
        step: &B::Step,
        steps: &Steps<B>,
        states: &B::Tensor,
        trajectories: &mut Trajectories<'_, B>,
        s: &mut Scratch<B>,
    ) {
        let Trajectories { positions, normals, laws } = trajectories;
        self.cond.forward(backend, states, false, &mut s.product, &mut s.condition);
        backend.begin_denoising(step, steps.schedule.len() as u32, *normals, *positions, &mut s.x, laws);
        for (at, denoising) in steps.schedule.steps.iter().enumerate().rev() {
            self.predict(backend, steps, at, s);
            backend.denoise(step, denoising, *normals, *positions, &s.predicted, &mut s.x, laws);
        }
    }
}
