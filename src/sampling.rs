//! The probabilities that decide: guidance -> temperature -> top-k -> top-p, in f32, the same function for the
//! target's distribution p and a drafter's q.

/// How logits become a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Classifier-free guidance: `l = u + cfg (c - u)`. 1 is the conditional branch alone, which is then the only one run.
    pub cfg: f32,
    /// Temperature; 0 is greedy.
    pub temperature: f32,
    /// Keep the k largest; 0 keeps all. Ties with the k-th are kept.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all.
    pub top_p: f32,
}

impl Sampling {
    /// Says what is wrong with the settings, if anything.
    pub fn validate(&self) -> Result<(), String> {
        let Self { cfg, temperature, top_p, .. } = *self;
        if !cfg.is_finite() || !(0.0..=100.0).contains(&cfg) {
            return Err(format!("cfg is {cfg}, it must lie in 0..=100"));
        }
        if !temperature.is_finite() || !(temperature == 0.0 || (0.01..=100.0).contains(&temperature)) {
            return Err(format!("temperature is {temperature}, it must be 0 (greedy) or lie in 0.01..=100"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(format!("top-p is {top_p}, it must lie in (0, 1]"));
        }
        Ok(())
    }

    /// Number of branches that a pass runs.
    pub fn branches(&self) -> usize {
        if self.cfg == 1.0 { 1 } else { 2 }
    }

    /// Turns the branches' logits into log-weights (up to a constant) in `out`.
    pub fn process(&self, conditional: &[f32], unconditional: Option<&[f32]>, out: &mut [f32]) {
        match unconditional {
            None => out.copy_from_slice(conditional),
            Some(unconditional) => {
                for ((out, c), u) in out.iter_mut().zip(conditional).zip(unconditional) {
                    *out = u + self.cfg * (c - u);
                }
            }
        }
        if self.temperature == 0.0 {
            let best = argmax(out);
            out.fill(f32::NEG_INFINITY);
            out[best] = 0.0;
            return;
        }
        if self.temperature != 1.0 {
            out.iter_mut().for_each(|x| *x /= self.temperature);
        }
        if self.top_k > 0 && self.top_k < out.len() {
            keep_top_k(out, self.top_k);
        }
        if self.top_p < 1.0 {
            keep_top_p(out, self.top_p);
        }
    }
}

/// Index of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// The Gumbel-max sample: argmax of log-weight plus noise.
pub fn gumbel_max(log_weights: &[f32], noise: &[f32]) -> u32 {
    let (mut best, mut top) = (0, f32::NEG_INFINITY);
    for (index, (weight, noise)) in log_weights.iter().zip(noise).enumerate() {
        if weight + noise > top {
            (best, top) = (index, weight + noise);
        }
    }
    best as u32
}

/// Probabilities of log-weights.
pub fn softmax(log_weights: &[f32], out: &mut [f32]) {
    let top = log_weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for (out, weight) in out.iter_mut().zip(log_weights) {
        *out = (weight - top).exp();
        total += *out;
    }
    out.iter_mut().for_each(|x| *x /= total);
}

/// Log-probability of one entry, in nats.
pub fn log_prob(log_weights: &[f32], token: u32) -> f32 {
    let top = log_weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = log_weights.iter().map(|weight| (weight - top).exp()).sum();
    log_weights[token as usize] - top - total.ln()
}

fn keep_top_k(log_weights: &mut [f32], k: usize) {
    let mut sorted = log_weights.to_vec();
    let (_, kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let kth = *kth;
    log_weights.iter_mut().filter(|x| **x < kth).for_each(|x| *x = f32::NEG_INFINITY);
}

fn keep_top_p(log_weights: &mut [f32], p: f32) {
    let mut probabilities = vec![0.0; log_weights.len()];
    softmax(log_weights, &mut probabilities);
    let mut order: Vec<usize> = (0..log_weights.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
    let mut mass = 0.0;
    let kept = order.iter().take_while(|&&index| {
        let before = mass;
        mass += probabilities[index];
        before < p
    });
    let kept = kept.count();
    order[kept..].iter().for_each(|&index| log_weights[index] = f32::NEG_INFINITY);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { cfg: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0 };

    fn process(sampling: Sampling, conditional: &[f32], unconditional: Option<&[f32]>) -> Vec<f32> {
        let mut out = vec![0.0; conditional.len()];
        sampling.process(conditional, unconditional, &mut out);
        out
    }

    #[test]
    fn steps_are_applied_in_order() {
        let guided = process(Sampling { cfg: 3.0, ..PLAIN }, &[1.0, 2.0], Some(&[0.0, 3.0]));
        assert_eq!(guided, [3.0, 0.0]);
        assert_eq!(process(Sampling { temperature: 0.5, ..PLAIN }, &[1.0, 2.0], None), [2.0, 4.0]);
        let top = process(Sampling { top_k: 2, ..PLAIN }, &[1.0, 3.0, 2.0], None);
        assert_eq!(top, [f32::NEG_INFINITY, 3.0, 2.0]);
    }

    #[test]
    fn temperature_zero_is_the_first_argmax() {
        let greedy = process(Sampling { temperature: 0.0, ..PLAIN }, &[1.0, 2.0, 2.0], None);
        assert_eq!(greedy, [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_the_mass() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let kept = |top_p| {
            let out = process(Sampling { top_p, ..PLAIN }, &logits, None);
            out.iter().filter(|x| x.is_finite()).count()
        };
        assert_eq!([kept(0.4), kept(0.6), kept(0.9)], [1, 2, 3]);
    }

    #[test]
    fn probabilities_agree() {
        let weights = [0.3, -1.0, f32::NEG_INFINITY, 2.0];
        let mut p = [0.0; 4];
        softmax(&weights, &mut p);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6 && p[2] == 0.0);
        assert!((log_prob(&weights, 3) - p[3].ln()).abs() < 1e-6);
    }
}
