//! The masked transformer of MAR (arXiv 2406.11838): an encoder over the prompt and the positions that are known, a decoder
//! over the prompt and all positions; both look everywhere. The decoder's output at an unknown position is the state from
//! which the diffusion head ([`super::diffusion_head`]) draws it.
//!
//! Attention over the paged cache looks backwards. Here two steps share a pass: the first says where a row's key and value
//! go and by which coordinates they turn (words are of the prefix, positions are nodes beside the cache, whose slots are
//! free), the second calls the same pages one long prefix whose last slot every row has, so that every row sees all of it.

use super::Loader;
use super::diffusion_head::Head;
use super::transformer::{Layer, Scratch};
use crate::backend::{
    Backend, Capacity, Epilogue, Error as BackendError, Grouping, KvFormat, Layout, PAGE, PageTable, RowPlace, SCRATCH,
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
    /// Its prompt.
    pub prompt: &'a Prompt,
    /// Latents `[positions, channels]`.
    pub latents: &'a [f32],
    /// Positions that are read.
    pub known: &'a [usize],
    /// Positions whose states are wanted.
    pub goals: &'a [usize],
}

/// What a pass needs, allocated once for the largest.
pub struct Activations<B: Backend> {
    x: B::Tensor,
    latents: B::Tensor,
    selected: B::Tensor,
    normed: B::Tensor,
    layer: Scratch<B>,
    kv: B::KvPool,
    stores: B::Step,
    sees: B::Step,
}

/// A row of a pass: a word, or a position.
#[derive(Clone, Copy)]
enum Row {
    Word,
    At(usize),
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

    /// Room for passes of up to `views` views of prompts of at most `words` words.
    pub fn activations(&self, backend: &B, views: usize, words: usize) -> Result<Activations<B>, BackendError> {
        let (hidden, shape) = (self.config.hidden_size, self.config.attention());
        let longest = words + self.grid.len();
        let (rows, pages) = (views * longest, longest.div_ceil(PAGE));
        let sequences = views * longest.div_ceil(SCRATCH);
        // The first sequence of a view names the pages of its words, besides those of its scratch.
        let named = views * (pages + words.div_ceil(PAGE));
        let capacity =
            Capacity { rows, sequences, pages: named, frontiers: sequences * self.grid.height, ..Capacity::default() };
        Ok(Activations {
            x: backend.tensor(rows, hidden)?,
            latents: backend.operand(rows, self.channels)?,
            selected: backend.tensor(rows, hidden)?,
            normed: backend.tensor(rows, hidden)?,
            layer: Scratch::new(backend, rows, hidden, shape, self.config.intermediate_size)?,
            // A layer reads what it wrote and nothing else does: one layer of the cache serves them all.
            kv: backend.kv_pool(1, views * pages, shape, KvFormat::Bf16)?,
            stores: backend.step(capacity)?,
            sees: backend.step(capacity)?,
        })
    }

    /// States `[goals, hidden]` of the goals of views, one view after another, on the host.
    pub fn forward(&self, backend: &B, views: &[View<'_>], a: &mut Activations<B>) -> Result<Vec<f32>, BackendError> {
        let hidden = self.config.hidden_size;
        let rows: Vec<Vec<Row>> = views.iter().map(|view| self.rows_of(view, view.known.iter().copied())).collect();
        self.encode(backend, views, &rows, a)?;
        // Once a pass, rows move: as the known ones lie in the order of the encoder, all others come between them.
        let encoded = backend.read(&a.x)?.into_owned();
        let (mut input, mut first) = (Vec::new(), 0);
        for (view, rows) in views.iter().zip(&rows) {
            let words = view.prompt.words.len() / hidden;
            let own = &encoded[first * hidden..][..rows.len() * hidden];
            first += rows.len();
            let mut all = own[..words * hidden].to_vec();
            for position in 0..self.grid.len() {
                let place = self.place(view, position);
                all.extend(self.unknown.iter().zip(place).map(|(unknown, place)| unknown + place));
            }
            for (&position, state) in view.known.iter().zip(own[words * hidden..].chunks_exact(hidden)) {
                all[(words + position) * hidden..][..hidden].copy_from_slice(state);
            }
            input.extend(all);
        }
        backend.upload(&input, &mut a.x);
        let rows: Vec<Vec<Row>> = views.iter().map(|view| self.rows_of(view, 0..self.grid.len())).collect();
        let mut wanted = Vec::new();
        let mut first = 0;
        for (view, rows) in views.iter().zip(&rows) {
            let words = rows.len() - self.grid.len();
            wanted.extend(view.goals.iter().map(|goal| (first + words + goal) as u32));
            first += rows.len();
        }
        self.layers(backend, &self.decoder, &rows, wanted, a)?;
        backend.select(&a.sees, &a.x, &mut a.selected);
        backend.rms_norm(&a.selected, &self.norm, self.config.rms_norm_eps, &mut a.normed, Grouping::One);
        Ok(backend.read(&a.normed)?.into_owned())
    }

    /// Words, then positions.
    fn rows_of(&self, view: &View<'_>, positions: impl Iterator<Item = usize>) -> Vec<Row> {
        let words = view.prompt.words.len() / self.config.hidden_size;
        std::iter::repeat_n(Row::Word, words).chain(positions.map(Row::At)).collect()
    }

    /// What a position adds to its input.
    fn place<'a>(&'a self, view: &View<'a>, position: usize) -> impl Iterator<Item = f32> + 'a {
        let hidden = self.config.hidden_size;
        let row = &self.rows[self.grid.row(position) * hidden..][..hidden];
        let col = &self.cols[self.grid.col(position) * hidden..][..hidden];
        row.iter().zip(col).zip(&view.prompt.bias).map(|((row, col), bias)| row + col + bias)
    }

    /// Runs the encoder; its rows remain in `a.x`.
    fn encode(
        &self,
        backend: &B,
        views: &[View<'_>],
        rows: &[Vec<Row>],
        a: &mut Activations<B>,
    ) -> Result<(), BackendError> {
        let (mut input, mut latents) = (Vec::new(), Vec::new());
        for view in views {
            let words = view.prompt.words.len() / self.config.hidden_size;
            input.extend_from_slice(&view.prompt.words);
            latents.resize(latents.len() + words * self.channels, 0.0);
            for &position in view.known {
                input.extend(self.place(view, position));
                latents.extend_from_slice(&view.latents[position * self.channels..][..self.channels]);
            }
        }
        backend.upload(&input, &mut a.x);
        backend.upload(&latents, &mut a.latents);
        backend.linear(&a.latents, &self.inp, &mut a.x, Epilogue::Add, Grouping::One);
        self.layers(backend, &self.encoder, rows, Vec::new(), a)
    }

    /// Runs layers over the rows of `a.x`; of `wanted` the state will be selected.
    fn layers(
        &self,
        backend: &B,
        layers: &[Layer<B>],
        rows: &[Vec<Row>],
        wanted: Vec<u32>,
        a: &mut Activations<B>,
    ) -> Result<(), BackendError> {
        let [stores, sees] = layouts(rows, self.grid);
        backend.set_step(Step { layout: stores, ..Step::default() }, &mut a.stores)?;
        backend.set_step(Step { layout: sees, predictions: wanted, ..Step::default() }, &mut a.sees)?;
        for layer in layers {
            layer.forward_seeing(backend, &mut a.x, (&a.stores, &a.sees), (0, &mut a.kv), &mut a.layer);
        }
        Ok(())
    }
}

/// Where the rows of each view store their keys and values, and where all of them are seen.
fn layouts(views: &[Vec<Row>], grid: Grid) -> [Layout; 2] {
    let [mut stores, mut sees] = [Layout::default(), Layout::default()];
    let mut next = 0;
    for rows in views {
        let pages: Vec<u32> = (next..).take(rows.len().div_ceil(PAGE)).collect();
        next += pages.len() as u32;
        let words = rows.iter().take_while(|row| matches!(row, Row::Word)).count();
        for (part, rows) in rows.chunks(SCRATCH).enumerate() {
            let prefix_len = words.saturating_sub(part * SCRATCH).min(SCRATCH);
            let own = &pages[part * SCRATCH / PAGE..][..rows.len().div_ceil(PAGE)];
            let sequence = stores.sequences.len() as u32;
            stores.sequences.push(PageTable {
                prefix: own[..prefix_len.div_ceil(PAGE)].to_vec(),
                prefix_len,
                width: grid.width,
                frontier: vec![0; grid.height],
                scratch: own.to_vec(),
                ..PageTable::default()
            });
            stores.rows.extend(rows.iter().zip(0..).map(|(row, slot)| {
                let slot = match *row {
                    Row::Word => Slot::Prefix(slot),
                    Row::At(at) => Slot::Scratch { slot, at: at as u32, ancestors: 1 << slot },
                };
                RowPlace { sequence, slot }
            }));
        }
        let place = RowPlace { sequence: sees.sequences.len() as u32, slot: Slot::Prefix(rows.len() as u32 - 1) };
        sees.rows.extend(std::iter::repeat_n(place, rows.len()));
        sees.sequences.push(PageTable {
            prefix_len: rows.len(),
            prefix: pages,
            width: grid.width,
            ..PageTable::default()
        });
    }
    [stores, sees]
}
