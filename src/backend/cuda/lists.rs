//! From a step of the contract to the lists that kernels read: checked, flattened, laid out in one region.

use std::ops::Range;

use super::abi::{
    WEFT_ATTENTION_ROWS, WEFT_FATE_DRAW, WEFT_FATE_JUDGE, WEFT_FOLLOWED, WEFT_FOLLOWS, WEFT_NONE,
    WEFT_RULE_AUTO_CORRECT, WEFT_RULE_CHILDREN, WEFT_RULE_CHOSEN, WEFT_RULE_COUPLED, WEFT_RULE_DRAFT,
    WEFT_RULE_FORESEE, WEFT_RULE_LIKELIEST, WEFT_RULE_SIBLINGS, WEFT_SCRATCH, WEFT_SLOT_GRID, WEFT_SLOT_OPEN,
    WEFT_SLOT_PREFIX, WEFT_SLOT_SCRATCH, WEFT_TEST_GROUPED, WEFT_TEST_POOLED_MASS, WEFT_TEST_POOLED_RATIO,
    WEFT_TEST_THRESHOLD, WEFT_TEST_TOKEN, WeftCopy, WeftCounts, WeftDraw, WeftGoal, WeftImage, WeftPut, WeftRow,
    WeftSequence, WeftSource, WeftStep, WeftTile,
};
use super::step::{BOUNDS, Bound, Bucket, COUNTS, Count};
use crate::backend::step::check_chains;
use crate::backend::{
    CHILDREN, Capacity, Draw, Fate, GROUP, Goal, Image, Layout, NONE, PAGE, PageTable, PoolBound, Put, RowPlace, Rule,
    Slot, Step, Test,
};

/// The lists of a step.
pub(super) struct Lists<'a> {
    step: &'a Step,
    rows: Vec<WeftRow>,
    sequences: Vec<WeftSequence>,
    tiles: Vec<WeftTile>,
    pages: Vec<u32>,
    frontiers: Vec<u32>,
    drafts: Vec<WeftDraw>,
    verdicts: Vec<WeftDraw>,
    /// One past the highest index of each kind that the step uses, by [`Bound`].
    pub(super) reach: [usize; BOUNDS],
}

impl<'a> Lists<'a> {
    /// Flattens a step.
    ///
    /// # Panics
    /// If it exceeds the capacity, or something in it points to nowhere.
    pub(super) fn of(step: &'a Step, capacity: Capacity) -> Self {
        let mut lists = Lists {
            step,
            rows: Vec::with_capacity(step.layout.rows.len()),
            sequences: Vec::new(),
            tiles: Vec::new(),
            pages: Vec::new(),
            frontiers: Vec::new(),
            drafts: draws(&step.drafts, 0),
            verdicts: draws(&step.verdicts, chosen(&step.drafts) as u32),
            reach: [0; BOUNDS],
        };
        for sequence in &step.layout.sequences {
            lists.sequence(sequence);
        }
        lists.rows(&step.layout);
        lists.sources();
        lists.draws();
        lists.judgements();
        lists.goals();
        lists.within(capacity);
        lists
    }

    fn reaches(&mut self, bound: Bound, index: u32) {
        let reach = &mut self.reach[bound as usize];
        *reach = (*reach).max(index as usize + 1);
    }

    fn sequence(&mut self, table: &PageTable) {
        let PageTable { image, prefix, prefix_len, grid, width, frontier, scratch } = table;
        assert!(*prefix_len <= prefix.len() * PAGE, "{prefix_len} tokens of a prompt in {} pages", prefix.len());
        assert!(scratch.len() * PAGE <= WEFT_SCRATCH as usize, "{} scratch pages", scratch.len());
        for (row, &columns) in frontier.iter().enumerate().filter(|(_, columns)| **columns > 0) {
            assert!(columns as usize <= *width, "frontier {columns} in a grid {width} wide");
            let last = row * width + columns as usize - 1;
            assert!(last < grid.len() * PAGE, "position {last} of {} pages is visible", grid.len());
        }
        let mut append = |pages: &[u32]| {
            let first = self.pages.len() as u32;
            self.pages.extend_from_slice(pages);
            first
        };
        let (prefix_pages, grid_pages, scratch_pages) = (append(prefix), append(grid), append(scratch));
        for &page in prefix.iter().chain(grid).chain(scratch) {
            self.reaches(Bound::Pages, page);
        }
        self.sequences.push(WeftSequence {
            image: *image,
            prefix_len: *prefix_len as u32,
            width: *width as u32,
            height: frontier.len() as u32,
            prefix_pages,
            grid_pages,
            scratch_pages,
            frontier: self.frontiers.len() as u32,
        });
        self.frontiers.extend_from_slice(frontier);
    }

    fn rows(&mut self, layout: &Layout) {
        let mut before = None;
        for place in &layout.rows {
            let index = place.sequence as usize;
            assert!(index < layout.sequences.len(), "a row of sequence {index} of {}", layout.sequences.len());
            assert!(before.is_none_or(|before| before <= index), "the rows of sequence {index} are not adjacent");
            let table = &layout.sequences[index];
            let row = row(place, table);
            if before != Some(index) || self.tiles.last().is_some_and(|tile| tile.rows == WEFT_ATTENTION_ROWS) {
                let first = self.rows.len() as u32;
                self.tiles.push(WeftTile { sequence: place.sequence, first, ..WeftTile::default() });
            }
            before = Some(index);
            let tile = self.tiles.last_mut().expect("there is one for every row");
            see(tile, &row, table);
            match place.slot {
                Slot::Prefix(_) => self.reaches(Bound::Grids, place.sequence),
                Slot::Open { at, .. } => {
                    self.reaches(Bound::Images, table.image);
                    if let Some(at) = at {
                        self.reaches(Bound::Positions, at);
                    }
                }
                Slot::Grid(_) => {
                    self.reaches(Bound::Grids, place.sequence);
                    self.reaches(Bound::Images, table.image);
                    self.reaches(Bound::Positions, row.at);
                }
                Slot::Scratch { .. } => {
                    self.reaches(Bound::Trees, place.sequence);
                    self.reaches(Bound::Images, table.image);
                    self.reaches(Bound::Places, (table.width * table.frontier.len()) as u32 + row.slot);
                }
            }
            self.rows.push(row);
        }
    }

    fn sources(&mut self) {
        let (sources, groups) = (&self.step.sources, &self.step.groups);
        assert!(groups.is_sorted(), "groups are not sorted: {groups:?}");
        let (first, last) = (groups.first().copied().unwrap_or(0), groups.last().copied().unwrap_or(0));
        let grouped = first == 0 && last as usize == sources.len();
        assert!(groups.is_empty() || grouped, "groups {groups:?} of {} sources", sources.len());
        for source in sources {
            self.reaches(Bound::States, source.state);
            self.reaches(Bound::Tokens, source.token);
        }
        let inputs = &self.step.inputs;
        assert!([0, self.rows.len()].contains(&inputs.len()), "{} inputs of {} rows", inputs.len(), self.rows.len());
        for &input in inputs {
            self.reaches(Bound::Inputs, input);
        }
        for &row in &self.step.predictions {
            assert!((row as usize) < self.rows.len(), "prediction of row {row} of {}", self.rows.len());
        }
        for copy in &self.step.copies {
            self.reaches(Bound::CopyLogits, copy.from.max(copy.to));
        }
    }

    fn draws(&mut self) {
        let step = self.step;
        let lists = [(&step.drafts, Bound::DraftLogits), (&step.verdicts, Bound::VerdictLogits)];
        for (draws, bound) in lists {
            for draw in draws {
                assert!((draw.image as usize) < step.images.len(), "image {} of {}", draw.image, step.images.len());
                assert!(draw.conditional[0] != NONE, "a draw without a distribution");
                for row in draw.conditional.iter().chain(&draw.unconditional).filter(|row| **row != NONE) {
                    self.reaches(bound, *row);
                }
                self.reaches(Bound::Images, draw.image);
                self.reaches(Bound::Places, draw.position);
                match draw.rule {
                    Rule::Coupled => {}
                    Rule::Cling { slack, penalty } => {
                        assert!(slack >= 0.0 && penalty >= 0.0, "a slack of {slack}, a penalty of {penalty}");
                    }
                    Rule::Draft | Rule::AutoCorrect => self.reaches(Bound::Laws, 0),
                    Rule::Children { count } => {
                        self.reaches(Bound::Laws, 0);
                        self.family(draw.position, count);
                    }
                    Rule::Likeliest { count } => self.family(draw.position, count),
                    Rule::Foresee { count } => assert!((1..=CHILDREN).contains(&count), "{count} tokens"),
                    Rule::Siblings { first, count, drawn } => {
                        assert!(bound == Bound::VerdictLogits, "siblings are judged, not drafted");
                        if count > 0 {
                            self.family(first, count);
                        }
                        if drawn && count > 0 {
                            self.reaches(Bound::Laws, 0);
                        }
                    }
                }
            }
        }
        for put in &step.puts {
            assert!((put.image as usize) < step.images.len(), "image {} of {}", put.image, step.images.len());
            self.reaches(Bound::Images, put.image);
            self.reaches(Bound::Places, put.position);
            self.reaches(Bound::Vocabulary, put.token);
        }
    }

    fn goals(&mut self) {
        let step = self.step;
        for goal in &step.goals {
            let rows = [goal.conditional, goal.unconditional];
            let inside = |row: &u32| (*row as usize) < step.predictions.len();
            assert!(inside(&rows[0]) && (rows[1] == NONE || inside(&rows[1])), "a goal from prediction {rows:?}");
            assert!((goal.image as usize) < step.images.len(), "image {} of {}", goal.image, step.images.len());
            self.reaches(Bound::Images, goal.image);
            self.reaches(Bound::Positions, goal.position);
        }
    }

    fn family(&mut self, first: u32, count: u32) {
        assert!((1..=CHILDREN).contains(&count), "{count} children");
        self.reaches(Bound::Places, first + count - 1);
    }

    /// What the tests of the images look at.
    fn judgements(&mut self) {
        let step = self.step;
        for image in step.verdicts.iter().filter(|d| judges(d.rule)).map(|d| step.images[d.image as usize]) {
            match image.test {
                Test::Token => {}
                Test::Grouped { size, distance, .. } => {
                    assert!((1..=GROUP).contains(&size), "a group of {size} tokens");
                    if distance < f32::INFINITY {
                        self.reaches(Bound::Codebooks, 0);
                    }
                }
                Test::Pooled { neighbours, .. } | Test::Threshold { neighbours, .. } => {
                    if neighbours > 0 {
                        self.reaches(Bound::Neighbours, neighbours - 1);
                    }
                }
            }
        }
    }

    fn within(&self, capacity: Capacity) {
        let step = self.step;
        for (what, length, room) in [
            ("rows", self.rows.len(), capacity.rows),
            ("sequences", self.sequences.len(), capacity.sequences),
            ("images", step.images.len(), capacity.sequences),
            ("pages", self.pages.len(), capacity.pages),
            ("frontiers", self.frontiers.len(), capacity.frontiers),
            ("sources", step.sources.len(), capacity.sources),
            ("groups", step.groups.len().saturating_sub(1), capacity.groups),
            ("predictions", step.predictions.len(), capacity.rows),
            ("drafts", step.drafts.len(), capacity.sources),
            ("verdicts", step.verdicts.len(), capacity.rows),
            ("copies", step.copies.len(), capacity.rows),
            ("goals", step.goals.len(), capacity.rows),
            ("puts", step.puts.len(), capacity.rows),
            ("siblings", siblings(&step.verdicts) as usize, capacity.siblings),
        ] {
            assert!(length <= room, "a step of {length} {what} where there is room for {room}");
        }
    }

    fn counts(&self) -> WeftCounts {
        let step = self.step;
        WeftCounts {
            rows: self.rows.len() as u32,
            sequences: self.sequences.len() as u32,
            tiles: self.tiles.len() as u32,
            sources: step.sources.len() as u32,
            predictions: step.predictions.len() as u32,
            drafts: step.drafts.len() as u32,
            verdicts: step.verdicts.len() as u32,
            copies: step.copies.len() as u32,
            puts: step.puts.len() as u32,
            draft_children: children(&step.drafts),
            children: children(&step.verdicts),
            siblings: siblings(&step.verdicts),
            goals: step.goals.len() as u32,
            chained: self.verdicts.iter().filter(|draw| draw.links != 0).count() as u32,
        }
    }

    /// By [`Count`].
    pub(super) fn lengths(&self) -> [usize; COUNTS] {
        let counts: [u32; COUNTS + 1] = bytemuck::cast(self.counts());
        std::array::from_fn(|list| counts[list] as usize)
    }

    /// The smallest bucket that it fits.
    pub(super) fn bucket(&self, capacity: Capacity) -> Bucket {
        let exact = Bucket {
            counts: self.lengths(),
            pages: self.pages.len(),
            frontiers: self.frontiers.len(),
            inputs: self.step.inputs.len(),
            groups: self.step.groups.len(),
            images: self.step.images.len(),
            tokens: [&self.step.drafts, &self.step.verdicts].map(|draws| draws.iter().any(|draw| is_alone(draw.rule))),
        };
        exact.padded(&Bucket::largest(capacity))
    }

    /// Writes the lists where the region says; returns how many bytes are of use.
    pub(super) fn write(&self, region: &Region, to: &mut [u8]) -> usize {
        let step = self.step;
        let images: Vec<WeftImage> = step.images.iter().map(image).collect();
        let sources: Vec<_> = step.sources.iter().map(|s| WeftSource { state: s.state, token: s.token }).collect();
        let copies: Vec<_> = step.copies.iter().map(|c| WeftCopy { from: c.from, to: c.to }).collect();
        let put = |put: &Put| WeftPut { image: put.image, position: put.position, token: put.token };
        let puts: Vec<_> = step.puts.iter().map(put).collect();
        let goals: Vec<_> = step.goals.iter().map(goal).collect();
        let counts = self.counts();
        let bytes: [&[u8]; LISTS] = [
            bytemuck::bytes_of(&counts),
            bytemuck::cast_slice(&images),
            bytemuck::cast_slice(&self.sequences),
            bytemuck::cast_slice(&self.tiles),
            bytemuck::cast_slice(&self.rows),
            bytemuck::cast_slice(&step.predictions),
            bytemuck::cast_slice(&step.groups),
            bytemuck::cast_slice(&sources),
            bytemuck::cast_slice(&self.drafts),
            bytemuck::cast_slice(&self.verdicts),
            bytemuck::cast_slice(&copies),
            bytemuck::cast_slice(&puts),
            bytemuck::cast_slice(&self.frontiers),
            bytemuck::cast_slice(&self.pages),
            bytemuck::cast_slice(&step.inputs),
            bytemuck::cast_slice(&goals),
        ];
        let mut end = 0;
        for (bytes, &first) in bytes.iter().zip(&region.firsts) {
            to[first..][..bytes.len()].copy_from_slice(bytes);
            if !bytes.is_empty() {
                end = first + bytes.len();
            }
        }
        end
    }
}

fn goal(goal: &Goal) -> WeftGoal {
    let Goal { image, position, guidance, conditional, unconditional, fate } = *goal;
    let fate = match fate {
        Fate::Draw => WEFT_FATE_DRAW,
        Fate::Judge => WEFT_FATE_JUDGE,
    };
    WeftGoal { image, position, guidance, conditional, unconditional, fate }
}

fn image(image: &Image) -> WeftImage {
    let Image { stream, sampling, test } = image;
    let (test, size, bound, distance) = judged_by(*test);
    WeftImage {
        seed_low: stream.seed as u32,
        seed_high: (stream.seed >> 32) as u32,
        stream: stream.image,
        cfg: sampling.cfg,
        temperature: sampling.temperature,
        top_k: u32::try_from(sampling.top_k).unwrap_or(u32::MAX),
        top_p: sampling.top_p,
        test,
        size,
        bound,
        distance,
    }
}

/// A test as the kernels know it: which, and its numbers.
fn judged_by(test: Test) -> (u32, u32, f32, f32) {
    match test {
        Test::Token => (WEFT_TEST_TOKEN, 0, 0.0, 0.0),
        Test::Grouped { size, delta, distance } => (WEFT_TEST_GROUPED, size, delta, distance),
        Test::Pooled { neighbours, bound: PoolBound::Mass(mass) } => (WEFT_TEST_POOLED_MASS, neighbours, mass, 0.0),
        Test::Pooled { neighbours, bound: PoolBound::Ratio(ratio) } => (WEFT_TEST_POOLED_RATIO, neighbours, ratio, 0.0),
        Test::Threshold { neighbours, least } => (WEFT_TEST_THRESHOLD, neighbours, least, 0.0),
    }
}

fn row(place: &RowPlace, table: &PageTable) -> WeftRow {
    let sequence = place.sequence;
    let positions = table.width * table.frontier.len();
    let new = |kind, slot, at| WeftRow { sequence, kind, slot, at, ancestors: [0; 4] };
    match place.slot {
        Slot::Prefix(i) => {
            assert!((i as usize) < table.prefix_len, "prefix slot {i} of {}", table.prefix_len);
            new(WEFT_SLOT_PREFIX, i, 0)
        }
        Slot::Open { slot, at } => {
            assert!((slot as usize) < table.prefix_len, "prefix slot {slot} of {}", table.prefix_len);
            assert!(at != Some(NONE) && (at.is_none() || table.width > 0), "a row of position {at:?}");
            new(WEFT_SLOT_OPEN, slot, at.unwrap_or(NONE))
        }
        Slot::Grid(p) => {
            assert!((p as usize) < positions.min(table.grid.len() * PAGE), "grid slot {p} of {positions}");
            new(WEFT_SLOT_GRID, p, p)
        }
        Slot::Scratch { slot, at, ancestors } => {
            let slots = table.scratch.len() * PAGE;
            assert!((slot as usize) < slots, "scratch slot {slot} of {slots}");
            assert!((at as usize) < positions, "a draft of position {at} of {positions}");
            assert!(ancestors >> slot & 1 == 1, "scratch slot {slot} does not see itself");
            assert!(slots == 128 || ancestors >> slots == 0, "ancestors beyond {slots} scratch slots");
            let words = std::array::from_fn(|word| (ancestors >> (32 * word)) as u32);
            WeftRow { ancestors: words, ..new(WEFT_SLOT_SCRATCH, slot, at) }
        }
    }
}

/// Appends a row to a tile: what it sees, the tile sees.
fn see(tile: &mut WeftTile, row: &WeftRow, table: &PageTable) {
    tile.rows += 1;
    let whole = table.prefix_len as u32;
    let (prefix, end, scratch) = match row.kind {
        WEFT_SLOT_PREFIX => (row.slot + 1, 0, 0),
        WEFT_SLOT_GRID => (whole, row.slot + 1, 0),
        WEFT_SLOT_OPEN => (whole, 0, 0),
        _ => {
            let seen: u128 = (0..4).map(|word| u128::from(row.ancestors[word]) << (32 * word)).sum();
            (whole, row.at, 128 - seen.leading_zeros())
        }
    };
    tile.prefix = tile.prefix.max(prefix);
    tile.end = tile.end.max(end);
    tile.scratch = tile.scratch.max(scratch);
}

/// Whether a rule asks the image's test.
fn judges(rule: Rule) -> bool {
    matches!(rule, Rule::AutoCorrect | Rule::Siblings { .. })
}

/// Whether it draws one token, in `draw.cu`, rather than looks at a tree's.
fn is_alone(rule: Rule) -> bool {
    match rule {
        Rule::Coupled | Rule::Cling { .. } | Rule::Draft | Rule::AutoCorrect => true,
        Rule::Children { .. } | Rule::Likeliest { .. } | Rule::Foresee { .. } | Rule::Siblings { .. } => false,
    }
}

/// How many draws have such a rule.
fn count(draws: &[Draw], is: impl Fn(Rule) -> bool) -> u32 {
    draws.iter().filter(|draw| is(draw.rule)).count() as u32
}

fn children(draws: &[Draw]) -> u32 {
    count(draws, |rule| matches!(rule, Rule::Children { .. }) || rule.chooses() > 0)
}

fn siblings(draws: &[Draw]) -> u32 {
    count(draws, |rule| matches!(rule, Rule::Siblings { .. }))
}

/// How many tokens a list of draws chooses.
pub(super) fn chosen(draws: &[Draw]) -> usize {
    draws.iter().map(|draw| draw.rule.chooses()).sum()
}

/// Draws with their links; what they choose is listed behind what was chosen before.
fn draws(draws: &[Draw], mut before: u32) -> Vec<WeftDraw> {
    // NONE is the same number on both sides.
    const { assert!(NONE == WEFT_NONE) };
    check_chains(draws);
    let followed = draws.iter().skip(1).map(|next| next.follows).chain([false]);
    let draw = |(draw, followed): (&Draw, bool)| {
        let Draw { image, position, rule, follows, round, conditional, unconditional } = *draw;
        let links = if follows { WEFT_FOLLOWS } else { 0 } | if followed { WEFT_FOLLOWED } else { 0 };
        let (rule, first, count) = match rule {
            Rule::Coupled | Rule::Cling { .. } => (WEFT_RULE_COUPLED, 0, 0),
            Rule::Draft => (WEFT_RULE_DRAFT, 0, 0),
            Rule::AutoCorrect => (WEFT_RULE_AUTO_CORRECT, 0, 0),
            Rule::Children { count } => (WEFT_RULE_CHILDREN, position, count),
            Rule::Likeliest { count } => (WEFT_RULE_LIKELIEST, before, count),
            Rule::Foresee { count } => (WEFT_RULE_FORESEE, before, count),
            Rule::Siblings { first, count, drawn: true } => (WEFT_RULE_SIBLINGS, first, count),
            Rule::Siblings { first, count, drawn: false } => (WEFT_RULE_CHOSEN, first, count),
        };
        before += draw.rule.chooses() as u32;
        let (slack, penalty) =
            if let Rule::Cling { slack, penalty } = draw.rule { (slack, penalty) } else { (0.0, 0.0) };
        WeftDraw { image, position, rule, links, first, count, round, slack, penalty, conditional, unconditional }
    };
    draws.iter().zip(followed).map(draw).collect()
}

/// The lists of a region.
const LISTS: usize = 16;

/// Where the lists of a bucket are: byte offsets, in the order counts, images, sequences, tiles, rows, predictions,
/// groups, sources, drafts, verdicts, copies, puts, frontiers, pages, inputs, goals.
pub(super) struct Region {
    firsts: [usize; LISTS],
    /// Bytes of it all.
    pub(super) end: usize,
}

impl Bucket {
    /// Of steps as large as they may become.
    pub(super) fn largest(capacity: Capacity) -> Bucket {
        let Capacity { rows, sequences, pages, frontiers, sources, groups, siblings } = capacity;
        let tiles = rows.div_ceil(WEFT_ATTENTION_ROWS as usize) + sequences;
        // As in `Count`; of trees it counts whether there are any.
        let counts = [rows, sequences, tiles, sources, rows, sources, rows, rows, rows, 1, 1, siblings.min(1), rows];
        Bucket { counts, pages, frontiers, inputs: rows, groups: groups + 1, images: sequences, tokens: [true; 2] }
    }

    /// With all lists as long as each other, as far as there is room: every length to which a list is padded is in one.
    pub(super) fn sizes(capacity: Capacity) -> impl Iterator<Item = Bucket> {
        let largest = Bucket::largest(capacity);
        let longest = largest.counts.into_iter().max().unwrap_or(0);
        let lengths = (0..usize::BITS).map(|bit| 1 << bit).take_while(move |length| length / 2 < longest);
        lengths.map(move |length: usize| {
            let mut bucket = largest;
            bucket.counts = largest.counts.map(|most| most.min(length));
            bucket
        })
    }

    /// With every length rounded up to a power of two, or to the largest.
    fn padded(mut self, largest: &Bucket) -> Bucket {
        let pad = |n: &mut usize, most: usize| *n = if *n == 0 { 0 } else { n.next_power_of_two().min(most) };
        for (n, &most) in self.counts.iter_mut().zip(&largest.counts) {
            pad(n, most);
        }
        pad(&mut self.pages, largest.pages);
        pad(&mut self.frontiers, largest.frontiers);
        pad(&mut self.inputs, largest.inputs);
        pad(&mut self.groups, largest.groups);
        pad(&mut self.images, largest.images);
        self
    }

    /// Where its lists are. The counts are always at the beginning.
    pub(super) fn region(&self) -> Region {
        let of = |count: Count| self.counts[count as usize];
        let bytes: [usize; LISTS] = [
            size_of::<WeftCounts>(),
            self.images * size_of::<WeftImage>(),
            of(Count::Sequences) * size_of::<WeftSequence>(),
            of(Count::Tiles) * size_of::<WeftTile>(),
            of(Count::Rows) * size_of::<WeftRow>(),
            of(Count::Predictions) * size_of::<u32>(),
            self.groups * size_of::<u32>(),
            of(Count::Sources) * size_of::<WeftSource>(),
            of(Count::Drafts) * size_of::<WeftDraw>(),
            of(Count::Verdicts) * size_of::<WeftDraw>(),
            of(Count::Copies) * size_of::<WeftCopy>(),
            of(Count::Puts) * size_of::<WeftPut>(),
            self.frontiers * size_of::<u32>(),
            self.pages * size_of::<u32>(),
            self.inputs * size_of::<u32>(),
            of(Count::Goals) * size_of::<WeftGoal>(),
        ];
        let mut end = 0;
        let firsts = bytes.map(|bytes| {
            let Range { start, end: next } = end..end + bytes.next_multiple_of(16);
            end = next;
            start
        });
        Region { firsts, end }
    }
}

impl Region {
    /// The addresses of the lists in a region that begins here.
    pub(super) fn pointers(&self, base: u64) -> WeftStep {
        let at = self.firsts.map(|first| base + first as u64);
        WeftStep {
            counts: at[0] as *const _,
            images: at[1] as *const _,
            sequences: at[2] as *const _,
            tiles: at[3] as *const _,
            rows: at[4] as *const _,
            predictions: at[5] as *const _,
            groups: at[6] as *const _,
            sources: at[7] as *const _,
            drafts: at[8] as *const _,
            verdicts: at[9] as *const _,
            copies: at[10] as *const _,
            puts: at[11] as *const _,
            frontiers: at[12] as *const _,
            pages: at[13] as *const _,
            inputs: at[14] as *const _,
            goals: at[15] as *const _,
        }
    }
}
