//! Steps whose rows see ragged parts of paged sequences, for the tests of the cache and the attention.
#![allow(dead_code, reason = "each module of tests uses some of it")]

use weft::backend::{AttentionShape, Backend, Capacity, Layout, PAGE, PageTable, RowPlace, Slot, Step};

use crate::support::Noise;

/// Heads as the models have them: each head dimension, with shared key heads and without.
pub const SHAPES: [AttentionShape; 5] = [
    AttentionShape { heads: 3, kv_heads: 3, head_dim: 64 },
    AttentionShape { heads: 4, kv_heads: 2, head_dim: 80 },
    AttentionShape { heads: 6, kv_heads: 2, head_dim: 96 },
    AttentionShape { heads: 4, kv_heads: 4, head_dim: 100 },
    AttentionShape { heads: 8, kv_heads: 2, head_dim: 128 },
];

/// Sequences whose pages lie in the pool in no order.
pub struct Sequences {
    pub tables: Vec<PageTable>,
    /// Pages of the pool; the last is used by none.
    pub pages: usize,
}

/// What a sequence is made of: tokens of its prompt, columns of its grid, frontiers.
pub type Form<'a> = (usize, usize, &'a [u32]);

impl Sequences {
    pub fn of(forms: &[Form<'_>]) -> Sequences {
        let need = |&(prefix, width, frontier): &Form| {
            [prefix.div_ceil(PAGE), (width * frontier.len()).div_ceil(PAGE), 2].map(|pages| pages as u32)
        };
        let total: u32 = forms.iter().flat_map(need).sum();
        let mut free: Vec<u32> = (0..total).collect();
        let mut noise = Noise(5);
        let mut take = |n: u32| -> Vec<u32> { (0..n).map(|_| free.swap_remove(noise.below(free.len()))).collect() };
        let tables = forms.iter().zip(0..).map(|(form, image)| {
            let [prefix, grid, scratch] = need(form).map(&mut take);
            let (prefix_len, width, frontier) = (form.0, form.1, form.2.to_vec());
            PageTable { image, prefix, prefix_len, grid, width, frontier, scratch }
        });
        Sequences { tables: tables.collect(), pages: total as usize + 1 }
    }

    /// A step with these rows.
    pub fn step(&self, rows: &[RowPlace]) -> Step {
        Step { layout: Layout { sequences: self.tables.clone(), rows: rows.to_vec() }, ..Step::default() }
    }

    /// Every slot of every sequence; `tree` gives a sequence's draft nodes.
    pub fn slots(&self, tree: impl Fn(usize) -> Vec<Slot>) -> Vec<RowPlace> {
        let mut rows = Vec::new();
        for (index, table) in self.tables.iter().enumerate() {
            let positions = (table.width * table.frontier.len()) as u32;
            let slots = (0..table.prefix_len as u32).map(Slot::Prefix);
            let slots = slots.chain((0..positions).map(Slot::Grid)).chain(tree(index));
            rows.extend(slots.map(|slot| RowPlace { sequence: index as u32, slot }));
        }
        rows
    }
}

/// Draft nodes at positions from `first` on: node n hangs below node (n - 1) / 2, one position further; every seventh is
/// the root of another tree.
pub fn tree(nodes: u32, first: u32) -> Vec<Slot> {
    let mut tree: Vec<(u32, u128)> = Vec::new();
    for slot in 0..nodes {
        let (at, above) = if slot % 7 == 0 { (first, 0) } else { tree[(slot as usize - 1) / 2] };
        tree.push((at + u32::from(slot % 7 != 0), above | 1 << slot));
    }
    tree.iter().zip(0..).map(|(&(at, ancestors), slot)| Slot::Scratch { slot, at, ancestors }).collect()
}

/// The step on a backend, with room for itself.
pub fn set<B: Backend>(backend: &B, step: Step) -> B::Step {
    let layout = &step.layout;
    let pages = |table: &PageTable| table.prefix.len() + table.grid.len() + table.scratch.len();
    let capacity = Capacity {
        rows: layout.rows.len(),
        sequences: layout.sequences.len(),
        pages: layout.sequences.iter().map(pages).sum(),
        frontiers: layout.sequences.iter().map(|table| table.frontier.len()).sum(),
        ..Capacity::default()
    };
    let mut set = backend.step(capacity).unwrap();
    backend.set_step(step, &mut set).unwrap();
    set
}
