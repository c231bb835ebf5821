//! Draws: from logits to tokens, by the rules of [`Rule`].

use super::Tensor;
use super::rows::logits;
use super::verify::{Case, Codebook, Verdict};
use crate::backend::step::{CHOICES, check_chains};
use crate::backend::{CHILDREN, Chosen, Draw, Drawn, Error, Image, NONE, Phase, Rule, Step, Test};
use crate::rng::{Purpose, Stream};
use crate::sampling::{gumbel_max, log_prob, softmax};
use std::ops::Range;

/// The tokens of images in the making, and what the rules keep of each position.
#[cfg_attr(test, derive(Clone))]
pub struct Canvas {
    positions: usize,
    vocab: usize,
    tokens: Vec<u32>,
    /// The distribution that each token was drawn from.
    proposals: Vec<Proposal>,
    /// The noise of each position's coupled draws, which repeat from round to round.
    noise: Vec<Option<(Stream, Box<[f32]>)>>,
    drawn: Vec<Drawn>,
    /// By the last drafts and verdicts.
    chosen: [Vec<Chosen>; 2],
    /// By the draws under way.
    fresh: Vec<Chosen>,
    /// Whether the last draw judged a token and kept it.
    kept: bool,
    scratch: [Vec<f32>; 3],
}

/// A distribution that a token was drawn from.
#[derive(Clone, Default)]
pub(super) enum Proposal {
    /// Unknown.
    #[default]
    None,
    /// This token alone.
    Put(u32),
    /// `[vocab]`.
    Law(Box<[f32]>),
}

impl Proposal {
    /// The probability of a token.
    pub(super) fn of(&self, token: usize) -> f32 {
        match self {
            Proposal::None => unreachable!("it is known where it is asked for"),
            Proposal::Put(put) => f32::from(u8::from(*put as usize == token)),
            Proposal::Law(law) => law[token],
        }
    }
}

impl Canvas {
    pub(crate) fn new(images: usize, positions: usize, vocab: usize) -> Self {
        Self {
            positions,
            vocab,
            tokens: vec![0; images * positions],
            proposals: vec![Proposal::None; images * positions],
            noise: vec![None; images * positions],
            drawn: Vec::new(),
            chosen: Default::default(),
            fresh: Vec::new(),
            kept: false,
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
        self.proposals[all.clone()].fill(Proposal::None);
        self.noise[all].fill(None);
    }

    pub(super) fn drawn(&self) -> Result<Vec<Drawn>, Error> {
        Ok(self.drawn.clone())
    }

    /// See [`Backend::chosen`](crate::backend::Backend::chosen).
    pub(super) fn chosen(&self, step: &Step) -> Vec<Chosen> {
        // What an earlier step chose is none of this one's.
        let chooses = |draws: &[Draw]| draws.iter().any(|draw| draw.rule.chooses() > 0);
        let phases = [&step.drafts, &step.verdicts].into_iter().zip(&self.chosen);
        phases.filter(|(draws, _)| chooses(draws)).flat_map(|(_, chosen)| chosen).copied().collect()
    }

    /// What the draws since the last time chose.
    #[cfg(test)]
    pub(crate) fn take_chosen(&mut self) -> Vec<Chosen> {
        std::mem::take(&mut self.fresh)
    }

    /// Puts a token at an index over all images: the only one that its law has.
    pub(crate) fn put(&mut self, index: usize, token: u32) -> Drawn {
        assert!((token as usize) < self.vocab, "token {token} of {}", self.vocab);
        self.proposals[index] = Proposal::Put(token);
        Drawn { before: std::mem::replace(&mut self.tokens[index], token), after: token }
    }

    /// Takes the law of a token from an earlier state of the canvas.
    #[cfg(test)]
    pub(crate) fn take_law(&mut self, index: usize, earlier: &Self) {
        self.proposals[index] = earlier.proposals[index].clone();
    }

    /// Draws one token from log-weights (up to a constant) into the canvas. One that follows a verdict comes right after it.
    pub(crate) fn apply(
        &mut self,
        draw: &Draw,
        image: &Image,
        codebook: Option<&Codebook>,
        log_weights: &[f32],
    ) -> Drawn {
        let index = draw.image as usize * self.positions + draw.position as usize;
        let before = self.tokens[index];
        let judged = !draw.follows || self.kept;
        self.kept = false;
        let after = match draw.rule {
            Rule::Coupled => self.coupled(index, draw, image.stream, log_weights),
            Rule::Cling { slack, penalty } => self.clinging(index, (slack, penalty), draw, image.stream, log_weights),
            Rule::Draft => {
                let mut q = vec![0.0; log_weights.len()].into_boxed_slice();
                softmax(log_weights, &mut q);
                self.proposals[index] = Proposal::Law(q);
                self.gumbel(Purpose::Draft, draw, image.stream, log_weights)
            }
            Rule::AutoCorrect => self.auto_correct(index, draw, judged, image, codebook, log_weights),
            Rule::Children { count } => self.children(index, count, draw, image.stream, log_weights),
            Rule::Likeliest { count } => self.likeliest(index, count, log_weights),
            Rule::Foresee { count } => {
                return Drawn { before: NONE, after: self.foresee(index, count, draw, image.stream, log_weights) };
            }
            Rule::Siblings { first, count, drawn } => {
                let family = index - draw.position as usize + first as usize;
                return self.siblings(family..family + count as usize, drawn, draw, image, codebook, log_weights);
            }
        };
        self.tokens[index] = after;
        let failed = draw.rule == Rule::AutoCorrect && judged && !self.kept;
        let failed = failed && matches!(image.test, Test::Threshold { .. });
        Drawn { before: if failed && before == after { NONE } else { before }, after }
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
        gumbel_max(log_weights, self.noise(index, draw, stream, log_weights.len()))
    }

    fn clinging(
        &mut self,
        index: usize,
        (slack, penalty): (f32, f32),
        draw: &Draw,
        stream: Stream,
        log_weights: &[f32],
    ) -> u32 {
        let token = self.tokens[index];
        let noise = self.noise(index, draw, stream, log_weights.len());
        let best = gumbel_max(log_weights, noise);
        let (held, other) = (token as usize, best as usize);
        let more_probable = log_weights[other] - log_weights[held];
        let better = log_weights[other] + noise[other] - (log_weights[held] + noise[held]);
        if better < slack - penalty * more_probable.max(0.0) { token } else { best }
    }

    /// The noise of a position's coupled draws.
    fn noise(&mut self, index: usize, draw: &Draw, stream: Stream, vocab: usize) -> &[f32] {
        let noise = &mut self.noise[index];
        if noise.as_ref().is_none_or(|(of, _)| *of != stream) {
            let mut fresh = vec![0.0; vocab].into_boxed_slice();
            stream.gumbel(Purpose::Token, 0, draw.position as usize, &mut fresh);
            *noise = Some((stream, fresh));
        }
        noise.as_ref().map_or(&[], |(_, noise)| noise)
    }

    /// Chooses the tokens that the coupled draw comes closest to; returns its own.
    fn foresee(&mut self, index: usize, count: u32, draw: &Draw, stream: Stream, log_weights: &[f32]) -> u32 {
        let noise = self.noise(index, draw, stream, log_weights.len());
        let scores: Vec<f32> = log_weights.iter().zip(noise).map(|(weight, noise)| weight + noise).collect();
        self.choose(&scores, count, &largest(&scores, count))
    }

    fn gumbel(&mut self, purpose: Purpose, draw: &Draw, stream: Stream, log_weights: &[f32]) -> u32 {
        let noise = &mut self.scratch[0];
        noise.resize(log_weights.len(), 0.0);
        stream.gumbel(purpose, draw.round, draw.position as usize, noise);
        gumbel_max(log_weights, noise)
    }

    fn auto_correct(
        &mut self,
        index: usize,
        draw: &Draw,
        judged: bool,
        image: &Image,
        codebook: Option<&Codebook>,
        log_weights: &[f32],
    ) -> u32 {
        let (token, stream) = (self.tokens[index], image.stream);
        let mut p = vec![0.0; log_weights.len()].into_boxed_slice();
        softmax(log_weights, &mut p);
        let q = std::mem::take(&mut self.proposals[index]);
        assert!(!matches!(q, Proposal::None), "position {} is verified without a draft", draw.position);
        let uniform = stream.uniform(Purpose::Accept, draw.round, draw.position as usize);
        let case = Case { token: token as usize, log_weights, p: &p, q: &q, uniform, codebook };
        let verdict = if judged { case.judge(image.test) } else { Verdict::Redraw };
        self.kept = verdict == Verdict::Keep;
        let after = match verdict {
            Verdict::Keep => token,
            Verdict::Correct => self.corrected(draw, stream, log_weights, &residual(&p, &q, &[])),
            Verdict::CorrectWithout(pool) => self.corrected(draw, stream, log_weights, &residual(&p, &q, &pool)),
            Verdict::Redraw => self.gumbel(Purpose::Residual, draw, stream, log_weights),
        };
        self.proposals[index] = Proposal::Law(p);
        after
    }

    /// Draws children into the places from `index`; returns the first.
    fn children(&mut self, index: usize, count: u32, draw: &Draw, stream: Stream, log_weights: &[f32]) -> u32 {
        let mut q = vec![0.0; log_weights.len()].into_boxed_slice();
        softmax(log_weights, &mut q);
        self.proposals[index] = Proposal::Law(q);
        let mut scores = vec![0.0; log_weights.len()];
        stream.gumbel(Purpose::Draft, draw.round, draw.position as usize, &mut scores);
        scores.iter_mut().zip(log_weights).for_each(|(score, weight)| *score += weight);
        let best = largest(&scores, count);
        self.put_children(index, count, &best)
    }

    /// Puts the most probable tokens into the places from `index`; returns the first.
    fn likeliest(&mut self, index: usize, count: u32, log_weights: &[f32]) -> u32 {
        let best = largest(log_weights, count);
        self.proposals[index..index + count as usize].fill(Proposal::None);
        self.choose(log_weights, count, &best);
        self.put_children(index, count, &best)
    }

    /// Lists the best tokens for the host, each with the logarithm of its share; returns the first.
    fn choose(&mut self, log_weights: &[f32], count: u32, best: &[u32]) -> u32 {
        let first = best.first().copied().unwrap_or(0);
        let most = log_prob(log_weights, first);
        for child in 0..count as usize {
            let chosen = match best.get(child) {
                Some(&token) => {
                    Chosen { token, log_probability: log_weights[token as usize] - log_weights[first as usize] + most }
                }
                None => Chosen { token: first, log_probability: f32::NEG_INFINITY },
            };
            self.fresh.push(chosen);
        }
        first
    }

    /// Puts children into the places from `index`; returns the first.
    fn put_children(&mut self, index: usize, count: u32, children: &[u32]) -> u32 {
        // As any draw from a law without tokens: the first of all.
        let first = children.first().copied().unwrap_or(0);
        for child in 0..count as usize {
            self.tokens[index + child] = *children.get(child).unwrap_or(&first);
        }
        first
    }

    /// Judges the children in these places.
    fn siblings(
        &mut self,
        places: Range<usize>,
        drawn: bool,
        draw: &Draw,
        image: &Image,
        codebook: Option<&Codebook>,
        log_weights: &[f32],
    ) -> Drawn {
        assert!(places.len() <= CHILDREN as usize, "{} children", places.len());
        let (stream, position) = (image.stream, draw.position as usize);
        let mut p = vec![0.0; log_weights.len()];
        softmax(log_weights, &mut p);
        let mut q: Vec<f32> = if drawn && !places.is_empty() {
            (0..p.len()).map(|t| self.proposals[places.start].of(t)).collect()
        } else {
            Vec::new()
        };
        let mut log_weights = log_weights.to_vec();
        for (child, place) in places.enumerate() {
            let token = self.tokens[place];
            let law = if drawn { Proposal::Law(q.clone().into_boxed_slice()) } else { Proposal::Put(token) };
            if law.of(token as usize) == 0.0 {
                continue; // q had no more
            }
            let uniform = stream.uniform_of(Purpose::Accept, draw.round, position, child as u32);
            let case = Case { token: token as usize, log_weights: &log_weights, p: &p, q: &law, uniform, codebook };
            let left = match case.judge(image.test) {
                Verdict::Keep => return Drawn { before: child as u32, after: token },
                Verdict::Correct => residual(&p, &law, &[]),
                Verdict::CorrectWithout(pool) => residual(&p, &law, &pool),
                Verdict::Redraw => log_weights.clone(),
            };
            // Should rounding have left nothing, p stays.
            if left.iter().any(|weight| *weight > f32::NEG_INFINITY) {
                softmax(&left, &mut p);
                log_weights = left;
            }
            if drawn {
                q[token as usize] = 0.0;
                let total: f32 = q.iter().sum();
                q.iter_mut().filter(|q| **q > 0.0).for_each(|q| *q /= total);
            }
        }
        Drawn { before: NONE, after: self.gumbel(Purpose::Residual, draw, stream, &log_weights) }
    }

    /// Draws from a residual, or from p should rounding have left nothing of it.
    fn corrected(&mut self, draw: &Draw, stream: Stream, log_weights: &[f32], residual: &[f32]) -> u32 {
        let empty = residual.iter().all(|weight| *weight == f32::NEG_INFINITY);
        self.gumbel(Purpose::Residual, draw, stream, if empty { log_weights } else { residual })
    }
}

/// The tokens of the `count` largest scores, largest first, of equals the lower token first; fewer if only so many have any.
fn largest(scores: &[f32], count: u32) -> Vec<u32> {
    assert!((1..=CHILDREN).contains(&count), "{count} children");
    let mut tokens: Vec<u32> = (0..scores.len() as u32).filter(|&t| scores[t as usize] > f32::NEG_INFINITY).collect();
    // Adding zero makes both zeros one.
    let score = |token: u32| scores[token as usize] + 0.0;
    let order = |a: &u32, b: &u32| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
    if tokens.len() > count as usize {
        tokens.select_nth_unstable_by(count as usize, order);
        tokens.truncate(count as usize);
    }
    tokens.sort_unstable_by(order);
    tokens
}

/// Log-weights of max(0, p - q) without some tokens.
fn residual(p: &[f32], q: &Proposal, without: &[u32]) -> Vec<f32> {
    let mut residual: Vec<f32> = p.iter().enumerate().map(|(token, p)| (p - q.of(token)).max(0.0).ln()).collect();
    without.iter().for_each(|&token| residual[token as usize] = f32::NEG_INFINITY);
    residual
}

/// See [`Backend::put`](crate::backend::Backend::put).
pub(super) fn put(step: &Step, canvas: &mut Canvas) {
    for put in &step.puts {
        canvas.put(put.image as usize * canvas.positions + put.position as usize, put.token);
    }
}

/// See [`Backend::draw`](crate::backend::Backend::draw).
pub(super) fn draw(step: &Step, phase: Phase, x: &Tensor, canvas: &mut Canvas, codebook: Option<&Codebook>) {
    let draws = match phase {
        Phase::Drafts => &step.drafts,
        Phase::Verdicts => &step.verdicts,
    };
    check_chains(draws);
    let chosen: usize = draws.iter().map(|draw| draw.rule.chooses()).sum();
    assert!(chosen <= CHOICES * canvas.tokens.len(), "{chosen} tokens are chosen");
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
        drawn.push(canvas.apply(draw, &image, codebook, &weights));
        canvas.scratch[1] = weights;
        canvas.scratch[2] = second;
    }
    canvas.chosen[phase as usize] = std::mem::take(&mut canvas.fresh);
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
    use super::super::memory::Aligned;
    use super::*;
    use crate::backend::{PoolBound, Test};
    use crate::decode::testing::assert_follows;
    use crate::sampling::Sampling;

    fn logs(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    fn at(position: u32, rule: Rule, round: u32) -> Draw {
        let (conditional, unconditional) = ([0, NONE], [NONE; 2]);
        Draw { image: 0, position, rule, follows: false, round, conditional, unconditional }
    }

    fn image(seed: u64, test: Test) -> Image {
        let sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };
        Image { stream: Stream { seed, image: 0 }, sampling, test }
    }

    fn apply(canvas: &mut Canvas, draw: Draw, seed: u64, p: &[f32]) -> Drawn {
        canvas.apply(&draw, &image(seed, Test::Token), None, &logs(p))
    }

    #[test]
    fn a_token_clings_while_no_other_is_better_by_the_slack_less_its_penalty() {
        let (p, slack, penalty) = ([0.6, 0.1, 0.0, 0.3], 0.75, 0.5);
        let (mut stayed, mut left, mut improbable) = (0, 0, 0);
        for seed in 0..400 {
            let mut noise = [0.0; 4];
            image(seed, Test::Token).stream.gumbel(Purpose::Token, 0, 5, &mut noise);
            let weights = logs(&p);
            let best = gumbel_max(&weights, &noise);
            let less = |values: &[f32], token| values[best as usize] - values[token as usize];
            for token in 0..4 {
                let draw = |slack, penalty| {
                    let mut canvas = Canvas::new(1, 8, 4);
                    canvas.put(5, token);
                    let drawn = apply(&mut canvas, at(5, Rule::Cling { slack, penalty }, 3), seed, &p);
                    assert_eq!((drawn.before, drawn.after), (token, canvas.at(5)));
                    drawn.after
                };
                let or_best = |stays| if stays { token } else { best };
                let better = less(&weights, token) + less(&noise, token);
                assert_eq!(draw(slack, 0.0), or_best(better < slack));
                let stays = better < slack - penalty * less(&weights, token).max(0.0);
                assert_eq!(draw(slack, penalty), or_best(stays));
                assert_eq!(draw(0.0, penalty), best, "without slack it is a coupled draw");
                stayed += u32::from(stays && token != best);
                left += u32::from(!stays);
                improbable += u32::from(better < slack && !stays);
            }
        }
        assert!(stayed > 100 && left > 400 && improbable > 20, "{stayed} stayed, {left} left, {improbable} by penalty");
    }

    #[test]
    fn coupled_tokens_follow_p_and_ignore_the_draft() {
        let p = [0.5, 0.2, 0.0, 0.3];
        assert_follows(&p, |seed| apply(&mut Canvas::new(1, 8, 4), at(3, Rule::Coupled, 0), seed, &p).after);
        let mut canvas = Canvas::new(1, 8, 4);
        let first = apply(&mut canvas, at(5, Rule::Coupled, 0), 1, &p).after;
        canvas.tokens[5] = (first + 1) % 4;
        assert_eq!(apply(&mut canvas, at(5, Rule::Coupled, 1), 1, &p).after, first);
    }

    #[test]
    fn auto_correct_turns_q_into_p_in_every_round() {
        let (q, p, p2) = ([0.1, 0.6, 0.2, 0.1], [0.5, 0.2, 0.0, 0.3], [0.25, 0.25, 0.25, 0.25]);
        let run = |seed, rounds| {
            let mut canvas = Canvas::new(1, 8, 4);
            apply(&mut canvas, at(2, Rule::Draft, 0), seed, &q);
            let first = apply(&mut canvas, at(2, Rule::AutoCorrect, 0), seed, &p).after;
            if rounds == 1 {
                return first;
            }
            apply(&mut canvas, at(2, Rule::AutoCorrect, 1), seed, &p2).after
        };
        assert_follows(&p, |seed| run(seed, 1));
        assert_follows(&p2, |seed| run(seed, 2));
    }

    #[test]
    fn auto_correct_keeps_every_draft_when_q_is_p() {
        let p = [0.4, 0.3, 0.2, 0.1];
        for seed in 0..200 {
            let mut canvas = Canvas::new(1, 1, 4);
            apply(&mut canvas, at(0, Rule::Draft, 0), seed, &p);
            let Drawn { before, after } = apply(&mut canvas, at(0, Rule::AutoCorrect, 0), seed, &p);
            assert_eq!(before, after);
        }
    }

    #[test]
    fn a_token_that_was_put_becomes_one_of_p() {
        let p = [0.5, 0.2, 0.0, 0.3];
        for put in 0..4 {
            let run = |seed| {
                let mut canvas = Canvas::new(1, 8, 4);
                canvas.put(2, put);
                apply(&mut canvas, at(2, Rule::AutoCorrect, 0), seed, &p)
            };
            assert_follows(&p, |seed| run(seed).after);
            let kept = (0..2000).filter(|&seed| run(seed).after == put).count() as f32 / 2000.0;
            assert!(
                (kept - p[put as usize]).abs() < 0.06,
                "{put} stays {kept} of the time: what fails is not drawn again"
            );
        }
    }

    /// Three positions whose q and p differ, in a chain or not.
    fn chain(seed: u64, follows: [bool; 3]) -> [Drawn; 3] {
        let q = [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]];
        let p = [[0.3, 0.3, 0.4], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]];
        let mut canvas = Canvas::new(1, 3, 3);
        for (i, q) in q.iter().enumerate() {
            apply(&mut canvas, at(i as u32, Rule::Draft, 0), seed, q);
        }
        let verdict = |i: usize| Draw { follows: follows[i], ..at(i as u32, Rule::AutoCorrect, 0) };
        std::array::from_fn(|i| apply(&mut canvas, verdict(i), seed, &p[i]))
    }

    /// The law of [`chain`]: of the three tokens, first lowest; `linked` says whether followers follow.
    fn law_of_chain(linked: bool) -> Vec<f32> {
        let q = [[0.7f32, 0.2, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]];
        let p = [[0.3f32, 0.3, 0.4], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]];
        let (mut law, digits) = (vec![0.0; 27 * 27], |code: usize| [code % 3, code / 3 % 3, code / 9]);
        for (code, law) in law.iter_mut().enumerate() {
            let (drafts, tokens) = (digits(code % 27), digits(code / 27));
            let (mut probability, mut judged) = (1.0, true);
            for i in 0..3 {
                let (t, x) = (drafts[i], tokens[i]);
                let residual: Vec<f32> = p[i].iter().zip(&q[i]).map(|(p, q)| (p - q).max(0.0)).collect();
                let pass = (p[i][t] / q[i][t]).min(1.0);
                let corrected = (1.0 - pass) * residual[x] / residual.iter().sum::<f32>();
                probability *= q[i][t];
                probability *= match (judged, x == t) {
                    (false, _) => p[i][x],
                    (true, true) => pass,
                    (true, false) => corrected,
                };
                judged = !linked || (judged && x == t);
            }
            *law = probability;
        }
        law
    }

    #[test]
    fn a_chain_stops_at_the_first_token_that_fails() {
        let code = |drawn: [Drawn; 3]| {
            let digits = |tokens: [u32; 3]| tokens[0] + 3 * tokens[1] + 9 * tokens[2];
            digits(drawn.map(|d| d.before)) + 27 * digits(drawn.map(|d| d.after))
        };
        let (linked, free) = (law_of_chain(true), law_of_chain(false));
        assert!((linked.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert_follows(&linked, |seed| code(chain(seed, [false, true, true])));
        assert_follows(&free, |seed| code(chain(seed, [false; 3])));
        let counts = |follows| {
            let mut counts = vec![0; 27 * 27];
            (0..20_000).for_each(|seed| counts[code(chain(seed, follows)) as usize] += 1);
            counts
        };
        let linked: Vec<f64> = linked.into_iter().map(f64::from).collect();
        let follows = |seen: Vec<usize>| crate::decode::testing::follows(&linked, &seen);
        assert!(!follows(counts([false; 3])) && !follows(counts([false, true, false])), "the law is sharp");
    }

    #[test]
    #[should_panic(expected = "follows no verdict")]
    fn what_follows_follows_a_verdict() {
        check_chains(&[at(0, Rule::Draft, 0), Draw { follows: true, ..at(1, Rule::AutoCorrect, 0) }]);
    }

    /// Tokens on a line. By distance: 0: 1 4 2 3 5, 1: 0 2 4 3 5, 2: 3 1 0 5 4, 3: 2 5 1 0 4, 4: 0 1 2 3 5, 5: 3 2 1 0 4.
    const LINE: [f32; 6] = [0.0, 1.0, 3.0, 4.0, -1.5, 5.5];
    const Q: [f32; 6] = [0.25, 0.05, 0.05, 0.5, 0.125, 0.025];
    const P: [f32; 6] = [0.125, 0.275, 0.175, 0.2, 0.0, 0.225];

    /// The law of a token of Q that is judged by P: by the probability that each passes, and what replaces it.
    fn law_of(pass: [f32; 6], instead: impl Fn(usize) -> [f32; 6]) -> [f32; 6] {
        let mut law = [0.0; 6];
        for t in 0..6 {
            let other = instead(t);
            let total: f32 = other.iter().sum();
            law[t] += Q[t] * pass[t].min(1.0);
            for x in 0..6 {
                law[x] += Q[t] * (1.0 - pass[t].min(1.0)) * if total > 0.0 { other[x] / total } else { 0.0 };
            }
        }
        law
    }

    fn judged(test: Test, codebook: Option<&Codebook>, seed: u64) -> u32 {
        let mut canvas = Canvas::new(1, 4, 6);
        canvas.apply(&at(2, Rule::Draft, 0), &image(seed, test), codebook, &logs(&Q));
        canvas.apply(&at(2, Rule::AutoCorrect, 0), &image(seed, test), codebook, &logs(&P)).after
    }

    fn positive(x: usize) -> f32 {
        (P[x] - Q[x]).max(0.0)
    }

    /// max(0, P - Q).
    fn token_residual(_: usize) -> [f32; 6] {
        std::array::from_fn(positive)
    }

    #[test]
    fn groups_follow_the_law_of_the_paper() {
        // Ranks by P: 1, 5, 3, 2, 0; 4 has none. Of three the one before and the one after, at the ends two on one side.
        let ratio =
            |group: &[usize]| group.iter().map(|&c| P[c]).sum::<f32>() / group.iter().map(|&c| Q[c]).sum::<f32>();
        let test = Test::Grouped { size: 3, delta: 1.0, distance: f32::INFINITY };
        let (high, low) = (ratio(&[1, 5, 3]), ratio(&[3, 2, 0]));
        let pass = [low, high, low, ratio(&[5, 3, 2]), 0.0, high];
        assert_follows(&law_of(pass, token_residual), |seed| judged(test, None, seed));
        // Four: two after.
        let test = Test::Grouped { size: 4, delta: 1.0, distance: f32::INFINITY };
        let (high, low) = (ratio(&[1, 5, 3, 2]), ratio(&[5, 3, 2, 0]));
        let pass = [low, high, low, low, 0.0, high];
        assert_follows(&law_of(pass, token_residual), |seed| judged(test, None, seed));
        // Both filters: |p - p(t)| < 0.075 and squared distance < 5.
        let codebook = Codebook::new(&LINE, 1, 0);
        let test = Test::Grouped { size: 5, delta: 0.075, distance: 5.0 };
        let pass = [P[0] / Q[0], P[1] / Q[1], ratio(&[2, 3]), ratio(&[3, 2, 5]), 0.0, ratio(&[5, 3])];
        assert_follows(&law_of(pass, token_residual), |seed| judged(test, Some(&codebook), seed));
    }

    #[test]
    fn pools_follow_the_law_of_the_paper() {
        let codebook = Codebook::new(&LINE, 1, 3);
        let pools = |bound: &dyn Fn(usize) -> f32| {
            let near = [[1, 4, 2], [0, 2, 4], [3, 1, 0], [2, 5, 1], [0, 1, 2], [3, 2, 1]];
            std::array::from_fn::<Vec<usize>, 6, _>(|t| {
                let sum = |n: usize| near[t][..n].iter().map(|&c: &usize| P[c]).sum::<f32>();
                let most = (0..=3).rev().find(|&n| n == 0 || sum(n) <= bound(t) + 1e-6).unwrap();
                near[t][..most].to_vec()
            })
        };
        let (mass, ratio) = (pools(&|_| 0.26), pools(&|t| 1.5 * P[t]));
        for (bound, pools) in [(PoolBound::Mass(0.26), mass), (PoolBound::Ratio(2.5), ratio)] {
            let pass = |t: usize| (P[t] + pools[t].iter().map(|&c| P[c]).sum::<f32>()) / Q[t];
            // What is left of p once the pool's mass is the token's.
            let instead = |t: usize| std::array::from_fn(|x| if pools[t].contains(&x) { 0.0 } else { positive(x) });
            let law = law_of(std::array::from_fn(pass), instead);
            assert_follows(&law, |seed| judged(Test::Pooled { neighbours: 3, bound }, Some(&codebook), seed));
        }
    }

    #[test]
    fn thresholds_keep_what_has_enough_mass_around() {
        let codebook = Codebook::new(&LINE, 1, 2);
        // p and the two nearest: 0: 0.4, 1: 0.575, 2: 0.65, 3: 0.6, 4: 0.4, 5: 0.6.
        let test = Test::Threshold { neighbours: 2, least: 0.5875 };
        let law = law_of([0.0, 0.0, 1.0, 1.0, 0.0, 1.0], |_| P);
        assert_follows(&law, |seed| judged(test, Some(&codebook), seed));
    }

    /// Whether a token failed can be told when what replaced it is the same.
    #[test]
    fn a_token_that_fails_and_is_drawn_again_is_told_from_one_that_passes() {
        for (least, before) in [(0.5, 3), (1.5, NONE)] {
            let mut canvas = Canvas::new(1, 4, 6);
            canvas.put(2, 3);
            let image = image(0, Test::Threshold { neighbours: 0, least });
            let drawn =
                canvas.apply(&at(2, Rule::AutoCorrect, 0), &image, None, &logs(&[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]));
            assert_eq!(drawn, Drawn { before, after: 3 });
        }
    }

    #[test]
    fn degenerate_tests_are_that_of_tokens() {
        let codebook = Codebook::new(&LINE, 1, 5);
        for seed in 0..2000 {
            let token = judged(Test::Token, None, seed);
            for test in [
                Test::Grouped { size: 1, delta: 1.0, distance: f32::INFINITY },
                Test::Pooled { neighbours: 0, bound: PoolBound::Mass(0.5) },
                Test::Pooled { neighbours: 5, bound: PoolBound::Ratio(1.0) },
            ] {
                assert_eq!(judged(test, Some(&codebook), seed), token, "{test:?}");
            }
        }
    }

    #[test]
    fn greedy_laws_leave_only_the_best() {
        let greedy =
            [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY];
        let codebook = Codebook::new(&LINE, 1, 5);
        for test in [
            Test::Token,
            Test::Grouped { size: 4, delta: 2.0, distance: 1e9 },
            Test::Pooled { neighbours: 5, bound: PoolBound::Mass(0.5) },
            Test::Pooled { neighbours: 5, bound: PoolBound::Ratio(9.0) },
        ] {
            for (seed, follows) in (0..60).flat_map(|seed| [(seed, false), (seed, true)]) {
                let (mut canvas, image) = (Canvas::new(1, 4, 6), image(seed, test));
                for position in 1..4 {
                    canvas.put(position, seed as u32 % 6);
                }
                for position in 1..4 {
                    let draw = Draw { follows: follows && position > 1, ..at(position, Rule::AutoCorrect, 0) };
                    let drawn = canvas.apply(&draw, &image, Some(&codebook), &greedy);
                    assert_eq!(drawn.after, 1, "{test:?}");
                }
            }
        }
    }

    /// What becomes of children that were drawn from Q, or chosen, by P: the number of the child, or the number of children,
    /// and the token, as one number.
    fn family(count: u32, drawn: bool, test: Test, codebook: Option<&Codebook>, seed: u64) -> usize {
        let (mut canvas, image) = (Canvas::new(1, 16, 6), image(seed, test));
        if drawn {
            canvas.apply(&at(4, Rule::Children { count }, 0), &image, None, &logs(&Q));
        } else {
            for (child, &token) in CHOSEN[..count as usize].iter().enumerate() {
                canvas.put(4 + child, token);
            }
        }
        let rule = Rule::Siblings { first: 4, count, drawn };
        let Drawn { before, after } = canvas.apply(&at(2, rule, 0), &image, codebook, &logs(&P));
        before.min(count) as usize * 6 + after as usize
    }

    const CHOSEN: [u32; 3] = [3, 0, 1];

    /// The law of [`family`] by the definition: over what can be drawn, in order. `pool` are a token's neighbours by p.
    fn law_of_family(
        children: &[usize],
        count: usize,
        drawn: bool,
        p: [f64; 6],
        q: [f64; 6],
        pool: &dyn Fn(usize, &[f64; 6]) -> Vec<usize>,
    ) -> Vec<f64> {
        let mut law = vec![0.0; 6 * (count + 1)];
        let child = children.len();
        if child == count {
            (0..6).for_each(|x| law[6 * count + x] = p[x]);
            return law;
        }
        let own = |t: usize| std::array::from_fn(|x| f64::from(u8::from(x == t)));
        for t in 0..6 {
            // Each child by its probability, given those before it that failed.
            let (weight, of): (f64, [f64; 6]) = match drawn {
                true => (q[t], q),
                false => (f64::from(u8::from(CHOSEN[child] as usize == t)), own(t)),
            };
            if weight == 0.0 {
                continue;
            }
            let near = pool(t, &p);
            let pass = ((p[t] + near.iter().map(|&c| p[c]).sum::<f64>()) / of[t]).min(1.0);
            law[6 * child + t] += weight * pass;
            if pass < 1.0 {
                let left = |x: usize| if near.contains(&x) { 0.0 } else { (p[x] - of[x]).max(0.0) };
                let total: f64 = (0..6).map(left).sum();
                let rest = 1.0 - q[t];
                let others = std::array::from_fn(|x| if x == t { 0.0 } else { q[x] / rest });
                let next = [children, &[t]].concat();
                let after = law_of_family(&next, count, drawn, std::array::from_fn(|x| left(x) / total), others, pool);
                law.iter_mut().zip(after).for_each(|(law, after)| *law += weight * (1.0 - pass) * after);
            }
        }
        law
    }

    #[test]
    fn siblings_follow_the_law_of_recursive_rejection() {
        let codebook = Codebook::new(&LINE, 1, 2);
        let near = [[1, 4], [0, 2], [3, 1], [2, 5], [0, 1], [3, 2]];
        let none = |_: usize, _: &[f64; 6]| Vec::new();
        let pooled = |t: usize, p: &[f64; 6]| {
            let fits = |n: &usize| near[t][..*n].iter().map(|&c: &usize| p[c]).sum::<f64>() <= 0.21;
            near[t][..(0..=2).rev().find(fits).unwrap_or(0)].to_vec()
        };
        let pool = Test::Pooled { neighbours: 2, bound: PoolBound::Mass(0.21) };
        let (p, q) = (P.map(f64::from), Q.map(f64::from));
        for (count, drawn) in [(1, true), (2, true), (3, true), (1, false), (3, false)] {
            for (test, pools) in [(Test::Token, &none as &dyn Fn(usize, &[f64; 6]) -> Vec<usize>), (pool, &pooled)] {
                let law = law_of_family(&[], count, drawn, p, q, pools);
                let law: Vec<f32> = law.into_iter().map(|p| p as f32).collect();
                assert_follows(&law, |seed| family(count as u32, drawn, test, Some(&codebook), seed) as u32);
                if test == Test::Token {
                    // Whatever the children, the token's law is that of the node.
                    let total = |x: usize| (0..=count).map(|child| law[6 * child + x]).sum::<f32>();
                    (0..6).for_each(|x| assert!((total(x) - P[x]).abs() < 1e-5, "{count} children, token {x}"));
                    assert_follows(&P, |seed| family(count as u32, drawn, test, None, seed + 50_000) as u32 % 6);
                }
            }
        }
    }

    #[test]
    fn children_are_drawn_without_replacement() {
        let children = |seed: u64, count: u32| {
            let mut canvas = Canvas::new(1, 16, 6);
            apply(&mut canvas, at(4, Rule::Children { count }, 0), seed, &Q);
            canvas.tokens[4..4 + count as usize].to_vec()
        };
        let mut law = vec![0.0; 36];
        for (a, b) in (0..36).map(|code| (code / 6, code % 6)).filter(|(a, b)| a != b) {
            law[6 * a + b] = Q[a] * Q[b] / (1.0 - Q[a]);
        }
        assert_follows(&law, |seed| {
            let two = children(seed, 2);
            6 * two[0] + two[1]
        });
        // More children than tokens.
        let all = children(3, 8);
        let mut first: Vec<u32> = all[..6].to_vec();
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2, 3, 4, 5]);
        assert_eq!(all[6..], [all[0]; 2]);
        // Those that are none are never taken, and nothing is left for them to take.
        for seed in 0..500 {
            assert!(family(8, true, Test::Token, None, seed) / 6 < 6);
        }
    }

    #[test]
    fn the_likeliest_are_chosen_in_order() {
        let draw = |rule, conditional| Draw { conditional: [conditional, NONE], ..at(4, rule, 0) };
        let likeliest = |count, conditional| draw(Rule::Likeliest { count }, conditional);
        let rows = [P, [0.25, 0.5, 0.0, 0.0, 0.25, 0.0]];
        let data = Aligned::zeroed(12, "logits").unwrap();
        let mut x = Tensor { data, rows: 2, cols: 6, max_rows: 2 };
        x.data.as_mut_slice().copy_from_slice(&logs(&rows.concat()));
        let mut canvas = Canvas::new(1, 16, 6);
        let images = vec![image(1, Test::Token)];
        let second = Draw { position: 10, ..likeliest(4, 1) };
        let mut step = Step { images, drafts: vec![likeliest(3, 0), second], ..Step::default() };
        super::draw(&step, Phase::Drafts, &x, &mut canvas, None);
        assert_eq!(canvas.tokens[4..7], [1, 5, 3]);
        // Of equals the lower; then there is nothing.
        assert_eq!(canvas.tokens[10..14], [1, 0, 4, 1]);
        step.verdicts = vec![likeliest(1, 1)];
        super::draw(&step, Phase::Verdicts, &x, &mut canvas, None);
        let chosen = canvas.chosen(&step);
        let tokens: Vec<u32> = chosen.iter().map(|chosen| chosen.token).collect();
        assert_eq!(tokens, [1, 5, 3, 1, 0, 4, 1, 1]);
        for (chosen, p) in chosen.iter().zip([0.275f32, 0.225, 0.2, 0.5, 0.25, 0.25, 0.0, 0.5]) {
            let gap = (chosen.log_probability - p.ln()).abs();
            assert!(chosen.log_probability == p.ln() || gap < 1e-6, "{chosen:?}, not {p}");
        }
        // A step that chooses in one phase alone.
        step.drafts.clear();
        assert_eq!(canvas.chosen(&step).len(), 1);
    }

    #[test]
    fn the_coupled_draw_is_foreseen() {
        for seed in 0..200 {
            let mut canvas = Canvas::new(1, 16, 6);
            canvas.put(5, 4);
            let before = canvas.clone();
            let foreseen = apply(&mut canvas, at(5, Rule::Foresee { count: 6 }, seed as u32), seed, &P);
            assert_eq!(canvas.tokens, before.tokens);
            let chosen = std::mem::take(&mut canvas.fresh);
            let coupled = apply(&mut canvas, at(5, Rule::Coupled, 7), seed, &P);
            assert_eq!((foreseen.before, foreseen.after), (NONE, coupled.after));
            assert_eq!(chosen[0].token, coupled.after);
            let shares: Vec<f32> = chosen.iter().map(|chosen| chosen.log_probability.exp()).collect();
            assert!(shares.is_sorted_by(|a, b| a >= b) && (shares.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            // Without the first its noise falls to the second.
            let mut others = P;
            others[coupled.after as usize] = 0.0;
            assert_eq!(apply(&mut canvas, at(5, Rule::Coupled, 0), seed, &others).after, chosen[1].token);
            // One token has no weight.
            assert_eq!((chosen[5].token, chosen[5].log_probability), (coupled.after, f32::NEG_INFINITY));
        }
    }

    #[test]
    fn a_leaf_is_drawn_from_its_law() {
        let rule = Rule::Siblings { first: 15, count: 0, drawn: true };
        assert_follows(&P, |seed| {
            let drawn = apply(&mut Canvas::new(1, 16, 6), at(2, rule, 0), seed, &P);
            assert_eq!(drawn.before, NONE);
            drawn.after
        });
    }
}
