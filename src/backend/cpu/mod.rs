//! The CPU backend: packed bf16 weights, SIMD chosen at run time, threads where they pay.
//!
//! Each op is written once over a micro kernel ([`matmul`]) or once in plain Rust that is compiled per instruction
//! set ([`isa`]). The instruction set may change the bits of a result; the number of rows, the neighbours of a row
//! and the number of threads never do.

mod attention;
mod conv;
mod elementwise;
mod isa;
mod kv;
mod lanes;
mod matmul;
mod memory;
mod norm;
mod parallel;
mod rotary;
mod visible;
mod weight;

#[cfg(test)]
mod tests;

pub use isa::Isa;
pub use kv::KvPool;
pub use weight::Weight;

use super::{AttentionShape, Backend, Epilogue, GroupNorm, Layout, Rotary};
use half::bf16;
use isa::Level;
use matmul::with_kernel;
use memory::Aligned;
use std::borrow::Cow;

/// Runs the network on this machine's processor, with as many threads as the caller's rayon pool has.
pub struct CpuBackend {
    level: Level,
    rotary: rotary::Tables,
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
        Level::new(isa).map(|level| Self { level, rotary: rotary::Tables::default() })
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

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.level.isa(), rayon::current_num_threads())
    }

    fn weight(&self, data: &[bf16], n: usize, k: usize) -> Weight {
        Weight::pack(data, n, k)
    }

    fn vector(&self, data: &[bf16]) -> Vector {
        Vector(data.iter().map(|v| v.to_f32()).collect())
    }

    fn tensor(&self, max_rows: usize, cols: usize) -> Tensor {
        Tensor { data: Aligned::zeroed(max_rows * cols), rows: 0, cols, max_rows }
    }

    fn kv_pool(&self, layers: usize, pages: usize, shape: AttentionShape) -> KvPool {
        KvPool::new(layers, pages, shape)
    }

    fn upload(&self, data: &[f32], out: &mut Tensor) {
        assert!(data.len().is_multiple_of(out.cols), "{} values in rows of {}", data.len(), out.cols);
        out.reshape(data.len() / out.cols, out.cols).copy_from_slice(data);
    }

    fn read<'a>(&self, x: &'a Tensor) -> Cow<'a, [f32]> {
        Cow::Borrowed(x.get())
    }

    fn linear(&self, x: &Tensor, w: &Weight, out: &mut Tensor, epilogue: Epilogue) {
        assert_eq!(x.cols, w.k(), "input has {} columns, the weight wants {}", x.cols, w.k());
        if epilogue == Epilogue::Add {
            assert_eq!(out.rows, x.rows, "adding {} rows to {}", x.rows, out.rows);
        }
        let out = out.reshape(x.rows, w.n());
        with_kernel!(self.level, kernel => matmul::linear(kernel, x.get(), w, out, epilogue));
    }

    fn swiglu(&self, x: &Tensor, gate: &Weight, up: &Weight, out: &mut Tensor) {
        assert_eq!((x.cols, x.cols), (gate.k(), up.k()), "input has {} columns", x.cols);
        assert_eq!(gate.n(), up.n(), "gate and up differ in size");
        let out = out.reshape(x.rows, gate.n());
        with_kernel!(self.level, kernel => matmul::swiglu(kernel, x.get(), gate, up, out));
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vector, eps: f32, out: &mut Tensor) {
        assert_eq!(x.cols, weight.0.len(), "norm weight does not fit");
        norm::rms_norm(self.level, x.get(), &weight.0, eps, out.reshape(x.rows, x.cols));
    }

    fn rotate_and_store(
        &self,
        q: &mut Tensor,
        k: &mut Tensor,
        v: &Tensor,
        qk_norm: Option<(&Vector, &Vector, f32)>,
        rotary: Rotary,
        layout: &Layout,
        layer: usize,
        kv: &mut KvPool,
    ) {
        let AttentionShape { heads, kv_heads, head_dim } = kv.shape();
        let rows = layout.rows.len();
        assert_eq!((q.rows, q.cols), (rows, heads * head_dim), "q does not fit layout and cache");
        assert_eq!((k.rows, k.cols), (rows, kv_heads * head_dim), "k does not fit layout and cache");
        assert_eq!((v.rows, v.cols), (rows, kv_heads * head_dim), "v does not fit layout and cache");
        for (x, norm) in [(q, qk_norm.map(|n| (n.0, n.2))), (&mut *k, qk_norm.map(|n| (n.1, n.2)))] {
            let norm = norm.map(|(weight, eps)| {
                assert_eq!(weight.0.len(), head_dim, "norm weight does not fit a head");
                (&weight.0[..], eps)
            });
            rotary::rotate(self.level, &self.rotary, rotary, layout, x.get_mut(), head_dim, norm);
        }
        kv.store(layer, layout, k.get(), v.get());
    }

    fn attention(&self, q: &Tensor, layout: &Layout, layer: usize, kv: &KvPool, out: &mut Tensor) {
        let cols = kv.shape().heads * kv.shape().head_dim;
        assert_eq!((q.rows, q.cols), (layout.rows.len(), cols), "q does not fit layout and cache");
        let out = out.reshape(q.rows, cols);
        with_kernel!(self.level, kernel => attention::attention(kernel, q.get(), layout, layer, kv, out));
    }

    fn copy_page(&self, kv: &mut KvPool, from: u32, to: u32) {
        kv.copy_page(from, to);
    }

    fn conv3x3(&self, x: &Tensor, size: (usize, usize), stride: usize, w: &Weight, bias: &Vector, out: &mut Tensor) {
        let shape = conv::Shape { h: size.0, w: size.1, stride, cin: x.cols };
        assert_eq!(w.k(), 9 * x.cols, "kernel does not fit {} channels", x.cols);
        assert_eq!(bias.0.len(), w.n(), "bias does not fit the kernel");
        assert!(size.0 * size.1 > 0 && stride > 0, "empty image");
        assert!(x.rows.is_multiple_of(size.0 * size.1), "{} rows are no images of {size:?}", x.rows);
        let rows = x.rows / (size.0 * size.1) * size.0.div_ceil(stride) * size.1.div_ceil(stride);
        let out = out.reshape(rows, w.n());
        with_kernel!(self.level, kernel => conv::conv3x3(kernel, x.get(), shape, w, &bias.0, out));
    }

    fn group_norm(&self, x: &Tensor, pixels: usize, norm: GroupNorm, weight: &Vector, bias: &Vector, out: &mut Tensor) {
        assert_eq!((weight.0.len(), bias.0.len()), (x.cols, x.cols), "norm weights do not fit");
        let groups = norm.groups;
        assert!(groups > 0 && x.cols.is_multiple_of(groups), "{} channels in {groups} groups", x.cols);
        assert!(pixels > 0 && x.rows.is_multiple_of(pixels), "{} rows are no images of {pixels}", x.rows);
        let norm = norm::WeightedGroupNorm { form: norm, weight: &weight.0, bias: &bias.0 };
        norm::group_norm(self.level, x.get(), pixels, norm, out.reshape(x.rows, x.cols));
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        assert_eq!((x.rows, x.cols), (y.rows, y.cols), "adding tensors of different sizes");
        elementwise::add(self.level, x.get_mut(), y.get());
    }
}
