//! The diffusion head of MAR (arXiv 2406.11838): a residual MLP, shifted, scaled and gated by a condition (AdaLN), that
//! predicts the noise in the numbers of a position, and their variance, from the position's state `z`.
//!
//! `c = silu(time(t) + cond(z))`, `x = inp(x)`, then blocks `x + gate(c) down(silu(up(norm(x) (1 + scale(c)) + shift(c))))`
//! and an output that is shifted and scaled in the same way. All steps of a diffusion are ops of the backend, one after
//! another: nothing crosses to the host between them, and nothing is allocated.

use super::Loader;
use super::diffusion::Schedule;
use crate::backend::gaussian::Trajectories;
use crate::backend::{Backend, Error as BackendError};
use crate::checkpoint::Error;
use half::bf16;

const EPS: f32 = 1e-6;
/// Frequencies of the embedding of time, each a cosine and a sine.
const FREQUENCIES: usize = 32;

/// A linear layer with a bias.
struct Affine<B: Backend> {
    weight: B::Weight,
    bias: B::Vector,
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
    /// The residual stream.
    h: B::Tensor,
    shift: B::Tensor,
    scale: B::Tensor,
    modulated: B::Tensor,
    /// Of a block, before and after its activation, and what it adds.
    inner: B::Tensor,
    activated: B::Tensor,
    /// `[rows, channels]`: the trajectories.
    x: B::Tensor,
    /// `[rows, 2 * channels]`: noise, then place of the variance.
    predicted: B::Tensor,
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
        let bias = loader.tensors.take::<bf16>(&format!("{name}.bias"), &[parts * out])?;
        let backend = loader.backend;
        Ok(Self {
            weight: backend.weight(&weight[part * out * inner..][..out * inner], out, inner)?,
            bias: backend.vector(&bias[part * out..][..out])?,
        })
    }

    fn load(loader: &Loader<'_, B>, name: &str, out: usize, inner: usize) -> Result<Self, Error> {
        Self::part(loader, name, (0, 1), (out, inner))
    }

    fn forward(&self, backend: &B, x: &B::Tensor, out: &mut B::Tensor) {
        backend.linear_with_bias(x, &self.weight, &self.bias, out);
    }
}

impl<B: Backend> Modulated<B> {
    /// Into `s.modulated`, of `s.h` under the condition `s.c`.
    fn forward(&self, backend: &B, s: &mut Scratch<B>) {
        self.shift.forward(backend, &s.c, &mut s.shift);
        self.scale.forward(backend, &s.c, &mut s.scale);
        backend.modulated_norm(&s.h, (&self.norm.0, &self.norm.1), EPS, &s.shift, &s.scale, &mut s.modulated);
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
            h: tensor(width)?,
            shift: tensor(width)?,
            scale: tensor(width)?,
            modulated: operand(width)?,
            inner: tensor(width)?,
            activated: operand(width)?,
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
        let mut activated = backend.operand(schedule.len(), self.width)?;
        let (mut hidden, mut times) = (tensor(self.width)?, tensor(self.width)?);
        self.time1.forward(backend, &x, &mut hidden);
        backend.silu(&hidden, &mut activated);
        self.time2.forward(backend, &activated, &mut times);
        Ok(Steps { schedule, times })
    }

    /// Noise and place of the variance in the rows `s.x` at a step, into `s.predicted`.
    fn predict(&self, backend: &B, steps: &Steps<B>, step: usize, s: &mut Scratch<B>) {
        backend.add_row(&s.condition, &steps.times, step, true, &mut s.c);
        self.inp.forward(backend, &s.x, &mut s.h);
        for block in &self.blocks {
            block.input.forward(backend, s);
            block.up.forward(backend, &s.modulated, &mut s.inner);
            backend.silu(&s.inner, &mut s.activated);
            block.down.forward(backend, &s.activated, &mut s.inner);
            // A gate is a scale too, and that of the norm is done with.
            block.gate.forward(backend, &s.c, &mut s.scale);
            backend.add_product(&mut s.h, &s.scale, &s.inner);
        }
        self.last.forward(backend, s);
        self.out.forward(backend, &s.modulated, &mut s.predicted);
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
        self.cond.forward(backend, &z, &mut s.condition);
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
        trajectories: &mut Trajectories<'_, B::Tensor>,
        s: &mut Scratch<B>,
    ) {
        self.cond.forward(backend, states, &mut s.condition);
        backend.begin_denoising(step, steps.schedule.len() as u32, &mut s.x, trajectories);
        for (at, denoising) in steps.schedule.steps.iter().enumerate().rev() {
            self.predict(backend, steps, at, s);
            backend.denoise(step, denoising, &s.predicted, &mut s.x, trajectories);
        }
    }
}
