//! Activations on the device.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use half::bf16;

use super::abi;
use super::device::Device;
use super::kernels::Held;
use super::memory::Buffer;
use super::step::{Count, DeviceStep, Limits};
use crate::backend::Error;

/// `[rows, cols]`: f32, or an operand of products.
pub struct Tensor {
    data: Data,
    pub(super) rows: Rows,
    pub(super) cols: usize,
    pub(super) max_rows: usize,
}

enum Data {
    /// Row-major.
    Floats(Buffer<f32>),
    /// bf16 in panels, as kernels/operand.cuh says, for `max_rows` rows; zeros past the columns.
    Operand(Buffer<u16>),
}

/// Columns of a panel of an operand.
const PANEL: usize = 32;

/// Bytes of an operand with room for so many rows.
pub(super) fn operand_bytes(room: usize, cols: usize) -> usize {
    room * cols.div_ceil(PANEL) * PANEL * 2
}

/// How many rows of a tensor are in use.
#[derive(Clone)]
pub(super) enum Rows {
    /// So many.
    Fixed(usize),
    /// As many as a step says, in device memory.
    Counted {
        /// The step's counts.
        counts: Buffer<abi::WeftCounts>,
        /// Which of them.
        which: Count,
        /// What the step's lists are padded to.
        limits: Arc<Limits>,
    },
}

impl Rows {
    /// As many as the step has of these.
    pub(super) fn of(step: &DeviceStep, which: Count) -> Rows {
        Rows::Counted { counts: step.counts().clone(), which, limits: step.limits().clone() }
    }

    /// No more rows than this: what a grid is made for.
    pub(super) fn most(&self) -> usize {
        match self {
            Rows::Fixed(rows) => *rows,
            Rows::Counted { which, limits, .. } => limits.most[*which as usize].load(Ordering::Relaxed),
        }
    }

    /// The kernel's parameter, a `WeftRows`.
    pub(super) fn arg(&self) -> Held<'_, abi::WeftRows> {
        let max = self.most() as u32;
        match self {
            Rows::Fixed(_) => Held { value: abi::WeftRows { count: std::ptr::null(), max }, memory: None },
            Rows::Counted { counts, which, .. } => {
                let count = (counts.address() + 4 * *which as u64) as *const u32;
                Held { value: abi::WeftRows { count, max }, memory: Some(counts.allocation()) }
            }
        }
    }
}

impl Tensor {
    /// No rows of f32, with room for so many.
    pub(super) fn floats_for(device: &Arc<Device>, max_rows: usize, cols: usize) -> Result<Tensor, Error> {
        let data = Data::Floats(Buffer::zeroed(device, max_rows * cols, "activations")?);
        Ok(Tensor { data, rows: Rows::Fixed(0), cols, max_rows })
    }

    /// No rows of an operand, with room for so many.
    pub(super) fn operand_for(device: &Arc<Device>, max_rows: usize, cols: usize) -> Result<Tensor, Error> {
        // Its room tells a kernel what it is, so there is some.
        let max_rows = max_rows.max(1);
        let data = Data::Operand(Buffer::zeroed(device, operand_bytes(max_rows, cols) / 2, "activations")?);
        Ok(Tensor { data, rows: Rows::Fixed(0), cols, max_rows })
    }

    /// Makes this a tensor of so many rows, whose values an op is about to write.
    pub(super) fn take_rows(&mut self, rows: Rows, cols: usize) {
        assert_eq!(self.cols, cols, "tensor has {} columns where {cols} are written", self.cols);
        assert!(rows.most() <= self.max_rows, "{} rows in a tensor with room for {}", rows.most(), self.max_rows);
        self.rows = rows;
    }

    /// The f32 values.
    ///
    /// # Panics
    /// If this is an operand of products: no other op takes those.
    pub(super) fn floats(&self) -> &Buffer<f32> {
        match &self.data {
            Data::Floats(data) => data,
            Data::Operand(_) => panic!("an operand of products where f32 is wanted"),
        }
    }

    /// The panels, of an operand.
    pub(super) fn operand(&self) -> Option<&Buffer<u16>> {
        match &self.data {
            Data::Floats(_) => None,
            Data::Operand(data) => Some(data),
        }
    }

    /// Where an op writes, a `WeftOut`.
    pub(super) fn out(&self) -> Held<'_, abi::WeftOut> {
        match &self.data {
            Data::Floats(data) => out(data, 0),
            Data::Operand(data) => out(data, self.max_rows),
        }
    }

    /// The values, row-major, once all queued work is done; those of an operand are what products see.
    pub(super) fn read(&self) -> Result<Vec<f32>, Error> {
        let rows = match &self.rows {
            Rows::Fixed(rows) => *rows,
            Rows::Counted { which, limits, .. } => limits.exact[*which as usize].load(Ordering::Relaxed),
        };
        let panels = match &self.data {
            Data::Floats(data) => return data.download(rows * self.cols),
            Data::Operand(data) => data.download(data.len())?,
        };
        let place = |row: usize, col: usize| {
            (col / PANEL * self.max_rows + row) * PANEL + ((col / 8 % 4) ^ (row / 2 % 4)) * 8 + col % 8
        };
        let places = (0..rows).flat_map(|row| (0..self.cols).map(move |col| place(row, col)));
        Ok(places.map(|place| bf16::from_bits(panels[place]).to_f32()).collect())
    }
}

/// A `WeftOut`: with room for no rows, f32.
pub(super) fn out<T>(data: &Buffer<T>, room: usize) -> Held<'_, abi::WeftOut> {
    let value = abi::WeftOut { data: data.address() as *mut std::ffi::c_void, room: room as u32 };
    Held { value, memory: Some(data.allocation()) }
}
