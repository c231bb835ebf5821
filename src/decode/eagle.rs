//! EAGLE: a small drafter grows a tree of continuations on the last final token, the target judges the whole tree in one
//! pass, and what it accepts, with the token it draws after that, is final (arXiv 2401.15077).
//!
//! What is here is common to all trees: final tokens are put into the canvas, seen by the drafter with the target's own
//! states, and fed to the target as positions of the grid in the pass of the next tree, so that their keys and values are
//! plain AR's whatever slots they were judged in. That repeats a row for every token that a tree got right.
//! [`StaticTree`](super::static_tree::StaticTree) and [`DynamicTree`](super::dynamic_tree::DynamicTree) say how it grows.

use super::tree::{Choice, Family, Growth, Node, Shape, State, path};
use super::{Round, Schedule, frontier};
use crate::backend::{Chosen, Drawn};
use crate::grid::Grid;

/// A way to grow trees.
pub trait Grower: Send {
    /// Begins a tree on the token of position `trunk`, of at most `depth` levels (at least one).
    fn begin(&mut self, trunk: usize, depth: usize);
    /// Adds the next pass of the drafter; is there one?
    fn pass(&mut self, growth: &mut Growth) -> bool;
    /// What the last pass chose.
    fn chosen(&mut self, chosen: &[Chosen]);
    /// The tree.
    fn tree(&mut self) -> Tree;
}

/// A grown tree.
pub struct Tree {
    /// Its shape.
    pub shape: Shape,
    /// How its nodes came about.
    pub choice: Choice,
    /// Their tokens, by slot; none if they are in the canvas.
    pub tokens: Vec<u32>,
}

/// Trees over one image.
pub struct Eagle<G> {
    grid: Grid,
    grower: G,
    /// Final tokens that the target has not been fed: position, token, the state that predicted it.
    fresh: Vec<(usize, u32, State)>,
    /// Final tokens.
    done: usize,
    /// Trees so far.
    round: u32,
    /// The tree of this round is under way.
    growing: bool,
    families: Vec<Family>,
}

impl<G: Grower> Eagle<G> {
    /// Over a grid.
    pub fn new(grid: Grid, grower: G) -> Self {
        Self { grid, grower, fresh: Vec::new(), done: 1, round: 0, growing: false, families: Vec::new() }
    }

    /// The first pass of the drafter for a tree begins with what is final.
    fn trunk(&self) -> Growth {
        Growth {
            puts: self.fresh.iter().map(|&(position, token, _)| (position, token)).collect(),
            trunk: self.fresh.iter().map(|&(position, _, state)| (position, state)).collect(),
            ..Growth::default()
        }
    }
}

impl<G: Grower> Schedule for Eagle<G> {
    fn begin(&mut self, first: u32) {
        self.fresh.push((0, first, State::Of(0)));
    }

    fn grow(&mut self) -> Option<Growth> {
        let length = self.grid.len();
        if self.done == length {
            // The last tokens are only put.
            let growth = Growth { trunk: Vec::new(), ..self.trunk() };
            self.fresh.clear();
            return (!growth.puts.is_empty()).then_some(growth);
        }
        let mut growth = if self.growing { Growth::default() } else { self.trunk() };
        if !self.growing {
            self.grower.begin(self.done - 1, length - self.done);
            self.growing = true;
        }
        growth.round = self.round;
        self.grower.pass(&mut growth).then_some(growth)
    }

    fn grown(&mut self, chosen: &[Chosen]) {
        self.grower.chosen(chosen);
    }

    fn next(&mut self) -> Option<Round> {
        let (length, trunk) = (self.grid.len(), self.done - 1);
        if self.done == length {
            return None;
        }
        (self.growing, self.round) = (false, self.round + 1);
        let Tree { shape, choice, tokens } = self.grower.tree();
        let family = |parent, position, first, count| Family { parent, position, first, count, choice };
        self.families = vec![family(None, trunk + 1, 0, shape.roots())];
        let mut nodes = Vec::with_capacity(shape.nodes().len());
        for (slot, node) in shape.nodes().iter().enumerate() {
            let at = trunk + node.depth;
            // Nothing comes after the last position.
            if at + 1 < length {
                nodes.push(Node { slot, at, ancestors: node.ancestors });
                self.families.push(family(Some(slot), at + 1, node.first, node.children));
            }
        }
        Some(Round {
            puts: tokens.into_iter().enumerate().map(|(slot, token)| (length + slot, token)).collect(),
            block: self.fresh.iter().map(|&(position, ..)| position).collect(),
            nodes,
            families: self.families.clone(),
            frontier: frontier(self.grid, self.done),
            ..Round::default()
        })
    }

    fn learn(&mut self, drawn: &[Drawn]) {
        self.fresh.clear();
        for (family, drawn) in path(&self.families, drawn) {
            let state = family.parent.map_or(State::Of(family.position), State::After);
            self.fresh.push((family.position, drawn.after, state));
        }
        self.done += self.fresh.len();
    }

    fn done(&self) -> usize {
        self.done
    }
}
