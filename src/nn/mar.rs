//! The masked transformer of MAR (arXiv 2406.11838): an encoder over the prompt and the positions that are known, a decoder
//! over the prompt and all positions; both look everywhere. The decoder's output at an unknown position is the state from
//! which the diffusion head ([`super::diffusion_head`]) draws it.
//!
//! A pass is two steps of the backend, because the decoder has more rows than the encoder: a step of the encoder's rows, then
//! one of the decoder's, whose inputs are gathered from what the encoder left and from a table. Nothing crosses to the host in
//! between. Every row has a slot of one long prefix and sees all of it ([`Slot::Open`]).

use super::Loader;
use super::diffusion_head::Head;
use super::transformer::{Layer, Scratch};
use crate::backend::{
    Backend, Capacity, Epilogue, Error as BackendError, Goal, Grouping, Image, KvFormat, PAGE, PageTable, RowPlace,
    Slot, Step,
};
use crate::checkpoint::{Config, Error};
use crate::grid::Grid;

/// Layers and head of a model.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Layers of the encoder.
    pub encoder: usize,
    /// Layers of the decoder.
    pub decoder: usize,
    /// Blocks of the diffusion head and their width.
    pub head: (usize, usize),
}

/// The network.
pub struct Mar<B: Backend> {
    inp: B::Weight,
    text_proj: B::Weight,
    cond_proj: B::Weight,
    rows: Vec<f32>,
    cols: Vec<f32>,
    unknown: Vec<f32>,
    encoder: Vec<Layer<B>>,
    decoder: Vec<Layer<B>>,
    norm: B::Vector,
    /// The diffusion head.
    pub head: Head<B>,
    grid: Grid,
    channels: usize,
    config: Config,
}

/// A prompt as this model takes it.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Inputs of its words, `[words, hidden]`.
    words: Vec<f32>,
    /// Added to the input of every position, `[hidden]`.
    bias: Vec<f32>,
}

/// One picture as the model sees it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Which of the prompts that the pass's activations were made for.
    pub branch: usize,
    /// Positions that are read.
    pub known: &'a [usize],
    /// Positions whose states are wanted.
    pub goals: &'a [usize],
}

/// What passes need, allocated once for the largest.
pub struct Activations<B: Backend> {
    /// Of the encoder and of the decoder.
    steps: [B::Step; 2],
    state: State<B>,
    /// Rows that a pass has at most.
    room: usize,
    /// By prompt: its words, and the first of its rows in the table.
    prompts: Vec<(usize, usize)>,
}

/// What is on the backend.
struct State<B: Backend> {
    /// For each prompt the inputs of its words, then what each position adds to its input, then the inputs of unknown
    /// positions: `[rows, hidden]`.
    table: B::Tensor,
    /// Of the rows of the encoder.
    x: B::Tensor,
    latents: B::Tensor,
    /// Of those of the decoder.
    y: B::Tensor,
    selected: B::Tensor,
    /// States of the goals.
    normed: B::Tensor,
    layer: Scratch<B>,
    kv: B::KvPool,
}

/// What a pass is asked, besides the views: whose latents they are of, and what becomes of the goals.
pub struct Wanted {
    /// Of the goals.
    pub images: Vec<Image>,
    /// Their rows are states: goals of the first view, then those of the next.
    pub goals: Vec<Goal>,
}

/// The latents of a picture, where the backend reads them: `[positions, channels]`.
pub type Latents<B> = <B as Backend>::Tensor;

/// What goes on with the step, the states `[goals, hidden]` and the latents.
pub type Then<'a, B> = dyn FnMut(&B, &<B as Backend>::Step, &<B as Backend>::Tensor, &mut Latents<B>) + 'a;

impl<B: Backend> Activations<B> {
    /// Rows, and so goals, of a pass at most.
    pub fn rows(&self) -> usize {
        self.room
    }
}

impl<B: Backend> Mar<B> {
    /// Loads `mar.*`: layers as in a model of this config, over a grid of positions of `channels` numbers.
    pub fn load(
        loader: &Loader<'_, B>,
        config: &Config,
        grid: Grid,
        channels: usize,
        size: Size,
    ) -> Result<Self, Error> {
        let (hidden, words) = (config.hidden_size, config.text_encoder.hidden_size);
        let layers = |name: &str, count: usize| {
            (0..count)
                .map(|index| Layer::load(loader, config, &format!("mar.{name}.{index}")))
                .collect::<Result<_, _>>()
        };
        Ok(Self {
            inp: loader.linear("mar.inp", hidden, channels)?,
            text_proj: loader.linear("mar.text_proj", hidden, words)?,
            cond_proj: loader.linear("mar.cond_proj", hidden, words)?,
            rows: loader.host("mar.row_embed.weight", &[grid.height, hidden])?,
            cols: loader.host("mar.col_embed.weight", &[grid.width, hidden])?,
            unknown: loader.host("mar.unknown", &[hidden])?,
            encoder: layers("encoder", size.encoder)?,
            decoder: layers("decoder", size.decoder)?,
            norm: loader.vector("mar.norm.weight", hidden)?,
            head: Head::load(loader, "mar.head", hidden, size.head, channels)?,
            grid,
            channels,
            config: config.clone(),
        })
    }

    /// A prompt of so many words, encoded by the text encoder.
    pub fn prompt(&self, backend: &B, encoded: &B::Tensor, words: usize) -> Result<Prompt, BackendError> {
        let mut out = backend.tensor(words, self.config.hidden_size)?;
        backend.linear(encoded, &self.cond_proj, &mut out, Epilogue::Store, Grouping::One);
        let bias = backend.read(&out)?[..self.config.hidden_size].to_vec();
        backend.linear(encoded, &self.text_proj, &mut out, Epilogue::Store, Grouping::One);
        Ok(Prompt { words: backend.read(&out)?.into_owned(), bias })
    }

    /// Bytes of the weights that a pass reads, without the diffusion head.
    pub fn weight_bytes(&self) -> usize {
        let (hidden, shape) = (self.config.hidden_size, self.config.attention());
        let layer = hidden * (shape.query() + shape.qkv()) + 3 * hidden * self.config.intermediate_size;
        2 * (self.encoder.len() + self.decoder.len()) * layer
    }

    /// Room for passes of up to `views` views of these prompts.
    pub fn activations(&self, backend: &B, prompts: &[Prompt], views: usize) -> Result<Activations<B>, BackendError> {
        let (hidden, shape) = (self.config.hidden_size, self.config.attention());
        let words = |prompt: &Prompt| prompt.words.len() / hidden;
        let longest = prompts.iter().map(words).max().unwrap_or(0) + self.grid.len();
        let (rows, pages) = (views * longest, views * longest.div_ceil(PAGE));
        let capacity = Capacity { rows, sequences: views, pages, ..Capacity::default() };
        let (mut data, mut places) = (Vec::new(), Vec::new());
        for prompt in prompts {
            places.push((words(prompt), data.len() / hidden));
            data.extend_from_slice(&prompt.words);
            (0..self.grid.len()).for_each(|position| data.extend(self.place(prompt, position)));
            for position in 0..self.grid.len() {
                let unknown = self.unknown.iter().zip(self.place(prompt, position));
                data.extend(unknown.map(|(unknown, place)| unknown + place));
            }
        }
        let mut table = backend.tensor(data.len() / hidden, hidden)?;
        backend.upload(&data, &mut table);
        Ok(Activations {
            steps: [backend.step(capacity)?, backend.step(capacity)?],
            state: State {
                table,
                x: backend.tensor(rows, hidden)?,
                latents: backend.tensor(rows, self.channels)?,
                y: backend.tensor(rows, hidden)?,
                selected: backend.tensor(rows, hidden)?,
                normed: backend.operand(rows, hidden)?,
                layer: Scratch::new(backend, rows, hidden, shape, self.config.intermediate_size)?,
                // A layer reads what it wrote and nothing else does: one layer of the cache serves them all.
                kv: backend.kv_pool(1, pages, shape, KvFormat::Bf16)?,
            },
            room: rows,
            prompts: places,
        })
    }

    /// Makes room for all that passes with these `ops`, as in [`Self::run`], need between their kernels.
    pub fn reserve(
        &self,
        backend: &B,
        latents: &mut Latents<B>,
        a: &mut Activations<B>,
        ops: &mut Then<'_, B>,
    ) -> Result<(), BackendError> {
        let Activations { steps: [encoder, decoder], state, .. } = a;
        backend.reserve(encoder, &mut |backend, step| self.encode(backend, step, latents, state))?;
        backend.reserve(decoder, &mut |backend, step| {
            self.decode(backend, step, state);
            ops(backend, step, &state.normed, latents);
        })
    }

    /// One pass; with the states `[goals, hidden]` of the goals of views, one view after another, `ops` go on. They are part
    /// of what a backend may record.
    pub fn run(
        &self,
        backend: &B,
        views: &[View<'_>],
        wanted: Wanted,
        latents: &mut Latents<B>,
        a: &mut Activations<B>,
        ops: &mut Then<'_, B>,
    ) -> Result<(), BackendError> {
        let [encoding, mut decoding] = self.plan(views, a);
        Wanted { images: decoding.images, goals: decoding.goals } = wanted;
        let Activations { steps: [encoder, decoder], state, .. } = a;
        backend.set_step(encoding, encoder)?;
        backend.run(encoder, &mut |backend, step| self.encode(backend, step, latents, state));
        backend.set_step(decoding, decoder)?;
        backend.run(decoder, &mut |backend, step| {
            self.decode(backend, step, state);
            ops(backend, step, &state.normed, latents);
        });
        Ok(())
    }

    /// States `[goals, hidden]` of the goals of views, one view after another, on the host.
    pub fn states(
        &self,
        backend: &B,
        views: &[View<'_>],
        latents: &mut Latents<B>,
        a: &mut Activations<B>,
    ) -> Result<Vec<f32>, BackendError> {
        self.run(backend, views, Wanted { images: Vec::new(), goals: Vec::new() }, latents, a, &mut |_, _, _, _| ())?;
        Ok(backend.read(&a.state.normed)?.into_owned())
    }

    /// What a position adds to its input.
    fn place<'a>(&'a self, prompt: &'a Prompt, position: usize) -> impl Iterator<Item = f32> + 'a {
        let hidden = self.config.hidden_size;
        let row = &self.rows[self.grid.row(position) * hidden..][..hidden];
        let col = &self.cols[self.grid.col(position) * hidden..][..hidden];
        row.iter().zip(col).zip(&prompt.bias).map(|((row, col), bias)| row + col + bias)
    }

    /// The steps of the encoder and of the decoder.
    fn plan(&self, views: &[View<'_>], a: &Activations<B>) -> [Step; 2] {
        let positions = self.grid.len();
        // What the decoder takes from the table lies behind all that the encoder has room for.
        let behind = a.room;
        let [mut encoder, mut decoder] = [Step::default(), Step::default()];
        for view in views {
            let (words, first) = a.prompts[view.branch];
            let encoded = encoder.layout.rows.len();
            let all = |at: &mut dyn Iterator<Item = Option<usize>>| {
                let slots = (0..).zip(at).map(|(slot, at)| Slot::Open { slot, at: at.map(|at| at as u32) });
                slots.collect::<Vec<Slot>>()
            };
            let of_words = || std::iter::repeat_n(None, words);
            self.append(&mut encoder, all(&mut of_words().chain(view.known.iter().copied().map(Some))));
            encoder.inputs.extend((first..first + words).map(|row| row as u32));
            encoder.inputs.extend(view.known.iter().map(|position| (first + words + position) as u32));

            let row = decoder.layout.rows.len();
            self.append(&mut decoder, all(&mut of_words().chain((0..positions).map(Some))));
            decoder.inputs.extend((encoded..encoded + words).map(|row| row as u32));
            let unknown = behind + first + words + positions;
            decoder.inputs.extend((unknown..unknown + positions).map(|row| row as u32));
            for (known, &position) in view.known.iter().enumerate() {
                decoder.inputs[row + words + position] = (encoded + words + known) as u32;
            }
            decoder.predictions.extend(view.goals.iter().map(|goal| (row + words + goal) as u32));
        }
        [encoder, decoder]
    }

    /// Adds a sequence whose rows see each other, in pages behind those of the others.
    fn append(&self, step: &mut Step, slots: Vec<Slot>) {
        let sequence = step.layout.sequences.len() as u32;
        let next = step.layout.sequences.iter().map(|table| table.prefix.len() as u32).sum::<u32>();
        step.layout.sequences.push(PageTable {
            prefix: (next..).take(slots.len().div_ceil(PAGE)).collect(),
            prefix_len: slots.len(),
            width: self.grid.width,
            ..PageTable::default()
        });
        step.layout.rows.extend(slots.into_iter().map(|slot| RowPlace { sequence, slot }));
    }

    /// Runs the encoder; its rows remain in `a.x`.
    fn encode(&self, backend: &B, step: &B::Step, latents: &Latents<B>, a: &mut State<B>) {
        backend.gather(step, &a.table, None, &mut a.x);
        backend.gather_latents(step, latents, self.grid.len(), &mut a.latents);
        backend.linear(&a.latents, &self.inp, &mut a.x, Epilogue::Add, Grouping::One);
        for layer in &self.encoder {
            layer.forward(backend, &mut a.x, step, (0, &mut a.kv), &mut a.layer);
        }
    }

    /// Runs the decoder; the states of the predictions remain in `a.normed`.
    fn decode(&self, backend: &B, step: &B::Step, a: &mut State<B>) {
        backend.gather(step, &a.x, Some(&a.table), &mut a.y);
        for layer in &self.decoder {
            layer.forward(backend, &mut a.y, step, (0, &mut a.kv), &mut a.layer);
        }
        backend.select(step, &a.y, &mut a.selected);
        backend.rms_norm(&a.selected, &self.norm, self.config.rms_norm_eps, &mut a.normed, Grouping::One);
    }
}
