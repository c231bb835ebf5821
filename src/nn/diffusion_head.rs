//! The diffusion head of MAR (arXiv 2406.11838): a residual MLP, shifted, scaled and gated by a condition (AdaLN), that
//! predicts the noise in the numbers of a position, and their variance, from the position's state `z`.
//!
//! `c = silu(time(t) + cond(z))`, `x = inp(x)`, then blocks `x + gate(c) down(silu(up(norm(x) (1 + scale(c)) + shift(c))))`
//! and an output that is shifted and scaled in the same way. The products run on the backend; what stands between two steps
//! (eight numbers a position: guidance, posterior, noise) is arithmetic of the host, so a step goes to the device and back.

use super::Loader;
use super::diffusion::{Law, Schedule};
use crate::backend::{Backend, Epilogue, Error as BackendError, Grouping};
use crate::checkpoint::Error;
use half::bf16;

const EPS: f32 = 1e-6;
/// Frequencies of the embedding of time, each a cosine and a sine.
const FREQUENCIES: usize = 32;

/// A linear layer with a bias, which is a product too: with a column of ones.
struct Affine<B: Backend> {
    weight: B::Weight,
    bias: B::Weight,
    out: usize,
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
pub struct Steps {
    /// The schedule.
    pub schedule: Schedule,
    /// Embeddings of its times, `[steps, width]`.
    times: Vec<f32>,
}

/// Positions to be denoised.
pub struct Items<'a> {
    /// Their states, `[branches, items, hidden]`; of two branches the second is the unconditional one.
    pub states: &'a [f32],
    /// How far the predicted noise is from that of the unconditional branch; 1: it is that of the conditional one.
    pub guidance: &'a [f32],
    /// What the deviations are multiplied with.
    pub temperature: f32,
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
            bias: backend.weight(&bias[part * out..][..out], out, 1)?,
            out,
        })
    }

    fn load(loader: &Loader<'_, B>, name: &str, out: usize, inner: usize) -> Result<Self, Error> {
        Self::part(loader, name, (0, 1), (out, inner))
    }

    fn forward(&self, pass: &Pass<'_, B>, x: &B::Tensor) -> Result<B::Tensor, BackendError> {
        let mut out = pass.backend.tensor(pass.rows, self.out)?;
        pass.backend.linear(&pass.ones, &self.bias, &mut out, Epilogue::Store, Grouping::One);
        pass.backend.linear(x, &self.weight, &mut out, Epilogue::Add, Grouping::One);
        Ok(out)
    }
}

/// A pass over so many rows.
struct Pass<'a, B: Backend> {
    backend: &'a B,
    rows: usize,
    ones: B::Tensor,
}

impl<'a, B: Backend> Pass<'a, B> {
    fn new(backend: &'a B, rows: usize) -> Result<Self, BackendError> {
        let mut ones = backend.operand(rows, 1)?;
        backend.upload(&vec![1.0; rows], &mut ones);
        Ok(Self { backend, rows, ones })
    }

    fn silu(&self, x: &B::Tensor, cols: usize) -> Result<B::Tensor, BackendError> {
        let mut out = self.backend.tensor(self.rows, cols)?;
        self.backend.silu(x, &mut out);
        Ok(out)
    }
}

impl<B: Backend> Modulated<B> {
    fn forward(&self, pass: &Pass<'_, B>, x: &B::Tensor, c: &B::Tensor) -> Result<B::Tensor, BackendError> {
        let backend = pass.backend;
        let mut normed = backend.tensor(pass.rows, self.shift.out)?;
        backend.layer_norm(x, &self.norm.0, &self.norm.1, EPS, &mut normed);
        let mut out = self.shift.forward(pass, c)?;
        backend.add(&mut out, &normed);
        backend.add_product(&mut out, &normed, &self.scale.forward(pass, c)?);
        Ok(out)
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

    /// Prepares a schedule.
    pub fn steps(&self, backend: &B, schedule: Schedule) -> Result<Steps, BackendError> {
        let pass = Pass::new(backend, schedule.len())?;
        let angle = |time: usize, at: usize| time as f64 * (-(1e4f64.ln()) * at as f64 / FREQUENCIES as f64).exp();
        let mut embedded = Vec::with_capacity(2 * FREQUENCIES * schedule.len());
        for &time in &schedule.times {
            embedded.extend((0..FREQUENCIES).map(|at| angle(time, at).cos() as f32));
            embedded.extend((0..FREQUENCIES).map(|at| angle(time, at).sin() as f32));
        }
        let mut x = backend.operand(schedule.len(), 2 * FREQUENCIES)?;
        backend.upload(&embedded, &mut x);
        let hidden = pass.silu(&self.time1.forward(&pass, &x)?, self.width)?;
        let times = backend.read(&self.time2.forward(&pass, &hidden)?)?.into_owned();
        Ok(Steps { schedule, times })
    }

    /// Noise and place of the variance, `[rows, 2 * channels]`, in rows `x` at a step; `cond` is [`Head::condition`] of
    /// their states.
    fn predict(&self, pass: &Pass<'_, B>, cond: &B::Tensor, time: &[f32], x: &[f32]) -> Result<Vec<f32>, BackendError> {
        let backend = pass.backend;
        let mut c = backend.tensor(pass.rows, self.width)?;
        backend.upload(&time.repeat(pass.rows), &mut c);
        backend.add(&mut c, cond);
        let c = pass.silu(&c, self.width)?;
        let mut input = backend.operand(pass.rows, self.channels)?;
        backend.upload(x, &mut input);
        let mut h = self.inp.forward(pass, &input)?;
        for block in &self.blocks {
            let inner = block.up.forward(pass, &block.input.forward(pass, &h, &c)?)?;
            let inner = block.down.forward(pass, &pass.silu(&inner, self.width)?)?;
            backend.add_product(&mut h, &block.gate.forward(pass, &c)?, &inner);
        }
        let out = self.out.forward(pass, &self.last.forward(pass, &h, &c)?)?;
        Ok(backend.read(&out)?.into_owned())
    }

    /// What the states `[rows, hidden]` add to the condition.
    fn condition(&self, pass: &Pass<'_, B>, states: &[f32]) -> Result<B::Tensor, BackendError> {
        let mut z = pass.backend.operand(pass.rows, self.state)?;
        pass.backend.upload(states, &mut z);
        self.cond.forward(pass, &z)
    }

    /// The network's output for rows `x` `[rows, channels]` of these states at one step: noise, then place of the variance,
    /// `[rows, 2 * channels]`.
    pub fn outputs(
        &self,
        backend: &B,
        steps: &Steps,
        step: usize,
        states: &[f32],
        x: &[f32],
    ) -> Result<Vec<f32>, BackendError> {
        let pass = Pass::new(backend, x.len() / self.channels)?;
        let cond = self.condition(&pass, states)?;
        self.predict(&pass, &cond, &steps.times[step * self.width..][..self.width], x)
    }

    /// Denoises items, each along a trajectory of its own; see [`Schedule::denoise`].
    pub fn denoise(
        &self,
        backend: &B,
        steps: &Steps,
        items: &Items<'_>,
        noise: &dyn Fn(usize, usize, &mut [f32]),
    ) -> Result<Vec<Law>, BackendError> {
        let (rows, count, channels) = (items.states.len() / self.state, items.guidance.len(), self.channels);
        if count == 0 {
            return Ok(Vec::new());
        }
        let branches = rows / count;
        let pass = Pass::new(backend, rows)?;
        let cond = self.condition(&pass, items.states)?;
        let predict = |step: usize, x: &[f32]| {
            let time = &steps.times[step * self.width..][..self.width];
            let out = self.predict(&pass, &cond, time, &x.repeat(branches))?;
            let at = |row: usize, col: usize| out[row * 2 * channels + col];
            let number = |index: usize| {
                let (item, channel) = (index / channels, index % channels);
                let (given, between) = (at(item, channel), at(item, channels + channel));
                let noise = match branches {
                    1 => given,
                    // The noise is guided, the variance is the conditional branch's.
                    _ => {
                        let other = at(count + item, channel);
                        other + items.guidance[item] * (given - other)
                    }
                };
                (noise, between)
            };
            Ok((0..x.len()).map(number).collect())
        };
        steps.schedule.denoise((count, channels), items.temperature, noise, predict)
    }
}
