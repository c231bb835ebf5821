//! Second guesses at the front of an exact decoder, as a tree.
//!
//! With the noise of its position fixed, a token is the one with the largest log p + noise ([`Rule::Coupled`]). A
//! distribution that was made in a context which has since changed still says which tokens are near the top, and that
//! as a law: the softmax of these sums. Most passes end at a token that was the runner-up. So the few best of every
//! position at the front ([`Forecast`], [`Outlook`]) make a tree of continuations, most probable first, which is fed beside the
//! block. The way through it that the drawn tokens take runs on where the block was wrong.
//!
//! Nothing is final by it: the tokens on the way are put into the canvas as guesses, and the next pass, which feeds them
//! in any case for their keys, verifies them like others. That is why the numerics of rows beside the cache cannot touch
//! what is returned.
//!
//! [`Rule::Coupled`]: crate::backend::Rule::Coupled

use super::outlook::{Before, Outlook};
use super::tree::Node;
use super::{Ask, Forecast, Round, frontier};
use crate::backend::{Chosen, Drawn, SCRATCH};
use crate::grid::Grid;

/// Nodes at most.
pub const MOST: usize = SCRATCH;

/// Tokens that a position may have; more are worth nothing (docs/wavefront.md).
const TOKENS: usize = 5;

/// Positions after the front that are forecast: a pass seldom gets further.
const AHEAD: usize = 44;

/// A token that a position may have.
struct Guess {
    /// The one before it; `None` for the first position after the trunk.
    parent: Option<usize>,
    at: usize,
    token: u32,
    ancestors: u128,
}

/// The tree of one image.
pub struct Foresight {
    grid: Grid,
    /// Nodes at most.
    budget: usize,
    /// The most nats by which a token may be worse than another and stay ([`Rule::Cling`](crate::backend::Rule::Cling)).
    slack: f32,
    outlook: Outlook,
    /// What the positions hold, as far as a round was about them.
    tokens: Vec<u32>,
    /// The last position whose token is final, or will be if the tree was right.
    trunk: usize,
    /// By slot.
    tree: Vec<Guess>,
    /// What the round under way asks.
    asked: Vec<Forecast>,
    /// Guesses for the next pass.
    puts: Vec<(usize, u32)>,
}

impl Foresight {
    /// Trees of at most `budget` nodes over a grid, for tokens that stay unless another is better by `slack` nats.
    pub fn new(grid: Grid, budget: usize, slack: f32) -> Self {
        Self {
            grid,
            budget: budget.min(MOST),
            slack,
            outlook: Outlook::new(grid.len()),
            tokens: vec![0; grid.len()],
            trunk: 0,
            tree: Vec::new(),
            asked: Vec::new(),
            puts: Vec::new(),
        }
    }

    /// Guesses for positions below `limit`, to be put before the pass.
    pub fn puts(&mut self, limit: usize) -> Vec<(usize, u32)> {
        self.trunk = self.trunk.min(limit - 1);
        let mut puts = std::mem::take(&mut self.puts);
        puts.retain(|&(position, _)| position < limit);
        puts
    }

    /// The last position whose token is final, or will be if the tree was right.
    pub fn trunk(&self) -> usize {
        self.trunk
    }

    /// Adds a tree to a round that feeds the trunk and asks for these tokens.
    pub fn grow(&mut self, asks: &[Ask], round: &mut Round) {
        self.sprout();
        let length = self.grid.len();
        let nodes = self.tree.iter().enumerate();
        round.nodes =
            nodes.clone().map(|(slot, guess)| Node { slot, at: guess.at, ancestors: guess.ancestors }).collect();
        round.puts.extend(nodes.map(|(slot, guess)| (length + slot, guess.token)));
        round.trunk = Some(frontier(self.grid, self.trunk + 1));
        let ahead = asks
            .iter()
            .map(|ask| ask.position)
            .filter(|position| (1..=AHEAD).contains(&position.wrapping_sub(self.trunk)));
        let of = |parent, position| Forecast { parent, position, count: TOKENS };
        self.asked = ahead.map(|position| of(None, position)).collect();
        self.asked.extend(self.tree.iter().enumerate().map(|(slot, guess)| of(Some(slot), guess.at + 1)));
        round.forecasts.clone_from(&self.asked);
    }

    /// The most probable continuations of the trunk.
    fn sprout(&mut self) {
        self.tree.clear();
        let mut open: Vec<(f32, Guess)> = Vec::new();
        self.children(None, 0.0, &mut open);
        while self.tree.len() < self.budget {
            // The first of the best.
            let best = (0..open.len()).reduce(|best, next| if open[next].0 > open[best].0 { next } else { best });
            let Some(best) = best else { break };
            let (score, mut guess) = open.remove(best);
            let slot = self.tree.len();
            guess.ancestors |= 1 << slot;
            self.tree.push(guess);
            self.children(Some(slot), score, &mut open);
        }
    }

    /// Adds the children of a node to what may come next.
    fn children(&self, parent: Option<usize>, score: f32, open: &mut Vec<(f32, Guess)>) {
        let (before, ancestors) =
            parent.map_or((self.trunk, 0), |slot| (self.tree[slot].at, self.tree[slot].ancestors));
        let at = before + 1;
        // Nothing comes after the last position, so a node there is of no use.
        if at + 1 >= self.grid.len() {
            return;
        }
        let likely = self.outlook.of(at, self.before(parent));
        open.extend(
            likely
                .iter()
                .map(|chosen| (score + chosen.log_probability, Guess { parent, at, token: chosen.token, ancestors })),
        );
    }

    /// The tokens to the left of what comes after a node, or after the trunk.
    fn before(&self, parent: Option<usize>) -> Before {
        let nodes = std::iter::successors(parent, |&slot| self.tree[slot].parent).map(|slot| self.tree[slot].token);
        nearest(nodes.chain(self.tokens[..=self.trunk].iter().rev().copied()))
    }

    /// What the round said: `known` is the last position whose token the block made sure of, if what it was fed up to the
    /// trunk was right; what was asked, drawn and foreseen.
    pub fn learn(&mut self, known: usize, asks: &[Ask], drawn: &[Drawn], chosen: &[Chosen]) {
        let forecasts = self.see(asks, drawn, chosen);
        let drawn = asks.iter().zip(drawn);
        drawn.clone().for_each(|(ask, drawn)| self.tokens[ask.position] = drawn.after);
        let after_trunk = drawn.clone().find(|(ask, _)| ask.position == self.trunk + 1).map(|(_, drawn)| drawn.after);
        let confirmed = known > self.trunk;
        let way = self.way(if confirmed { after_trunk } else { None }, &forecasts);
        // The last node on the way says which token comes after it.
        let reached = way.last().map_or(0, |&slot| self.tree[slot].at + 1);
        if reached > known {
            self.follow(&way, known, &forecasts);
        }
        self.trunk = known.max(reached);
        // The tree may have been wrong about the rest of the trunk.
        self.outlook.turn(known);
    }

    /// Takes in what was foreseen; by slot, what each node foresaw.
    fn see<'c>(&mut self, asks: &[Ask], drawn: &[Drawn], chosen: &'c [Chosen]) -> Vec<&'c [Chosen]> {
        // As the pass was fed.
        for (ask, drawn) in asks.iter().zip(drawn).filter(|(ask, _)| ask.verify) {
            self.tokens[ask.position] = drawn.before;
        }
        let mut forecasts = vec![&[][..]; self.tree.len()];
        for (forecast, chosen) in self.asked.iter().zip(chosen.chunks_exact(TOKENS)) {
            let before = match forecast.parent {
                Some(slot) => {
                    forecasts[slot] = chosen;
                    self.before(Some(slot))
                }
                None => nearest(self.tokens[..forecast.position].iter().rev().copied()),
            };
            self.outlook.see(forecast.position, before, chosen);
        }
        forecasts
    }

    /// The nodes that the tokens pass through, the first of which is of `token`.
    fn way(&self, token: Option<u32>, forecasts: &[&[Chosen]]) -> Vec<usize> {
        let child = |parent: Option<usize>, token: u32| {
            self.tree.iter().position(|guess| guess.parent == parent && guess.token == token)
        };
        // The best child that would stay: without slack that of the token that will be drawn.
        let next = |&slot: &usize| {
            let best = forecasts[slot].first()?.log_probability;
            let stay = forecasts[slot].iter().take_while(|chosen| chosen.log_probability >= best - self.slack);
            stay.filter_map(|chosen| child(Some(slot), chosen.token)).next()
        };
        std::iter::successors(token.and_then(|token| child(None, token)), next).collect()
    }

    /// Takes the tokens of a way for guesses, beyond what is known, and behind its end what was seen from the likeliest
    /// nodes there: they were wrong about one token, the block was wrong about more.
    fn follow(&mut self, way: &[usize], known: usize, forecasts: &[&[Chosen]]) {
        let mut slots = way.to_vec();
        while let Some(child) = self.tree.iter().position(|guess| guess.parent == slots.last().copied()) {
            slots.push(child);
        }
        for (index, &slot) in slots.iter().enumerate() {
            let position = self.tree[slot].at + 1;
            if position > known && !forecasts[slot].is_empty() {
                let on_way = way.get(index + 1).map(|&next| self.tree[next].token);
                let token = on_way.unwrap_or(forecasts[slot][0].token);
                self.puts.push((position, token));
                self.tokens[position] = token;
            }
        }
    }
}

/// The first two.
fn nearest(mut tokens: impl Iterator<Item = u32>) -> Before {
    [tokens.next(), tokens.next()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { height: 2, width: 4 };

    /// Three tokens, and as many more as there may be that have no share.
    fn forecast(tokens: [u32; 3], chances: [f32; 3]) -> Vec<Chosen> {
        let none = Chosen { token: 0, log_probability: f32::NEG_INFINITY };
        let named = tokens.into_iter().zip(chances).map(|(token, p)| Chosen { token, log_probability: p.ln() });
        named.chain(std::iter::repeat(none)).take(TOKENS).collect()
    }

    fn foresight(budget: usize) -> Foresight {
        let mut foresight = Foresight::new(GRID, budget, 0.0);
        let mut see = |position, tokens, chances| {
            foresight.outlook.see(position, [None, None], &forecast(tokens, chances));
        };
        see(1, [10, 11, 12], [0.6, 0.4, 0.0]);
        see(2, [20, 21, 22], [0.9, 0.1, 0.0]);
        see(3, [30, 31, 32], [0.5, 0.3, 0.2]);
        foresight
    }

    fn asks() -> [Ask; 3] {
        [1, 2, 3].map(Ask::verify)
    }

    /// What a round said whose block had something else everywhere; `token` is the one of position 1, if it was asked for.
    fn learn(foresight: &mut Foresight, known: usize, token: Option<u32>, chosen: &[Chosen]) {
        let asks: Vec<Ask> = asks().into_iter().skip(usize::from(token.is_none())).collect();
        let drawn =
            asks.iter().map(|ask| Drawn { before: 1, after: if ask.position == 1 { token.unwrap_or(0) } else { 2 } });
        foresight.learn(known, &asks, &drawn.collect::<Vec<_>>(), chosen);
    }

    /// Token and parent of each node.
    fn tree(foresight: &Foresight) -> Vec<(u32, Option<usize>)> {
        foresight.tree.iter().map(|guess| (guess.token, guess.parent)).collect()
    }

    #[test]
    fn a_tree_takes_the_most_probable_first() {
        let mut foresight = foresight(6);
        let mut round = Round::default();
        foresight.grow(&asks(), &mut round);
        // 0.6, 0.54, 0.4, 0.36, 0.27, 0.18 (30 after 11, 20) before 0.162.
        let expected = [(10, None), (20, Some(0)), (11, None), (20, Some(2)), (30, Some(1)), (30, Some(3))];
        assert_eq!(tree(&foresight), expected);
        assert_eq!(round.nodes[5], Node { slot: 5, at: 3, ancestors: 0b10_1100 });
        assert_eq!(round.puts[4], (8 + 4, 30));
        assert_eq!(round.trunk, Some(vec![1, 0]));
        let of = |parent, position| Forecast { parent, position, count: TOKENS };
        assert_eq!(round.forecasts[..4], [of(None, 1), of(None, 2), of(None, 3), of(Some(0), 2)]);
    }

    #[test]
    fn the_way_runs_on_where_the_block_was_wrong() {
        let mut foresight = foresight(6);
        foresight.grow(&asks(), &mut Round::default());
        let mut chosen: Vec<Chosen> = (0..3).flat_map(|_| forecast([1, 2, 3], [1.0, 0.0, 0.0])).collect();
        // What each node sees after it: 11 is followed by 20, that by 77, and behind 30 comes 88.
        let after = [99, 99, 20, 77, 99, 88];
        chosen.extend(after.iter().flat_map(|&token| forecast([token, 5, 6], [0.7, 0.2, 0.1])));
        // The block was right about nothing; position 1 is 11.
        learn(&mut foresight, 1, Some(11), &chosen);
        assert_eq!(foresight.trunk, 3);
        assert_eq!(foresight.puts(8), [(2, 20), (3, 77), (4, 88)]);
        assert_eq!(foresight.before(None), [Some(77), Some(20)]);
        // Of the nodes of 20, the one after 11 saw 77, the one after 10 99.
        let likeliest = |before| foresight.outlook.of(3, before)[0].token;
        assert_eq!([likeliest([Some(20), Some(11)]), likeliest([Some(20), Some(10)])], [77, 99]);
        // As it was fed, the block had 1 everywhere, and was sure of 1 after it.
        let after_block = foresight.outlook.of(3, [Some(1), Some(1)])[0];
        assert!(after_block.token == 1 && after_block.log_probability > -0.01, "{after_block:?}");
    }

    #[test]
    fn with_slack_the_way_takes_a_token_that_would_stay() {
        for (slack, guesses) in [(0.5, [(2, 20), (3, 30), (4, 88)]), (0.2, [(2, 9), (3, 5), (4, 88)])] {
            let mut foresight = Foresight { slack, ..foresight(6) };
            foresight.grow(&asks(), &mut Round::default());
            let mut chosen: Vec<Chosen> = (0..3).flat_map(|_| forecast([1, 2, 3], [1.0, 0.0, 0.0])).collect();
            // 11 is followed by 9, which has no node, and 0.4 nats behind by 20, which has; 20 by 5, and as much behind by 30.
            let after = [[99, 98, 97], [99, 98, 97], [9, 20, 8], [5, 30, 6], [99, 98, 97], [88, 1, 2]];
            let chances = [0.4, 0.4 * (-0.4f32).exp(), 0.1];
            chosen.extend(after.iter().flat_map(|&tokens| forecast(tokens, chances)));
            learn(&mut foresight, 1, Some(11), &chosen);
            assert_eq!(foresight.puts(8), guesses, "slack {slack}");
        }
    }

    #[test]
    fn a_block_that_got_further_or_was_wrong_before_the_trunk_decides() {
        for (known, token) in [(6, Some(11)), (0, Some(11)), (2, Some(44)), (1, None)] {
            let mut foresight = foresight(6);
            foresight.grow(&asks(), &mut Round::default());
            let chosen: Vec<Chosen> = (0..9).flat_map(|_| forecast([20, 2, 3], [1.0, 0.0, 0.0])).collect();
            learn(&mut foresight, known, token, &chosen);
            assert_eq!(foresight.trunk, known);
            assert!(foresight.puts(8).is_empty());
        }
    }

    #[test]
    fn nothing_is_guessed_beyond_what_is_fed() {
        let mut foresight = foresight(6);
        foresight.grow(&asks(), &mut Round::default());
        let chosen: Vec<Chosen> = (0..9).flat_map(|_| forecast([20, 2, 3], [1.0, 0.0, 0.0])).collect();
        learn(&mut foresight, 1, Some(11), &chosen);
        let foreseen = |foresight: &Foresight| foresight.outlook.of(foresight.trunk + 1, foresight.before(None));
        assert_eq!(foresight.puts(3), [(2, 20)]);
        assert_eq!(foresight.trunk, 2);
        assert_eq!(foreseen(&foresight)[0].token, 20);
        // What was foreseen of the positions that were put and not fed is still there.
        foresight.puts(2);
        assert_eq!((foresight.trunk, foreseen(&foresight)[0].token), (1, 20));
    }
}
