//! The CUDA backend: kernels of `kernels/`, launched on one stream, recorded into one graph per size of step.
//!
//! Memory is allocated when weights, tensors, caches and steps are made and when steps are reserved, never in between; a
//! step crosses to the device in one copy, runs as one graph, and comes back as a few words.

mod abi;
mod device;
mod gate;
mod graph;
mod kernels;
mod kv;
mod lists;
mod memory;
mod ops;
mod step;
mod tensor;
mod timing;

pub use device::{Device, Traffic, count, is_driver_present};
pub use kernels::{ALL, ARCHITECTURES, Fatbin};
pub use kv::KvPool;
pub use memory::Buffer;
pub use ops::draw::{Canvas, Codebook};
pub use ops::linear::Weight;
pub use step::DeviceStep;
pub use tensor::Tensor;
pub use timing::Stopwatch;

use super::gaussian::{Denoising, Settlement, Trajectories};
use super::{
    AttentionShape, Backend, Capacity, Chosen, Drawn, Embedding, Epilogue, Error, GroupNorm, Grouping, KvFormat, Phase,
    Rotary, Step, Storage,
};
use half::bf16;
use kernels::{Args, Grid, Launcher, Workspace};
use std::borrow::Cow;
use std::sync::Arc;
use tensor::Rows;

/// Runs the network on a CUDA device.
#[derive(Clone)]
pub struct CudaBackend {
    device: Arc<Device>,
    launcher: Arc<Launcher>,
}

/// `[n]` f32.
pub struct Vector(Buffer<f32>);

impl CudaBackend {
    /// The device with this number.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        let device = Device::open(ordinal)?;
        Ok(Self { launcher: Arc::new(Launcher::new(device.clone())?), device })
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Queues a kernel: see [`Launcher::launch`].
    ///
    /// # Safety
    /// As there.
    unsafe fn launch(&self, fatbin: &'static Fatbin, name: &'static str, grid: Grid, args: Args) {
        // SAFETY: the caller's promise.
        unsafe { self.launcher.launch(fatbin, name, grid, args) }
    }

    /// Memory that an op uses between its kernels: see [`Launcher::workspace`].
    fn workspace<T>(&self, len: usize) -> Workspace<'_, T> {
        self.launcher.workspace(len)
    }
}

impl Backend for CudaBackend {
    type Tensor = Tensor;
    type Weight = Weight;
    type Vector = Vector;
    type KvPool = KvPool;
    type Step = DeviceStep;
    type Canvas = Canvas;
    type Codebook = Codebook;

    fn name(&self) -> String {
        self.device.name()
    }

    fn weight_in(&self, storage: Storage, data: &[bf16], n: usize, k: usize) -> Result<Weight, Error> {
        self.op_weight(storage, data, n, k)
    }

    fn vector(&self, data: &[bf16]) -> Result<Vector, Error> {
        let wide: Vec<f32> = data.iter().map(|v| v.to_f32()).collect();
        Ok(Vector(Buffer::copied(&self.device, &wide, "a vector of weights")?))
    }

    fn tensor(&self, max_rows: usize, cols: usize) -> Result<Tensor, Error> {
        Tensor::floats_for(&self.device, max_rows, cols)
    }

    fn operand(&self, max_rows: usize, cols: usize) -> Result<Tensor, Error> {
        Tensor::operand_for(&self.device, max_rows, cols)
    }

    fn kv_pool(&self, layers: usize, pages: usize, shape: AttentionShape, format: KvFormat) -> Result<KvPool, Error> {
        KvPool::new(&self.device, layers, pages, shape, format)
    }

    fn kv_bytes(&self, layers: usize, pages: usize, shape: AttentionShape, format: KvFormat) -> u64 {
        KvPool::bytes(layers, pages, shape, format)
    }

    fn step(&self, capacity: Capacity) -> Result<DeviceStep, Error> {
        DeviceStep::new(&self.device, capacity)
    }

    fn canvas(&self, images: usize, positions: usize, vocab: usize, proposals: bool) -> Result<Canvas, Error> {
        Canvas::new(&self.device, images, positions, vocab, proposals)
    }

    fn upload(&self, data: &[f32], out: &mut Tensor) {
        assert!(data.len().is_multiple_of(out.cols), "{} values in rows of {}", data.len(), out.cols);
        out.take_rows(Rows::Fixed(data.len() / out.cols), out.cols);
        match out.operand() {
            None => out.floats().upload(data),
            Some(_) => self.upload_operand(data, out),
        }
    }

    fn read<'a>(&self, x: &'a Tensor) -> Result<Cow<'a, [f32]>, Error> {
        x.read().map(Cow::Owned)
    }

    fn set_step(&self, host: Step, step: &mut DeviceStep) -> Result<(), Error> {
        step.set(&self.device, host)
    }

    fn reserve(&self, step: &mut DeviceStep, ops: &mut dyn FnMut(&Self, &DeviceStep)) -> Result<(), Error> {
        self.reserve_step(step, ops)
    }

    fn run(&self, step: &mut DeviceStep, ops: &mut dyn FnMut(&Self, &DeviceStep)) {
        self.run_step(step, ops);
    }

    fn linear(&self, x: &Tensor, w: &Weight, out: &mut Tensor, epilogue: Epilogue, groups: Grouping<'_, DeviceStep>) {
        self.op_linear(x, w, out, epilogue, groups);
    }

    fn linear_with_bias(&self, x: &Tensor, w: &Weight, bias: &Vector, out: &mut Tensor) {
        self.op_linear_with_bias(x, w, bias, out);
    }

    fn swiglu(&self, x: &Tensor, gate: &Weight, up: &Weight, out: &mut Tensor, groups: Grouping<'_, DeviceStep>) {
        self.op_swiglu(x, gate, up, out, groups);
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vector, eps: f32, out: &mut Tensor, groups: Grouping<'_, DeviceStep>) {
        self.op_rms_norm(x, weight, eps, out, groups);
    }

    fn layer_norm(&self, x: &Tensor, weight: &Vector, bias: &Vector, eps: f32, out: &mut Tensor) {
        self.op_layer_norm(x, weight, bias, eps, out);
    }

    fn modulated_norm(
        &self,
        x: &Tensor,
        norm: (&Vector, &Vector),
        eps: f32,
        shift: &Tensor,
        scale: &Tensor,
        out: &mut Tensor,
    ) {
        self.op_modulated_norm(x, norm, eps, shift, scale, out);
    }

    fn rotate_and_store(
        &self,
        qkv: &mut Tensor,
        qk_norm: Option<(&Vector, &Vector, f32)>,
        rotary: Rotary,
        step: &DeviceStep,
        layer: usize,
        kv: &mut KvPool,
    ) {
        self.op_rotate_and_store(qkv, qk_norm, rotary, step, layer, kv);
    }

    fn attention(&self, qkv: &Tensor, step: &DeviceStep, layer: usize, kv: &KvPool, out: &mut Tensor) {
        self.op_attention(qkv, step, layer, kv, out);
    }

    fn copy_page(&self, kv: &mut KvPool, from: u32, to: u32) {
        self.op_copy_page(kv, from, to);
    }

    fn silu(&self, x: &Tensor, out: &mut Tensor) {
        self.op_silu(x, out);
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        self.op_add(x, y);
    }

    fn add_product(&self, x: &mut Tensor, y: &Tensor, z: &Tensor) {
        self.op_add_product(x, y, z);
    }

    fn add_row(&self, x: &Tensor, table: &Tensor, row: usize, activate: bool, out: &mut Tensor) {
        self.op_add_row(x, table, row, activate, out);
    }

    fn embed(&self, step: &DeviceStep, tables: Embedding<'_, Tensor>, canvas: &Canvas, out: &mut Tensor) {
        self.op_embed(step, tables, canvas, out);
    }

    fn keep_states(&self, step: &DeviceStep, x: &Tensor, positions: usize, states: &mut Tensor) {
        self.op_keep_states(step, x, positions, states);
    }

    fn select(&self, step: &DeviceStep, x: &Tensor, out: &mut Tensor) {
        self.op_select(step, x, out);
    }

    fn gather(&self, step: &DeviceStep, table: &Tensor, behind: Option<&Tensor>, out: &mut Tensor) {
        self.op_gather(step, table, behind, out);
    }

    fn gather_latents(&self, step: &DeviceStep, latents: &Tensor, positions: usize, out: &mut Tensor) {
        self.op_gather_latents(step, latents, positions, out);
    }

    fn gather_sources(&self, step: &DeviceStep, states: &Tensor, tokens: &Tensor, canvas: &Canvas, out: &mut Tensor) {
        self.op_gather_sources(step, states, tokens, canvas, out);
    }

    fn copy_rows(&self, step: &DeviceStep, logits: &mut Tensor) {
        self.op_copy_rows(step, logits);
    }

    fn codebook(&self, vectors: &[f32], dim: usize, neighbours: usize) -> Result<Codebook, Error> {
        self.op_codebook(vectors, dim, neighbours)
    }

    fn put(&self, step: &DeviceStep, canvas: &mut Canvas) {
        self.op_put(step, canvas);
    }

    fn draw(&self, step: &DeviceStep, phase: Phase, logits: &Tensor, canvas: &mut Canvas, codebook: Option<&Codebook>) {
        self.op_draw(step, phase, logits, canvas, codebook);
    }

    fn drawn(&self, step: &DeviceStep, canvas: &Canvas) -> Result<Vec<Drawn>, Error> {
        self.op_drawn(step, canvas)
    }

    fn chosen(&self, step: &DeviceStep, canvas: &Canvas) -> Result<Vec<Chosen>, Error> {
        self.op_chosen(step, canvas)
    }

    fn tokens(&self, canvas: &Canvas, image: usize) -> Result<Vec<u32>, Error> {
        self.op_tokens(canvas, image)
    }

    fn set_tokens(&self, canvas: &mut Canvas, image: usize, tokens: &[u32]) -> Result<(), Error> {
        self.op_set_tokens(canvas, image, tokens)
    }

    fn begin_denoising(
        &self,
        step: &DeviceStep,
        level: u32,
        x: &mut Tensor,
        trajectories: &mut Trajectories<'_, Tensor>,
    ) {
        self.op_begin_denoising(step, level, x, trajectories);
    }

    fn denoise(
        &self,
        step: &DeviceStep,
        denoising: &Denoising,
        predicted: &Tensor,
        x: &mut Tensor,
        trajectories: &mut Trajectories<'_, Tensor>,
    ) {
        self.op_denoise(step, denoising, predicted, x, trajectories);
    }

    fn settle(
        &self,
        step: &DeviceStep,
        settlement: Settlement,
        positions: usize,
        laws: [&Tensor; 2],
        latents: &mut Tensor,
        verdicts: &mut Tensor,
    ) {
        self.op_settle(step, settlement, positions, laws, latents, verdicts);
    }

    fn conv3x3(&self, x: &Tensor, size: (usize, usize), stride: usize, w: &Weight, bias: &Vector, out: &mut Tensor) {
        self.op_conv3x3(x, size, stride, w, bias, out);
    }

    fn group_norm(&self, x: &Tensor, pixels: usize, norm: GroupNorm, weight: &Vector, bias: &Vector, out: &mut Tensor) {
        self.op_group_norm(x, pixels, norm, weight, bias, out);
    }

    fn image_attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, pixels: usize, out: &mut Tensor) {
        self.op_image_attention(q, k, v, pixels, out);
    }

    fn upsample(&self, x: &Tensor, size: (usize, usize), out: &mut Tensor) {
        self.op_upsample(x, size, out);
    }
}
