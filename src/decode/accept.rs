//! Acceptance rules: what becomes of a drafted token once the target's distribution at its position is known.

use super::sampling::{argmax, gumbel_max, softmax};
use crate::rng::{Purpose, Stream};

/// A rule that turns distributions into tokens.
pub trait Acceptance {
    /// Draws the draft at `position` from the drafter's log-weights.
    fn draft(&mut self, position: usize, log_weights: &[f32]) -> u32;
    /// The token at `position` after a verification: `log_weights` are the target's, in the context of the
    /// current block.
    fn verify(&mut self, position: usize, token: u32, log_weights: &[f32]) -> u32;
    /// Nothing more will be asked about positions before this one.
    fn forget_before(&mut self, position: usize);
}

/// Coupled randomness: a token is argmax(log p + Gumbel noise of its position), so drafting and verifying agree
/// whenever their distributions do, and a pass over tokens that no longer change has found plain AR's sample.
#[derive(Debug)]
pub struct Coupled {
    stream: Stream,
    noise: Vec<Option<Box<[f32]>>>,
}

impl Coupled {
    /// The noise of the image that `stream` names.
    pub fn new(stream: Stream) -> Self {
        Self { stream, noise: Vec::new() }
    }

    fn sample(&mut self, position: usize, log_weights: &[f32]) -> u32 {
        if self.noise.len() <= position {
            self.noise.resize(position + 1, None);
        }
        let noise = self.noise[position].get_or_insert_with(|| {
            let mut noise = vec![0.0; log_weights.len()].into_boxed_slice();
            self.stream.gumbel(Purpose::Token, 0, position, &mut noise);
            noise
        });
        gumbel_max(log_weights, noise)
    }
}

impl Acceptance for Coupled {
    fn draft(&mut self, position: usize, log_weights: &[f32]) -> u32 {
        self.sample(position, log_weights)
    }

    fn verify(&mut self, position: usize, _token: u32, log_weights: &[f32]) -> u32 {
        self.sample(position, log_weights)
    }

    fn forget_before(&mut self, position: usize) {
        let end = position.min(self.noise.len());
        self.noise[..end].fill(None);
    }
}

/// SSD's "verification as auto correction" (arXiv 2606.20543, Eq. 4-5), per position and without a prefix rule:
/// keep t with probability min(1, p(t)/q(t)), else sample from max(0, p - q) normalised.
///
/// Choices where the paper is silent: drafts are sampled from q (with argmax drafts the rule would be wrong); in
/// later rounds q is the p of the round before, the law that the token then has; every round tests every position
/// again.
#[derive(Debug)]
pub struct AutoCorrect {
    stream: Stream,
    /// Per position: the distribution that its token was drawn from, and how many draws were made.
    proposals: Vec<Option<(Box<[f32]>, u32)>>,
    scratch: Vec<f32>,
}

impl AutoCorrect {
    /// The randomness of the image that `stream` names.
    pub fn new(stream: Stream) -> Self {
        Self { stream, proposals: Vec::new(), scratch: Vec::new() }
    }

    fn gumbel(&mut self, purpose: Purpose, round: u32, position: usize, log_weights: &[f32]) -> u32 {
        self.scratch.resize(log_weights.len(), 0.0);
        self.stream.gumbel(purpose, round, position, &mut self.scratch);
        gumbel_max(log_weights, &self.scratch)
    }
}

impl Acceptance for AutoCorrect {
    fn draft(&mut self, position: usize, log_weights: &[f32]) -> u32 {
        let mut q = vec![0.0; log_weights.len()].into_boxed_slice();
        softmax(log_weights, &mut q);
        if self.proposals.len() <= position {
            self.proposals.resize(position + 1, None);
        }
        self.proposals[position] = Some((q, 0));
        self.gumbel(Purpose::Draft, 0, position, log_weights)
    }

    fn verify(&mut self, position: usize, token: u32, log_weights: &[f32]) -> u32 {
        let mut p = vec![0.0; log_weights.len()].into_boxed_slice();
        softmax(log_weights, &mut p);
        let Some((q, round)) = self.proposals.get_mut(position).and_then(Option::take) else {
            debug_assert!(false, "position {position} is verified without a draft");
            return argmax(log_weights) as u32;
        };
        let accept = self.stream.uniform(Purpose::Accept, round, position);
        let at = token as usize;
        let kept = accept * q[at] < p[at];
        let verified = if kept {
            token
        } else {
            let residual: Vec<f32> = p.iter().zip(&q).map(|(p, q)| (p - q).max(0.0).ln()).collect();
            self.gumbel(Purpose::Residual, round, position, &residual)
        };
        self.proposals[position] = Some((p, round + 1));
        verified
    }

    fn forget_before(&mut self, position: usize) {
        let end = position.min(self.proposals.len());
        self.proposals[..end].fill(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::testing::assert_follows;

    fn logs(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn coupled_tokens_follow_p_and_ignore_the_draft() {
        let p = [0.5, 0.2, 0.0, 0.3];
        assert_follows(&p, |seed| Coupled::new(Stream { seed, image: 0 }).verify(3, 0, &logs(&p)));
        let mut rule = Coupled::new(Stream { seed: 1, image: 0 });
        assert_eq!(rule.draft(5, &logs(&p)), rule.verify(5, 1, &logs(&p)));
    }

    #[test]
    fn auto_correct_turns_q_into_p_in_every_round() {
        let (q, p, p2) = ([0.1, 0.6, 0.2, 0.1], [0.5, 0.2, 0.0, 0.3], [0.25, 0.25, 0.25, 0.25]);
        let run = |seed, rounds| {
            let mut rule = AutoCorrect::new(Stream { seed, image: 0 });
            let draft = rule.draft(2, &logs(&q));
            let first = rule.verify(2, draft, &logs(&p));
            if rounds == 1 { first } else { rule.verify(2, first, &logs(&p2)) }
        };
        assert_follows(&p, |seed| run(seed, 1));
        assert_follows(&p2, |seed| run(seed, 2));
    }

    #[test]
    fn auto_correct_keeps_every_draft_when_q_is_p() {
        let p = logs(&[0.4, 0.3, 0.2, 0.1]);
        for seed in 0..200 {
            let mut rule = AutoCorrect::new(Stream { seed, image: 0 });
            let draft = rule.draft(0, &p);
            assert_eq!(rule.verify(0, draft, &p), draft);
        }
    }
}
