//! The Rust networks against PyTorch in fp32 on the shipped weights, for one held-out caption and picture
//! (`models/avatar/export.py` writes the fixture).

mod common;

use common::distance;
use half::bf16;
use safetensors::SafeTensors;
use weft::backend::cpu::CpuBackend;
use weft::backend::{Backend, Epilogue, Grouping, Image, Test};
use weft::decode::session::{Aids, Session};
use weft::decode::tree::{Growth, Node, State};
use weft::decode::{Acceptance, Target};
use weft::engine::Generator;
use weft::models::embedded;
use weft::nn::spatial_heads::Offset;
use weft::rng::Stream;
use weft::sampling::Sampling;

const FIXTURE: &[u8] = include_bytes!("data/avatar_oracle.safetensors");
/// By `models/avatar/eagle.py`.
const EAGLE: &[u8] = include_bytes!("data/eagle_oracle.safetensors");

struct Oracle(SafeTensors<'static>);

impl Oracle {
    fn load() -> Self {
        Self::of(FIXTURE)
    }

    fn of(fixture: &'static [u8]) -> Self {
        Self(SafeTensors::deserialize(fixture).expect("the fixture is valid"))
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let data = self.0.tensor(name).expect(name).data();
        data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let data = self.0.tensor(name).expect(name).data();
        data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as usize).collect()
    }

    fn bytes(&self, name: &str) -> &[u8] {
        self.0.tensor(name).expect(name).data()
    }

    fn prompt(&self) -> String {
        let (_, header) = SafeTensors::read_metadata(FIXTURE).unwrap();
        header.metadata().as_ref().unwrap()["prompt"].clone()
    }

    fn tokens(&self) -> Vec<u32> {
        self.integers("tokens").into_iter().map(|token| token as u32).collect()
    }
}

fn generator() -> Generator<CpuBackend> {
    Generator::load(CpuBackend::new(), &embedded::avatar()).expect("the embedded model loads")
}

const CLOSE: f64 = 0.02;

/// A session of one unguided image, and the logits of every position given the fixture's tokens.
fn session<'m>(generator: &'m Generator<CpuBackend>, prompt: &str) -> (Session<'m, CpuBackend>, Vec<f32>) {
    let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
    let image = Image { stream: Stream { seed: 0, image: 0 }, sampling, test: Test::Token };
    let mut session = generator.session(prompt, image, Acceptance::Coupled).unwrap();
    let (tokens, grid) = (Oracle::load().tokens(), generator.model.grid());
    let block: Vec<usize> = (0..grid.len() - 1).collect();
    let mut logits = session.prompt_log_weights().unwrap();
    logits.extend(session.log_weights(&tokens, &block, &vec![grid.width as u32; grid.height]).unwrap());
    (session, logits)
}

fn rows(all: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|row| &all[row * width..][..width]).copied().collect()
}

#[test]
fn the_prompt_is_tokenized_and_encoded_alike() {
    let (oracle, generator) = (Oracle::load(), generator());
    let prompt = generator.prompt(&oracle.prompt()).unwrap();
    let ids: Vec<usize> = prompt.ids.iter().map(|&id| id as usize).collect();
    assert_eq!(ids, oracle.integers("prompt_ids"));
    let condition = generator.model.condition(&prompt).unwrap();
    assert!(distance(&condition.bias, &oracle.floats("cond")) < CLOSE);
}

#[test]
fn logits_agree_in_both_branches() {
    let (oracle, generator) = (Oracle::load(), generator());
    let positions = oracle.integers("positions");
    for (prompt, name) in [(oracle.prompt(), "logits_cond"), (String::new(), "logits_uncond")] {
        let ours = rows(&session(&generator, &prompt).1, 512, &positions);
        let apart = distance(&ours, &oracle.floats(name));
        assert!(apart < CLOSE, "{name}: {apart}");
    }
}

#[test]
fn spatial_heads_agree() {
    let (oracle, generator) = (Oracle::load(), generator());
    let (mut session, _) = session(&generator, &oracle.prompt());
    let (horizontal, vertical) = session.scene(0).heads;
    let offsets = (1..=horizontal).map(Offset::Right).chain((1..=vertical).map(Offset::Down));
    let theirs = [oracle.floats("head_logits_horizontal"), oracle.floats("head_logits_vertical")].concat();
    for (offset, theirs) in offsets.zip(theirs.chunks_exact(4 * 512)) {
        let ours = session.draft_log_weights(offset, &oracle.integers("head_sources")).unwrap();
        let apart = distance(&ours, theirs);
        assert!(apart < CLOSE, "{offset:?}: {apart}");
    }
}

/// The drafter's guesses after the target's own states, then along a chain of its own, whose nodes have others beside them.
#[test]
fn the_eagle_drafter_agrees_in_both_branches() {
    let (oracle, eagle, generator) = (Oracle::load(), Oracle::of(EAGLE), generator());
    let (tokens, grid) = (oracle.tokens(), generator.model.grid());
    let at = eagle.integers("positions");
    let last = *at.last().unwrap();
    for (prompt, name) in [(oracle.prompt(), "cond"), (String::new(), "uncond")] {
        let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
        let image = Image { stream: Stream { seed: 0, image: 0 }, sampling, test: Test::Token };
        let aids = Aids { eagle: Some(generator.eagle("eagle1").unwrap()), ..Aids::default() };
        let mut session = generator.aided(&[(&prompt, image)], Acceptance::Judged(Test::Token), aids).unwrap();
        session.prompt_log_weights().unwrap();
        let block: Vec<usize> = (0..grid.len() - 1).collect();
        session.log_weights(&tokens, &block, &vec![grid.width as u32; grid.height]).unwrap();
        let trunk = Growth { trunk: (0..=last).map(|at| (at, State::Of(at))).collect(), ..Growth::default() };
        let ours = rows(&session.guessed_log_weights(&trunk).unwrap(), 512, &at);
        let apart = distance(&ours, &eagle.floats(&format!("trunk_{name}")));
        assert!(apart < CLOSE, "trunk, {name}: {apart}");
        let mut chain = Vec::new();
        for depth in 1..=3 {
            // Its slots are 1, 3, 5; a node of the same level and other token has the slot before each.
            let (slot, at) = (2 * depth - 1, last + depth);
            let state = if depth == 1 { State::Of(at) } else { State::After(slot - 2) };
            let node = |slot: usize, above: u128| Node { slot, at, ancestors: above | 1 << slot };
            let above = (1..depth).map(|depth| 1u128 << (2 * depth - 1)).sum();
            let growth = Growth {
                puts: vec![(grid.len() + slot - 1, 7), (grid.len() + slot, tokens[at])],
                nodes: vec![(node(slot - 1, above), state), (node(slot, above), state)],
                ..Growth::default()
            };
            chain.extend_from_slice(&session.guessed_log_weights(&growth).unwrap()[512..]);
        }
        let apart = distance(&chain, &eagle.floats(&format!("chain_{name}")));
        assert!(apart < CLOSE, "chain, {name}: {apart}");
    }
}

#[test]
fn pixels_agree_in_both_directions() {
    let (oracle, generator) = (Oracle::load(), generator());
    let tokens = oracle.tokens();
    let decoded = generator.picture(&tokens).unwrap();
    let off = decoded.rgb.iter().zip(oracle.bytes("decoded")).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(off <= Some(6), "a pixel is off by {off:?}");
    let encoded = generator.model.vq.encode(&generator.model.backend, oracle.bytes("picture"), (96, 96)).unwrap();
    let same = encoded.iter().zip(&tokens).filter(|(a, b)| a == b).count();
    assert!(same >= 560, "only {same} of 576 tokens agree");
}

#[test]
fn the_classifier_agrees() {
    let (oracle, generator) = (Oracle::load(), generator());
    let classifier = generator.model.load_classifier(&embedded::avatar()).unwrap().expect("it ships");
    let judged = classifier.judge(&generator.model.backend, oracle.bytes("picture"), (96, 96)).unwrap();
    assert!(distance(&judged.features, &oracle.floats("features")) < CLOSE);
    for (attribute, logits) in &judged.logits {
        assert!(distance(logits, &oracle.floats(&format!("classifier.{attribute}"))) < CLOSE, "{attribute}");
    }
}

/// The whole chain again, in f32 on the host from the weights, for one linear layer: the backend rounds its input to
/// bf16 and nothing else.
#[test]
fn linear_rounds_only_its_input() {
    let backend = CpuBackend::new();
    let weight: Vec<bf16> = (0..6).map(|i| bf16::from_f32(i as f32 - 2.5)).collect();
    let weight = backend.weight(&weight, 2, 3).unwrap();
    let (mut x, mut out) = (backend.tensor(1, 3).unwrap(), backend.tensor(1, 2).unwrap());
    backend.upload(&[1.0, 1.000_976_6, -2.0], &mut x);
    backend.linear(&x, &weight, &mut out, Epilogue::Store, Grouping::One);
    assert_eq!(&*backend.read(&out).unwrap(), [-2.5 - 1.5 + 1.0, 0.5 + 1.5 - 5.0]);
}
