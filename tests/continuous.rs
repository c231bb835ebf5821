//! The continuous models against PyTorch in fp32 on the shipped weights, for one held-out caption
//! (`models/avatar/continuous.py --export DIR --fixture tests/data` writes both), and continuous speculative decoding on them.

mod common;

use common::distance;
use safetensors::SafeTensors;
use std::sync::{Arc, OnceLock};
use weft::backend::cpu::{CpuBackend, Tensor};
use weft::backend::gaussian::Law;
use weft::backend::{Backend, Fate, Image, Test};
use weft::decode::Outcome;
use weft::decode::cspd::plan::Plan;
use weft::decode::cspd::session::Session;
use weft::decode::cspd::{self, Goal, Knobs, Pair, Side, View};
use weft::decode::methods::Method;
use weft::engine::{Generator, Request};
use weft::models::continuous::{CHANNELS, Continuous, GRID};
use weft::models::embedded;
use weft::nn::diffusion::Schedule;
use weft::nn::mar::{self, Mar};
use weft::rng::Stream;
use weft::sampling::Sampling;

const FIXTURE: &[u8] = include_bytes!("data/continuous_oracle.safetensors");
const PROMPT: &str = "a smiling woman with long red hair, glasses and a green shirt, blue background";

fn generator() -> &'static Generator<CpuBackend> {
    static GENERATOR: OnceLock<Generator<CpuBackend>> = OnceLock::new();
    GENERATOR.get_or_init(|| Generator::load(CpuBackend::new(), &embedded::avatar()).expect("the embedded model loads"))
}

fn models() -> Arc<Continuous<CpuBackend>> {
    generator().continuous("cspd").expect("it ships")
}

fn bytes(name: &str) -> Vec<u8> {
    SafeTensors::deserialize(FIXTURE).expect("the fixture is valid").tensor(name).expect(name).data().to_vec()
}

fn floats(name: &str) -> Vec<f32> {
    bytes(name).chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn integers(name: &str) -> Vec<usize> {
    bytes(name).chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as usize).collect()
}

fn prompt() -> weft::models::avatar::Prompt {
    let (_, header) = SafeTensors::read_metadata(FIXTURE).unwrap();
    let prompt = generator().prompt(&header.metadata().as_ref().unwrap()["prompt"]).unwrap();
    let ids: Vec<usize> = prompt.ids.iter().map(|&id| id as usize).collect();
    assert_eq!(ids, integers("prompt_ids"));
    prompt
}

fn guided(cfg: f32) -> Sampling {
    Sampling { cfg, temperature: 1.0, top_k: 0, top_p: 1.0 }
}

fn tensor(latents: &[f32]) -> Tensor {
    let backend = CpuBackend::new();
    let mut tensor = backend.tensor(GRID.len(), CHANNELS).unwrap();
    backend.upload(latents, &mut tensor);
    tensor
}

/// What a session makes.
fn image(sampling: Sampling, stream: Stream) -> Image {
    Image { stream, sampling, test: Test::Token }
}

/// A session of the fixture's prompt with these normals for noise.
fn given_noise<'m>(
    models: &'m Continuous<CpuBackend>,
    cfg: f32,
    knobs: Knobs,
    normals: &[f32],
) -> Session<'m, CpuBackend> {
    let (both, image) = ([&models.target, &models.draft], image(guided(cfg), Stream { seed: 0, image: 0 }));
    Session::between(&generator().model, models, both, &prompt(), image, knobs, Some(normals)).unwrap()
}

fn knobs(text: &str) -> Knobs {
    text.parse::<Method>().unwrap().continuous().unwrap()
}

/// Of what went through the layers once.
const CLOSE: f64 = 0.02;
/// Of what came out of a diffusion, whose steps hand their error on, guided: three times one branch's less twice the other's.
const DENOISED: f64 = 0.05;

fn sides(models: &Continuous<CpuBackend>) -> [(&'static str, &Mar<CpuBackend>); 2] {
    [("target", &models.target), ("draft", &models.draft)]
}

#[test]
fn states_agree_in_both_branches() {
    let (generator, models, prompt) = (generator(), models(), prompt());
    let backend = &generator.model.backend;
    let mut latents = tensor(&floats("latents"));
    let (known, goals) = (integers("known"), integers("goals"));
    for (name, mar) in sides(&models) {
        let both = [prompt.clone(), generator.model.unconditional()];
        let prompts: Vec<mar::Prompt> =
            both.iter().map(|prompt| models.prompt(&generator.model, mar, prompt).unwrap()).collect();
        let mut activations = mar.activations(backend, &prompts, 4).unwrap();
        let view = |branch: usize, known, goals| mar::View { branch, known, goals };
        let views = [view(0, &known[..], &goals[..]), view(1, &known, &goals)];
        let ours = mar.states(backend, &views, &mut latents, &mut activations).unwrap();
        let apart = distance(&ours, &floats(&format!("{name}.z")));
        assert!(apart < CLOSE, "{name}: {apart}");
        // Whatever else is in the pass, and whatever the pass before left in the cache.
        let company = [view(1, &known[..20], &goals[..3]), views[1], view(0, &[], &goals[..1]), views[0]];
        let again = mar.states(backend, &company, &mut latents, &mut activations).unwrap();
        let hidden = ours.len() / (2 * goals.len());
        assert_eq!(again[3 * hidden..][..ours.len() / 2], ours[ours.len() / 2..], "{name}");
        assert_eq!(again[again.len() - ours.len() / 2..], ours[..ours.len() / 2], "{name}");
    }
}

#[test]
fn diffusion_heads_agree() {
    let (generator, models) = (generator(), models());
    let (backend, x) = (&generator.model.backend, floats("x"));
    for (name, mar) in sides(&models) {
        let steps = mar.head.steps(backend, Schedule::new(50)).unwrap();
        let (z, theirs) = (floats(&format!("{name}.z")), floats(&format!("{name}.head")));
        let ours: Vec<f32> = integers("steps")
            .into_iter()
            .flat_map(|step| mar.head.outputs(backend, &steps, step, &z[..z.len() / 2], &x).unwrap())
            .collect();
        let apart = distance(&ours, &theirs);
        assert!(apart < CLOSE, "{name}: {apart}");
    }
}

#[test]
fn aligned_trajectories_agree() {
    let models = models();
    let (latents, known, goals) = (floats("latents"), integers("known"), integers("goals"));
    let (given, cfg) = (floats("noise"), floats("cfg")[0]);
    // [item][level] there, [level][position] here.
    let mut normals = vec![0.0; 51 * GRID.len() * CHANNELS];
    for (item, position) in goals.iter().enumerate() {
        for level in 0..51 {
            normals[(level * GRID.len() + position) * CHANNELS..][..CHANNELS]
                .copy_from_slice(&given[(item * 51 + level) * CHANNELS..][..CHANNELS]);
        }
    }
    let mut session = given_noise(&models, cfg, knobs("cspd"), &normals);
    for (side, name) in [(Side::Target, "target"), (Side::Draft, "draft")] {
        let all = goals.iter().map(|&position| Goal { position, guidance: cfg }).collect();
        session.set_latents(&latents);
        session.pass(side, &[View { known: &known, goals: all, fate: Fate::Draw }]).unwrap();
        let laws = session.laws(side).unwrap();
        let laws: Vec<Law> = goals.iter().map(|&position| laws[position].clone()).collect();
        let of = |part: fn(&Law) -> &[f32]| laws.iter().flat_map(part).copied().collect::<Vec<f32>>();
        let apart = distance(&of(|law| &law.mean), &floats(&format!("{name}.mean")));
        assert!(apart < DENOISED, "{name}: means {apart}");
        let apart = distance(&of(|law| &law.log_deviation), &floats(&format!("{name}.log_deviation")));
        assert!(apart < CLOSE, "{name}: deviations {apart}");
        let spread: Vec<f32> = laws.iter().map(|law| law.spread as f32).collect();
        let apart = distance(&spread, &floats(&format!("{name}.spread")));
        assert!(apart < CLOSE, "{name}: spreads {apart}");
    }
}

#[test]
fn a_whole_picture_agrees() {
    let (generator, models) = (generator(), models());
    let (given, cfg) = (floats("whole.noise"), floats("cfg")[0]);
    let normal = |level: usize, position: usize| given[(position * 21 + level) * CHANNELS..][..CHANNELS].to_vec();
    let normals: Vec<f32> = (0..21)
        .flat_map(|level| (0..GRID.len()).map(move |at| (level, at)))
        .flat_map(|(level, at)| normal(level, at))
        .collect();
    let knobs = knobs("cspd:drafts=0:rounds=6:steps=20:noise=0");
    let mut session = given_noise(&models, cfg, knobs, &normals);
    let plan = Plan::over(integers("order"), 6, cfg);
    let outcome = cspd::run(&mut session, &plan, knobs, &mut |_| ()).unwrap();
    assert_eq!((outcome.stats.nfe, outcome.stats.draft.passes), (6, 0));
    let apart = distance(&outcome.latents, &floats("whole.latents"));
    assert!(apart < 0.1, "{apart}: an error of a step is in the context of all after it");
    let (pixels, width) = models.pixels(&generator.model.backend, &floats("whole.latents")).unwrap();
    assert_eq!((width, pixels.len()), (96, 96 * 96 * 3));
    let off = pixels.iter().zip(bytes("whole.picture")).map(|(a, b)| a.abs_diff(b)).max();
    assert!(off <= Some(6), "a pixel is off by {off:?}");
}

fn run(text: &str, seed: u64) -> Outcome {
    let request = Request {
        prompt: PROMPT.into(),
        seed,
        sampling: generator().default_sampling(),
        method: text.parse().unwrap(),
    };
    generator().generate(&request, &mut |_| ()).unwrap().outcome
}

/// A draft that is the target: everything passes, each step judged in a pass over many contexts, and the latents are those of
/// plain decoding, bit for bit.
#[test]
fn a_draft_that_is_the_target_is_accepted() {
    let (generator, models, prompt) = (generator(), models(), prompt());
    let stream = Stream { seed: 3, image: 0 };
    let decode = |text: &str| {
        let (knobs, sampling) = (knobs(text), generator.default_sampling());
        let both = [&models.target; 2];
        let mut session =
            Session::between(&generator.model, &models, both, &prompt, image(sampling, stream), knobs, None).unwrap();
        let plan = Plan::new(GRID.len(), knobs.rounds, sampling.cfg, stream);
        cspd::run(&mut session, &plan, knobs, &mut |_| ()).unwrap()
    };
    let plain = decode("cspd:drafts=0:rounds=12:steps=6");
    for text in
        ["cspd:drafts=3", "cspd:drafts=1:schedule=fixed:sigma=code:temper=42", "cspd:drafts=9:prefill=0.2:noise=0"]
    {
        let text = format!("{text}:rounds=12:steps=6");
        let plain =
            if text.contains("noise=0") { decode("cspd:drafts=0:rounds=12:steps=6:noise=0") } else { plain.clone() };
        let ours = decode(&text);
        assert!(ours.latents == plain.latents, "{text}");
        assert!(ours.stats.drafted > 100 && ours.stats.accepted == ours.stats.drafted, "{text}: {:?}", ours.stats);
    }
}

#[test]
fn the_draft_is_counted_apart_and_pictures_repeat() {
    let plain = run("cspd:drafts=0:rounds=12:steps=6", 1);
    assert_eq!((plain.stats.nfe, plain.stats.draft.passes, plain.stats.drafted), (12, 0, 0));
    let fixed = run("cspd:schedule=fixed:temper=42:drafts=4:prefill=0:rounds=12:steps=6", 1);
    assert_eq!((fixed.stats.nfe, fixed.stats.draft.passes, fixed.stats.drafted), (3, 12, 144));
    assert!(fixed.tokens.is_empty() && fixed.latents.len() == GRID.len() * CHANNELS);
    assert!(fixed.latents.iter().all(|x| x.is_finite()));
    assert_eq!(fixed, run("cspd:schedule=fixed:temper=42:drafts=4:prefill=0:rounds=12:steps=6", 1));
    assert_ne!(fixed.latents, run("cspd:schedule=fixed:temper=42:drafts=4:prefill=0:rounds=12:steps=6", 2).latents);
    // One pass more for the last step, which a full round of drafts takes with it.
    let truncating = run("cspd:drafts=4:rounds=12:steps=6", 1);
    assert!(truncating.stats.nfe <= 12 && truncating.stats.draft.passes >= 11, "{:?}", truncating.stats);
}

#[test]
fn what_has_no_meaning_is_refused() {
    let refused = |sampling: Sampling| {
        let request = Request { prompt: PROMPT.into(), seed: 0, sampling, method: Method::CSPD };
        generator().generate(&request, &mut |_| ()).unwrap_err().to_string()
    };
    assert!(refused(Sampling { top_k: 5, ..guided(3.0) }).contains("top-k and top-p do not apply"));
    assert!(refused(Sampling { temperature: 0.0, ..guided(3.0) }).contains("temperature must be above 0"));
}
