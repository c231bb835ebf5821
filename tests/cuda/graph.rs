//! Steps: recorded once for each size and replayed with other lengths, slots, frontiers, images and branches.

use crate::support::{Noise, assert_same, backend, on_gpu, read, simulate};
use weft::backend::cuda::{CudaBackend, Traffic};
use weft::backend::{
    AttentionShape, Axes, Backend, Capacity, Copy, Draw, Drawn, Embedding, Epilogue, Error, Grouping, Image, KvFormat,
    Layout, NONE, PAGE, PageTable, Pairing, Phase, PoolBound, Put, Rotary, RowPlace, Rule, Slot, Source, Step, Test,
};
use weft::rng::Stream;
use weft::sampling::Sampling;

const GRID: (usize, usize) = (5, 7);
const POSITIONS: usize = GRID.0 * GRID.1;
const SEQUENCES: usize = 4;
const PREFIX: usize = 20;
const HIDDEN: usize = 64;
const VOCAB: usize = 48;
const HEADS: usize = 2;
const SHAPE: AttentionShape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 64 };
const PAGES: usize = SEQUENCES * (PREFIX.div_ceil(PAGE) + POSITIONS.div_ceil(PAGE));
const ROWS: usize = 100;

/// One layer, a head and everything that a step touches.
pub struct Machine<B: Backend> {
    tokens: B::Tensor,
    rows: B::Tensor,
    cols: B::Tensor,
    bias: B::Tensor,
    norm: B::Vector,
    qkv: B::Weight,
    out: B::Weight,
    drafter: B::Weight,
    head: B::Weight,
    /// Taken while it runs.
    step: Option<B::Step>,
    kv: B::KvPool,
    canvas: B::Canvas,
    codebook: B::Codebook,
    states: B::Tensor,
    x: B::Tensor,
    normed: B::Tensor,
    projected: B::Tensor,
    mixed: B::Tensor,
    selected: B::Tensor,
    logits: B::Tensor,
    sources: B::Tensor,
    drafted: B::Tensor,
    draft_logits: B::Tensor,
}

/// What a step leaves behind.
#[derive(Debug, PartialEq)]
pub struct Results {
    logits: Vec<f32>,
    states: Vec<f32>,
    drawn: Vec<Drawn>,
    tokens: Vec<Vec<u32>>,
}

impl<B: Backend> Machine<B> {
    pub fn new(backend: &B) -> Result<Self, Error> {
        let mut noise = Noise(7);
        let mut table = |rows: usize| -> Result<B::Tensor, Error> {
            let mut table = backend.tensor(rows, HIDDEN)?;
            backend.upload(&noise.values(rows * HIDDEN), &mut table);
            Ok(table)
        };
        let (tokens, rows, cols, bias) = (table(VOCAB)?, table(GRID.0)?, table(GRID.1)?, table(SEQUENCES)?);
        let states = table(SEQUENCES * POSITIONS)?;
        let mut noise = Noise(8);
        let mut weight = |n: usize, k: usize| backend.weight(&noise.weights(n * k), n, k);
        let capacity = Capacity {
            rows: ROWS,
            sequences: SEQUENCES,
            pages: PAGES,
            frontiers: SEQUENCES * GRID.0,
            sources: 40,
            groups: HEADS,
            siblings: 0,
        };
        let mut machine = Machine {
            tokens,
            rows,
            cols,
            bias,
            norm: backend.vector(&Noise(9).weights(HIDDEN))?,
            qkv: weight(SHAPE.qkv(), HIDDEN)?,
            out: weight(HIDDEN, SHAPE.query())?,
            drafter: weight(HEADS * HIDDEN, 2 * HIDDEN)?,
            head: weight(VOCAB, HIDDEN)?,
            step: Some(backend.step(capacity)?),
            kv: backend.kv_pool(1, PAGES, SHAPE, KvFormat::Bf16)?,
            canvas: backend.canvas(SEQUENCES, POSITIONS, VOCAB, true)?,
            codebook: backend.codebook(&Noise(10).values(VOCAB * 3), 3, 4)?,
            states,
            x: backend.tensor(ROWS, HIDDEN)?,
            normed: backend.operand(ROWS, HIDDEN)?,
            projected: backend.tensor(ROWS, SHAPE.qkv())?,
            mixed: backend.operand(ROWS, SHAPE.query())?,
            selected: backend.tensor(ROWS, HIDDEN)?,
            logits: backend.tensor(ROWS + SEQUENCES, VOCAB)?,
            sources: backend.operand(40, 2 * HIDDEN)?,
            drafted: backend.tensor(40, HIDDEN)?,
            draft_logits: backend.tensor(40, VOCAB)?,
        };
        let mut step = machine.step.take().expect("it is not running");
        backend.reserve(&mut step, &mut |backend, step| machine.ops(backend, step))?;
        machine.step = Some(step);
        Ok(machine)
    }

    /// Runs step `index` of the test, recorded or op by op.
    pub fn step(&mut self, backend: &B, index: usize, recorded: bool) -> Result<(), Error> {
        let mut step = self.step.take().expect("it is not running");
        let outcome = backend.set_step(plan(index), &mut step);
        if outcome.is_ok() {
            match recorded {
                true => backend.run(&mut step, &mut |backend, step| self.ops(backend, step)),
                false => self.ops(backend, &step),
            }
        }
        self.step = Some(step);
        outcome
    }

    fn ops(&mut self, backend: &B, step: &B::Step) {
        backend.put(step, &mut self.canvas);
        // The heads draft.
        backend.gather_sources(step, &self.states, &self.tokens, &self.canvas, &mut self.sources);
        backend.linear(&self.sources, &self.drafter, &mut self.drafted, Epilogue::Store, Grouping::By(step));
        backend.linear(&self.drafted, &self.head, &mut self.draft_logits, Epilogue::Store, Grouping::One);
        backend.draw(step, Phase::Drafts, &self.draft_logits, &mut self.canvas, Some(&self.codebook));
        // The pass verifies.
        let tables = Embedding { tokens: &self.tokens, rows: &self.rows, cols: &self.cols, bias: &self.bias };
        backend.embed(step, tables, &self.canvas, &mut self.x);
        backend.rms_norm(&self.x, &self.norm, 1e-5, &mut self.normed, Grouping::One);
        backend.linear(&self.normed, &self.qkv, &mut self.projected, Epilogue::Store, Grouping::One);
        let rotary = Rotary { theta: 1e4, axes: Axes::Two, pairing: Pairing::Halves };
        backend.rotate_and_store(&mut self.projected, None, rotary, step, 0, &mut self.kv);
        backend.attention(&self.projected, step, 0, &self.kv, &mut self.mixed);
        backend.linear(&self.mixed, &self.out, &mut self.x, Epilogue::Add, Grouping::One);
        backend.keep_states(step, &self.x, POSITIONS, &mut self.states);
        backend.select(step, &self.x, &mut self.selected);
        backend.linear(&self.selected, &self.head, &mut self.logits, Epilogue::Store, Grouping::One);
        backend.copy_rows(step, &mut self.logits);
        backend.draw(step, Phase::Verdicts, &self.logits, &mut self.canvas, Some(&self.codebook));
    }

    /// What the last step left.
    pub fn results(&self, backend: &B) -> Result<Results, Error> {
        Ok(Results {
            logits: backend.read(&self.logits)?.into_owned(),
            states: backend.read(&self.states)?.into_owned(),
            drawn: backend.drawn(self.step.as_ref().expect("it is not running"), &self.canvas)?,
            tokens: (0..SEQUENCES).map(|image| backend.tokens(&self.canvas, image)).collect::<Result<_, _>>()?,
        })
    }
}

/// Step `index`: other sequences, rows, frontiers, sources and draws each time; the first fit one bucket, later ones
/// others, the last have no drafts, or no rows.
fn plan(index: usize) -> Step {
    let mut noise = Noise(1000 + index as u64);
    let (drafting, feeding) = (index % 7 != 5, index % 7 != 6);
    let sequences = if feeding { [4, 3, 4, 2, 3, 4, 0][index % 7] } else { 0 };
    let mut step = Step::default();
    for image in 0..SEQUENCES as u32 {
        let sampling = Sampling { cfg: 1.0, temperature: 0.9, top_k: 20, top_p: 0.95 };
        let test = [
            Test::Token,
            Test::Grouped { size: 5, delta: 0.5, distance: 2.0 },
            Test::Pooled { neighbours: 4, bound: PoolBound::Mass(0.3) },
            Test::Threshold { neighbours: 3, least: 0.2 },
        ][image as usize];
        step.images.push(Image { stream: Stream { seed: (42 + u64::from(image)) << 30, image }, sampling, test });
    }
    step.layout = layout(&mut noise, sequences, [6, 5, 8, 7, 25, 9, 0][index % 7]);
    let rows = step.layout.rows.len() as u32;
    step.predictions = (0..rows).filter(|row| row % 3 != 1).collect();
    for (logit, &row) in step.predictions.iter().enumerate() {
        let place = step.layout.rows[row as usize];
        let Slot::Grid(position) = place.slot else { unreachable!("rows of the grid") };
        let image = step.layout.sequences[place.sequence as usize].image;
        let judging = index % 7 != 4;
        let rule = match logit % 4 {
            0 => Rule::Coupled,
            2 | 3 if judging => Rule::AutoCorrect,
            _ => Rule::Draft,
        };
        let follows = rule == Rule::AutoCorrect
            && step.verdicts.last().is_some_and(|d: &Draw| (d.rule, d.image) == (rule, image));
        step.verdicts.push(Draw { follows, ..draw(image, position, rule, index, logit as u32) });
        if rule == Rule::AutoCorrect {
            step.puts.push(Put { image, position, token: noise.below(VOCAB) as u32 });
        }
    }
    if rows > 2 {
        step.copies = vec![Copy { from: 1, to: ROWS as u32 + (index % SEQUENCES) as u32 }];
    }
    step.groups = vec![0; HEADS + 1];
    if drafting {
        let per_head = [3 + index % 4, 4 + index % 3];
        for (head, sources) in per_head.into_iter().enumerate() {
            for _ in 0..sources {
                let token = noise.below(SEQUENCES * POSITIONS) as u32;
                step.sources.push(Source { state: noise.below(SEQUENCES * POSITIONS) as u32, token });
            }
            step.groups[head + 1] = step.sources.len() as u32;
        }
        for source in 0..step.sources.len() as u32 {
            let position = (source * 5 + index as u32) % POSITIONS as u32;
            let rule = if source % 2 == 0 { Rule::Coupled } else { Rule::Draft };
            step.drafts.push(draw(source % SEQUENCES as u32, position, rule, index, source));
        }
    }
    step
}

fn draw(image: u32, position: u32, rule: Rule, round: usize, row: u32) -> Draw {
    Draw {
        image,
        position,
        rule,
        follows: false,
        round: round as u32,
        conditional: [row, NONE],
        unconditional: [NONE, NONE],
    }
}

/// So many sequences with about so many rows each, at the front of an image that is partly there.
fn layout(noise: &mut Noise, sequences: usize, rows: usize) -> Layout {
    let mut layout = Layout::default();
    let pages_of = |tokens: usize| tokens.div_ceil(PAGE);
    let each = pages_of(PREFIX) + pages_of(POSITIONS);
    // Not the same images, prompt lengths and pages from step to step.
    let shift = noise.below(SEQUENCES);
    for sequence in 0..sequences {
        let image = (sequence + shift) % SEQUENCES;
        let first = (image * each) as u32;
        let pages: Vec<u32> = (first..first + each as u32).collect();
        let (prefix, grid) = pages.split_at(pages_of(PREFIX));
        let count = rows - noise.below(rows.min(4));
        let start = noise.below(POSITIONS - count + 1);
        let frontier = (0..GRID.0).map(|row| {
            let fed = (start + count).saturating_sub(row * GRID.1).min(GRID.1);
            (fed - noise.below(fed + 1)) as u32
        });
        let frontier = frontier.collect();
        layout.sequences.push(PageTable {
            image: image as u32,
            prefix: prefix.to_vec(),
            prefix_len: PREFIX - noise.below(PREFIX - 1),
            grid: grid.to_vec(),
            width: GRID.1,
            frontier,
            scratch: Vec::new(),
        });
        let slots = (start..start + count).map(|position| Slot::Grid(position as u32));
        layout.rows.extend(slots.map(|slot| RowPlace { sequence: sequence as u32, slot }));
    }
    layout
}

/// What the device did between two counts.
fn since(before: Traffic, after: Traffic) -> Traffic {
    Traffic {
        launches: after.launches - before.launches,
        replays: after.replays - before.replays,
        recordings: after.recordings - before.recordings,
        allocations: after.allocations - before.allocations,
        uploads: after.uploads - before.uploads,
        downloads: after.downloads - before.downloads,
    }
}

#[test]
fn a_recorded_step_is_the_same_as_its_ops_one_by_one() {
    let backend = &*backend();
    let (mut recorded, mut eager) = (Machine::new(backend).unwrap(), Machine::new(backend).unwrap());
    for index in 0..14 {
        recorded.step(backend, index, true).unwrap();
        let recorded = recorded.results(backend).unwrap();
        eager.step(backend, index, false).unwrap();
        let eager = eager.results(backend).unwrap();
        assert_same(&recorded.logits, &eager.logits, &format!("logits of step {index}"));
        assert_same(&recorded.states, &eager.states, &format!("states of step {index}"));
        assert_eq!((recorded.drawn, recorded.tokens), (eager.drawn, eager.tokens), "step {index}");
    }
}

#[test]
fn a_replayed_step_is_one_copy_one_graph_and_one_answer() {
    let backend = &*backend();
    let mut machine: Machine<CudaBackend> = Machine::new(backend).unwrap();
    let traffic = || backend.device().traffic();
    let mut recordings = 0;
    for index in 0..28 {
        let mut step = machine.step.take().unwrap();
        let before = traffic();
        backend.set_step(plan(index), &mut step).unwrap();
        backend.run(&mut step, &mut |backend, step| machine.ops(backend, step));
        backend.drawn(&step, &machine.canvas).unwrap();
        let spent = since(before, traffic());
        machine.step = Some(step);
        let downloads = u64::from(!plan(index).verdicts.is_empty());
        let once = Traffic { replays: 1, uploads: 1, downloads, ..Traffic::default() };
        assert_eq!(spent.allocations, 0, "step {index}");
        if spent.recordings == 0 {
            assert_eq!(spent, once, "step {index}");
        } else {
            recordings += 1;
            assert!(spent.launches > 0 && spent.launches <= 40, "step {index}: {spent:?}");
        }
    }
    assert!((2..=20).contains(&recordings), "{recordings} of 28 steps were recorded");
}

#[test]
#[should_panic(expected = "rows where there is room for")]
fn a_step_beyond_the_capacity_is_refused() {
    let backend = &*backend();
    let mut step = backend.step(Capacity { rows: 3, ..Capacity::default() }).unwrap();
    let layout = layout(&mut Noise(1), 1, 9);
    let _ = backend.set_step(Step { layout, ..Step::default() }, &mut step);
}

#[test]
fn what_points_to_nowhere_is_refused() {
    let backend = &*backend();
    let capacity = Capacity { rows: 9, sequences: 2, pages: 40, frontiers: 20, sources: 4, groups: 2, siblings: 0 };
    let mut step = backend.step(capacity).unwrap();
    let whole =
        || Step { layout: layout(&mut Noise(1), 1, 9), images: plan(0).images[..1].to_vec(), ..Step::default() };
    backend.set_step(whole(), &mut step).unwrap();
    type Breaking = fn(&mut Step);
    let broken: [(&str, Breaking); 9] = [
        ("grid slot", |s| s.layout.rows[0].slot = Slot::Grid(POSITIONS as u32)),
        ("prefix slot", |s| s.layout.rows[0].slot = Slot::Prefix(PREFIX as u32)),
        ("scratch slot", |s| s.layout.rows[0].slot = Slot::Scratch { slot: 0, at: 3, ancestors: 1 }),
        ("a row of sequence", |s| s.layout.rows[0].sequence = 1),
        ("frontier", |s| s.layout.sequences[0].frontier[1] = GRID.1 as u32 + 1),
        ("is visible", |s| s.layout.sequences[0].grid.truncate(0)),
        ("of a prompt", |s| s.layout.sequences[0].prefix.truncate(0)),
        ("prediction of row", |s| s.predictions = vec![99]),
        ("image 1 of 1", |s| s.verdicts = vec![draw(1, 0, Rule::Coupled, 0, 0)]),
    ];
    for (message, breaking) in broken {
        let mut host = whole();
        breaking(&mut host);
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| backend.set_step(host, &mut step)));
        let payload = refused.expect_err(message);
        let text = payload.downcast_ref::<String>().map_or("", String::as_str);
        assert!(text.contains(message), "{message}: {text}");
    }
    // It is as it was.
    backend.set_step(whole(), &mut step).unwrap();
}

/// A machine's results after so many recorded steps.
fn results_of(backend: &CudaBackend, steps: usize) -> Vec<Results> {
    let mut machine = Machine::new(backend).unwrap();
    let run = |index| {
        machine.step(backend, index, true).unwrap();
        machine.results(backend).unwrap()
    };
    (0..steps).map(run).collect()
}

#[test]
fn two_threads_do_not_disturb_each_other() {
    let shared = &*backend();
    let want = results_of(shared, 7);
    // A backend each, then one for both, whose workspace and recordings they share.
    let own = [0, 1].map(|_| CudaBackend::new(0).unwrap());
    for (what, backends) in [("own", [&own[0], &own[1]]), ("shared", [shared, shared])] {
        let got = std::thread::scope(|scope| {
            backends.map(|backend| scope.spawn(|| results_of(backend, 7))).map(|thread| thread.join().unwrap())
        });
        for got in got {
            assert_eq!(got, want, "{what} backends");
        }
    }
}

/// More sizes of step than graphs are kept: the first are recorded again, and right.
#[test]
fn graphs_that_were_given_up_are_recorded_again() {
    let backend = &*backend();
    let (room, cols) = (64, 8);
    let mut noise = Noise(31);
    let values = noise.values(room * cols);
    let mut x = backend.tensor(room, cols).unwrap();
    backend.upload(&values, &mut x);
    let mut selected = backend.tensor(room, cols).unwrap();
    let capacity = Capacity { rows: room, sequences: 1, pages: 4, frontiers: 1, ..Capacity::default() };
    let mut step = backend.step(capacity).unwrap();
    let powers = |most: usize| (0..7).map(|i| 1 << i).filter(move |&n| n <= most);
    // Rows, predictions and copies to powers of two.
    let sizes = powers(room).flat_map(|rows| powers(room).flat_map(move |wanted| [0, 1, 2].map(|c| (rows, wanted, c))));
    let sizes: Vec<_> = sizes.collect();
    assert!(sizes.len() > 2 * 64, "{} sizes", sizes.len());
    let mut run = |(rows, wanted, copies): (usize, usize, usize), shift: usize| {
        let table = PageTable { prefix: (0..4).collect(), prefix_len: room, width: 1, ..PageTable::default() };
        let places = (0..rows as u32).map(|i| RowPlace { sequence: 0, slot: Slot::Prefix(i) }).collect();
        let predictions: Vec<u32> = (0..wanted).map(|i| ((i * 3 + shift) % rows) as u32).collect();
        let host = Step {
            images: plan(0).images[..1].to_vec(),
            layout: Layout { sequences: vec![table], rows: places },
            predictions: predictions.clone(),
            copies: (0..copies).map(|i| Copy { from: 0, to: (room - 1 - i) as u32 }).collect(),
            ..Step::default()
        };
        let before = backend.device().traffic().recordings;
        backend.set_step(host, &mut step).unwrap();
        backend.run(&mut step, &mut |backend, step| backend.select(step, &x, &mut selected));
        let want: Vec<f32> = predictions.iter().flat_map(|&i| values[i as usize * cols..][..cols].to_vec()).collect();
        assert_same(&backend.read(&selected).unwrap(), &want, &format!("{rows} rows, {wanted} predictions"));
        backend.device().traffic().recordings - before
    };
    for &size in &sizes {
        assert_eq!(run(size, 0), 1, "{size:?} is new");
    }
    for &size in &sizes[sizes.len() - 64..] {
        assert_eq!(run(size, 1), 0, "{size:?} was kept");
    }
    assert_eq!(run(sizes[0], 2), 1, "the first was given up");
    assert_eq!(run(sizes[0], 3), 0, "and is kept again");
}

/// Attention over a pool, whose partial results are most of what a step needs between its kernels.
struct Attending {
    backend: CudaBackend,
    pool: <CudaBackend as Backend>::KvPool,
    step: <CudaBackend as Backend>::Step,
    heads: <CudaBackend as Backend>::Tensor,
    out: <CudaBackend as Backend>::Tensor,
}

impl Attending {
    /// A pool of many pages reserves many parts, whatever is in them.
    fn new(backend: &CudaBackend, pages: usize) -> Self {
        let capacity = Capacity {
            rows: ROWS,
            sequences: SEQUENCES,
            pages: PAGES,
            frontiers: SEQUENCES * GRID.0,
            ..Capacity::default()
        };
        Attending {
            backend: backend.clone(),
            pool: backend.kv_pool(1, pages, SHAPE, KvFormat::Bf16).unwrap(),
            step: backend.step(capacity).unwrap(),
            heads: backend.tensor(ROWS, SHAPE.qkv()).unwrap(),
            out: backend.tensor(ROWS, SHAPE.query()).unwrap(),
        }
    }

    fn set(&mut self, layout: &Layout, values: &[f32]) {
        self.backend.upload(values, &mut self.heads);
        // A replay does not tell the tensor how many rows there are.
        self.backend.upload(&vec![f32::NAN; layout.rows.len() * SHAPE.query()], &mut self.out);
        let host = Step { images: plan(0).images, layout: layout.clone(), ..Step::default() };
        self.backend.set_step(host, &mut self.step).unwrap();
    }

    /// Calls `with` with the ops.
    fn ops<T>(
        &mut self,
        with: impl FnOnce(
            &CudaBackend,
            &mut <CudaBackend as Backend>::Step,
            &mut dyn FnMut(&CudaBackend, &<CudaBackend as Backend>::Step),
        ) -> T,
    ) -> T {
        let rotary = Rotary { theta: 1e4, axes: Axes::Two, pairing: Pairing::Halves };
        let Self { backend, pool, step, heads, out } = self;
        with(backend, step, &mut |backend, step| {
            backend.rotate_and_store(heads, None, rotary, step, 0, pool);
            backend.attention(heads, step, 0, pool, out);
        })
    }

    fn reserve(&mut self) -> Result<(), Error> {
        self.ops(|backend, step, ops| backend.reserve(step, ops))
    }

    fn run(&mut self) {
        self.ops(|backend, step, ops| backend.run(step, ops));
    }

    fn run_one_by_one(&mut self) {
        self.ops(|backend, step, ops| ops(backend, step));
    }

    fn results(&self) -> Vec<f32> {
        read(&self.backend, &self.out)
    }
}

/// Whatever the size of a step, recorded or not, nothing is allocated once it is reserved, also when the workspace has
/// grown for another since; and the bytes were known before.
#[test]
fn a_reserved_step_allocates_nothing_whatever_its_size() {
    let _one_at_a_time = backend();
    // Of its own: that of the other tests has a workspace already.
    let backend = &CudaBackend::new(0).unwrap();
    let mut all = [PAGES, 4000].map(|pages| Attending::new(backend, pages));
    let mut noise = Noise(33);
    let mut most = 0;
    for round in 0..4 {
        // The small pool, then the large one, then both again, from graphs that use the old workspace and the new.
        let sizes: &[(usize, usize)] = if round < 2 { &[(1, 30)] } else { &[(1, 1), (2, 13), (4, 25)] };
        let attending = &mut all[round % 2];
        if round < 2 {
            attending.set(&Layout::default(), &[]);
            let before = backend.device().traffic();
            attending.reserve().unwrap();
            let spent = since(before, backend.device().traffic());
            assert_eq!(spent, Traffic { allocations: 1, ..Traffic::default() }, "pool {round}");
            attending.reserve().unwrap();
            assert_eq!(since(before, backend.device().traffic()), spent, "there is room already");
        }
        for &(sequences, rows) in sizes {
            let layout = layout(&mut noise, sequences, rows);
            let rows = layout.rows.len();
            let values = noise.values(rows * SHAPE.qkv());
            attending.set(&layout, &values);
            let (before, free) = (backend.device().traffic(), backend.device().memory().unwrap());
            attending.run();
            let recorded = attending.results();
            // The queries were turned in place.
            attending.set(&layout, &values);
            attending.run_one_by_one();
            assert_same(&recorded, &attending.results(), &format!("round {round}, {rows} rows"));
            assert_eq!(recorded.len(), rows * SHAPE.query());
            assert_eq!(backend.device().traffic().allocations, before.allocations, "round {round}, {rows} rows");
            if !on_gpu() {
                assert_eq!(backend.device().memory().unwrap(), free, "round {round}, {rows} rows");
            }
            most = most.max(rows);
        }
    }
    assert!(most > 80, "{most} rows at most");
}

#[test]
#[should_panic(expected = "bytes of workspace, 16 are reserved")]
fn a_step_that_was_not_reserved_is_refused() {
    let _one_at_a_time = backend();
    let mut attending = Attending::new(&CudaBackend::new(0).unwrap(), PAGES);
    let mut noise = Noise(35);
    let layout = layout(&mut noise, 1, 30);
    attending.set(&layout, &noise.values(layout.rows.len() * SHAPE.qkv()));
    attending.run();
}

/// There is no memory to reserve a step with, or for an op by itself: an error that says so, once, and the backend goes on.
#[test]
fn without_memory_for_the_workspace_there_is_an_error_and_the_backend_goes_on() {
    if on_gpu() {
        return;
    }
    let _one_at_a_time = backend();
    let backend = &CudaBackend::new(0).unwrap();
    let mut attending = Attending::new(backend, 4000);
    let mut other = backend.tensor(2, 8).unwrap();
    let mut noise = Noise(34);
    let layout = layout(&mut noise, 1, 30);
    let rows = layout.rows.len();
    let values = noise.values(rows * SHAPE.qkv());
    attending.set(&layout, &values);
    let wanted = |error: Result<(), Error>| match error {
        Err(Error::OutOfMemory { what, needed, free, .. }) => {
            assert!(what.contains("workspace") && free > needed, "{what}: {needed} of {free}");
            needed
        }
        other => panic!("{other:?}"),
    };
    // Of an op by itself: what it was to write is undefined, and another thread's work is done.
    simulate("CUDA_SIM_FAIL", "alloc=1");
    attending.run_one_by_one();
    simulate("CUDA_SIM_FAIL", "");
    let elsewhere = || {
        backend.upload(&[2.5; 16], &mut other);
        read(backend, &other)
    };
    assert_eq!(std::thread::scope(|scope| scope.spawn(elsewhere).join().unwrap()), [2.5; 16]);
    let by_itself = wanted(backend.read(&attending.out).map(drop));
    // Of the steps: more, for there are larger ones.
    simulate("CUDA_SIM_FAIL", "alloc=1");
    let needed = wanted(attending.reserve());
    simulate("CUDA_SIM_FAIL", "");
    assert!(needed > by_itself && by_itself > 4 << 20, "{needed}, and {by_itself} for {rows} rows");
    let (_, before) = (attending.reserve().unwrap(), backend.device().traffic().allocations);
    attending.set(&layout, &values);
    attending.run();
    let recorded = attending.results();
    attending.set(&layout, &values);
    attending.run_one_by_one();
    assert_same(&recorded, &attending.results(), "after the failures");
    assert_eq!(backend.device().traffic().allocations, before);
}
