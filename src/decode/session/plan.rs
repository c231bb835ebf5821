//! From the rounds of images to one step: which tokens are put, which heads draft, which rows are fed, what is drawn.

use crate::backend::{Copy, Draw, Image, NONE, PageTable, Put, RowPlace, Rule, Slot, Step};
use crate::decode::layout::{Row, Rows, layout};
use crate::decode::tree::{Choice, Family};
use crate::decode::{Acceptance, Ask, Draft, Round, Source};
use crate::grid::Grid;
use crate::nn::spatial_heads::Offset;

/// Plans the steps of a session.
pub(super) struct Planner {
    pub(super) grid: Grid,
    pub(super) acceptance: Acceptance,
    /// How many horizontal and vertical offsets have heads.
    pub(super) heads: (usize, usize),
    /// Tokens of an image in the canvas.
    pub(super) places: usize,
    /// Rows of a branch in the kept states.
    pub(super) stride: usize,
    /// The first of the logits' kept rows, one for each branch.
    pub(super) kept: usize,
    pub(super) subjects: Vec<Subject>,
}

/// What the steps of an image are planned from.
pub(in crate::decode) struct Subject {
    pub(in crate::decode) image: Image,
    /// Of its branches; they are the sequences from `first` on.
    pub(in crate::decode) tables: Vec<PageTable>,
    pub(in crate::decode) first: usize,
    /// For each branch, the sequence that was fed its prompt.
    pub(in crate::decode) owners: Vec<usize>,
    /// Draws made at each position.
    pub(in crate::decode) rounds: Vec<u32>,
    /// The position whose distribution is in the kept rows of the logits.
    pub(in crate::decode) kept: usize,
}

/// Rows of a distribution in the logits: that of the first branch, and how far apart those of two branches are.
type Of = (usize, usize);

impl Planner {
    /// The step of a round of each image that has one.
    pub(super) fn step(&mut self, rounds: &[Option<Round>]) -> Step {
        let mut step = Step { images: self.images(), ..Step::default() };
        let each = || rounds.iter().enumerate().filter_map(|(image, round)| Some((image, round.as_ref()?)));
        for (image, round) in each() {
            self.puts(image, round, &mut step);
        }
        let drafts: Vec<(usize, &[Draft])> = each().map(|(image, round)| (image, &round.drafts[..])).collect();
        self.drafts(&drafts, &mut step);
        let tables: Vec<Vec<PageTable>> = self.subjects.iter().map(|subject| subject.tables.clone()).collect();
        let tables: Vec<&[PageTable]> = tables.iter().map(Vec::as_slice).collect();
        let (layout, rows) = layout(rounds, &tables);
        step.layout = layout;
        for (image, rows) in rows.iter().enumerate() {
            if let Some(rows) = rows {
                self.verdicts(image, rows, &mut step);
            }
        }
        step
    }

    /// The step that feeds the prompts, each once: the distributions of position 0 are kept, and drawn from if `drawn`.
    pub(super) fn prompts(&mut self, drawn: bool) -> Step {
        let mut step = Step { images: self.images(), groups: vec![0], ..Step::default() };
        let sequences = self.subjects.iter().flat_map(|subject| subject.tables.iter().zip(&subject.owners));
        let mut fed = Vec::new();
        for (sequence, (table, &owner)) in sequences.enumerate() {
            step.layout.sequences.push(table.clone());
            if owner == sequence {
                let slots = (0..table.prefix_len as u32).map(Slot::Prefix);
                step.layout.rows.extend(slots.map(|slot| RowPlace { sequence: sequence as u32, slot }));
                step.predictions.push(step.layout.rows.len() as u32 - 1);
                fed.push(sequence);
            }
            let from = fed.binary_search(&owner).expect("its prompt was fed before");
            step.copies.push(Copy { from: from as u32, to: (self.kept + sequence) as u32 });
        }
        for image in 0..self.subjects.len() {
            self.subjects[image].kept = 0;
            if drawn {
                let (rule, row) = (self.rule(image, &Ask::draw(0)), self.kept_row(image));
                step.verdicts.push(self.draw(image, 0, rule, [Some(row), None]));
            }
        }
        step
    }

    /// Sources sorted by head, then image, then branch; drafts that refer to them.
    pub(super) fn drafts(&mut self, images: &[(usize, &[Draft])], step: &mut Step) {
        let (horizontal, vertical) = self.heads;
        let mut rows: Vec<Vec<[Option<Of>; 2]>> =
            images.iter().map(|(_, drafts)| vec![[None; 2]; drafts.len()]).collect();
        step.groups.push(0);
        for head in 0..horizontal + vertical {
            for ((image, drafts), rows) in images.iter().zip(&mut rows) {
                let all = drafts.iter().map(|draft| &draft.sources).zip(rows);
                let each = all.flat_map(|(sources, rows)| sources.iter().flatten().zip(rows));
                let of_head = each.filter(|(source, _)| head_index(source.offset, horizontal) == head);
                let (sources, rows): (Vec<&Source>, Vec<&mut Option<Of>>) = of_head.unzip();
                for (index, row) in rows.into_iter().enumerate() {
                    *row = Some((step.sources.len() + index, sources.len()));
                }
                for branch in 0..self.subjects[*image].tables.len() {
                    step.sources.extend(sources.iter().map(|source| self.source(*image, branch, source.from)));
                }
            }
            step.groups.push(step.sources.len() as u32);
        }
        for ((image, drafts), rows) in images.iter().zip(rows) {
            for (draft, rows) in drafts.iter().zip(rows) {
                let rule = self.rule(*image, &Ask::draw(draft.position));
                step.drafts.push(self.draw(*image, draft.position, rule, rows));
            }
        }
    }

    /// What the distribution of a position after the prompt is in.
    fn kept_row(&self, image: usize) -> Of {
        (self.kept + self.subjects[image].first, 1)
    }

    fn images(&self) -> Vec<Image> {
        self.subjects.iter().map(|subject| subject.image).collect()
    }

    /// The kept state that predicted a position, and the position's token.
    fn source(&self, image: usize, branch: usize, from: usize) -> crate::backend::Source {
        let state = self.subjects[image].state(branch, from, self.stride);
        crate::backend::Source { state: state as u32, token: (image * self.places + from) as u32 }
    }

    fn puts(&mut self, image: usize, round: &Round, step: &mut Step) {
        for &(position, token) in &round.puts {
            if let Some(rounds) = self.subjects[image].rounds.get_mut(position) {
                *rounds = 0;
            }
            // The token of a row beside the cache has its place behind the grid.
            let slot = round.temporary.iter().position(|&at| at == position);
            let place = slot.map_or(position, |slot| self.grid.len() + slot);
            step.puts.push(Put { image: image as u32, position: place as u32, token });
        }
    }

    /// What an image asks of the rows that it feeds.
    fn verdicts(&mut self, image: usize, rows: &Rows<'_>, step: &mut Step) {
        let (round, first) = (rows.round, step.predictions.len());
        let wanted = round.asks.iter().map(|ask| ask.position).chain(round.keep);
        let families = round.families.iter().map(|family| rows.before(family.parent, family.position));
        let forecasts = round.forecasts.iter().map(|forecast| rows.before(forecast.parent, forecast.position));
        let mut wanted: Vec<Row> = wanted.filter_map(|position| rows.predicts(position)).collect();
        // What is asked of a position and foreseen of it has one distribution: a step has room for one of each row that it feeds.
        let beside: Vec<usize> = families.chain(forecasts).map(|row| place_of(row, &mut wanted)).collect();
        let of_branches = (0..rows.branches).flat_map(|branch| wanted.iter().map(move |&row| (branch, row)));
        step.predictions.extend(of_branches.map(|(branch, row)| rows.index(branch, row)));
        let row = |index: usize| (first + index, wanted.len());
        let mut next = 0;
        for ask in &round.asks {
            let predicted = match rows.predicts(ask.position) {
                Some(_) => {
                    next += 1;
                    row(next - 1)
                }
                None => {
                    assert_eq!(ask.position, self.subjects[image].kept, "the position was not predicted");
                    self.kept_row(image)
                }
            };
            let rule = self.rule(image, ask);
            let follows = ask.follows && rule.0 == Rule::AutoCorrect;
            step.verdicts.push(Draw { follows, ..self.draw(image, ask.position, rule, [Some(predicted), None]) });
        }
        if let Some(position) = round.keep {
            let ((from, apart), (to, _)) = (row(next), self.kept_row(image));
            let copy = |branch| Copy { from: (from + branch * apart) as u32, to: (to + branch) as u32 };
            step.copies.extend((0..rows.branches).map(copy));
            self.subjects[image].kept = position;
        }
        let families = round.families.iter().map(|family| (family.position, self.siblings(family)));
        let foresee = |count| Rule::Foresee { count: count as u32 };
        let forecasts = round.forecasts.iter().map(|forecast| (forecast.position, foresee(forecast.count)));
        for ((position, rule), index) in families.chain(forecasts).zip(beside) {
            step.verdicts.push(self.draw(image, position, (rule, 0), [Some(row(index)), None]));
        }
    }

    fn siblings(&self, family: &Family) -> Rule {
        // A family without children names no place.
        let slot = if family.count == 0 { 0 } else { family.first };
        let first = (self.grid.len() + slot) as u32;
        Rule::Siblings { first, count: family.count as u32, drawn: family.choice == Choice::Drawn }
    }

    /// Rule and round of the next draw at a position.
    fn rule(&mut self, image: usize, ask: &Ask) -> (Rule, u32) {
        let rounds = &mut self.subjects[image].rounds[ask.position];
        match (self.acceptance, ask.verify) {
            (Acceptance::Clinging { slack, early, penalty }, true) => {
                let slack = if ask.early { early } else { slack };
                (Rule::Cling { slack, penalty }, 0)
            }
            (Acceptance::Coupled | Acceptance::Clinging { .. }, _) => (Rule::Coupled, 0),
            (Acceptance::Judged(_), false) => {
                *rounds = 0;
                (Rule::Draft, 0)
            }
            (Acceptance::Judged(_), true) => {
                *rounds += 1;
                (Rule::AutoCorrect, *rounds - 1)
            }
        }
    }

    /// A draw of an image from one or two distributions.
    fn draw(&self, image: usize, position: usize, (rule, round): (Rule, u32), rows: [Option<Of>; 2]) -> Draw {
        let branches = self.subjects[image].tables.len();
        let of = |branch: usize| {
            rows.map(|row| {
                row.filter(|_| branch < branches).map_or(NONE, |(first, apart)| (first + branch * apart) as u32)
            })
        };
        let (conditional, unconditional) = (of(0), of(1));
        let (image, position) = (image as u32, position as u32);
        Draw { image, position, rule, follows: false, round, conditional, unconditional }
    }
}

impl Subject {
    /// Where the state is kept that predicted a position in a branch: that of the first one with whoever fed the prompt.
    pub(in crate::decode) fn state(&self, branch: usize, position: usize, stride: usize) -> usize {
        let sequence = if position == 0 { self.owners[branch] } else { self.first + branch };
        sequence * stride + position
    }
}

/// Where a row is in a list, at whose end it is put if it is not.
fn place_of(row: Row, rows: &mut Vec<Row>) -> usize {
    rows.iter().position(|&known| known == row).unwrap_or_else(|| {
        rows.push(row);
        rows.len() - 1
    })
}

/// Index of a head among the stacked ones.
fn head_index(offset: Offset, horizontal: usize) -> usize {
    match offset {
        Offset::Right(columns) => columns - 1,
        Offset::Down(rows) => horizontal + rows - 1,
    }
}
