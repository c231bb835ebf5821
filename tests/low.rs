//! The low-resolution model, its tokenizer and the ways between resolutions against PyTorch in fp32 on the shipped weights,
//! for one held-out caption and picture (`models/avatar/low.py --fixture` writes the fixture), and MuLo-SD on them.

mod common;

use common::distance;
use safetensors::SafeTensors;
use std::sync::OnceLock;
use weft::backend::cpu::CpuBackend;
use weft::backend::{Image, Test};
use weft::checkpoint::Files;
use weft::decode::Acceptance;
use weft::decode::methods::Method;
use weft::decode::session::{Aids, Session};
use weft::engine::{Generator, Request};
use weft::grid::Grid;
use weft::models::embedded;
use weft::models::low::{Low, Up};
use weft::nn::Formats;
use weft::rng::Stream;
use weft::sampling::Sampling;

const FIXTURE: &[u8] = include_bytes!("data/low_oracle.safetensors");

fn generator() -> &'static Generator<CpuBackend> {
    static GENERATOR: OnceLock<Generator<CpuBackend>> = OnceLock::new();
    GENERATOR.get_or_init(|| Generator::load(CpuBackend::new(), &embedded::avatar()).expect("the embedded model loads"))
}

fn low() -> &'static Low<CpuBackend> {
    static LOW: OnceLock<Low<CpuBackend>> = OnceLock::new();
    LOW.get_or_init(|| {
        let extra = Files::Directory(concat!(env!("CARGO_MANIFEST_DIR"), "/models/avatar/extra").into());
        Low::load(&generator().model, &extra.folder("low"), &extra, Formats::default()).expect("it ships")
    })
}

fn oracle(name: &str) -> Vec<u8> {
    SafeTensors::deserialize(FIXTURE).expect("the fixture is valid").tensor(name).expect(name).data().to_vec()
}

fn tokens(name: &str) -> Vec<u32> {
    oracle(name).chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as u32).collect()
}

/// How many tokens are the same.
fn same(ours: &[u32], theirs: &[u32]) -> usize {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).filter(|(a, b)| a == b).count()
}

/// Peak signal to noise ratio, dB.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / square).log10()
}

#[test]
fn its_logits_agree() {
    let low = low();
    let (_, header) = SafeTensors::read_metadata(FIXTURE).unwrap();
    let prompt = low.model.prompt(&header.metadata().as_ref().unwrap()["prompt"]).unwrap();
    let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
    let image = Image { stream: Stream { seed: 0, image: 0 }, sampling, test: Test::Token };
    let condition = low.model.condition(&prompt).unwrap();
    let other = low.unconditional.clone();
    let mut session =
        Session::new(&low.model, vec![(condition, image)], &other, Acceptance::Coupled, Aids::default()).unwrap();
    let mut logits = session.prompt_log_weights().unwrap();
    let block: Vec<usize> = (0..143).collect();
    logits.extend(session.log_weights(&tokens("tokens"), &block, &[12; 12]).unwrap());
    let vocab = low.model.config.image_vocab_size;
    let ours = tokens("positions").into_iter().flat_map(|at| logits[at as usize * vocab..][..vocab].to_vec());
    let theirs = oracle("logits");
    let theirs = theirs.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    let apart = distance(&ours.collect::<Vec<_>>(), &theirs.collect::<Vec<_>>());
    assert!(apart < 0.02, "{apart}");
}

#[test]
fn its_pixels_agree_in_both_directions() {
    let (low, backend) = (low(), &generator().model.backend);
    let (picture, theirs) = (oracle("picture"), tokens("tokens"));
    let encoded = low.model.vq.encode(backend, &picture, (48, 48)).unwrap();
    assert!(same(&encoded, &theirs) >= 140, "{} of 144 tokens agree", same(&encoded, &theirs));
    let decoded = low.model.vq.decode(backend, &theirs, Grid { height: 12, width: 12 }).unwrap();
    let off = decoded.iter().zip(oracle("decoded")).map(|(a, b)| a.abs_diff(b)).max();
    assert!(off <= Some(6), "a pixel is off by {off:?}");
    let loss = psnr(&decoded, &picture);
    assert!(loss > 24.0, "a round trip leaves {loss} dB");
}

#[test]
fn drafts_agree_both_ways() {
    let (low, large) = (low(), &generator().model);
    // The way through pixels has two networks more whose activations are rounded.
    for (how, name, least) in [(Up::Latent, "latent", 556), (Up::Pixel, "pixel", 540)] {
        let drafts = low.up(large, how, &tokens("tokens")).unwrap();
        let agree = same(&drafts, &tokens(name));
        assert!(agree >= least, "{name}: {agree} of 576 tokens agree");
    }
}

/// What it drafts for a row depends on no low-resolution row below.
#[test]
fn the_up_sampler_looks_upwards_only() {
    let (low, large, tokens) = (low(), &generator().model, tokens("tokens"));
    let whole = low.up(large, Up::Latent, &tokens).unwrap();
    for rows in [1, 5, 11] {
        let part = low.up(large, Up::Latent, &tokens[..12 * rows]).unwrap();
        assert_eq!(part[..], whole[..4 * 12 * rows], "{rows} rows");
        let mut others = tokens.clone();
        others[12 * rows..].iter_mut().for_each(|token| *token = (*token + 77) % 512);
        let changed = low.up(large, Up::Latent, &others).unwrap();
        assert_eq!(changed[..4 * 12 * rows], whole[..4 * 12 * rows], "{rows} rows");
        assert_ne!(changed, whole);
    }
}

/// The tokens of a picture, brought down, are those of its half: most of them, and the pictures are alike.
#[test]
fn verified_tokens_are_brought_down() {
    let (low, large) = (low(), &generator().model);
    let oracle_large = include_bytes!("data/avatar_oracle.safetensors");
    let fixture = SafeTensors::deserialize(oracle_large).unwrap();
    let data = fixture.tensor("tokens").unwrap().data().to_vec();
    let large_tokens: Vec<u32> =
        data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as u32).collect();
    let down = low.down(large, &large_tokens).unwrap();
    let grid = Grid { height: 12, width: 12 };
    let picture = low.model.vq.decode(&large.backend, &down, grid).unwrap();
    let likeness = psnr(&picture, &oracle("picture"));
    assert!(likeness > 22.0, "{likeness} dB");
    // The first rows alone give nearly the same: convolutions see a few rows further down.
    let part = low.down(large, &large_tokens[..12 * 24]).unwrap();
    assert_eq!(part.len(), 6 * 12);
}

#[test]
fn mulo_sd_makes_images_and_counts_what_its_drafter_costs() {
    let generator = generator();
    let run = |name: &str| {
        let request = Request {
            prompt: "a smiling woman with long red hair, glasses and a green shirt, blue background".into(),
            seed: 1,
            sampling: generator.default_sampling(),
            method: name.parse::<Method>().unwrap(),
        };
        generator.generate(&request, &mut |_| ()).unwrap().outcome
    };
    // Everything passes: the prompt, and one pass for each band.
    let (whole, bands) = (run("mulo-sd:tau=0:rows=12:ahead=0"), run("mulo-sd:tau=0:rows=3:ahead=0"));
    assert_eq!((whole.stats.nfe, bands.stats.nfe), (2, 5));
    // The drafter's prompt and a pass for each token but the first; what is brought down is fed again, at no pass.
    assert_eq!((whole.stats.draft.passes, whole.stats.draft.rows), (144, 143));
    assert_eq!(bands.stats.draft.passes, 144);
    assert!(bands.stats.draft.rows > 143);
    // ZipAR in the drafter: C + window (R - 1) passes, the prompt's one of them.
    assert_eq!(run("mulo-sd:tau=0:rows=12:ahead=3").stats.draft.passes, 12 + 3 * 11);
    // Nothing passes: one pass for each token but the first of the image and the first rejected one.
    let plain = run("mulo-sd:tau=1:pool=0:rows=12:resample=serial:radius=23");
    assert!(plain.stats.nfe > 500 && plain.stats.nfe <= 2 + 574, "{:?}", plain.stats);
}
