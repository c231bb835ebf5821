//! Plain autoregressive decoding: one token per pass. The reference for every other method.

use super::accept::{Acceptance, Coupled};
use super::{Counted, Outcome, Placed, Progress, Target};
use crate::rng::Stream;

/// Decodes every position from its exact context; the token is the Gumbel-max sample of its position's noise.
pub fn decode<T: Target>(target: &mut T, stream: Stream, progress: &mut Progress<'_>) -> Outcome {
    let grid = target.grid();
    let mut rule = Coupled::new(stream);
    let mut run = Counted::new(target);
    run.prefill();
    let mut tokens = vec![rule.draft(0, run.target.log_weights(0))];
    let mut frontier = vec![0; grid.height];
    for position in 1..grid.len() {
        let fed = Placed { position: position - 1, token: tokens[position - 1] };
        frontier[grid.row(fed.position)] += 1;
        run.feed(&[fed], &frontier);
        tokens.push(rule.draft(position, run.target.log_weights(0)));
        rule.forget_before(position);
        progress(position);
    }
    progress(grid.len());
    Outcome { tokens, stats: run.stats }
}
