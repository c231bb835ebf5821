//! Draws: from logits to tokens, by the rules of [`Rule`].

use super::Tensor;
use super::rows::logits;
use crate::backend::{Draw, Drawn, Error, NONE, Phase, Rule, Step};
use crate::rng::{Purpose, Stream};
use crate::sampling::{gumbel_max, softmax};

/// The tokens of images in the making, and what the rules keep of each position.
pub struct Canvas {
    positions: usize,
    vocab: usize,
    tokens: Vec<u32>,
    /// The distribution that each token was drawn from; empty until the first [`Rule::Draft`].
    proposals: Vec<Box<[f32]>>,
    /// The noise of each position's coupled draws, which repeat from round to round.
    noise: Vec<Option<(Stream, Box<[f32]>)>>,
    drawn: Vec<Drawn>,
    scratch: [Vec<f32>; 3],
}

impl Canvas {
    pub(crate) fn new(images: usize, positions: usize, vocab: usize) -> Self {
        Self {
            positions,
            vocab,
            tokens: vec![0; images * positions],
            proposals: vec![Box::default(); images * positions],
            noise: vec![None; images * positions],
            drawn: Vec::new(),
            scratch: Default::default(),
        }
    }

    /// The token at an index over all images.
    pub(crate) fn at(&self, index: usize) -> u32 {
        self.tokens[index]
    }

    /// The token of an image at a position.
    pub(super) fn token(&self, image: usize, position: usize) -> u32 {
        self.at(image * self.positions + position)
    }

    pub(super) fn image(&self, image: usize) -> &[u32] {
        &self.tokens[image * self.positions..][..self.positions]
    }

    pub(super) fn set_image(&mut self, image: usize, tokens: &[u32]) {
        let all = image * self.positions..(image + 1) * self.positions;
        assert_eq!(tokens.len(), self.positions, "an image has {} positions", self.positions);
        assert!(tokens.iter().all(|&token| (token as usize) < self.vocab), "a token outside of the vocabulary");
        self.tokens[all.clone()].copy_from_slice(tokens);
        self.proposals[all.clone()].fill(Box::default());
        self.noise[all].fill(None);
    }

    pub(super) fn drawn(&self) -> Result<Vec<Drawn>, Error> {
        Ok(self.drawn.clone())
    }

    /// Puts a token at an index over all images.
    #[cfg(test)]
    pub(crate) fn put(&mut self, index: usize, token: u32) -> Drawn {
        Drawn { before: std::mem::replace(&mut self.tokens[index], token), after: token }
    }

    /// Draws one token from log-weights (up to a constant) into the canvas.
    pub(crate) fn apply(&mut self, draw: &Draw, stream: Stream, log_weights: &[f32]) -> Drawn {
        let index = draw.image as usize * self.positions + draw.position as usize;
        let before = self.tokens[index];
        let after = match draw.rule {
            Rule::Coupled => self.coupled(index, draw, stream, log_weights),
            Rule::Draft => {
                let mut q = vec![0.0; log_weights.len()].into_boxed_slice();
                softmax(log_weights, &mut q);
                self.proposals[index] = q;
                self.gumbel(Purpose::Draft, draw, stream, log_weights)
            }
            Rule::AutoCorrect => self.auto_correct(index, draw, stream, log_weights),
        };
        self.tokens[index] = after;
        Drawn { before, after }
    }

    /// Frees the noise of positions before those that are drawn now: should they come back, it is drawn again.
    fn forget(&mut self, draws: &[Draw]) {
        for same in draws.chunk_by(|a, b| a.image == b.image) {
            let first = same.iter().map(|draw| draw.position as usize).min().unwrap_or(0);
            let image = same[0].image as usize * self.positions;
            let noise = self.noise[image..image + first].iter_mut().rev();
            noise.take_while(|noise| noise.is_some()).for_each(|noise| *noise = None);
        }
    }

    fn coupled(&mut self, index: usize, draw: &Draw, stream: Stream, log_weights: &[f32]) -> u32 {
        let noise = &mut self.noise[index];
        if noise.as_ref().is_none_or(|(of, _)| *of != stream) {
            let mut fresh = vec![0.0; log_weights.len()].into_boxed_slice();
            stream.gumbel(Purpose::Token, 0, draw.position as usize, &mut fresh);
            *noise = Some((stream, fresh));
        }
        noise.as_ref().map_or(0, |(_, noise)| gumbel_max(log_weights, noise))
    }

    fn gumbel(&mut self, purpose: Purpose, draw: &Draw, stream: Stream, log_weights: &[f32]) -> u32 {
        let noise = &mut self.scratch[0];
        noise.resize(log_weights.len(), 0.0);
        stream.gumbel(purpose, draw.round, draw.position as usize, noise);
        gumbel_max(log_weights, noise)
    }

    fn auto_correct(&mut self, index: usize, draw: &Draw, stream: Stream, log_weights: &[f32]) -> u32 {
        let token = self.tokens[index];
        let mut p = vec![0.0; log_weights.len()].into_boxed_slice();
        softmax(log_weights, &mut p);
        let q = std::mem::take(&mut self.proposals[index]);
        assert_eq!(q.len(), p.len(), "position {} is verified without a draft", draw.position);
        let accept = stream.uniform(Purpose::Accept, draw.round, draw.position as usize);
        let at = token as usize;
        let verified = if accept * q[at] < p[at] {
            token
        } else {
            let residual: Vec<f32> = p.iter().zip(&q).map(|(p, q)| (p - q).max(0.0).ln()).collect();
            self.gumbel(Purpose::Residual, draw, stream, &residual)
        };
        self.proposals[index] = p;
        verified
    }
}

/// See [`Backend::draw`](crate::backend::Backend::draw).
pub(super) fn draw(step: &Step, phase: Phase, x: &Tensor, canvas: &mut Canvas) {
    let draws = match phase {
        Phase::Drafts => &step.drafts,
        Phase::Verdicts => &step.verdicts,
    };
    let mut drawn = Vec::with_capacity(draws.len());
    for draw in draws {
        let image = step.images[draw.image as usize];
        let [mut weights, mut second] =
            [std::mem::take(&mut canvas.scratch[1]), std::mem::take(&mut canvas.scratch[2])];
        process(draw, 0, step, x, &mut weights);
        if draw.conditional[1] != NONE {
            process(draw, 1, step, x, &mut second);
            weights.iter_mut().zip(&second).for_each(|(a, b)| *a = *a / 2.0 + b / 2.0);
        }
        drawn.push(canvas.apply(draw, image.stream, &weights));
        canvas.scratch[1] = weights;
        canvas.scratch[2] = second;
    }
    if phase == Phase::Verdicts {
        canvas.drawn = drawn;
        canvas.forget(draws);
    }
}

/// The processed log-weights of one of a draw's distributions.
fn process(draw: &Draw, which: usize, step: &Step, x: &Tensor, out: &mut Vec<f32>) {
    let sampling = step.images[draw.image as usize].sampling;
    let unconditional = draw.unconditional[which];
    out.resize(x.cols, 0.0);
    let unconditional = (unconditional != NONE).then(|| logits(x, unconditional));
    sampling.process(logits(x, draw.conditional[which]), unconditional, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::testing::assert_follows;

    fn logs(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    fn at(position: u32, rule: Rule, round: u32) -> Draw {
        Draw { image: 0, position, rule, round, conditional: [0, NONE], unconditional: [NONE; 2] }
    }

    fn stream(seed: u64) -> Stream {
        Stream { seed, image: 0 }
    }

    #[test]
    fn coupled_tokens_follow_p_and_ignore_the_draft() {
        let p = logs(&[0.5, 0.2, 0.0, 0.3]);
        let law = [0.5, 0.2, 0.0, 0.3];
        assert_follows(&law, |seed| Canvas::new(1, 8, 4).apply(&at(3, Rule::Coupled, 0), stream(seed), &p).after);
        let mut canvas = Canvas::new(1, 8, 4);
        let first = canvas.apply(&at(5, Rule::Coupled, 0), stream(1), &p).after;
        canvas.tokens[5] = (first + 1) % 4;
        assert_eq!(canvas.apply(&at(5, Rule::Coupled, 1), stream(1), &p).after, first);
    }

    #[test]
    fn auto_correct_turns_q_into_p_in_every_round() {
        let (q, p, p2) = ([0.1, 0.6, 0.2, 0.1], [0.5, 0.2, 0.0, 0.3], [0.25, 0.25, 0.25, 0.25]);
        let run = |seed, rounds| {
            let mut canvas = Canvas::new(1, 8, 4);
            canvas.apply(&at(2, Rule::Draft, 0), stream(seed), &logs(&q));
            let first = canvas.apply(&at(2, Rule::AutoCorrect, 0), stream(seed), &logs(&p)).after;
            if rounds == 1 {
                return first;
            }
            canvas.apply(&at(2, Rule::AutoCorrect, 1), stream(seed), &logs(&p2)).after
        };
        assert_follows(&p, |seed| run(seed, 1));
        assert_follows(&p2, |seed| run(seed, 2));
    }

    #[test]
    fn auto_correct_keeps_every_draft_when_q_is_p() {
        let p = logs(&[0.4, 0.3, 0.2, 0.1]);
        for seed in 0..200 {
            let mut canvas = Canvas::new(1, 1, 4);
            canvas.apply(&at(0, Rule::Draft, 0), stream(seed), &p);
            let Drawn { before, after } = canvas.apply(&at(0, Rule::AutoCorrect, 0), stream(seed), &p);
            assert_eq!(before, after);
        }
    }
}
