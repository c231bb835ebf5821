//! Pictures of the continuous models.

use super::{PROMPT, SEED, common, cpu, generate, gpu, turn};
use weft::decode::cspd;
use weft::decode::methods::Method;
use weft::models::continuous;
use weft::rng::Stream;

/// The continuous model and its draft: passes over several contexts, the diffusion heads, the KL tokenizer's decoder. The
/// bound is that of `tests/continuous.rs`, where the other side is fp32: a diffusion of few steps magnifies a rounding (0.18 apart with
/// two steps, 0.03 with ten, 0.01 with twenty).
#[test]
fn continuous_pictures_are_those_of_the_processor() {
    let _turn = turn();
    let sampling = cpu().default_sampling();
    for name in
        ["cspd:drafts=0:rounds=2:steps=10", "cspd:drafts=1:prefill=0:rounds=2:steps=10:sigma=one:temper=1000000"]
    {
        let method: Method = name.parse().unwrap();
        let [ours, theirs] = [generate(gpu(), method, sampling), generate(cpu(), method, sampling)];
        assert_eq!(ours.outcome.stats, theirs.outcome.stats, "{name}");
        let apart = common::distance(&ours.outcome.latents, &theirs.outcome.latents);
        println!("{name}: {apart}");
        assert!(apart < 0.1, "{name}: {apart}");
        assert_eq!(ours.picture.rgb.len(), theirs.picture.rgb.len());
    }
}

/// A pass of a continuous model is two uploads and two graphs; what comes back is a verdict for each goal of the target's, and
/// the latents at the end. Nothing is allocated.
#[test]
fn a_continuous_pass_is_two_uploads_and_two_graphs() {
    let _turn = turn();
    let generator = gpu();
    let (knobs, stream) = (
        "cspd:drafts=1:prefill=0:rounds=2:steps=3".parse::<Method>().unwrap().continuous().unwrap(),
        Stream { seed: SEED, image: 0 },
    );
    let (models, sampling) = (generator.continuous("cspd").unwrap(), generator.default_sampling());
    let prompt = generator.prompt(PROMPT).unwrap();
    let mut session = cspd::session::Session::new(&generator.model, &models, &prompt, sampling, knobs, stream).unwrap();
    let plan = cspd::plan::Plan::new(continuous::GRID.len(), knobs.rounds, sampling.cfg, stream);
    let device = generator.model.backend.device();
    let before = device.traffic();
    let stats = cspd::run(&mut session, &plan, knobs, &mut |_| ()).unwrap().stats;
    let after = device.traffic();
    let passes = (stats.nfe + stats.draft.passes) as u64;
    assert_eq!((after.uploads - before.uploads, after.replays - before.replays), (2 * passes, 2 * passes));
    // Each pass of the target judges here.
    assert_eq!(after.downloads - before.downloads, stats.nfe as u64 + 1);
    assert_eq!(after.allocations, before.allocations);
}
