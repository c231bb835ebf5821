//! A transformer layer of a given shape with weights of noise, and steps that feed it.

use half::bf16;
use weft::backend::{
    AttentionShape, Axes, Backend, Capacity, Epilogue, Error, Grouping, KvFormat, Layout, PAGE, PageTable, Pairing,
    Rotary, RowPlace, Slot, Step,
};

const ROTARY: Rotary = Rotary { theta: 1e4, axes: Axes::One, pairing: Pairing::Halves };

/// Sizes of a layer.
#[derive(Clone, Copy)]
pub struct Shape {
    pub hidden: usize,
    pub intermediate: usize,
    pub attention: AttentionShape,
}

/// One layer and its activations.
pub struct Layer<B: Backend> {
    shape: Shape,
    norm: B::Vector,
    qkv: B::Weight,
    o: B::Weight,
    gate: B::Weight,
    up: B::Weight,
    down: B::Weight,
    kv: B::KvPool,
    x: B::Tensor,
    normed: B::Tensor,
    heads: B::Tensor,
    mixed: B::Tensor,
    inner: B::Tensor,
}

/// Weights that repeat: their values do not matter, their bytes do.
pub fn weight<B: Backend>(backend: &B, n: usize, k: usize) -> Result<B::Weight, Error> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32(((state >> 8) as f32 / (1 << 23) as f32 - 1.0) / (k as f32).sqrt())
    };
    let pattern: Vec<bf16> = (0..4093).map(|_| next()).collect();
    let data: Vec<bf16> = pattern.iter().copied().cycle().take(n * k).collect();
    backend.weight(&data, n, k)
}

impl<B: Backend> Layer<B> {
    /// A layer with room for so many rows and pages.
    pub fn new(backend: &B, shape: Shape, rows: usize, pages: usize) -> Result<Self, Error> {
        let Shape { hidden, intermediate, attention } = shape;
        let (tensor, operand) = (|cols| backend.tensor(rows, cols), |cols| backend.operand(rows, cols));
        let mut x = tensor(hidden)?;
        let noise: Vec<f32> = (0..rows * hidden).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        backend.upload(&noise, &mut x);
        Ok(Self {
            shape,
            norm: backend.vector(&vec![bf16::ONE; hidden])?,
            qkv: weight(backend, attention.qkv(), hidden)?,
            o: weight(backend, hidden, attention.query())?,
            gate: weight(backend, intermediate, hidden)?,
            up: weight(backend, intermediate, hidden)?,
            down: weight(backend, hidden, intermediate)?,
            kv: backend.kv_pool(1, pages, attention, KvFormat::Bf16)?,
            x,
            normed: operand(hidden)?,
            heads: tensor(attention.qkv())?,
            mixed: operand(attention.query())?,
            inner: operand(intermediate)?,
        })
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> usize {
        let Shape { hidden, intermediate, attention } = self.shape;
        2 * hidden * (attention.qkv() + attention.query() + 3 * intermediate)
    }

    /// Sets the number of rows of the input.
    pub fn set_rows(&mut self, backend: &B, rows: usize) {
        let noise: Vec<f32> = (0..rows * self.shape.hidden).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        backend.upload(&noise, &mut self.x);
    }

    /// The part before the attention.
    pub fn project(&mut self, backend: &B, step: &B::Step) {
        backend.rms_norm(&self.x, &self.norm, 1e-5, &mut self.normed, Grouping::One);
        backend.linear(&self.normed, &self.qkv, &mut self.heads, Epilogue::Store, Grouping::One);
        backend.rotate_and_store(&mut self.heads, None, ROTARY, step, 0, &mut self.kv);
    }

    /// The attention alone.
    pub fn attend(&mut self, backend: &B, step: &B::Step) {
        backend.attention(&self.heads, step, 0, &self.kv, &mut self.mixed);
    }

    /// The part after it.
    pub fn feed_forward(&mut self, backend: &B) {
        backend.linear(&self.mixed, &self.o, &mut self.x, Epilogue::Add, Grouping::One);
        backend.rms_norm(&self.x, &self.norm, 1e-5, &mut self.normed, Grouping::One);
        backend.swiglu(&self.normed, &self.gate, &self.up, &mut self.inner, Grouping::One);
        backend.linear(&self.inner, &self.down, &mut self.x, Epilogue::Add, Grouping::One);
    }

    /// All of it.
    pub fn forward(&mut self, backend: &B, step: &B::Step) {
        self.project(backend, step);
        self.attend(backend, step);
        self.feed_forward(backend);
    }
}

/// A guided image on a square grid.
#[derive(Clone, Copy)]
pub struct Scene {
    /// Tokens of each branch's prompt.
    pub prompt: usize,
    /// Rows and columns of the grid.
    pub side: usize,
    pub branches: usize,
}

impl Scene {
    fn pages(self) -> usize {
        self.prompt.div_ceil(PAGE) + (self.side * self.side).div_ceil(PAGE)
    }

    /// Pages of all branches.
    pub fn all_pages(self) -> usize {
        self.branches * self.pages()
    }

    /// Room for steps of so many rows.
    pub fn capacity(self, rows: usize) -> Capacity {
        let (sequences, pages) = (self.branches, self.all_pages());
        Capacity { rows, sequences, pages, frontiers: self.branches * self.side, ..Capacity::default() }
    }

    /// A step that feeds `rows` rows in all branches together, behind `committed` positions.
    pub fn step(self, rows: usize, committed: usize) -> Step {
        let (prefix, grid) = (self.prompt.div_ceil(PAGE) as u32, (self.side * self.side).div_ceil(PAGE) as u32);
        let per_branch = rows / self.branches;
        let end = committed + per_branch;
        let frontier = (0..self.side).map(|row| end.saturating_sub(row * self.side).min(self.side) as u32);
        let table = |branch: u32| PageTable {
            prefix: (0..prefix).map(|page| branch * (prefix + grid) + page).collect(),
            prefix_len: self.prompt,
            grid: (0..grid).map(|page| branch * (prefix + grid) + prefix + page).collect(),
            width: self.side,
            frontier: frontier.clone().collect(),
            ..PageTable::default()
        };
        let rows = (0..self.branches as u32)
            .flat_map(|sequence| (committed..end).map(move |p| RowPlace { sequence, slot: Slot::Grid(p as u32) }));
        let layout = Layout { sequences: (0..self.branches as u32).map(table).collect(), rows: rows.collect() };
        Step { layout, ..Step::default() }
    }
}
