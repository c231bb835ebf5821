//! The CPU backend: packed bf16 weights, SIMD chosen at run time, threads where they pay.
//!
//! Each op is written once over a micro kernel ([`matmul`]) or once in plain Rust that is compiled per instruction
//! set ([`isa`]). The instruction set may change the bits of a result; the number of rows, the neighbours of a row
//! and the number of threads never do.

mod attention;
mod conv;
mod diffusion;
mod draw;
mod elementwise;
mod image_attention;
mod isa;
mod kv;
mod lanes;
mod matmul;
mod memory;
mod norm;
mod parallel;
mod rotary;
mod rows;
mod verify;
mod visible;
mod weight;

#[cfg(test)]
mod tests;

pub use draw::Canvas;
pub use isa::Isa;
pub use kv::KvPool;
pub use verify::Codebook;
pub use weight::Weight;

use super::gaussian::{Denoising, Settlement, Trajectories};
use super::{
    AttentionShape, Backend, Capacity, Chosen, Drawn, Embedding, Epilogue, Error, Fp8, GroupNorm, Grouping, Int4,
    KvFormat, PAGE, Phase, Rotary, Step, Storage, WeightFormat,
};
use half::bf16;
use isa::Level;
use matmul::with_kernel;
use memory::Aligned;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Runs the network on this machine's processor, with as many threads as the caller's rayon pool has.
#[derive(Clone)]
pub struct CpuBackend {
    level: Level,
    rotary: Arc<rotary::Tables>,
}

/// `[rows, cols]` f32.
pub struct Tensor {
    data: Aligned<f32>,
    rows: usize,
    cols: usize,
    max_rows: usize,
}

impl Tensor {
    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    fn get(&self) -> &[f32] {
        &self.data.as_slice()[..self.rows * self.cols]
    }

    fn get_mut(&mut self) -> &mut [f32] {
        &mut self.data.as_mut_slice()[..self.rows * self.cols]
    }

    /// Makes this `[rows, cols]`, keeping whatever values are there.
    fn reshape(&mut self, rows: usize, cols: usize) -> &mut [f32] {
        assert_eq!(self.cols, cols, "tensor has {} columns where {cols} are written", self.cols);
        assert!(rows <= self.max_rows, "{rows} rows in a tensor with room for {}", self.max_rows);
        self.rows = rows;
        self.get_mut()
    }
}

/// `[n]` f32.
pub struct Vector(Vec<f32>);

impl CpuBackend {
    /// With the best instruction set of this machine, or the one that `WEFT_ISA` names if the machine has it.
    pub fn new() -> Self {
        let wanted = std::env::var("WEFT_ISA").ok();
        let named = Isa::ALL.into_iter().find(|isa| wanted.as_deref() == Some(&isa.to_string()));
        named.into_iter().chain(Isa::ALL).find_map(Self::with_isa).expect("the portable kernels run anywhere")
    }

    /// With this instruction set; `None` if the machine lacks it.
    pub fn with_isa(isa: Isa) -> Option<Self> {
        Level::new(isa).map(|level| Self { level, rotary: Arc::default() })
    }

    /// Calls `f` with each part of a stacked weight, of how many, and the rows that use it.
    fn each_group(rows: usize, groups: Grouping<'_, Step>, mut f: impl FnMut(usize, usize, Range<usize>)) {
        let Grouping::By(step) = groups else { return f(0, 1, 0..rows) };
        assert_eq!(step.groups.last().map(|&end| end as usize), Some(rows), "groups do not cover the rows");
        let count = step.groups.len() - 1;
        for (group, ends) in step.groups.windows(2).enumerate() {
            f(group, count, ends[0] as usize..ends[1] as usize);
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.level.isa()
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for CpuBackend {
    type Tensor = Tensor;
    type Weight = Weight;
    type Vector = Vector;
    type KvPool = KvPool;
    type Step = Step;
    type Canvas = Canvas;
    type Codebook = Codebook;

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.level.isa(), rayon::current_num_threads())
    }

    /// Quantised weights are held as the bf16 that they stand for: the same products, without the saving of memory.
    fn weight_in(&self, storage: Storage, data: &[bf16], n: usize, k: usize) -> Result<Weight, Error> {
        match storage.format {
            WeightFormat::Bf16 => Weight::pack(data, n, k),
            WeightFormat::Fp8 => Weight::pack(&Fp8::quantise(data, n, k).dequantise(), n, k),
            WeightFormat::Int4 => Weight::pack(&Int4::asymmetric(data, n, k).dequantise(), n, k),
        }
    }

    fn vector(&self, data: &[bf16]) -> Result<Vector, Error> {
        Ok(Vector(data.iter().map(|v| v.to_f32()).collect()))
    }

    fn tensor(&self, max_rows: usize, cols: usize) -> Result<Tensor, Error> {
        Ok(Tensor { data: Aligned::zeroed(max_rows.saturating_mul(cols), "activations")?, rows: 0, cols, max_rows })
    }

    fn kv_pool(&self, layers: usize, pages: usize, shape: AttentionShape, format: KvFormat) -> Result<KvPool, Error> {
        KvPool::new(layers, pages, shape, format)
    }

    /// As bf16, whatever the format: an fp8 cache holds the bf16 that its numbers stand for.
    fn kv_bytes(&self, layers: usize, pages: usize, shape: AttentionShape, _: KvFormat) -> u64 {
        2 * 2 * (layers * pages * PAGE * shape.key()) as u64
    }

    fn step(&self, _: Capacity) -> Result<Step, Error> {
        Ok(Step::default())
    }

    fn canvas(&self, images: usize, positions: usize, vocab: usize, _: bool) -> Result<Canvas, Error> {
        Ok(Canvas::new(images, positions, vocab))
    }

    fn codebook(&self, vectors: &[f32], dim: usize, neighbours: usize) -> Result<Codebook, Error> {
        Ok(Codebook::new(vectors, dim, neighbours))
    }

    fn upload(&self, data: &[f32], out: &mut Tensor) {
        assert!(data.len().is_multiple_of(out.cols), "{} values in rows of {}", data.len(), out.cols);
        out.reshape(data.len() / out.cols, out.cols).copy_from_slice(data);
    }

    fn read<'a>(&self, x: &'a Tensor) -> Result<Cow<'a, [f32]>, Error> {
        Ok(Cow::Borrowed(x.get()))
    }

    fn set_step(&self, host: Step, step: &mut Step) -> Result<(), Error> {
        *step = host;
        Ok(())
    }

    fn run(&self, step: &mut Step, ops: &mut dyn FnMut(&Self, &Step)) {
        ops(self, step);
    }

    fn linear(&self, x: &Tensor, w: &Weight, out: &mut Tensor, epilogue: Epilogue, groups: Grouping<'_, Step>) {
        assert_eq!(x.cols, w.k(), "input has {} columns, the weight wants {}", x.cols, w.k());
        if epilogue == Epilogue::Add {
            assert_eq!(out.rows, x.rows, "adding {} rows to {}", x.rows, out.rows);
        }
        let n = w.n() / groups.count();
        let out = out.reshape(x.rows, n);
        Self::each_group(x.rows, groups, |group, count, rows| {
            let x = &x.get()[rows.start * x.cols..rows.end * x.cols];
            let (out, part) = (&mut out[rows.start * n..rows.end * n], w.part(group, count));
            with_kernel!(self.level, kernel => matmul::linear(kernel, x, part, out, epilogue));
        });
    }

    fn linear_with_bias(&self, x: &Tensor, w: &Weight, bias: &Vector, out: &mut Tensor) {
        assert_eq!(bias.0.len(), w.n(), "bias of {} outputs", w.n());
        self.linear(x, w, out, Epilogue::Store, Grouping::One);
        elementwise::add_to_rows(self.level, out.get_mut(), &bias.0);
    }

    fn swiglu(&self, x: &Tensor, gate: &Weight, up: &Weight, out: &mut Tensor, groups: Grouping<'_, Step>) {
        assert_eq!((x.cols, x.cols), (gate.k(), up.k()), "input has {} columns", x.cols);
        assert_eq!(gate.n(), up.n(), "gate and up differ in size");
        let n = gate.n() / groups.count();
        let out = out.reshape(x.rows, n);
        Self::each_group(x.rows, groups, |group, count, rows| {
            let x = &x.get()[rows.start * x.cols..rows.end * x.cols];
            let out = &mut out[rows.start * n..rows.end * n];
            let [gate, up] = [gate, up].map(|w| w.part(group, count));
            with_kernel!(self.level, kernel => matmul::swiglu(kernel, x, gate, up, out));
        });
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vector, eps: f32, out: &mut Tensor, groups: Grouping<'_, Step>) {
        assert_eq!(x.cols * groups.count(), weight.0.len(), "norm weight does not fit");
        let out = out.reshape(x.rows, x.cols);
        Self::each_group(x.rows, groups, |group, _, rows| {
            let (weight, all) = (&weight.0[group * x.cols..][..x.cols], rows.start * x.cols..rows.end * x.cols);
            norm::rms_norm(self.level, &x.get()[all.clone()], weight, eps, &mut out[all]);
        });
    }

    fn layer_norm(&self, x: &Tensor, weight: &Vector, bias: &Vector, eps: f32, out: &mut Tensor) {
        assert_eq!((weight.0.len(), bias.0.len()), (x.cols, x.cols), "norm weights do not fit");
        norm::layer_norm(self.level, x.get(), &weight.0, &bias.0, eps, out.reshape(x.rows, x.cols));
    }

    fn modulated_norm(
        &self,
        x: &Tensor,
        (weight, bias): (&Vector, &Vector),
        eps: f32,
        shift: &Tensor,
        scale: &Tensor,
        out: &mut Tensor,
    ) {
        assert_eq!([(shift.rows, shift.cols), (scale.rows, scale.cols)], [(x.rows, x.cols); 2], "shifts of other rows");
        self.layer_norm(x, weight, bias, eps, out);
        elementwise::modulate(self.level, out.get_mut(), shift.get(), scale.get());
    }

    fn rotate_and_store(
        &self,
        qkv: &mut Tensor,
        qk_norm: Option<(&Vector, &Vector, f32)>,
        rotary: Rotary,
        step: &Step,
        layer: usize,
        kv: &mut KvPool,
    ) {
        let (shape, layout) = (kv.shape(), &step.layout);
        assert_eq!((qkv.rows, qkv.cols), (layout.rows.len(), shape.qkv()), "qkv does not fit step and cache");
        let (query, key, head_dim) = (shape.query(), shape.key(), shape.head_dim);
        let parts = [(0..query, qk_norm.map(|n| (n.0, n.2))), (query..query + key, qk_norm.map(|n| (n.1, n.2)))];
        for (range, norm) in parts {
            let norm = norm.map(|(weight, eps)| {
                assert_eq!(weight.0.len(), head_dim, "norm weight does not fit a head");
                (&weight.0[..], eps)
            });
            let heads = rotary::Heads { cols: qkv.cols, x: qkv.get_mut(), range, head_dim };
            rotary::rotate(self.level, &self.rotary, rotary, layout, heads, norm);
        }
        kv.store(layer, layout, qkv.get());
    }

    fn attention(&self, qkv: &Tensor, step: &Step, layer: usize, kv: &KvPool, out: &mut Tensor) {
        let (shape, layout) = (kv.shape(), &step.layout);
        assert_eq!((qkv.rows, qkv.cols), (layout.rows.len(), shape.qkv()), "qkv does not fit step and cache");
        let out = out.reshape(qkv.rows, shape.query());
        with_kernel!(self.level, kernel => attention::attention(kernel, qkv.get(), layout, layer, kv, out));
    }

    fn copy_page(&self, kv: &mut KvPool, from: u32, to: u32) {
        kv.copy_page(from, to);
    }

    fn silu(&self, x: &Tensor, out: &mut Tensor) {
        elementwise::silu(self.level, x.get(), out.reshape(x.rows, x.cols));
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "adding tensors of different sizes");
        elementwise::add(self.level, x.get_mut(), y.get());
    }

    fn add_product(&self, x: &mut Tensor, y: &Tensor, z: &Tensor) {
        assert_eq!([(x.rows, x.cols); 2], [(y.rows, y.cols), (z.rows, z.cols)], "factors of different sizes");
        elementwise::add_product(self.level, x.get_mut(), y.get(), z.get());
    }

    fn add_row(&self, x: &Tensor, table: &Tensor, row: usize, activate: bool, out: &mut Tensor) {
        assert_eq!(x.cols, table.cols, "a row of another width");
        elementwise::add_row(self.level, x.get(), rows::row(table, row), activate, out.reshape(x.rows, x.cols));
    }

    fn embed(&self, step: &Step, tables: Embedding<'_, Tensor>, canvas: &Canvas, out: &mut Tensor) {
        rows::embed(step, tables, canvas, out);
    }

    fn keep_states(&self, step: &Step, x: &Tensor, positions: usize, states: &mut Tensor) {
        rows::keep_states(step, x, positions, states);
    }

    fn select(&self, step: &Step, x: &Tensor, out: &mut Tensor) {
        rows::select(&step.predictions, x, out);
    }

    fn gather(&self, step: &Step, table: &Tensor, behind: Option<&Tensor>, out: &mut Tensor) {
        rows::gather(step, table, behind, out);
    }

    fn gather_latents(&self, step: &Step, latents: &Tensor, positions: usize, out: &mut Tensor) {
        rows::gather_latents(step, latents, positions, out);
    }

    fn gather_sources(&self, step: &Step, states: &Tensor, tokens: &Tensor, canvas: &Canvas, out: &mut Tensor) {
        rows::gather_sources(step, states, tokens, canvas, out);
    }

    fn copy_rows(&self, step: &Step, logits: &mut Tensor) {
        rows::copy_rows(step, logits);
    }

    fn put(&self, step: &Step, canvas: &mut Canvas) {
        draw::put(step, canvas);
    }

    fn draw(&self, step: &Step, phase: Phase, logits: &Tensor, canvas: &mut Canvas, codebook: Option<&Codebook>) {
        draw::draw(step, phase, logits, canvas, codebook);
    }

    fn drawn(&self, _: &Step, canvas: &Canvas) -> Result<Vec<Drawn>, Error> {
        canvas.drawn()
    }

    fn chosen(&self, step: &Step, canvas: &Canvas) -> Result<Vec<Chosen>, Error> {
        Ok(canvas.chosen(step))
    }

    fn tokens(&self, canvas: &Canvas, image: usize) -> Result<Vec<u32>, Error> {
        Ok(canvas.image(image).to_vec())
    }

    fn set_tokens(&self, canvas: &mut Canvas, image: usize, tokens: &[u32]) -> Result<(), Error> {
        canvas.set_image(image, tokens);
        Ok(())
    }

    fn begin_denoising(&self, step: &Step, level: u32, x: &mut Tensor, trajectories: &mut Trajectories<'_, Tensor>) {
        diffusion::begin(step, level, x, trajectories);
    }

    fn denoise(
        &self,
        step: &Step,
        denoising: &Denoising,
        predicted: &Tensor,
        x: &mut Tensor,
        trajectories: &mut Trajectories<'_, Tensor>,
    ) {
        diffusion::denoise(step, denoising, predicted, x, trajectories);
    }

    fn settle(
        &self,
        step: &Step,
        settlement: Settlement,
        positions: usize,
        laws: [&Tensor; 2],
        latents: &mut Tensor,
        verdicts: &mut Tensor,
    ) {
        diffusion::settle(step, settlement, positions, laws, latents, verdicts);
    }

    fn conv3x3(&self, x: &Tensor, size: (usize, usize), stride: usize, w: &Weight, bias: &Vector, out: &mut Tensor) {
        let shape = conv::Shape { h: size.0, w: size.1, stride, cin: x.cols };
        assert_eq!(w.k(), 9 * x.cols, "kernel does not fit {} channels", x.cols);
        assert_eq!(bias.0.len(), w.n(), "bias does not fit the kernel");
        assert!(size.0 * size.1 > 0 && stride > 0, "empty image");
        assert!(x.rows.is_multiple_of(size.0 * size.1), "{} rows are no images of {size:?}", x.rows);
        let rows = x.rows / (size.0 * size.1) * size.0.div_ceil(stride) * size.1.div_ceil(stride);
        let out = out.reshape(rows, w.n());
        with_kernel!(self.level, kernel => conv::conv3x3(kernel, x.get(), shape, w.whole(), &bias.0, out));
    }

    fn group_norm(&self, x: &Tensor, pixels: usize, norm: GroupNorm, weight: &Vector, bias: &Vector, out: &mut Tensor) {
        assert_eq!((weight.0.len(), bias.0.len()), (x.cols, x.cols), "norm weights do not fit");
        let groups = norm.groups;
        assert!(groups > 0 && x.cols.is_multiple_of(groups), "{} channels in {groups} groups", x.cols);
        assert!(pixels > 0 && x.rows.is_multiple_of(pixels), "{} rows are no images of {pixels}", x.rows);
        let norm = norm::WeightedGroupNorm { form: norm, weight: &weight.0, bias: &bias.0 };
        norm::group_norm(self.level, x.get(), pixels, norm, out.reshape(x.rows, x.cols));
    }

    fn image_attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, pixels: usize, out: &mut Tensor) {
        let (rows, cols) = (q.rows, q.cols);
        assert_eq!([(k.rows, k.cols), (v.rows, v.cols)], [(rows, cols); 2], "queries, keys and values differ in size");
        assert!(pixels > 0 && rows.is_multiple_of(pixels), "{rows} rows are no images of {pixels}");
        let out = out.reshape(rows, cols);
        image_attention::image_attention(self.level, [q.get(), k.get(), v.get()], pixels, cols, out);
    }

    fn upsample(&self, x: &Tensor, size: (usize, usize), out: &mut Tensor) {
        assert!(size.0 * size.1 > 0 && x.rows.is_multiple_of(size.0 * size.1), "{} rows are no images", x.rows);
        elementwise::upsample(x.get(), size, x.cols, out.reshape(4 * x.rows, x.cols));
    }
}
