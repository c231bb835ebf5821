//! Where the rows of a [`Round`] are in the [`Layout`] of its step, and the room that an image needs for them.

use super::Round;
use super::dynamic_tree::PROPOSED;
use crate::backend::{Layout, PageTable, RowPlace, SCRATCH, Slot};
use crate::grid::Grid;
use crate::kv::{Allocator, OutOfPages};

/// Where the rows of a round are in its layout.
#[derive(Clone, Copy)]
pub(super) struct Rows<'r> {
    pub(super) round: &'r Round,
    pub(super) branches: usize,
}

/// A row of one branch: of the block and what is beside it, or of the nodes.
#[derive(Clone, Copy)]
pub(super) enum Row {
    Block(usize),
    Node(usize),
}

impl Rows<'_> {
    /// The rows of each branch: the block, then those beside the cache, then nodes; or, if those do not see what the block
    /// sees, nodes in sequences of their own behind all others.
    pub(super) fn layout(&self, tables: &[PageTable]) -> Layout {
        let (round, mut layout) = (self.round, Layout::default());
        let grid = round.block.iter().map(|&position| Slot::Grid(position as u32));
        let scratch = round.temporary.iter().enumerate().map(|(slot, &at)| Slot::Scratch {
            slot: slot as u32,
            at: at as u32,
            ancestors: 1 << slot,
        });
        let nodes = round.nodes.iter().map(|node| Slot::Scratch {
            slot: node.slot as u32,
            at: node.at as u32,
            ancestors: node.ancestors,
        });
        let (block, nodes): (Vec<Slot>, Vec<Slot>) = (grid.chain(scratch).collect(), nodes.collect());
        match &round.trunk {
            None => add(&mut layout, tables, &round.frontier, &[block, nodes].concat()),
            Some(trunk) => {
                add(&mut layout, tables, &round.frontier, &block);
                add(&mut layout, tables, trunk, &nodes);
            }
        }
        layout
    }

    /// The row that predicts a position, if it is of the block or stands in for one.
    pub(super) fn predicts(&self, position: usize) -> Option<Row> {
        let (Round { block, temporary, .. }, before) = (self.round, position.checked_sub(1)?);
        let beside = || temporary.iter().position(|&at| at == before).map(|row| block.len() + row);
        block.binary_search(&before).ok().or_else(beside).map(Row::Block)
    }

    /// The row that predicts a position after a node, or without one after the block's.
    ///
    /// # Panics
    /// If that is not fed.
    pub(super) fn before(&self, parent: Option<usize>, position: usize) -> Row {
        let node = |slot| self.round.nodes.iter().position(|node| node.slot == slot).map(Row::Node);
        parent.map_or_else(|| self.predicts(position), node).expect("it is fed")
    }

    /// Number of a branch's row in the layout.
    pub(super) fn index(&self, branch: usize, row: Row) -> u32 {
        let (block, nodes) = (self.round.block.len() + self.round.temporary.len(), self.round.nodes.len());
        let index = match (row, &self.round.trunk) {
            (Row::Block(row), None) => branch * (block + nodes) + row,
            (Row::Node(node), None) => branch * (block + nodes) + block + node,
            (Row::Block(row), Some(_)) => branch * block + row,
            (Row::Node(node), Some(_)) => self.branches * block + branch * nodes + node,
        };
        index as u32
    }
}

/// Adds a sequence for each branch, all with these rows.
fn add(layout: &mut Layout, tables: &[PageTable], frontier: &[u32], slots: &[Slot]) {
    for table in tables {
        let sequence = layout.sequences.len() as u32;
        layout.sequences.push(PageTable { frontier: frontier.to_vec(), ..table.clone() });
        layout.rows.extend(slots.iter().map(|&slot| RowPlace { sequence, slot }));
    }
}

/// What there is beside the grid.
#[derive(Clone, Copy)]
pub(super) struct Slots {
    /// Slots of the cache.
    pub(super) rows: usize,
    /// Places of the canvas.
    pub(super) places: usize,
    /// Kept states.
    pub(super) states: usize,
}

impl Slots {
    pub(super) fn new(grid: Grid, trees: bool, foresight: bool) -> Self {
        // One for every row that may begin in a pass.
        let rows = if trees || foresight { SCRATCH } else { grid.height.min(SCRATCH) };
        Self { rows, places: rows + if trees { PROPOSED } else { 0 }, states: if trees { SCRATCH } else { 0 } }
    }
}

/// The pages of each branch's sequence, and how many there are.
pub(super) fn tables(lengths: &[usize], grid: Grid, slots: usize) -> (Vec<PageTable>, usize) {
    let parts = |tokens: usize| [tokens, grid.len(), slots].map(Allocator::pages_for).iter().sum::<usize>();
    let pages = lengths.iter().map(|&tokens| parts(tokens)).sum();
    let mut allocator = Allocator::new(pages);
    let table = |&tokens: &usize| {
        let prompt = allocator.prompt(tokens)?;
        let sequence = allocator.sequence(&prompt, grid)?;
        Ok(PageTable { scratch: allocator.scratch(slots)?, ..sequence.page_table(grid) })
    };
    let tables: Result<Vec<PageTable>, OutOfPages> = lengths.iter().map(table).collect();
    (tables.expect("the pool was sized for them"), pages)
}
