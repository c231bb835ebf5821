//! Matrix products: which variant of the kernel, in which grid.

mod quantise;
mod variants;
mod weight;

pub use quantise::{Fp8, Int4};
pub use weight::Weight;

use super::super::kernels::{Grid, Held, args};
use super::super::memory::Buffer;
use super::super::{CudaBackend, DeviceStep, Tensor, Vector};
use crate::backend::{Epilogue, Error, Grouping};
use half::bf16;
use variants::Variant;
use weight::{Format, Split};

/// What the kernels call the epilogues.
const STORE: u32 = 0;
const ADD: u32 = 1;
const SWIGLU: u32 = 2;

/// A product: one weight, or two side by side.
struct Product<'a> {
    weight: &'a Weight,
    up: Option<&'a Weight>,
    bias: Option<&'a Vector>,
    epilogue: u32,
}

impl CudaBackend {
    /// See [`Backend::weight`](crate::backend::Backend::weight).
    pub(in crate::backend::cuda) fn op_weight(&self, data: &[bf16], n: usize, k: usize) -> Result<Weight, Error> {
        Weight::bf16(&self.device, Format::Bf16, data, n, k)
    }

    /// A bf16 weight for products with many rows (some hundred in most steps, as when many requests share a step): on
    /// Hopper they are made by wgmma; elsewhere this is [`Backend::weight`](crate::backend::Backend::weight).
    ///
    /// The two kinds may differ in the last bit of a product, so one kind is chosen for a weight and serves all its
    /// products, whatever their rows. This one rounds the input in a launch of its own even for a single row, and cannot
    /// be a stack of groups.
    pub fn weight_for_many_rows(&self, data: &[bf16], n: usize, k: usize) -> Result<Weight, Error> {
        let format = if self.device.capability().0 == 9 { Format::Bf16Hopper } else { Format::Bf16 };
        Weight::bf16(&self.device, format, data, n, k)
    }

    /// A weight in fp8: half the memory and half the time of a product with few rows.
    pub fn weight_fp8(&self, weight: &Fp8) -> Result<Weight, Error> {
        Weight::fp8(&self.device, weight)
    }

    /// A weight in int4: about a quarter of the memory.
    pub fn weight_int4(&self, weight: &Int4) -> Result<Weight, Error> {
        Weight::int4(&self.device, weight)
    }

    /// See [`Backend::linear`](crate::backend::Backend::linear).
    pub(in crate::backend::cuda) fn op_linear(
        &self,
        x: &Tensor,
        w: &Weight,
        out: &mut Tensor,
        epilogue: Epilogue,
        groups: Grouping<'_, DeviceStep>,
    ) {
        let epilogue = match epilogue {
            Epilogue::Store => STORE,
            Epilogue::Add => ADD,
        };
        self.product(x, Product { weight: w, up: None, bias: None, epilogue }, out, groups);
    }

    /// [`Backend::linear`](crate::backend::Backend::linear) with a bias per output: `out = x W^T + bias`.
    pub fn linear_with_bias(&self, x: &Tensor, w: &Weight, bias: &Vector, out: &mut Tensor) {
        assert_eq!(bias.0.len(), w.n(), "bias of {} outputs", w.n());
        self.product(x, Product { weight: w, up: None, bias: Some(bias), epilogue: STORE }, out, Grouping::One);
    }

    /// See [`Backend::swiglu`](crate::backend::Backend::swiglu).
    pub(in crate::backend::cuda) fn op_swiglu(
        &self,
        x: &Tensor,
        gate: &Weight,
        up: &Weight,
        out: &mut Tensor,
        groups: Grouping<'_, DeviceStep>,
    ) {
        assert_eq!((gate.n(), gate.k()), (up.n(), up.k()), "gate and up differ in size");
        assert_eq!(gate.format(), up.format(), "gate and up differ in format");
        self.product(x, Product { weight: gate, up: Some(up), bias: None, epilogue: SWIGLU }, out, groups);
    }

    fn product(&self, x: &Tensor, product: Product<'_>, out: &mut Tensor, groups: Grouping<'_, DeviceStep>) {
        let Product { weight: w, up, bias, epilogue } = product;
        assert_eq!(x.cols, w.k(), "input has {} columns, the weight wants {}", x.cols, w.k());
        let (count, starts) = match groups {
            Grouping::One => (1, Held { value: std::ptr::null(), memory: None }),
            Grouping::By(step) => (w.n() / out.cols, step.groups()),
        };
        assert!(count == 1 || w.format() != Format::Bf16Hopper, "a weight for many rows is not a stack of groups");
        let n = w.n() / count.max(1);
        assert!(count > 0 && n * count == w.n(), "{} outputs are not groups of {}", w.n(), out.cols);
        match epilogue {
            ADD => assert_eq!((out.cols, out.rows.most()), (n, x.rows.most()), "adding rows to others"),
            _ => out.take_rows(x.rows.clone(), n),
        }

        let most = x.rows.most();
        let variant = Variant::choose(w.format(), up.is_some(), most.div_ceil(count));
        let Split { part, parts } = Split::of(w.n() * if up.is_some() { 2 } else { 1 }, w.k());
        let width = variant.outputs(up.is_some());
        // A group's outputs may begin inside a tile of 16.
        let columns = (0..count).map(|g| (g * n % 16 + n).div_ceil(width)).max().unwrap_or(0);
        let row_blocks = most.div_ceil(variant.rows);
        let slots = columns * row_blocks * count;

        let rounded = if variant.rounded { w.k().div_ceil(32) * 64 * most } else { 0 };
        let partial = if parts > 1 { slots * parts * variant.sums() * 4 } else { 0 };
        let counters = if parts > 1 && slots > w.arrived().len() { slots * 4 } else { 0 };
        let space = self.workspace::<u8>(rounded.next_multiple_of(256) + partial + counters);
        if variant.rounded {
            self.round(x, &space.part(0, rounded / 4));
        }
        let sums: Buffer<f32> = space.part(rounded.next_multiple_of(256), partial / 4);
        let mut arrived = w.arrived().clone();
        if counters > 0 {
            arrived = space.part(rounded.next_multiple_of(256) + partial, slots);
            arrived.clear();
        }

        let grid =
            Grid { blocks: [row_blocks * parts * columns, count, 1], threads: variant.threads, shared: variant.shared };
        let input = if variant.rounded { space.part(0, rounded / 4) } else { x.data.clone() };
        let args = args![
            out.data,
            input,
            x.rows.arg(),
            starts,
            *w.packed(),
            up.map(Weight::packed),
            w.scales(),
            up.and_then(Weight::scales),
            bias.map(|bias| &bias.0),
            n as u32,
            w.k() as u32,
            row_blocks as u32,
            w.tiles() as u32,
            part as u32,
            parts as u32,
            epilogue,
            sums,
            arrived,
        ];
        // SAFETY: the kernel's parameters are these; `out` has room for as many rows as `x`, the workspace for the sums
        // of all parts and for the rounded input, and the weights are packed for this variant's format.
        unsafe { self.launch(variant.fatbin, variant.name, grid, args) };
    }

    /// Rounds the input once, for the variants that read it so.
    fn round(&self, x: &Tensor, to: &Buffer<f32>) {
        let pieces = x.rows.most() * x.cols.div_ceil(32) * 8;
        let args = args![*to, x.data, x.rows.arg(), x.cols as u32];
        // SAFETY: the kernel's parameters are these; `to` has 64 bytes for each row and 32 columns.
        unsafe { self.launch(variants::ROUND.0, variants::ROUND.1, Grid::of(pieces.div_ceil(256), 256), args) };
    }
}
