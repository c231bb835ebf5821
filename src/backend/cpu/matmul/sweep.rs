//! Walks tiles, groups of blocks and segments of k.

use super::kernel::{Ahead, Kernel, MAX_BLOCKS, MAX_ROWS};
use crate::backend::cpu::memory::Scratch;
use crate::backend::cpu::weight::BLOCK;
use std::ops::Range;

/// Up to [`MAX_ROWS`] rows of the left operand at a constant distance from each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// Where the first row starts, in pairs.
    pub(crate) x: usize,
    /// Rows of the tile.
    pub(crate) rows: usize,
    /// First row of the output.
    pub(crate) out: usize,
}

/// A range of k: where it starts in a row and in a block, in pairs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) x: usize,
    pub(crate) w: usize,
    pub(crate) pairs: usize,
}

/// The left operand of a product.
pub(crate) struct Left<'a, P> {
    pub(crate) pairs: &'a [P],
    /// Pairs from one row of a tile to the next.
    pub(crate) stride: usize,
    pub(crate) segments: &'a [Segment],
}

/// Multiplies all tiles with the groups of blocks in `groups`. Segments are the outer loop, so that a segment of
/// a group's weights stays in the first cache while all tiles use it.
///
/// `group` names the blocks of a group; `finish` gets every finished tile as `[rows][blocks][16]`.
pub(crate) fn sweep<'w, K: Kernel>(
    kernel: K,
    left: &Left<'_, K::Pair>,
    tiles: &[Tile],
    groups: Range<usize>,
    group: impl Fn(usize) -> Group<'w>,
    finish: impl Fn(usize, &Tile, &[f32]),
) {
    let Some(first) = left.segments.first() else { return };
    let rows: usize = tiles.iter().map(|t| t.rows).sum();
    let mut scratch = Scratch::take();
    for g in groups.clone() {
        let current = group(g);
        let next = if g + 1 < groups.end { group(g + 1) } else { current };
        let blocks = current.len;
        let acc = scratch.slice::<f32>(rows * blocks * BLOCK);
        let shift = (tiles.len() / blocks).max(1).ilog2();
        for (s, segment) in left.segments.iter().enumerate() {
            let (following, from) = match left.segments.get(s + 1) {
                Some(segment) => (&current, segment),
                None => (&next, first),
            };
            assert!(current.blocks().iter().all(|w| w.len() >= (segment.w + segment.pairs) * BLOCK));
            let mut w = [std::ptr::null(); MAX_BLOCKS];
            for (pointer, block) in w.iter_mut().zip(current.blocks()) {
                *pointer = block[segment.w * BLOCK..].as_ptr();
            }
            let mut done = 0;
            for (t, tile) in tiles.iter().enumerate() {
                let part = &mut acc[done..][..tile.rows * blocks * BLOCK];
                let x = &left.pairs[tile.x + segment.x..];
                assert!(x.len() >= (tile.rows - 1) * left.stride + segment.pairs);
                assert!(tile.rows <= MAX_ROWS && blocks <= K::blocks(tile.rows).max(2));
                // Each tile fetches an equal part of the blocks' next segments.
                let ahead = match following.blocks().get(t >> shift) {
                    _ if tiles.len() == 1 => Ahead::Own,
                    Some(block) => {
                        let part = (t % (1 << shift)) * (segment.pairs >> shift);
                        Ahead::Next { start: block[from.w * BLOCK..].as_ptr().wrapping_add(part * BLOCK), shift }
                    }
                    None => Ahead::NONE,
                };
                // SAFETY: the assertions above are the kernel's conditions; `part` is the accumulator.
                unsafe {
                    kernel.tile(
                        tile.rows,
                        blocks,
                        x.as_ptr(),
                        left.stride,
                        &w,
                        segment.pairs,
                        part.as_mut_ptr(),
                        s == 0,
                        ahead,
                    );
                }
                done += part.len();
            }
        }
        let mut done = 0;
        for tile in tiles {
            let part = &acc[done..][..tile.rows * blocks * BLOCK];
            finish(g, tile, part);
            done += part.len();
        }
    }
}

/// Blocks that a tile multiplies at once.
#[derive(Clone, Copy)]
pub(crate) struct Group<'w> {
    blocks: [&'w [u32]; MAX_BLOCKS],
    len: usize,
}

impl<'w> Group<'w> {
    pub(crate) fn new(blocks: impl Iterator<Item = &'w [u32]>) -> Self {
        let mut group = Self { blocks: [&[]; MAX_BLOCKS], len: 0 };
        for block in blocks {
            group.blocks[group.len] = block;
            group.len += 1;
        }
        group
    }

    fn blocks(&self) -> &[&'w [u32]] {
        &self.blocks[..self.len]
    }
}
