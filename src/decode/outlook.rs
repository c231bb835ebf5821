//! What a position may hold, from all that passes have foreseen of it.
//!
//! A distribution was made in the context that was fed, which is seldom the one that is asked about. How much it still says
//! depends most on the tokens to its left: where the nearest two were the same, the best token of it is right 92 times in
//! a hundred, 71 times where the nearest one was, else 50 times (docs/wavefront.md). The tokens of a position come back,
//! for its noise is fixed, so a context that is new to the last pass has often been seen by an earlier one, or by a node
//! beside it. Hence one law of all: a sum weighted by what stood to the left and by age, and the sharper the
//! more of the context is the same, for then less can have changed.

use crate::backend::Chosen;

/// The two tokens to the left of a position in raster order, nearest first, as far as the grid has them.
pub type Before = [Option<u32>; 2];

/// What each more of the same tokens to the left multiplies the weight of a distribution by.
const WEIGHT: f32 = 30.0;

/// What each pass since multiplies it by.
const DECAY: f32 = 0.8;

/// What each more of the same tokens multiplies the power by that the law is raised to.
const SHARPNESS: f32 = 2.0;

/// One distribution of a position.
struct Seen {
    pass: i32,
    before: Before,
    chosen: Vec<Chosen>,
}

/// What was foreseen of every position of an image.
pub struct Outlook {
    pass: i32,
    seen: Vec<Vec<Seen>>,
}

impl Outlook {
    /// Nothing yet, of so many positions.
    pub fn new(positions: usize) -> Self {
        Self { pass: 0, seen: std::iter::repeat_with(Vec::new).take(positions).collect() }
    }

    /// The next pass begins, and nobody will ask about the first `known` positions any more.
    pub fn turn(&mut self, known: usize) {
        self.pass += 1;
        self.seen[..known].fill_with(Vec::new);
    }

    /// Takes in the best tokens of a distribution that was made after these tokens.
    pub fn see(&mut self, position: usize, before: Before, chosen: &[Chosen]) {
        let probable = chosen.iter().filter(|chosen| chosen.log_probability > f32::NEG_INFINITY).copied();
        self.seen[position].push(Seen { pass: self.pass, before, chosen: probable.collect() });
    }

    /// What the position may hold after these tokens, most probable first; the shares of all that were foreseen add up to
    /// one. Nothing if nothing was.
    pub fn of(&self, position: usize, before: Before) -> Vec<Chosen> {
        let seen = self.seen[position].iter().map(|seen| (common(seen.before, before), seen));
        let most = seen.clone().map(|(common, _)| common).max().unwrap_or(0);
        let newest = self.seen[position].iter().map(|seen| seen.pass).max().unwrap_or(0);
        // Relative to the closest and to the newest, so that no weights are all too small for a number.
        let mut law: Vec<(u32, f32)> = Vec::new();
        for (common, seen) in seen {
            let weight = WEIGHT.powi(common - most) * DECAY.powi(newest - seen.pass);
            for chosen in &seen.chosen {
                let share = weight * chosen.log_probability.exp();
                match law.iter_mut().find(|(token, _)| *token == chosen.token) {
                    Some((_, sum)) => *sum += share,
                    None => law.push((chosen.token, share)),
                }
            }
        }
        sharpened(law, SHARPNESS.powi(most))
    }
}

/// How many tokens two contexts have in common, from the nearest on.
fn common(one: Before, other: Before) -> i32 {
    one.iter().zip(&other).take_while(|(one, other)| one == other).count() as i32
}

/// The law whose shares are powers of these, most probable first; of equals, what was seen first.
fn sharpened(mut law: Vec<(u32, f32)>, power: f32) -> Vec<Chosen> {
    law.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let Some(&(_, best)) = law.first() else { return Vec::new() };
    let relative = |share: f32| power * (share / best).ln();
    let sum: f32 = law.iter().map(|&(_, share)| relative(share).exp()).sum();
    let chosen = |(token, share)| Chosen { token, log_probability: relative(share) - sum.ln() };
    law.into_iter().map(chosen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(tokens: &[(u32, f32)]) -> Vec<Chosen> {
        tokens.iter().map(|&(token, p)| Chosen { token, log_probability: p.ln() }).collect()
    }

    fn tokens(outlook: &Outlook, before: Before) -> Vec<u32> {
        outlook.of(0, before).iter().map(|chosen| chosen.token).collect()
    }

    fn share(outlook: &Outlook, before: Before, token: u32) -> f32 {
        let law = outlook.of(0, before);
        law.iter().find(|chosen| chosen.token == token).map_or(0.0, |chosen| chosen.log_probability.exp())
    }

    #[test]
    fn nearer_contexts_count_more() {
        let mut outlook = Outlook::new(1);
        assert!(outlook.of(0, [None, None]).is_empty());
        outlook.see(0, [Some(1), Some(2)], &forecast(&[(10, 0.9)]));
        outlook.see(0, [Some(1), Some(3)], &forecast(&[(11, 0.9)]));
        outlook.see(0, [Some(4), Some(2)], &forecast(&[(12, 0.9)]));
        assert_eq!(tokens(&outlook, [Some(1), Some(2)]), [10, 11, 12]);
        assert_eq!(tokens(&outlook, [Some(1), Some(3)]), [11, 10, 12]);
        // The second token alone says nothing: the nearest is another.
        assert_eq!(tokens(&outlook, [Some(4), Some(9)]), [12, 10, 11]);
        assert_eq!(share(&outlook, [Some(7), Some(2)], 12), share(&outlook, [Some(7), Some(2)], 10));
    }

    #[test]
    fn newer_ones_count_more_and_all_are_added_up() {
        let mut outlook = Outlook::new(1);
        outlook.see(0, [Some(1), None], &forecast(&[(10, 0.5), (11, 0.4), (13, 0.0)]));
        outlook.turn(0);
        outlook.see(0, [Some(2), None], &forecast(&[(12, 0.5), (11, 0.2)]));
        // 0.8 * 0.4 + 0.2, 0.5, 0.8 * 0.5.
        assert_eq!(tokens(&outlook, [Some(3), None]), [11, 12, 10]);
        assert!((share(&outlook, [Some(3), None], 11) - 0.52 / 1.42).abs() < 1e-6);
    }

    #[test]
    fn the_closer_the_context_the_sharper_the_law() {
        let mut outlook = Outlook::new(1);
        outlook.see(0, [Some(1), Some(2)], &forecast(&[(10, 0.4), (11, 0.2)]));
        let of = |before| share(&outlook, before, 10);
        assert!((of([Some(9), Some(2)]) - 2.0 / 3.0).abs() < 1e-6);
        assert!((of([Some(1), Some(9)]) - 4.0 / 5.0).abs() < 1e-6);
        assert!((of([Some(1), Some(2)]) - 16.0 / 17.0).abs() < 1e-6);
    }

    #[test]
    fn a_law_survives_many_passes_and_what_is_known_is_forgotten() {
        let mut outlook = Outlook::new(2);
        outlook.see(0, [Some(1), None], &forecast(&[(10, 0.4)]));
        outlook.see(1, [Some(1), None], &forecast(&[(10, 0.4), (11, 0.2)]));
        (0..100_000).for_each(|_| outlook.turn(1));
        assert!(outlook.of(0, [Some(1), None]).is_empty());
        assert!(outlook.of(1, [Some(1), None]).iter().all(|chosen| chosen.log_probability.is_finite()));
    }
}
