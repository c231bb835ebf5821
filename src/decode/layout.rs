//! Where the rows of [`Round`]s are in the [`Layout`] of their step, and the room that images need for them.

use super::Round;
use super::dynamic_tree::PROPOSED;
use super::tree::Node;
use crate::backend::{Layout, PageTable, RowPlace, SCRATCH, Slot};
use crate::grid::Grid;
use crate::kv::{Allocator, OutOfPages, Prompt};
use std::sync::Arc;

/// Where the rows of an image's round are in the layout of all rounds.
#[derive(Clone, Copy)]
pub(super) struct Rows<'r> {
    pub(super) round: &'r Round,
    pub(super) branches: usize,
    /// The image's first row; if its nodes are in sequences of their own, the first of those.
    first: usize,
    first_node: usize,
}

/// A row of one branch: of the block and what is beside it, or of the nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    Block(usize),
    Node(usize),
}

/// The rows of all rounds. Each branch of each image has its sequence, in their order, whether it has rows or not: the
/// block, then those beside the cache, then nodes. Nodes that do not see what the block sees have sequences of their own,
/// in the same order behind all others.
pub(super) fn layout<'r>(rounds: &'r [Option<Round>], tables: &[&[PageTable]]) -> (Layout, Vec<Option<Rows<'r>>>) {
    let mut layout = Layout::default();
    let mut rows: Vec<Option<Rows<'r>>> = Vec::with_capacity(rounds.len());
    for (round, tables) in rounds.iter().zip(tables) {
        let first = layout.rows.len();
        rows.push(round.as_ref().map(|round| Rows { round, branches: tables.len(), first, first_node: first }));
        match round {
            None => add(&mut layout, tables, None, &[]),
            Some(round) => {
                let nodes = if round.trunk.is_some() { Vec::new() } else { nodes(round) };
                add(&mut layout, tables, Some(&round.frontier), &[block(round), nodes].concat());
            }
        }
    }
    if rounds.iter().flatten().any(|round| round.trunk.is_some()) {
        for ((round, tables), rows) in rounds.iter().zip(tables).zip(&mut rows) {
            let Some((round, trunk)) = round.as_ref().and_then(|round| Some((round, round.trunk.as_ref()?))) else {
                add(&mut layout, tables, None, &[]);
                continue;
            };
            let rows = rows.as_mut().expect("the image has a round");
            rows.first_node = layout.rows.len();
            add(&mut layout, tables, Some(trunk), &nodes(round));
        }
    }
    (layout, rows)
}

/// Adds a sequence for each branch, all with these rows.
fn add(layout: &mut Layout, tables: &[PageTable], frontier: Option<&[u32]>, slots: &[Slot]) {
    for table in tables {
        let sequence = layout.sequences.len() as u32;
        let frontier = frontier.map_or_else(|| table.frontier.clone(), <[u32]>::to_vec);
        layout.sequences.push(PageTable { frontier, ..table.clone() });
        layout.rows.extend(slots.iter().map(|&slot| RowPlace { sequence, slot }));
    }
}

fn block(round: &Round) -> Vec<Slot> {
    let grid = round.block.iter().map(|&position| Slot::Grid(position as u32));
    let scratch = round.temporary.iter().enumerate().map(|(slot, &at)| Slot::Scratch {
        slot: slot as u32,
        at: at as u32,
        ancestors: 1 << slot,
    });
    grid.chain(scratch).collect()
}

fn nodes(round: &Round) -> Vec<Slot> {
    let slot = |node: &Node| Slot::Scratch { slot: node.slot as u32, at: node.at as u32, ancestors: node.ancestors };
    round.nodes.iter().map(slot).collect()
}

impl Rows<'_> {
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
            (Row::Block(row), None) => self.first + branch * (block + nodes) + row,
            (Row::Node(node), None) => self.first + branch * (block + nodes) + block + node,
            (Row::Block(row), Some(_)) => self.first + branch * block + row,
            (Row::Node(node), Some(_)) => self.first_node + branch * nodes + node,
        };
        index as u32
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

/// The pages of a cache: those of every branch of every image, the prompts that branches share counted once.
pub(super) struct Pages {
    /// Of each image's branches.
    pub(super) tables: Vec<Vec<PageTable>>,
    /// For each branch, in their order, the first one with its prompt.
    pub(super) owners: Vec<usize>,
    /// All of them.
    pub(super) count: usize,
}

impl Pages {
    /// For images whose branches have these prompts, `[tokens, hidden]` each, and `slots` slots beside the grid.
    pub(super) fn new(prompts: &[Vec<&[f32]>], hidden: usize, grid: Grid, slots: usize) -> Self {
        let all: Vec<&[f32]> = prompts.iter().flatten().copied().collect();
        let owners: Vec<usize> = all.iter().map(|prompt| first_place(&all, prompt)).collect();
        let tokens = |sequence: usize| all[sequence].len() / hidden;
        let distinct = owners.iter().enumerate().filter(|(sequence, owner)| sequence == *owner);
        let shared: usize = distinct.map(|(_, &owner)| Allocator::pages_for(tokens(owner))).sum();
        let count = shared + all.len() * (Allocator::pages_for(grid.len()) + Allocator::pages_for(slots));
        let mut allocator = Allocator::new(count);
        let mut known: Vec<Option<Arc<Prompt>>> = vec![None; all.len()];
        let mut table = |sequence: usize, image: usize| {
            let owner = owners[sequence];
            let prompt = match &known[owner] {
                Some(prompt) => prompt.clone(),
                None => known[owner].insert(allocator.prompt(tokens(owner))?).clone(),
            };
            let pages = allocator.sequence(&prompt, grid)?.page_table(grid);
            Ok(PageTable { image: image as u32, scratch: allocator.scratch(slots)?, ..pages })
        };
        let mut sequences = 0..;
        let mut tables_of = |(image, branches): (usize, &Vec<&[f32]>)| {
            sequences.by_ref().take(branches.len()).map(|sequence| table(sequence, image)).collect()
        };
        let tables: Result<Vec<Vec<PageTable>>, OutOfPages> = prompts.iter().enumerate().map(&mut tables_of).collect();
        Self { tables: tables.expect("the pool was sized for them"), owners, count }
    }

    /// Entries of all page tables.
    pub(super) fn named(&self) -> usize {
        let tables = self.tables.iter().flatten();
        tables.map(|table| table.prefix.len() + table.grid.len() + table.scratch.len()).sum()
    }
}

/// The first place of an equal prompt, bit for bit.
fn first_place(prompts: &[&[f32]], prompt: &[f32]) -> usize {
    let same = |other: &&[f32]| bytemuck::cast_slice::<f32, u32>(other) == bytemuck::cast_slice::<f32, u32>(prompt);
    prompts.iter().position(same).expect("it is one of them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_with_one_prompt_share_its_pages() {
        let grid = Grid { height: 4, width: 10 };
        let (long, short): (Vec<f32>, Vec<f32>) = ((0..40).map(|x| x as f32).collect(), vec![1.0; 2]);
        // Two numbers a token: twenty tokens, in two pages, and one.
        let prompts: Vec<Vec<&[f32]>> = vec![vec![&long, &short], vec![&long, &short], vec![&short]];
        let pages = Pages::new(&prompts, 2, grid, 16);
        assert_eq!(pages.owners, [0, 1, 0, 1, 1]);
        // Three pages of prompts, and for every branch three of the grid and one beside it.
        assert_eq!((pages.count, pages.named()), (3 + 5 * 4, (2 + 4) * 2 + (1 + 4) * 3));
        let [first, second, third] = pages.tables.as_slice() else { panic!("three images") };
        assert_eq!((&first[0].prefix, first[0].prefix_len), (&second[0].prefix, 20));
        assert_eq!((&first[1].prefix, &first[1].prefix), (&second[1].prefix, &third[0].prefix));
        assert_eq!([first[0].image, second[1].image, third[0].image], [0, 1, 2]);
        let mut own: Vec<u32> =
            pages.tables.iter().flatten().flat_map(|t| [&t.grid[..], &t.scratch].concat()).collect();
        own.extend(first.iter().flat_map(|table| &table.prefix));
        own.sort_unstable();
        assert_eq!(own, (0..pages.count as u32).collect::<Vec<_>>());
    }
}
