//! One window per row of the image: a row begins when the one above has some columns, and all rows that have begun
//! advance in every pass. Relaxed: what lies above and to the right of a token is not there yet when it is drawn.
//!
//! The first token of a row follows the last one of the row above, which is not there yet: the newest token of the
//! row above stands in for it, fed beside the cache (in scratch slots), so that the slot of the last column is written
//! only by its own token. The published methods write it and overwrite it later.

use super::window::{Guess, Guesser, Lists, Window};
use super::{Ask, Round, Scene, Schedule};
use crate::backend::Drawn;
use std::ops::Range;

/// Shape of the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// A token is drawn when the row above has at least so many tokens more than there are to its left, or is complete.
    pub context: usize,
    /// Positions that a pass feeds in a row: the last final one and the guesses after it.
    pub window: usize,
    /// Where guesses come from when a window moves over new positions.
    pub guess: Guess,
    /// The first token of a row is drawn again while the row above grows, until it is kept.
    pub adaptive: bool,
}

/// One row.
struct Lane {
    window: Window,
    /// Columns that were fed with their final token.
    fed: usize,
    /// The first token was drawn, but is judged again ([`Shape::adaptive`]).
    probing: bool,
    /// Questions of the pass under way.
    asks: usize,
}

/// A window over each row.
pub struct Lanes {
    shape: Shape,
    scene: Scene,
    guesser: Guesser,
    lanes: Vec<Lane>,
    /// One past the last row that is to be drawn.
    end: usize,
    asks: Vec<Ask>,
}

impl Lanes {
    /// Over an image.
    pub fn new(scene: Scene, shape: Shape) -> Self {
        Self::over(scene, shape, 0..scene.grid.height)
    }

    /// Over some rows; those before them are fed, or will be with the first round.
    pub fn over(scene: Scene, shape: Shape, rows: Range<usize>) -> Self {
        let width = scene.grid.width;
        let lane = |row: usize| {
            let given = if row < rows.start { width } else { 0 };
            let window = Window::new((row * width + given).max(1), (row + 1) * width);
            Lane { window, fed: given, probing: false, asks: 0 }
        };
        let lanes: Vec<Lane> = (0..scene.grid.height).map(lane).collect();
        // With a stand-in at the last column, the row below must begin before that column is drawn.
        let shape = Shape { context: shape.context.clamp(1, width - 1), ..shape };
        Self { shape, scene, guesser: Guesser::new(scene, shape.guess), lanes, end: rows.end, asks: Vec::new() }
    }

    /// Columns of a row that are final.
    fn columns(&self, row: usize) -> usize {
        self.lanes[row].window.next - row * self.scene.grid.width
    }

    /// How far a row may be asked for: one past the last position.
    fn limit(&self, row: usize) -> usize {
        let width = self.scene.grid.width;
        let above = match row.checked_sub(1).map(|above| self.columns(above)) {
            Some(columns) if columns < width => (columns + 1).saturating_sub(self.shape.context),
            _ => width,
        };
        // The last column holds the stand-in until the row below begins, which it does in this pass at `begins` columns.
        let begins = if self.shape.adaptive { width - 1 } else { self.shape.context };
        let stand_in = row + 1 < self.end && self.columns(row + 1) == 0 && self.columns(row) < begins;
        row * width + above.min(if stand_in { width - 1 } else { width })
    }

    /// Adds a row's part to a round.
    fn advance(&mut self, row: usize, round: &mut Round) {
        let (width, limit) = (self.scene.grid.width, self.limit(row));
        let first = row * width;
        let lane = &mut self.lanes[row];
        if lane.window.next >= limit {
            // Its newest token is shown to the rows below.
            if lane.window.next > first && lane.fed < lane.window.next - first {
                round.block.push(lane.window.next - 1);
                lane.fed = lane.window.next - first;
            }
            return;
        }
        let before = round.asks.len();
        if lane.window.next > first {
            round.block.push(lane.window.next - 1);
            lane.fed = lane.window.next - first;
        } else if self.lanes[row - 1].window.is_done() {
            round.block.push(first - 1);
        } else {
            let newest = self.lanes[row - 1].window.next - 1;
            round.puts.push((first - 1, self.guesser.token(newest)));
            round.temporary.push(first - 1);
        }
        let lane = &mut self.lanes[row];
        if self.shape.adaptive && lane.window.next == first {
            round.asks.push(Ask { verify: lane.probing, ..Ask::draw(first) });
        } else {
            let lists = Lists { guesser: &mut self.guesser, puts: &mut round.puts, asks: &mut round.asks };
            round.block.extend(lane.window.pass(self.shape.window, limit, true, lists));
        }
        lane.asks = round.asks.len() - before;
    }

    /// The first token of a row was drawn: does the row begin?
    fn probe(&mut self, row: usize, ask: Ask, drawn: Drawn) {
        let width = self.scene.grid.width;
        let complete = self.columns(row - 1) + 1 >= width;
        self.guesser.learn(ask.position, drawn.after);
        let lane = &mut self.lanes[row];
        lane.probing = true;
        if complete || ask.verify && drawn.before == drawn.after {
            lane.window = Window::new(ask.position + 1, lane.window.end);
        }
    }
}

impl Schedule for Lanes {
    fn begin(&mut self, first: u32) {
        self.guesser.learn(0, first);
    }

    fn next(&mut self) -> Option<Round> {
        if self.lanes[..self.end].iter().all(|lane| lane.window.is_done()) {
            return None;
        }
        let mut round = Round::default();
        self.lanes.iter_mut().for_each(|lane| lane.asks = 0);
        for row in 0..self.end {
            self.advance(row, &mut round);
        }
        // A complete row and the one below it both feed its last token.
        round.block.dedup();
        round.frontier = self.lanes.iter().map(|lane| lane.fed as u32).collect();
        self.asks.clone_from(&round.asks);
        Some(round)
    }

    fn learn(&mut self, drawn: &[Drawn]) {
        let width = self.scene.grid.width;
        let mut first = 0;
        for row in 0..self.lanes.len() {
            let range = first..first + self.lanes[row].asks;
            first = range.end;
            let (asks, drawn) = (&self.asks[range.clone()], &drawn[range]);
            if asks.is_empty() {
                continue;
            }
            if self.shape.adaptive && self.lanes[row].window.next == row * width {
                self.probe(row, asks[0], drawn[0]);
                continue;
            }
            let lane = &mut self.lanes[row];
            lane.window.learn(asks, drawn, &mut self.guesser);
            // All that is final now was fed as it is, but for the newest: it was drawn in this pass.
            lane.fed = lane.window.next - 1 - row * width;
        }
    }

    fn done(&self) -> usize {
        (0..self.lanes.len()).map(|row| self.columns(row)).sum()
    }
}
