//! Matrix products: which variant of the kernel, in which grid.

mod variants;
mod weight;

pub use weight::Weight;

use super::super::abi::WeftOut;
use super::super::kernels::{Grid, Held, args};
use super::super::memory::Buffer;
use super::super::tensor::{self, operand_bytes};
use super::super::{CudaBackend, DeviceStep, Tensor, Vector};
use crate::backend::{Epilogue, Error, Fp8, Grouping, Int4, Storage, WeightFormat};
use half::bf16;
use variants::Variant;
use weight::{Format, Split};

/// What the kernels call the epilogues.
const STORE: u32 = 0;
const ADD: u32 = 1;
const SWIGLU: u32 = 2;

/// Rows from which a bf16 weight is laid out for wgmma on Hopper, whose products then differ from those of mma.sync in the
/// last bit, for one row too: so the layout is a matter of the weight, never of a launch.
///
/// With fewer rows both kinds wait for the weights. mma.sync reaches about 0.6 of the rate of wgmma there, and an H100
/// multiplies 0.6 x 989 / 3.35 = 177 rows in the time that it takes to read a weight. This is an estimate: nothing was
/// measured.
const MANY_ROWS: usize = 160;

/// A product: one weight, or two side by side.
struct Product<'a> {
    weight: &'a Weight,
    up: Option<&'a Weight>,
    bias: Option<&'a Vector>,
    epilogue: u32,
}

impl CudaBackend {
    /// See [`Backend::weight_in`](crate::backend::Backend::weight_in).
    pub(in crate::backend::cuda) fn op_weight(
        &self,
        storage: Storage,
        data: &[bf16],
        n: usize,
        k: usize,
    ) -> Result<Weight, Error> {
        let hopper = self.device.capability().0 == 9 && storage.rows >= MANY_ROWS;
        match storage.format {
            WeightFormat::Bf16 if hopper => Weight::bf16(&self.device, Format::Bf16Hopper, data, n, k),
            WeightFormat::Bf16 => Weight::bf16(&self.device, Format::Bf16, data, n, k),
            WeightFormat::Fp8 => self.weight_fp8(&Fp8::quantise(data, n, k)),
            WeightFormat::Int4 => self.weight_int4(&Int4::asymmetric(data, n, k)),
        }
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

    /// See [`Backend::linear_with_bias`](crate::backend::Backend::linear_with_bias).
    pub(in crate::backend::cuda) fn op_linear_with_bias(
        &self,
        x: &Tensor,
        w: &Weight,
        bias: &Vector,
        out: &mut Tensor,
    ) {
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
        assert!(count == 1 || w.format() == Format::Bf16, "a stack of groups in {:?}", w.format());
        let n = w.n() / count.max(1);
        assert!(count > 0 && n * count == w.n(), "{} outputs are not groups of {}", w.n(), out.cols);
        match epilogue {
            ADD => assert_eq!((out.cols, out.rows.most()), (n, x.rows.most()), "adding rows to others"),
            _ => out.take_rows(x.rows.clone(), n),
        }
        assert!(epilogue != ADD || out.operand().is_none(), "adding to an operand of products");
        assert!(count == 1 || out.operand().is_none() || n.is_multiple_of(2), "pairs of outputs in two groups");

        let most = x.rows.most();
        let variant = Variant::choose(w.format(), up.is_some(), most.div_ceil(count));
        let Split { part, parts } = Split::of(w.n() * if up.is_some() { 2 } else { 1 }, w.k());
        let width = variant.outputs(up.is_some());
        // A group's outputs may begin inside a tile of 16.
        let columns = (0..count).map(|g| (g * n % 16 + n).div_ceil(width)).max().unwrap_or(0);
        let row_blocks = most.div_ceil(variant.rows);
        let slots = columns * row_blocks * count;

        let rounded = if x.operand().is_some() { 0 } else { operand_bytes(most, w.k()).next_multiple_of(256) };
        let partial = if parts > 1 { slots * parts * variant.sums() * 4 } else { 0 };
        let counters = if parts > 1 && slots > w.arrived().len() { slots * 4 } else { 0 };
        let space = self.workspace::<u8>(rounded + partial + counters);
        let (input, room) = match x.operand() {
            Some(operand) => (operand.clone(), x.max_rows),
            None => (space.part(0, rounded / 2), most),
        };
        if x.operand().is_none() {
            self.round(x.floats(), x, &tensor::out(&input, room));
        }
        let sums: Buffer<f32> = space.part(rounded, partial / 4);
        let mut arrived = w.arrived().clone();
        if counters > 0 {
            arrived = space.part(rounded + partial, slots);
            arrived.clear();
        }

        let grid =
            Grid { blocks: [row_blocks * parts * columns, count, 1], threads: variant.threads, shared: variant.shared };
        let args = args![
            out.out(),
            input,
            room as u32,
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

    /// Uploads an operand of products, whose rows are taken.
    pub(in crate::backend::cuda) fn upload_operand(&self, data: &[f32], to: &Tensor) {
        let space = self.workspace::<f32>(data.len());
        space.upload(data);
        self.round(&space, to, &to.out());
    }

    /// Rounds `from`, which has the rows and columns of `like`.
    fn round(&self, from: &Buffer<f32>, like: &Tensor, to: &Held<'_, WeftOut>) {
        let pieces = like.rows.most() * like.cols.div_ceil(32) * 8;
        let args = args![*to, *from, like.rows.arg(), like.cols as u32];
        // SAFETY: the kernel's parameters are these; `to` has room for these rows.
        unsafe { self.launch(variants::ROUND.0, variants::ROUND.1, Grid::of(pieces.div_ceil(256), 256), args) };
    }
}
