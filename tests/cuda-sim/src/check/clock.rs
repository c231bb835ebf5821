//! Vector clocks: what an agent knows to have happened.
//!
//! Agents are the warps of a block and the engines that work for them (copies, matrix units). A block keeps a dense clock
//! for its own agents and a sparse one for those of other blocks, of which a kernel seldom hears.

use std::sync::Arc;

/// An agent of the grid: its block's number times 2^9 plus its number in the block.
pub type Key = u64;

/// Bits of an agent's number in its block.
pub const AGENT_BITS: u32 = 9;

/// The key of an agent.
pub fn key(block: u64, agent: u32) -> Key {
    block << AGENT_BITS | u64::from(agent)
}

/// What is known of other blocks: sorted by key.
pub type Foreign = Arc<Vec<(Key, u32)>>;

/// A clock of a block's agents, and what is known of other blocks.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// By the agent's number.
    pub own: Vec<u32>,
    /// Other blocks.
    pub foreign: Foreign,
}

impl Clock {
    /// Knows nothing of `agents` agents.
    pub fn new(agents: usize) -> Clock {
        Clock { own: vec![0; agents], foreign: Foreign::default() }
    }

    /// Learns all that `other` knows.
    pub fn join(&mut self, other: &Clock) {
        if self.own.len() < other.own.len() {
            self.own.resize(other.own.len(), 0);
        }
        for (a, b) in self.own.iter_mut().zip(&other.own) {
            *a = (*a).max(*b);
        }
        self.foreign = merge(&self.foreign, &other.foreign);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.own.fill(0);
        self.foreign = Foreign::default();
    }

    /// Whether it knows that the agent reached `clock`.
    #[inline(always)]
    pub fn knows(&self, block: u64, agent: Key, clock: u32) -> bool {
        if agent >> AGENT_BITS == block {
            let own = (agent & ((1 << AGENT_BITS) - 1)) as usize;
            return self.own.get(own).is_some_and(|&at| at >= clock);
        }
        match self.foreign.binary_search_by_key(&agent, |e| e.0) {
            Ok(i) => self.foreign[i].1 >= clock,
            Err(_) => false,
        }
    }

    /// All it knows, as other blocks see it.
    pub fn publish(&self, block: u64) -> Foreign {
        let own = self.own.iter().enumerate().filter(|(_, at)| **at != 0);
        let own: Vec<_> = own.map(|(agent, at)| (key(block, agent as u32), *at)).collect();
        merge(&self.foreign, &Arc::new(own))
    }

    /// Learns what a block, perhaps this one, has published.
    pub fn learn(&mut self, block: u64, published: &Foreign) {
        let (low, high) = (key(block, 0), key(block + 1, 0));
        let from = published.partition_point(|e| e.0 < low);
        let to = published.partition_point(|e| e.0 < high);
        for (agent, at) in &published[from..to] {
            let own = (agent - low) as usize;
            if own < self.own.len() {
                self.own[own] = self.own[own].max(*at);
            }
        }
        if to - from == published.len() {
            return;
        }
        let others: Vec<_> = published[..from].iter().chain(&published[to..]).copied().collect();
        self.foreign = merge(&self.foreign, &Arc::new(others));
    }
}

/// The later of two, for every agent.
pub fn merge(a: &Foreign, b: &Foreign) -> Foreign {
    if Arc::ptr_eq(a, b) || b.is_empty() {
        return a.clone();
    }
    if a.is_empty() {
        return b.clone();
    }
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        match a[i].0.cmp(&b[j].0) {
            std::cmp::Ordering::Less => {
                out.push(a[i]);
                i += 1;
            }
            std::cmp::Ordering::Greater => {
                out.push(b[j]);
                j += 1;
            }
            std::cmp::Ordering::Equal => {
                out.push((a[i].0, a[i].1.max(b[j].1)));
                i += 1;
                j += 1;
            }
        }
    }
    out.extend_from_slice(&a[i..]);
    out.extend_from_slice(&b[j..]);
    Arc::new(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_learn_from_published_ones() {
        let mut a = Clock::new(4);
        a.own[2] = 7;
        let published = a.publish(5);
        assert_eq!(*published, [(key(5, 2), 7)]);
        let mut b = Clock::new(4);
        b.learn(6, &published);
        assert!(b.knows(6, key(5, 2), 7) && !b.knows(6, key(5, 2), 8) && !b.knows(6, key(5, 1), 1));
        b.own[0] = 3;
        let mut c = Clock::new(4);
        c.learn(5, &b.publish(6));
        assert_eq!(c.own, [0, 0, 7, 0]);
        assert!(c.knows(5, key(6, 0), 3));
        assert_eq!(c.foreign.len(), 1);
    }
}
