//! The tree of EAGLE-2 (arXiv 2406.16858): where the drafter is sure it grows deep, where it is not it grows wide. Every
//! level continues the nodes that are most probable with all before them, by their most probable tokens; of all that came up,
//! the most probable are judged. Nothing is drawn, so each is judged by a law that has it alone. LANTERN (2410.03355)
//! relaxes the test on the same tree.

use super::eagle::{Grower, Tree};
use super::knobs::count;
use super::tree::{Brood, Choice, Growth, Node, Shape, State};
use crate::backend::{CHILDREN, Chosen, SCRATCH};
use crate::grid::Grid;

/// Settings of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Nodes that are judged, at most.
    pub nodes: usize,
    /// Levels at most.
    pub depth: usize,
    /// Nodes that a level continues, and children that each of them gets.
    pub top: usize,
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        let Self { nodes, depth, top } = self;
        vec![("nodes", nodes.to_string()), ("depth", depth.to_string()), ("top", top.to_string())]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match knob {
            "nodes" => self.nodes = count(knob, value, 1)?,
            "depth" => self.depth = count(knob, value, 1)?,
            "top" => self.top = count(knob, value, 1)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check(&self) -> Result<(), String> {
        let Self { nodes, depth, top } = *self;
        // What the drafter continues has slots at the same time.
        if nodes > SCRATCH || top * (depth - 1) > SCRATCH || top > MOST {
            let limits = format!("nodes and top * (depth - 1) must be at most {SCRATCH}, top at most {MOST}");
            return Err(format!("nodes={nodes}, depth={depth}, top={top}: {limits}"));
        }
        Ok(())
    }
}

/// The largest `top`.
const MOST: usize = 32;
const _: () = assert!(MOST <= CHILDREN as usize);

/// Places behind the slots of a canvas for what a level proposes.
pub const PROPOSED: usize = MOST * MOST;

/// What the drafter proposed.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Number of the one before it; `None` for children of the trunk.
    parent: Option<usize>,
    depth: usize,
    token: u32,
    /// Sum of the log-probabilities from the trunk.
    score: f64,
    /// The slot that the drafter sees it in, once it does, and those it sees.
    slot: usize,
    ancestors: u128,
}

/// A tree of the moment.
pub struct DynamicTree {
    knobs: Knobs,
    grid: Grid,
    trunk: usize,
    /// Levels that there are positions for.
    depth: usize,
    level: usize,
    /// All so far, parents before children, siblings by probability.
    candidates: Vec<Candidate>,
    /// Those that the pass under way continues.
    continued: Vec<Option<usize>>,
}

impl DynamicTree {
    /// Over a grid.
    pub fn new(grid: Grid, knobs: Knobs) -> Self {
        Self { knobs, grid, trunk: 0, depth: 0, level: 0, candidates: Vec::new(), continued: Vec::new() }
    }

    /// The `count` best of some candidates: by score, earlier ones first.
    fn best(&self, count: usize, of: impl Fn(&Candidate) -> bool) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.candidates.len()).filter(|&c| of(&self.candidates[c])).collect();
        let score = |c: usize| self.candidates[c].score;
        all.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        all.truncate(count);
        all
    }

    /// Lets the drafter see a candidate as the `index`-th of its level.
    fn see(&mut self, candidate: usize, index: usize, growth: &mut Growth) -> usize {
        let slot = (self.level - 1) * self.knobs.top + index;
        let parent = self.candidates[candidate].parent.map(|parent| self.candidates[parent]);
        let seen = &mut self.candidates[candidate];
        seen.slot = slot;
        seen.ancestors = parent.map_or(0, |parent| parent.ancestors) | 1 << slot;
        growth.puts.push((self.grid.len() + slot, seen.token));
        let node = Node { slot, at: self.trunk + self.level, ancestors: seen.ancestors };
        growth.nodes.push((node, parent.map_or(State::Of(self.trunk + 1), |parent| State::After(parent.slot))));
        slot
    }
}

impl Grower for DynamicTree {
    fn begin(&mut self, trunk: usize, depth: usize) {
        (self.trunk, self.depth, self.level) = (trunk, depth.min(self.knobs.depth), 0);
        self.candidates.clear();
    }

    fn pass(&mut self, growth: &mut Growth) -> bool {
        let (count, level) = (self.knobs.top, self.level);
        if level == self.depth {
            return false;
        }
        self.continued = match level {
            0 => vec![None],
            _ => self.best(count, |candidate| candidate.depth == level).into_iter().map(Some).collect(),
        };
        for index in 0..self.continued.len() {
            let parent = self.continued[index].map(|candidate| self.see(candidate, index, growth));
            let first = SCRATCH + index * count;
            growth.broods.push(Brood { parent, first, count, choice: Choice::Likeliest });
        }
        self.level += 1;
        !growth.broods.is_empty()
    }

    fn chosen(&mut self, chosen: &[Chosen]) {
        for (&parent, brood) in self.continued.iter().zip(chosen.chunks_exact(self.knobs.top)) {
            let before = parent.map_or(0.0, |parent| self.candidates[parent].score);
            let probable = brood.iter().filter(|child| child.log_probability > f32::NEG_INFINITY);
            self.candidates.extend(probable.map(|child| Candidate {
                parent,
                depth: self.level,
                token: child.token,
                score: before + f64::from(child.log_probability),
                slot: 0,
                ancestors: 0,
            }));
        }
    }

    fn tree(&mut self) -> Tree {
        // A node is no more probable than its parent, which comes first, so what is best is a tree.
        let mut best = self.best(self.knobs.nodes, |_| true);
        best.sort_unstable();
        let place = |candidate: usize| best.binary_search(&candidate).expect("a parent is as good as its child");
        let parents: Vec<Option<usize>> = best.iter().map(|&node| self.candidates[node].parent.map(place)).collect();
        let (shape, order) = Shape::new(&parents);
        let tokens = order.into_iter().map(|node| self.candidates[best[node]].token).collect();
        Tree { shape, choice: Choice::Likeliest, tokens }
    }
}
