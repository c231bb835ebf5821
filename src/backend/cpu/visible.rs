//! Which keys a row sees, as sixteen bits per page.

use crate::backend::{Layout, PAGE, PageTable, Slot};

/// The part of a pass's visibility that all rows of a sequence share: the frontiers of its grid rows.
pub(super) struct Frontiers {
    masks: Vec<u16>,
    /// Where the masks of each sequence begin.
    starts: Vec<usize>,
}

impl Frontiers {
    pub(super) fn new(layout: &Layout) -> Self {
        let mut frontiers = Self { masks: Vec::new(), starts: Vec::with_capacity(layout.sequences.len()) };
        for table in &layout.sequences {
            let start = frontiers.masks.len();
            frontiers.starts.push(start);
            frontiers.masks.resize(start + table.grid.len(), 0);
            for (row, &columns) in table.frontier.iter().enumerate() {
                let first = row * table.width;
                set(&mut frontiers.masks[start..], first, first + (columns as usize).min(table.width));
            }
        }
        frontiers
    }

    /// What the row at `slot` sees.
    pub(super) fn view<'a>(&'a self, layout: &'a Layout, sequence: u32, slot: Slot) -> View<'a> {
        let table = &layout.sequences[sequence as usize];
        let masks = &self.masks[self.starts[sequence as usize]..];
        match slot {
            Slot::Prefix(i) => View { table, masks, prefix: i as usize + 1, above: 0, end: 0, ancestors: 0 },
            Slot::Open { .. } => View { table, masks, prefix: table.prefix_len, above: 0, end: 0, ancestors: 0 },
            Slot::Grid(p) => {
                let p = p as usize;
                View { table, masks, prefix: table.prefix_len, above: p - p % table.width, end: p + 1, ancestors: 0 }
            }
            Slot::Scratch { at, ancestors, .. } => {
                let at = at as usize;
                View { table, masks, prefix: table.prefix_len, above: at, end: at, ancestors }
            }
        }
    }
}

/// Sets the bits `from..to`, as far as there are pages.
fn set(masks: &mut [u16], from: usize, to: usize) {
    if from >= to {
        return;
    }
    for (page, mask) in masks.iter_mut().enumerate().take(to.div_ceil(PAGE)).skip(from / PAGE) {
        *mask |= below(to, page) & !below(from, page);
    }
}

/// The slots of `page` that come before `limit`.
fn below(limit: usize, page: usize) -> u16 {
    let count = limit.saturating_sub(page * PAGE).min(PAGE);
    ((1_u32 << count) - 1) as u16
}

/// The keys that one row sees.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    table: &'a PageTable,
    masks: &'a [u16],
    /// Prefix slots it sees.
    prefix: usize,
    /// Grid slots before this are seen as far as the frontiers let.
    above: usize,
    /// Grid slots from `above` to this are seen, all of them.
    end: usize,
    /// Scratch slots it sees, one bit each.
    ancestors: u128,
}

impl View<'_> {
    /// Pages it may see: of the prefix, of the grid, of the draft nodes.
    pub(super) fn pages(&self) -> [usize; 3] {
        let scratch = u128::BITS - self.ancestors.leading_zeros();
        [self.prefix.div_ceil(PAGE), self.end.div_ceil(PAGE), (scratch as usize).div_ceil(PAGE)]
    }

    /// Visible slots of a page of the prefix.
    pub(super) fn prefix(&self, page: usize) -> u16 {
        below(self.prefix, page)
    }

    /// Visible slots of a page of the grid: as the frontiers let, then all up to its end.
    pub(super) fn grid(&self, page: usize) -> u16 {
        let above = below(self.above, page);
        if page >= self.end.div_ceil(PAGE) {
            return 0;
        }
        self.masks[page] & above | below(self.end, page) & !above
    }

    /// Visible slots of a page of draft nodes.
    pub(super) fn scratch(&self, page: usize) -> u16 {
        (self.ancestors >> (page * PAGE)) as u16
    }

    pub(super) fn table(&self) -> &PageTable {
        self.table
    }
}
