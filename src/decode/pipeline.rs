//! The slanted wavefront: positions enter in the order of a plane over the grid, every pass verifies all of them at
//! once, and they leave when they are final. One loop is the lossless decoder and the fast one.
//!
//! Position (r, c) enters when the clock reaches `r * lag + c * slope`. Several rows are in flight, each a little
//! behind the one above it, so the passes per row fall towards `lag` while every token still meets several rounds.
//! `lag` below 1 admits more than one row a pass; `slope` above 0 starts the left part of a row before the row above
//! is complete and lets a row's columns follow each other.
//!
//! With coupled noise ([`Acceptance::Coupled`](super::Acceptance::Coupled)) a pass is a Jacobi iteration of the deterministic map
//! from context to tokens, and its fixed point is plain AR's sample. A token is settled when it was fed with its
//! final value in a settled context: what a pass with the right context leaves unchanged, and the first token that it
//! corrects, are plain AR's. That alone settles tokens in the exact decoder. The relaxed one also makes a token final
//! after a number of verifications; it is fed once more, so that its keys and values are its own. Without that cap its
//! tokens settle too, but each may be any that is within the slack of the best one in its context.

use super::acceptance::{Acceptance, Coupling, Relaxation};
use super::drafter::SpatialDrafter;
use super::foresight::{self, Foresight};
use super::knobs::{choice, count, number};
use super::{Ask, Draft, Round, Schedule};
use crate::backend::{Chosen, Drawn};
use crate::grid::Grid;

/// Shape of the wavefront.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knobs {
    /// Clock units between a row and the next. The clock runs one unit a pass.
    pub lag: f64,
    /// Clock units between a column and the next.
    pub slope: f64,
    /// How many units the clock may run ahead of the first token that is not settled.
    pub window: f64,
    /// A token is final after this many verifications, or earlier when it is settled; `None` for settled only, which without
    /// [`Self::reach`], [`Self::relaxation`] and [`Self::slack`] is exact: the output is plain AR's, bit for bit, whatever the
    /// other knobs.
    pub rounds: Option<u32>,
    /// Where drafts come from.
    pub drafter: SpatialDrafter,
    /// A token is also final when it was verified with this many final tokens to the right of it in the row above, and all
    /// to its left; `None` for everything before it. The farther context is there as it is then, unlike in ZipAR.
    pub reach: Option<usize>,
    /// What the tokens of two passes have in common. Exact tokens are plain AR's with [`Coupling::Gumbel`]; with
    /// [`Coupling::Maximal`] they are others of the same law.
    pub coupling: Coupling,
    /// How loosely tokens are judged under [`Coupling::Maximal`]; `None` of the exact decoder, which has none of the knobs that
    /// relax.
    pub relaxation: Option<Relaxation>,
    /// Nats by which another token must be better before the one that is there gives way, under [`Coupling::Gumbel`]. A
    /// correction of a nearly equal token costs those behind it more than it is worth.
    pub slack: f32,
    /// The slack of tokens that are at least a row and a half behind the first open one, where contexts still change, if it is
    /// less; `None` for the same. With less there, most tokens arrive at the front with some of their slack to spare.
    pub early: Option<f32>,
    /// Nats of slack that each nat takes by which the other token is more probable. So what has merely less luck may stay, and
    /// what the model finds out of place may not; without it that is what most defects are.
    pub penalty: f32,
    /// Nodes of a tree of second guesses at the front ([`Foresight`]), 0 for none. For [`Coupling::Gumbel`].
    pub tree: usize,
}

impl Knobs {
    /// Does it feed a tree of second guesses? They are about shared noise.
    pub fn foresees(&self) -> bool {
        self.tree > 0 && self.coupling == Coupling::Gumbel
    }

    /// What becomes of a token once its distribution is known.
    pub fn acceptance(&self) -> Acceptance {
        match (self.coupling, self.relaxation) {
            (Coupling::Maximal, Some(relaxation)) => Acceptance::Judged(relaxation.test()),
            (Coupling::Gumbel, _) if self.slack > 0.0 => {
                let early = self.early.map_or(self.slack, |early| early.min(self.slack));
                Acceptance::Clinging { slack: self.slack, early, penalty: self.penalty }
            }
            (coupling, _) => coupling.acceptance(),
        }
    }
}

impl super::knobs::Knobs for Knobs {
    fn list(&self) -> Vec<(&'static str, String)> {
        let Self { lag, slope, window, rounds, reach, drafter, coupling, relaxation, slack, early, penalty, tree } =
            self;
        let mut list = vec![("lag", lag.to_string()), ("slope", slope.to_string()), ("window", window.to_string())];
        if relaxation.is_some() {
            list.extend([("rounds", all_or(*rounds)), ("reach", all_or(*reach))]);
        }
        list.extend([("draft", drafter.preference.to_string()), ("coupling", coupling.to_string())]);
        if let Some(relaxation) = relaxation {
            list.push(("slack", slack.to_string()));
            list.push(("early", early.map_or("same".into(), |early| early.to_string())));
            list.push(("penalty", penalty.to_string()));
            list.extend(relaxation.list());
        }
        list.push(("tree", tree.to_string()));
        list
    }

    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String> {
        let relaxes = self.relaxation.is_some();
        match knob {
            "lag" => self.lag = number(knob, value, 1e4)?,
            "slope" => self.slope = number(knob, value, 1e4)?,
            "window" => self.window = number(knob, value, f64::INFINITY)?,
            "rounds" if relaxes && value == "all" => self.rounds = None,
            "rounds" if relaxes => self.rounds = Some(count(knob, value, 1)? as u32),
            "reach" if relaxes && value == "all" => self.reach = None,
            "reach" if relaxes => self.reach = Some(count(knob, value, 0)?),
            "slack" if relaxes => self.slack = number(knob, value, f64::from(f32::MAX))? as f32,
            "early" if relaxes && value == "same" => self.early = None,
            "early" if relaxes => self.early = Some(number(knob, value, f64::from(f32::MAX))? as f32),
            "penalty" if relaxes => self.penalty = number(knob, value, f64::from(f32::MAX))? as f32,
            "draft" => self.drafter.preference = choice(knob, value)?,
            "coupling" => self.coupling = choice(knob, value)?,
            "tree" => match count(knob, value, 0)? {
                nodes if nodes <= foresight::MOST => self.tree = nodes,
                nodes => return Err(format!("tree={nodes}: must be at most {}", foresight::MOST)),
            },
            _ => return self.relaxation.as_mut().map_or(Ok(false), |relaxation| relaxation.set(knob, value)),
        }
        Ok(true)
    }

    fn check(&self) -> Result<(), String> {
        if self.tree > 0 && !self.foresees() {
            return Err("a tree of second guesses needs coupling=gumbel".into());
        }
        match self.slack > 0.0 && self.coupling != Coupling::Gumbel {
            true => Err("slack needs coupling=gumbel; maximal has the knobs of its tests, and slack=0".into()),
            false => Ok(()),
        }
    }
}

fn all_or<T: ToString>(limit: Option<T>) -> String {
    limit.map_or("all".into(), |limit| limit.to_string())
}

/// What is known of one position.
#[derive(Clone, Copy, Default)]
struct Cell {
    /// Verifications so far.
    age: u32,
    /// The token will not change any more.
    is_final: bool,
    /// It was fed after it became final.
    fed_final: bool,
    /// The last pass confirmed the token that was fed.
    unchanged: bool,
    /// It has not entered, but holds the target's own sample: better than any head's draft.
    foreseen: bool,
    /// The target has made a distribution of it.
    predicted: bool,
    /// The pass under way does.
    asked: bool,
}

/// The slanted wavefront over one image.
pub struct Wave {
    knobs: Knobs,
    grid: Grid,
    heads: (usize, usize),
    cells: Vec<Cell>,
    /// Columns of each row that have entered.
    entered: Vec<u32>,
    /// Columns of each row, from the left, that were fed with their final token in a settled context.
    settled: Vec<usize>,
    clock: f64,
    /// What the round under way asks for.
    asks: Vec<Ask>,
    foresight: Option<Foresight>,
    /// What the round under way foresaw.
    foreseen: Vec<Chosen>,
}

impl Wave {
    /// Over a grid, with so many horizontal and vertical heads.
    pub fn new(grid: Grid, heads: (usize, usize), knobs: Knobs) -> Self {
        let mut cells = vec![Cell::default(); grid.len()];
        cells[0] = Cell { is_final: true, predicted: true, ..Cell::default() };
        let mut entered = vec![0; grid.height];
        entered[0] = 1;
        Self {
            knobs,
            grid,
            heads,
            cells,
            entered,
            settled: vec![0; grid.height],
            clock: 0.0,
            asks: Vec::new(),
            foresight: knobs.foresees().then(|| Foresight::new(grid, knobs.tree, knobs.slack)),
            foreseen: Vec::new(),
        }
    }

    fn entry(&self, position: usize) -> f64 {
        self.grid.row(position) as f64 * self.knobs.lag + self.grid.col(position) as f64 * self.knobs.slope
    }

    fn has_entered(&self, position: usize) -> bool {
        (self.grid.col(position) as u32) < self.entered[self.grid.row(position)]
    }

    /// First position that is not settled.
    fn front(&self) -> usize {
        let width = self.grid.width;
        let row = self.settled.iter().position(|columns| *columns < width);
        row.map_or(self.grid.len(), |row| row * width + self.settled[row])
    }

    /// Advances the clock and lets positions in; those that need a draft.
    fn admit(&mut self) -> Vec<Draft> {
        let front = self.front();
        let limit = self.entry(front) + self.knobs.window;
        self.clock = (self.clock + 1.0).min(limit).max(self.clock);
        let (mut positions, mut count) = (Vec::new(), 0);
        for row in self.grid.row(front)..self.grid.height {
            let (first, before) = (self.entered[row] as usize, count);
            for col in first..self.grid.width {
                let position = self.grid.index(row, col);
                if self.entry(position) > self.clock {
                    break;
                }
                self.entered[row] = col as u32 + 1;
                count += 1;
                if !self.cells[position].foreseen {
                    positions.push(position);
                }
            }
            if first == 0 && count == before {
                break;
            }
        }
        let predicted: Vec<bool> = self.cells.iter().map(|cell| cell.predicted).collect();
        let draft = |position| self.knobs.drafter.draft(self.grid, self.heads, &predicted, position);
        positions.into_iter().map(draft).collect()
    }

    /// The first position that is not final.
    fn open(&self) -> usize {
        self.cells.iter().position(|cell| !cell.is_final).unwrap_or(self.grid.len())
    }

    /// The first position from the open one on that has not entered.
    fn limit(&self) -> usize {
        let length = self.grid.len();
        (self.open()..length).find(|&position| !self.has_entered(position)).unwrap_or(length)
    }

    /// The last position that the last pass made sure of, if what it was fed before was right: those whose token it left as it was,
    /// and the first that it changed.
    fn known(&self, drawn: &[Drawn]) -> usize {
        let open = self.open();
        let mut known = open - 1;
        for (ask, drawn) in self.asks.iter().zip(drawn).skip_while(|(ask, _)| ask.position < open) {
            if ask.position != known + 1 {
                break;
            }
            known += 1;
            if !ask.verify || drawn.before != drawn.after {
                break;
            }
        }
        known
    }

    /// Everything in flight that a pass can still teach something.
    fn block(&mut self) -> Vec<usize> {
        let length = self.grid.len();
        let in_flight = (self.front()..length).filter(|&position| {
            let next_is_final = position + 1 == length || self.cells[position + 1].is_final;
            self.has_entered(position) && !(self.cells[position].fed_final && next_is_final)
        });
        let block: Vec<usize> = in_flight.collect();
        for &position in &block {
            self.cells[position].fed_final = self.cells[position].is_final;
        }
        block
    }

    /// The successors of the block that are not final: verified when they have entered, else foreseen.
    fn questions(&mut self, block: &[usize]) -> Vec<Ask> {
        let next = block.iter().map(|position| position + 1).filter(|&next| next < self.grid.len());
        let next: Vec<usize> = next.collect();
        self.cells.iter_mut().for_each(|cell| cell.asked = false);
        next.iter().for_each(|&position| {
            let cell = &mut self.cells[position];
            (cell.predicted, cell.asked) = (true, !cell.is_final);
        });
        let open = next.into_iter().filter(|&position| !self.cells[position].is_final);
        let late = self.open() + self.grid.width * 3 / 2;
        let ask = |position| Ask { early: position >= late, verify: self.has_entered(position), ..Ask::draw(position) };
        open.map(ask).collect()
    }

    /// Moves what is settled over everything that the last pass confirmed, then ages tokens.
    fn settle(&mut self) {
        let width = self.grid.width;
        // Is everything above settled? And how many columns of the row just above?
        let (mut whole, mut above) = (true, width);
        for row in 0..self.grid.height {
            while self.settled[row] < width {
                let col = self.settled[row];
                let context = whole || self.knobs.reach.is_some_and(|reach| above >= (col + reach + 1).min(width));
                if !self.settle_one(self.grid.index(row, col), context) {
                    break;
                }
                self.settled[row] += 1;
            }
            above = self.settled[row];
            whole &= above == width;
        }
        if let Some(rounds) = self.knobs.rounds {
            self.cells.iter_mut().filter(|cell| cell.age >= rounds).for_each(|cell| cell.is_final = true);
        }
    }

    /// Settles a position if its final token was fed. What was drawn in a settled `context` is final.
    fn settle_one(&mut self, position: usize, context: bool) -> bool {
        let entered = self.has_entered(position);
        let cell = &mut self.cells[position];
        if cell.is_final || !cell.asked || !context {
            return cell.is_final && cell.fed_final;
        }
        cell.is_final = true;
        cell.fed_final = entered && cell.unchanged;
        let confirmed = cell.fed_final;
        if !entered {
            // In flight even before its time: its distribution is known, so is its token.
            self.entered[self.grid.row(position)] = self.grid.col(position) as u32 + 1;
        }
        confirmed
    }
}

impl Schedule for Wave {
    fn next(&mut self) -> Option<Round> {
        if self.cells.iter().all(|cell| cell.is_final) {
            return None;
        }
        let drafts = self.admit();
        let limit = self.limit();
        let mut puts = self.foresight.as_mut().map_or(Vec::new(), |foresight| foresight.puts(limit));
        // Behind the front a cap or a reach may have made tokens final since.
        puts.retain(|&(position, _)| !self.cells[position].is_final);
        let block = self.block();
        self.asks = self.questions(&block);
        let asks = self.asks.clone();
        let mut round = Round { puts, drafts, block, frontier: self.entered.clone(), asks, ..Round::default() };
        if let Some(foresight) = &mut self.foresight {
            foresight.grow(&self.asks, &mut round);
        }
        Some(round)
    }

    fn foreseen(&mut self, chosen: &[Chosen]) {
        self.foreseen = chosen.to_vec();
    }

    fn learn(&mut self, drawn: &[Drawn]) {
        let known = self.known(drawn);
        if let Some(foresight) = &mut self.foresight {
            foresight.learn(known, &self.asks, drawn, &self.foreseen);
        }
        for (ask, drawn) in std::mem::take(&mut self.asks).into_iter().zip(drawn) {
            let cell = &mut self.cells[ask.position];
            if ask.verify {
                cell.unchanged = drawn.before == drawn.after;
                cell.age += 1;
            } else {
                cell.foreseen = true;
            }
        }
        self.settle();
    }

    fn done(&self) -> usize {
        self.settled.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::ar::Ar;
    use crate::decode::drafter::Preference;
    use crate::decode::testing::Toy;
    use crate::decode::{Outcome, Stats};

    fn knobs(lag: f64, slope: f64, window: f64, rounds: Option<u32>) -> Knobs {
        Knobs {
            lag,
            slope,
            window,
            rounds,
            reach: None,
            drafter: SpatialDrafter { preference: Preference::Both },
            coupling: Coupling::Gumbel,
            relaxation: None,
            slack: 0.0,
            early: None,
            penalty: 0.0,
            tree: 0,
        }
    }

    fn run(knobs: &Knobs, seed: u64) -> Outcome {
        let mut toy = Toy::new(5, 7, 6, Acceptance::Coupled, seed);
        let mut wave = Wave::new(toy.grid(), toy.heads(), *knobs);
        toy.decode(&mut wave)
    }

    fn plain(seed: u64) -> Outcome {
        let mut toy = Toy::new(5, 7, 6, Acceptance::Coupled, seed);
        toy.decode(&mut Ar::new(toy.grid()))
    }

    #[test]
    fn exact_returns_the_tokens_of_ar_for_every_shape() {
        let shapes =
            [(7.0, 1.0, 4.0), (7.0, 1.0, 0.0), (1.0, 0.0, 3.0), (0.5, 0.0, 9.0), (2.0, 0.5, 5.0), (3.0, 0.2, 100.0)];
        for seed in 0..40 {
            let plain = plain(seed);
            for (lag, slope, window) in shapes {
                let exact = run(&knobs(lag, slope, window, None), seed);
                assert_eq!(exact.tokens, plain.tokens, "seed {seed}, lag {lag}, slope {slope}, window {window}");
                assert!(exact.stats.nfe <= plain.stats.nfe);
            }
        }
    }

    #[test]
    fn second_guesses_save_passes_and_change_no_token() {
        let (mut without, mut with) = (0, 0);
        for seed in 0..40 {
            for (lag, slope, window) in [(1.0, 0.0, 3.0), (1.0, 0.04, 2.0), (7.0, 1.0, 4.0)] {
                let knobs = knobs(lag, slope, window, None);
                let tree = run(&Knobs { tree: 24, ..knobs }, seed);
                assert_eq!(tree.tokens, plain(seed).tokens, "seed {seed}, lag {lag}, slope {slope}, window {window}");
                without += run(&knobs, seed).stats.nfe;
                with += tree.stats.nfe;
            }
        }
        assert!(with * 10 < without * 9, "{with} passes instead of {without}");
    }

    #[test]
    fn a_reach_of_whole_rows_is_exact_and_a_short_one_is_not() {
        let differing = |reach| {
            let shape = Knobs { reach: Some(reach), ..knobs(1.0, 0.5, f64::INFINITY, None) };
            (0..20).filter(|&seed| run(&shape, seed).tokens != plain(seed).tokens).count()
        };
        assert_eq!(differing(6), 0);
        assert!(differing(0) > 10);
    }

    /// Puts a whole picture and verifies all of it in one pass.
    struct Check {
        tokens: Vec<u32>,
        grid: Grid,
        gave_way: Option<usize>,
    }

    impl Schedule for Check {
        fn next(&mut self) -> Option<Round> {
            let length = self.grid.len();
            self.gave_way.is_none().then(|| Round {
                puts: self.tokens.iter().copied().enumerate().collect(),
                block: (0..length).collect(),
                frontier: vec![self.grid.width as u32; self.grid.height],
                asks: (1..length).map(Ask::verify).collect(),
                ..Round::default()
            })
        }

        fn learn(&mut self, drawn: &[Drawn]) {
            self.gave_way = Some(drawn.iter().filter(|drawn| drawn.before != drawn.after).count());
        }

        fn done(&self) -> usize {
            0
        }
    }

    /// A wave whose final tokens nobody puts.
    struct Guarded(Wave);

    impl Schedule for Guarded {
        fn next(&mut self) -> Option<Round> {
            let round = self.0.next()?;
            // What has its place behind the grid is a node.
            let on_grid = round.puts.iter().filter(|(position, _)| *position < self.0.grid.len());
            assert!(on_grid.clone().all(|&(position, _)| !self.0.cells[position].is_final), "{:?}", round.puts);
            Some(round)
        }

        fn foreseen(&mut self, chosen: &[Chosen]) {
            self.0.foreseen(chosen);
        }

        fn learn(&mut self, drawn: &[Drawn]) {
            self.0.learn(drawn);
        }

        fn done(&self) -> usize {
            self.0.done()
        }
    }

    fn relaxed(knobs: Knobs, seed: u64) -> (Outcome, usize) {
        let mut toy = Toy::new(5, 7, 6, knobs.acceptance(), seed);
        let outcome = toy.decode(&mut Guarded(Wave::new(toy.grid(), toy.heads(), knobs)));
        let gave_way = giving_way(&outcome, knobs.acceptance(), seed);
        (outcome, gave_way)
    }

    /// How many tokens of a finished picture are replaced when all are verified at once.
    fn giving_way(outcome: &Outcome, acceptance: Acceptance, seed: u64) -> usize {
        let mut toy = Toy::new(5, 7, 6, acceptance, seed);
        let mut check = Check { tokens: outcome.tokens.clone(), grid: toy.grid(), gave_way: None };
        toy.decode(&mut check);
        check.gave_way.expect("it was verified")
    }

    #[test]
    fn until_settled_every_token_is_within_its_slack_of_the_best_one() {
        let shape = knobs(1.0, 0.1, 4.0, None);
        let (mut plain_passes, mut tree_passes, mut capped, mut reached) = (0, 0, 0, 0);
        for seed in 0..40 {
            for slack in [0.0, 0.3, 1.0] {
                let shape = Knobs { slack, ..shape };
                let (outcome, gave_way) = relaxed(shape, seed);
                assert_eq!(gave_way, 0, "seed {seed}, slack {slack}");
                let (with_tree, gave_way) = relaxed(Knobs { tree: 24, ..shape }, seed);
                assert_eq!(gave_way, 0, "seed {seed}, slack {slack}, with a tree");
                if slack == 0.0 {
                    assert_eq!((&outcome.tokens, &with_tree.tokens), (&plain(seed).tokens, &plain(seed).tokens));
                } else {
                    (plain_passes, tree_passes) = (plain_passes + outcome.stats.nfe, tree_passes + with_tree.stats.nfe);
                }
                capped += relaxed(Knobs { rounds: Some(1), tree: 24, ..shape }, seed).1;
                reached += relaxed(Knobs { reach: Some(0), tree: 24, ..shape }, seed).1;
            }
        }
        assert!(tree_passes * 20 < plain_passes * 19, "{tree_passes} passes instead of {plain_passes}");
        assert!(capped > 0 && reached > 0, "{capped} tokens give way after a cap, {reached} behind a reach");
    }

    #[test]
    fn with_less_slack_early_or_a_penalty_more_tokens_are_the_best_ones() {
        let shape = Knobs { slack: 1.0, ..knobs(0.5, 0.1, 9.0, None) };
        let worse = |early, penalty| {
            let shape = Knobs { early, penalty, ..shape };
            let each = (0..40).map(|seed| {
                let (outcome, gave_way) = relaxed(shape, seed);
                assert_eq!(gave_way, 0, "seed {seed}: all are within the slack of those at the front");
                giving_way(&outcome, Acceptance::Coupled, seed)
            });
            each.sum::<usize>()
        };
        let (all, late, penalised) = (worse(None, 0.0), worse(Some(0.0), 0.0), worse(None, 0.5));
        assert_eq!([Some(1.0), Some(3.0)].map(|early| worse(early, 0.0)), [all; 2], "at most the other");
        assert!(late < all && penalised < all, "{late} and {penalised} instead of {all}");
    }

    #[test]
    fn many_rounds_reach_the_fixed_point_and_few_do_not() {
        let differing = |rounds| {
            let differs =
                |seed: &u64| run(&knobs(1.0, 0.0, f64::INFINITY, Some(rounds)), *seed).tokens != plain(*seed).tokens;
            (0..20).filter(differs).count()
        };
        assert_eq!(differing(40), 0);
        assert!(differing(1) > 10);
    }

    #[test]
    fn slack_keeps_tokens_that_are_nearly_right() {
        let shape = knobs(1.0, 0.2, f64::INFINITY, Some(6));
        let run = |slack: f32, seed| {
            let knobs = Knobs { slack, ..shape };
            let mut toy = Toy::new(5, 7, 6, knobs.acceptance(), seed);
            let mut wave = Wave::new(toy.grid(), toy.heads(), knobs);
            toy.decode(&mut wave)
        };
        let kept = |slack| (0..40).map(|seed| run(slack, seed).stats.accepted).sum::<usize>();
        assert_eq!((0..40).filter(|&seed| run(1e-30, seed).tokens != run(0.0, seed).tokens).count(), 0);
        let (none, some, all) = (kept(0.0), kept(0.5), kept(100.0));
        assert!(none < some && some < all, "{none}, {some}, {all} drafts accepted");
        assert_eq!(all, (0..40).map(|seed| run(100.0, seed).stats.drafted).sum::<usize>(), "what gives way to nothing");
    }

    #[test]
    fn passes_follow_from_lag_and_rounds() {
        // The prompt, then the last row enters at 4 * lag + 1 and needs `rounds` more passes, of which its own entry
        // is the first.
        let Stats { nfe, .. } = run(&knobs(2.0, 0.0, f64::INFINITY, Some(3)), 1).stats;
        assert!(nfe <= 1 + 4 * 2 + 3, "{nfe}");
    }
}
