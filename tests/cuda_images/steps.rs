//! What a step sends and gets back, and that its rows do not know of each other.

use super::beginnings::Counted;
use super::{PROMPT, SEED, gpu, support, turn};
use weft::backend::{Backend, Capacity, Image, Layout, PAGE, PageTable, RowPlace, Slot, Step, Test};
use weft::decode::methods::Method;
use weft::decode::{Acceptance, Target};
use weft::models::avatar::Condition;
use weft::rng::Stream;

/// A step is one upload, one graph and one download, and allocates nothing.
#[test]
fn a_step_is_one_upload_one_graph_and_one_download() {
    let _turn = turn();
    let generator = gpu();
    let image =
        Image { stream: Stream { seed: SEED, image: 0 }, sampling: generator.default_sampling(), test: Test::Token };
    let mut session = generator.session(PROMPT, image, Acceptance::Coupled).unwrap();
    let mut schedule = Method::EXACT.schedule(session.scene(0));
    let device = generator.model.backend.device();
    let before = device.traffic();
    let outcome = weft::decode::run(&mut session, &mut [&mut *schedule], &mut |_| ()).unwrap().remove(0);
    let steps = outcome.stats.nfe as u64 - 1;
    let after = device.traffic();
    assert_eq!(after.replays - before.replays, steps);
    assert!(after.recordings - before.recordings < steps / 2, "few sizes of step");
    // The prompt's inputs and its step; the first token, and all of them at the end.
    assert_eq!(after.uploads - before.uploads, steps + 2);
    assert_eq!(after.downloads - before.downloads, steps + 2);
    assert_eq!(after.allocations, before.allocations);
    // Eight kernels a layer, the heads' seven and the draw of drafts, and around the layers: inputs, kept states, selection,
    // norm, head, copies, verdicts. Nothing rounds the input of a product. The prompt was not recorded.
    let most = 8 * generator.model.config.num_hidden_layers as u64 + 8 + 7;
    let (launches, recordings) = (after.launches - before.launches, after.recordings - before.recordings);
    assert!(launches <= (recordings + 1) * most, "{launches} kernels in {recordings} steps, {most} at most in one");
}

/// The distribution after a position is bitwise the same whether its row is fed with one other (the other branch) or
/// among 300, and again in place after garbage was written to the slots behind it.
#[test]
fn a_row_does_not_depend_on_its_company() {
    let _turn = turn();
    let generator = gpu();
    let (grid, vocab) = (generator.model.grid(), generator.model.config.image_vocab_size);
    let image =
        Image { stream: Stream { seed: SEED, image: 0 }, sampling: generator.default_sampling(), test: Test::Token };
    let tokens: Vec<u32> = (0..grid.len()).map(|position| (position * 37 % 512) as u32).collect();
    let garbage = vec![3; grid.len()];
    let beyond = vec![grid.width as u32; grid.height];
    let mut session = generator.session(PROMPT, image, Acceptance::Coupled).unwrap();
    let before = generator.model.backend.allocations();
    session.prompt_log_weights().unwrap();
    let mut feed = |tokens: &[u32], from: usize, to: usize, frontier: &[u32]| {
        session.log_weights(tokens, &(from..to).collect::<Vec<_>>(), frontier).unwrap()
    };
    let frontier = |end: usize| -> Vec<u32> {
        (0..grid.height).map(|row| end.saturating_sub(row * grid.width).min(grid.width) as u32).collect()
    };
    let together = feed(&tokens, 0, 150, &frontier(150));
    for position in [0, 1, 23, 24, 70, 149] {
        // Everything behind is overwritten, then the position is fed alone.
        feed(&garbage, position, position + 40, &beyond);
        let alone = feed(&tokens, position, position + 1, &frontier(position + 1));
        let row = &together[position * vocab..][..vocab];
        support::assert_same(&alone, row, &format!("position {position}"));
        feed(&tokens, position, 150, &frontier(150));
    }
    // Nor does it allocate, up to the largest step that there is.
    feed(&tokens, 0, grid.len(), &beyond);
    assert_eq!(generator.model.backend.allocations(), before);
}

/// A branch of an image in a batch: its condition, the tokens of its image, and which positions each step feeds.
struct Branch {
    image: u32,
    condition: Condition,
    feeds: [std::ops::Range<usize>; 2],
}

impl Branch {
    fn of(image: u32, prompt: &str, feeds: [std::ops::Range<usize>; 2]) -> Branch {
        let model = &gpu().model;
        let prompt = if prompt.is_empty() { model.unconditional() } else { model.prompt(prompt).unwrap() };
        Branch { image, condition: model.condition(&prompt).unwrap(), feeds }
    }

    fn prompt_len(&self) -> usize {
        self.condition.prefix.len() / gpu().model.config.hidden_size
    }
}

const IMAGES: usize = 3;

/// Logits of every row of every step of these branches, fed together: those after the prompt, then those of each feed.
fn batch(branches: &[&Branch], first_page: u32) -> Vec<Vec<Vec<f32>>> {
    let model = &gpu().model;
    let (backend, grid, vocab) = (&model.backend, model.grid(), model.config.image_vocab_size);
    let hidden = model.config.hidden_size;
    let mut next = first_page;
    let mut pages = |tokens: usize| -> Vec<u32> {
        let first = next;
        next += tokens.div_ceil(PAGE) as u32;
        (first..next).collect()
    };
    let tables: Vec<PageTable> = branches
        .iter()
        .map(|branch| PageTable {
            image: branch.image,
            prefix: pages(branch.prompt_len()),
            prefix_len: branch.prompt_len(),
            grid: pages(grid.len()),
            width: grid.width,
            ..PageTable::default()
        })
        .collect();
    let rows = 400;
    let (sequences, all_pages) = (branches.len(), next as usize);
    let capacity = Capacity {
        rows,
        sequences: sequences.max(IMAGES),
        pages: all_pages,
        frontiers: sequences * grid.height,
        ..Capacity::default()
    };
    let tensor = |rows: usize, cols: usize| backend.tensor(rows, cols).unwrap();
    let (mut x, mut logits, mut bias) = (tensor(rows, hidden), tensor(rows, vocab), tensor(sequences, hidden));
    let mut selected = tensor(rows, hidden);
    let mut normed = backend.operand(rows, hidden).unwrap();
    let mut scratch = model.transformer.scratch(backend, rows).unwrap();
    let mut kv = model.transformer.kv_pool(backend, all_pages).unwrap();
    let mut canvas = backend.canvas(IMAGES, grid.len(), vocab, false).unwrap();
    for image in 0..IMAGES {
        let tokens: Vec<u32> = (0..grid.len()).map(|p| ((p * 37 + image * 101) % vocab) as u32).collect();
        backend.set_tokens(&mut canvas, image, &tokens).unwrap();
    }
    backend.upload(&branches.iter().flat_map(|b| b.condition.bias.clone()).collect::<Vec<f32>>(), &mut bias);
    let mut step = backend.step(capacity).unwrap();
    let sampling = gpu().default_sampling();
    let images: Vec<Image> = (0..IMAGES as u32)
        .map(|image| Image { stream: Stream { seed: SEED, image }, sampling, test: Test::Token })
        .collect();

    let mut results = vec![Vec::new(); sequences];
    for stage in 0..3 {
        let mut layout = Layout::default();
        for (sequence, (branch, table)) in branches.iter().zip(&tables).enumerate() {
            let slots: Vec<Slot> = match stage {
                0 => (0..branch.prompt_len() as u32).map(Slot::Prefix).collect(),
                _ => branch.feeds[stage - 1].clone().map(|position| Slot::Grid(position as u32)).collect(),
            };
            let end = if stage == 0 { 0 } else { branch.feeds[stage - 1].end };
            let frontier =
                (0..grid.height).map(|row| end.saturating_sub(row * grid.width).min(grid.width) as u32).collect();
            layout.sequences.push(PageTable { frontier, ..table.clone() });
            layout.rows.extend(slots.into_iter().map(|slot| RowPlace { sequence: sequence as u32, slot }));
        }
        let owners: Vec<u32> = layout.rows.iter().map(|row| row.sequence).collect();
        let predictions = (0..owners.len() as u32).collect();
        backend.set_step(Step { images: images.clone(), layout, predictions, ..Step::default() }, &mut step).unwrap();
        if stage == 0 {
            let prefixes: Vec<f32> = branches.iter().flat_map(|b| b.condition.prefix.clone()).collect();
            backend.upload(&prefixes, &mut x);
        } else {
            backend.embed(&step, model.embedding(&bias), &canvas, &mut x);
        }
        model.transformer.forward(backend, &mut x, &step, &mut kv, &mut scratch);
        backend.select(&step, &x, &mut selected);
        model.transformer.logits(backend, &selected, &mut normed, &mut logits);
        let all = backend.read(&logits).unwrap();
        for (owner, row) in owners.iter().zip(all.chunks(vocab)) {
            results[*owner as usize].push(row.to_vec());
        }
    }
    results
}

/// Images with different prompts at different stages in one step: each row's logits are bitwise those of its branch alone,
/// where it may be the only row or one of 300, in other pages.
#[test]
fn the_model_gives_a_row_the_same_logits_in_any_batch() {
    let _turn = turn();
    let branches = [
        Branch::of(0, PROMPT, [0..1, 1..25]),
        Branch::of(0, "", [0..1, 1..25]),
        Branch::of(1, "a bald man with a beard", [0..300, 300..301]),
        Branch::of(2, "a woman", [0..37, 37..61]),
    ];
    let together = batch(&branches.iter().collect::<Vec<_>>(), 0);
    for (index, branch) in branches.iter().enumerate() {
        let apart = batch(&[branch], 3);
        assert_eq!(apart[0].len(), together[index].len());
        for (row, (alone, mixed)) in apart[0].iter().zip(&together[index]).enumerate() {
            support::assert_same(mixed, alone, &format!("row {row} of branch {index}"));
        }
    }
}
