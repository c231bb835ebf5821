//! Draft trees: several continuations of the final tokens, fed in one pass.
//!
//! A node is a token that may come at a position; it sees the final tokens and its ancestors. Nodes have slots beside the
//! cache and places in the canvas behind the grid ([`Slot::Scratch`](crate::backend::Slot::Scratch)). Siblings have slots
//! that follow each other. The trunk is the last final token, which is fed as a position of the grid.

use crate::backend::{Drawn, NONE};

/// A row beside the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its slot.
    pub slot: usize,
    /// The position that it is a draft of.
    pub at: usize,
    /// Slots that it sees, one bit each, its own included.
    pub ancestors: u128,
}

/// The children of a node, to be judged by what the node predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Slot of the node; `None` for the last position of the block.
    pub parent: Option<usize>,
    /// The position that the children are drafts of.
    pub position: usize,
    /// Slot of the first.
    pub first: usize,
    /// How many; without any the token is drawn.
    pub count: usize,
    /// How they came about.
    pub choice: Choice,
}

/// How the children of a node come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Sampled without replacement.
    Drawn,
    /// The most probable ones.
    Likeliest,
}

/// Which of the kept states a drafter reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The one that predicts this position.
    Of(usize),
    /// The one that the node of this slot predicts its successor from.
    After(usize),
}

/// A pass of a drafter that follows the target's hidden states ([`Eagle`](crate::nn::eagle::Eagle)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Tokens that the schedule chose, before anything else: position, or the grid's length and a slot, and token.
    pub puts: Vec<(usize, u32)>,
    /// Final positions that the drafter sees for the first time, ascending, each with the state that predicted its token. It
    /// has seen all before them.
    pub trunk: Vec<(usize, State)>,
    /// Nodes that it sees, each with the state that stands for the one that predicted its token.
    pub nodes: Vec<(Node, State)>,
    /// Children that it has.
    pub broods: Vec<Brood>,
    /// Of its random numbers; grows.
    pub round: u32,
}

/// Children that a drafter gives to one of the rows that it is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brood {
    /// Slot of the node; `None` for the last of the trunk.
    pub parent: Option<usize>,
    /// Where they go: the slot of the first, or any place behind the slots for those that are not fed as they are.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// Which.
    pub choice: Choice,
}

/// The families that were met on the way from the trunk, and what became of each: all passed but the last, which may have.
pub fn path<'a>(families: &'a [Family], drawn: &'a [Drawn]) -> impl Iterator<Item = (&'a Family, Drawn)> {
    let find = |parent: Option<usize>| families.iter().position(|family| family.parent == parent);
    let step = move |index: &usize| {
        let passed = drawn[*index].before;
        (passed != NONE).then(|| find(Some(families[*index].first + passed as usize))).flatten()
    };
    std::iter::successors(find(None), step).map(|index| (&families[index], drawn[index]))
}

/// The shape of a tree: its nodes by depth, siblings next to each other, in the order of their slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    nodes: Vec<Member>,
    /// Children of the trunk; they come first.
    roots: usize,
}

/// A node of a [`Shape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Slot of its parent; `None` for children of the trunk.
    pub parent: Option<usize>,
    /// Steps from the trunk, from 1.
    pub depth: usize,
    /// Slots that it sees.
    pub ancestors: u128,
    /// Slot of its first child.
    pub first: usize,
    /// Its children.
    pub children: usize,
}

impl Shape {
    /// Of nodes given by their parents, which come before them; siblings need not be next to each other. With the order in
    /// which the nodes given come in the shape.
    pub fn new(parents: &[Option<usize>]) -> (Self, Vec<usize>) {
        let mut order: Vec<usize> = Vec::with_capacity(parents.len());
        let children = |of: Option<usize>| (0..parents.len()).filter(move |&node| parents[node] == of);
        order.extend(children(None));
        let mut shape = Self { nodes: Vec::with_capacity(parents.len()), roots: order.len() };
        let mut slots = vec![None; parents.len()];
        let mut slot = 0;
        while slot < order.len() {
            let node = order[slot];
            slots[node] = Some(slot);
            let parent = parents[node].and_then(|parent| slots[parent]);
            let above = parent.map(|parent| shape.nodes[parent]);
            let first = order.len();
            order.extend(children(Some(node)));
            shape.nodes.push(Member {
                parent,
                depth: above.map_or(1, |above| above.depth + 1),
                ancestors: above.map_or(0, |above| above.ancestors) | 1 << slot,
                first,
                children: order.len() - first,
            });
            slot += 1;
        }
        (shape, order)
    }

    /// The same without what is deeper.
    pub fn cut(&self, depth: usize) -> Self {
        let left = self.nodes.iter().take_while(|node| node.depth <= depth);
        let mut nodes: Vec<Member> = left.copied().collect();
        nodes.iter_mut().filter(|node| node.depth == depth).for_each(|node| node.children = 0);
        Self { roots: if depth == 0 { 0 } else { self.roots }, nodes }
    }

    /// Nodes, in the order of their slots.
    pub fn nodes(&self) -> &[Member] {
        &self.nodes
    }

    /// Children of the trunk.
    pub fn roots(&self) -> usize {
        self.roots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_puts_siblings_together_and_sees_its_ancestors() {
        // a(0) b(1) c(under b) d(under a) e(under a) f(under e)
        let (shape, order) = Shape::new(&[None, None, Some(1), Some(0), Some(0), Some(4)]);
        assert_eq!((order, shape.roots()), (vec![0, 1, 3, 4, 2, 5], 2));
        let of = |slot: usize| {
            let Member { parent, depth, ancestors, first, children } = shape.nodes()[slot];
            (parent, depth, ancestors, first..first + children)
        };
        assert_eq!(of(0), (None, 1, 0b1, 2..4));
        assert_eq!(of(1), (None, 1, 0b10, 4..5));
        assert_eq!(of(3), (Some(0), 2, 0b1001, 5..6));
        assert_eq!(of(5), (Some(3), 3, 0b10_1001, 6..6));
        let cut = shape.cut(2);
        assert_eq!((cut.nodes().len(), cut.nodes()[3].children, cut.roots()), (5, 0, 2));
        assert_eq!(shape.cut(0), Shape::default());
    }

    #[test]
    fn a_path_ends_where_no_child_passes() {
        let family = |parent, position, first| Family { parent, position, first, count: 2, choice: Choice::Drawn };
        let families = [family(None, 5, 0), family(Some(0), 6, 2), family(Some(1), 6, 4), family(Some(4), 7, 6)];
        let drawn = |passed: [u32; 4]| passed.map(|before| Drawn { before, after: 9 });
        let way = |passed| path(&families, &drawn(passed)).map(|(family, _)| family.parent).collect::<Vec<_>>();
        assert_eq!(way([NONE, 0, 0, 0]), [None]);
        assert_eq!(way([1, 0, NONE, 0]), [None, Some(1)]);
        assert_eq!(way([1, 0, 0, NONE]), [None, Some(1), Some(4)]);
        assert_eq!(way([0, 1, 0, 0]), [None, Some(0)]);
    }
}
