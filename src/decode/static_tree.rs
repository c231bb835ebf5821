//! The tree of EAGLE (arXiv 2401.15077): always the same shape; children are sampled without replacement, and each is
//! judged by the law that it has given those before it. LANTERN++ (2502.06352) relaxes the test on the same tree.

use super::eagle::{Grower, Tree};
use super::knobs::{choice, count};
use super::tree::{Brood, Choice, Growth, Node, Shape, State};
use crate::backend::{Chosen, SCRATCH};

/// Which tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The one that EAGLE's released code calls mc_sim_7b_63: 25 nodes, 5 levels.
    Paper,
    /// As many nodes as are asked for, where they are most often of use to the embedded model.
    Tuned,
}

super::knobs::names!(Plan { Tuned = "tuned", Paper = "paper" });

/// Settings of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Its shape.
    pub plan: Plan,
    /// Nodes of [`Plan::Tuned`].
    pub nodes: usize,
    /// Levels at most.
    pub depth: usize,
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        let Self { plan, nodes, depth } = self;
        vec![("tree", plan.to_string()), ("nodes", nodes.to_string()), ("depth", depth.to_string())]
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        match knob {
            "tree" => self.plan = choice(knob, value)?,
            "nodes" => match count(knob, value, 1)? {
                nodes if nodes <= SCRATCH => self.nodes = nodes,
                nodes => return Err(format!("nodes={nodes}: must be at most {SCRATCH}")),
            },
            "depth" => self.depth = count(knob, value, 1)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Knobs {
    /// The tree's shape.
    pub fn shape(&self) -> Shape {
        let parents = match self.plan {
            Plan::Paper => paper(),
            Plan::Tuned => tuned(self.nodes),
        };
        Shape::new(&parents).0.cut(self.depth)
    }
}

/// Children of the nodes of mc_sim_7b_63, level by level.
const PAPER: [&[usize]; 5] = [&[4], &[3, 2, 2, 1], &[3, 2, 2, 1], &[3], &[2]];

/// Its nodes by their parents: the first nodes of each level have the children.
fn paper() -> Vec<Option<usize>> {
    let (mut parents, mut level) = (Vec::new(), vec![None]);
    for children in PAPER {
        let first = parents.len();
        let of = level.iter().zip(children).flat_map(|(&parent, &count)| vec![parent; count]);
        parents.extend(of.collect::<Vec<_>>());
        level = (first..parents.len()).map(Some).collect();
    }
    parents
}

/// How often the n-th child of a node that was met passes and those before it did not, with children sampled without
/// replacement: counted over 2400 nodes of twelve pictures of the embedded model at cfg 3, temperature 1, to the seventh; it
/// depends little on the depth.
const RATES: [f64; 10] = [0.53, 0.10, 0.055, 0.034, 0.028, 0.024, 0.019, 0.015, 0.012, 0.01];

/// The nodes that are met most often, by their parents.
fn tuned(nodes: usize) -> Vec<Option<usize>> {
    let mut parents: Vec<Option<usize>> = Vec::with_capacity(nodes);
    // Of the trunk and of each node: how often it is met, and its children.
    let mut met = vec![(1.0, 0)];
    while parents.len() < nodes {
        let gain = |&(met, children): &(f64, usize)| RATES.get(children).map_or(0.0, |rate| met * rate);
        let best = (0..met.len()).max_by(|&a, &b| gain(&met[a]).total_cmp(&gain(&met[b])).then(b.cmp(&a)));
        let Some(best) = best.filter(|&best| gain(&met[best]) > 0.0) else { break };
        let chance = gain(&met[best]);
        met[best].1 += 1;
        met.push((chance, 0));
        parents.push(best.checked_sub(1));
    }
    parents
}

/// The same tree on every trunk.
pub struct StaticTree {
    shape: Shape,
    /// As much of it as there are positions for.
    cut: Shape,
    trunk: usize,
    level: usize,
}

impl StaticTree {
    /// Of these settings.
    pub fn new(knobs: &Knobs) -> Self {
        Self { shape: knobs.shape(), cut: Shape::default(), trunk: 0, level: 0 }
    }
}

impl Grower for StaticTree {
    fn begin(&mut self, trunk: usize, depth: usize) {
        (self.trunk, self.level, self.cut) = (trunk, 0, self.shape.cut(depth));
    }

    fn pass(&mut self, growth: &mut Growth) -> bool {
        let choice = Choice::Drawn;
        if self.level == 0 {
            growth.broods.push(Brood { parent: None, first: 0, count: self.cut.roots(), choice });
        }
        for (slot, node) in self.cut.nodes().iter().enumerate() {
            if node.depth == self.level && node.children > 0 {
                let state = node.parent.map_or(State::Of(self.trunk + 1), State::After);
                let at = self.trunk + node.depth;
                growth.nodes.push((Node { slot, at, ancestors: node.ancestors }, state));
                growth.broods.push(Brood { parent: Some(slot), first: node.first, count: node.children, choice });
            }
        }
        self.level += 1;
        !growth.broods.is_empty()
    }

    fn chosen(&mut self, _: &[Chosen]) {}

    fn tree(&mut self) -> Tree {
        Tree { shape: self.cut.clone(), choice: Choice::Drawn, tokens: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::CHILDREN;

    #[test]
    fn the_tree_of_the_paper_has_25_nodes() {
        let shape = Knobs { plan: Plan::Paper, nodes: 1, depth: 5 }.shape();
        let at = |depth: usize| shape.nodes().iter().filter(|node| node.depth == depth).count();
        assert_eq!([1, 2, 3, 4, 5].map(at), [4, 8, 8, 3, 2]);
        assert_eq!(shape.nodes()[4].children, 3);
    }

    #[test]
    fn tuned_trees_have_as_many_nodes_as_asked_for() {
        for nodes in [1, 7, 60, SCRATCH] {
            let shape = Knobs { plan: Plan::Tuned, nodes, depth: 100 }.shape();
            assert_eq!(shape.nodes().len(), nodes);
            assert!(shape.nodes().iter().all(|node| node.children <= CHILDREN as usize));
        }
        // Another level is met 0.53^2 of the time, a second child is of use 0.1 of the time.
        assert_eq!(tuned(2), [None, Some(0)]);
    }
}
