//! Keys and values on the device.

use std::sync::Arc;

use cudarc::driver::result;
use half::bf16;

use super::device::Device;
use super::memory::Buffer;
use crate::backend::quantise::from_e4m3;
use crate::backend::{AttentionShape, Error, KvFormat, KvScales, PAGE, rotary_table};

/// Head dimensions that the kernels are compiled for.
pub(super) const HEAD_DIMS: [usize; 5] = [64, 80, 96, 100, 128];
/// Query vectors that a block of the attention takes at once; so many query heads may share a key head.
pub(super) const QUERIES: usize = 64;
/// Counters with which blocks that attend to parts of the keys of the same rows find the last one.
pub(super) const COUNTERS: usize = 4096;

impl KvFormat {
    /// Bytes of a number.
    fn bytes(self) -> usize {
        match self {
            KvFormat::Bf16 => 2,
            KvFormat::Fp8(_) => 1,
        }
    }

    /// Of what is stored.
    pub(super) fn scales(self) -> KvScales {
        match self {
            KvFormat::Bf16 => KvScales::default(),
            KvFormat::Fp8(scales) => scales,
        }
    }
}

/// Keys and values of all layers, bf16 or fp8 (e4m3): `[layer][page][kv_head][keys, values][16][head_dim]`. A head's keys
/// and values in a page are one run of memory. Heads are padded with zeros to a multiple of 16 bytes: 100 dimensions take
/// the room of 104 as bf16, of 112 as fp8.
pub struct KvPool {
    pub(super) data: Buffer<u8>,
    format: KvFormat,
    /// Zero between launches.
    pub(super) counters: Buffer<u32>,
    /// Cosines and sines of the one rotary embedding that turns the pool's heads; see [`KvPool::turned_by`].
    table: Buffer<f32>,
    turned: Option<Turned>,
    shape: AttentionShape,
    layers: usize,
    pages: usize,
}

/// What a table of angles is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Turned {
    theta: f32,
    pairs: usize,
}

impl KvPool {
    /// Zeros.
    pub(super) fn new(
        device: &Arc<Device>,
        layers: usize,
        pages: usize,
        shape: AttentionShape,
        format: KvFormat,
    ) -> Result<KvPool, Error> {
        check(device, shape)?;
        let what = format!("the cache of {pages} pages");
        let data = Buffer::zeroed(device, layers * pages * page_bytes(shape, format), &what)?;
        let counters = Buffer::zeroed(device, COUNTERS, &what)?;
        // Not cleared: that would be queued, and `upload_apart` does not wait for what is queued.
        let table = Buffer::uninitialised(device, table_len(pages, shape), &what)?;
        Ok(KvPool { data, format, counters, table, turned: None, shape, layers, pages })
    }

    /// Bytes of a pool: keys and values, the angles that turn them, counters.
    pub(super) fn bytes(layers: usize, pages: usize, shape: AttentionShape, format: KvFormat) -> u64 {
        let values = layers as u64 * pages as u64 * page_bytes(shape, format) as u64;
        values + 4 * (COUNTERS + table_len(pages, shape)) as u64
    }

    /// Heads of the layers.
    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    pub(super) fn layers(&self) -> usize {
        self.layers
    }

    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    pub(super) fn format(&self) -> KvFormat {
        self.format
    }

    pub(super) fn is_fp8(&self) -> bool {
        self.format != KvFormat::Bf16
    }

    /// Bytes of a page in one layer.
    pub(super) fn page_bytes(&self) -> usize {
        page_bytes(self.shape, self.format)
    }

    /// A layer: `[page][kv_head][keys, values][16][padded head_dim]`.
    pub(super) fn layer(&self, layer: usize) -> Buffer<u8> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        let bytes = self.pages * self.page_bytes();
        self.data.part(layer * bytes, bytes)
    }

    /// The keys and values of a page in a layer, `[kv_head][keys, values][16][padded head_dim]`, once all queued work is
    /// done.
    pub fn read(&self, layer: usize, page: usize) -> Result<Vec<f32>, Error> {
        let bytes = self.page_bytes();
        let page = self.layer(layer).part::<u8>(page * bytes, bytes).download(bytes)?;
        let KvScales { keys, values } = match self.format {
            KvFormat::Bf16 => {
                return Ok(page.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect());
            }
            KvFormat::Fp8(scales) => scales,
        };
        let side = PAGE * line(self.shape, self.format);
        let scale = |i: usize| if (i / side).is_multiple_of(2) { keys } else { values };
        Ok(page.iter().enumerate().map(|(i, &bits)| from_e4m3(bits) * scale(i)).collect())
    }

    /// Parts of the keys of a sequence at most, each kind of slots being cut on its own.
    pub(super) fn most_parts(&self, split: usize) -> usize {
        (self.pages * PAGE).div_ceil(split) + 3
    }

    /// Coordinates that the table of angles has: no slot is further from the first than there are slots.
    pub(super) fn coordinates(&self) -> usize {
        coordinates(self.pages)
    }

    /// The angles by which heads turn, `[coordinates][cosines, sines][pairs]`.
    ///
    /// # Panics
    /// If the pool's heads are turned by something else already: recorded steps use that table.
    pub(super) fn turned_by(&mut self, theta: f32, pairs: usize, device: &Device) -> &Buffer<f32> {
        let wanted = Turned { theta, pairs };
        match self.turned {
            Some(turned) => assert_eq!(turned, wanted, "the heads of a cache turn in one way"),
            None => {
                upload_apart(device, &rotary_table(theta, pairs, self.coordinates()), &self.table);
                self.turned = Some(wanted);
            }
        }
        &self.table
    }
}

/// Bytes of a key or value.
fn line(shape: AttentionShape, format: KvFormat) -> usize {
    (shape.head_dim * format.bytes()).next_multiple_of(16)
}

/// Bytes of a page in one layer.
fn page_bytes(shape: AttentionShape, format: KvFormat) -> usize {
    shape.kv_heads * 2 * PAGE * line(shape, format)
}

/// One past the largest index of a token, or row or column of the grid counted from one.
fn coordinates(pages: usize) -> usize {
    pages * PAGE + 1
}

fn table_len(pages: usize, shape: AttentionShape) -> usize {
    coordinates(pages) * shape.head_dim
}

fn check(device: &Device, shape: AttentionShape) -> Result<(), Error> {
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    let refused = |message| Err(Error::Device { device: device.name(), message });
    if !HEAD_DIMS.contains(&head_dim) {
        return refused(format!("there are no kernels for heads of {head_dim} dimensions, only for {HEAD_DIMS:?}"));
    }
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || heads / kv_heads > QUERIES {
        return refused(format!("{heads} query heads do not share {kv_heads} key heads"));
    }
    Ok(())
}

/// Copies to memory that no queued work uses, past the stream of all work: that stream may be recorded, and a recording
/// would make the copy again whenever it is replayed.
fn upload_apart(device: &Device, data: &[f32], to: &Buffer<f32>) {
    assert!(data.len() <= to.len(), "{} angles in a table of {}", data.len(), to.len());
    // SAFETY: the range is inside the allocation; the stream is this function's, and the copy has ended when it is
    // destroyed.
    let copied = device.call(|| unsafe {
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        let copied = result::memcpy_htod_async(to.address(), data, stream);
        let waited = result::stream::synchronize(stream);
        result::stream::destroy(stream)?;
        copied.and(waited)
    });
    if let Err(e) = copied {
        device.failed_with(device.error(e, "copying a table of angles"));
    }
}
