//! Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
//!
//! Every number is a function of (seed, image, position, purpose, round), so a token is a deterministic map of
//! seed and context: the same whatever the batch, the thread count or the order of the work.

/// One block of Philox4x32-10: four 32-bit words from a counter and a key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// What a number is drawn for; streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The Gumbel noise that turns a position's distribution into its token (plain AR and all coupled methods).
    Token = 0,
    /// The draw of a draft from its own distribution in methods with an accept/reject test.
    Draft = 1,
    /// The uniform of an accept/reject test.
    Accept = 2,
    /// The draw from the residual distribution after a rejection.
    Residual = 3,
    /// The choice of an initial guess that no distribution stands behind.
    Guess = 4,
    /// The order in which a masked model draws its positions.
    Order = 5,
    /// The noise of a denoising trajectory; the round is the step.
    Denoise = 6,
}

/// The random numbers of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Seed of the request.
    pub seed: u64,
    /// Index of the image in the request.
    pub image: u32,
}

impl Stream {
    fn block(self, purpose: Purpose, round: u32, position: u32, index: u32) -> [u32; 4] {
        let counter = [index, position, self.image, purpose as u32 | round << 8];
        philox(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Uniform in (0, 1).
    pub fn uniform(self, purpose: Purpose, round: u32, position: usize) -> f32 {
        self.uniform_of(purpose, round, position, 0)
    }

    /// Uniform in (0, 1), the `index`-th of its kind.
    pub fn uniform_of(self, purpose: Purpose, round: u32, position: usize, index: u32) -> f32 {
        unit(self.block(purpose, round, position as u32, index / 4)[index as usize % 4])
    }

    /// Fills `noise` with independent standard normal variables.
    pub fn normal(self, purpose: Purpose, round: u32, position: usize, noise: &mut [f32]) {
        for (index, chunk) in noise.chunks_mut(4).enumerate() {
            let [a, b, c, d] = self.block(purpose, round, position as u32, index as u32);
            for (value, normal) in chunk.iter_mut().zip([normals([a, b]), normals([c, d])].concat()) {
                *value = normal as f32;
            }
        }
    }

    /// Fills `noise` with independent standard Gumbel variables, one per vocabulary entry.
    pub fn gumbel(self, purpose: Purpose, round: u32, position: usize, noise: &mut [f32]) {
        for (index, chunk) in noise.chunks_mut(4).enumerate() {
            let words = self.block(purpose, round, position as u32, index as u32);
            for (value, word) in chunk.iter_mut().zip(words) {
                *value = gumbel(word);
            }
        }
    }
}

/// Two independent standard normal variables (Box and Muller, 1958), in f64.
fn normals(words: [u32; 2]) -> [f64; 2] {
    let [radius, angle] = words.map(|word| (f64::from(word) + 0.5) / 4_294_967_296.0);
    let radius = (-2.0 * radius.ln()).sqrt();
    let angle = std::f64::consts::TAU * angle;
    [radius * angle.cos(), radius * angle.sin()]
}

/// Uniform in (0, 1) with full resolution near 0; the rounding to f32 never reaches 1.
fn unit(word: u32) -> f32 {
    const LARGEST: f32 = 1.0 - f32::EPSILON / 2.0;
    ((word as f32 + 0.5) * (1.0 / 4_294_967_296.0)).min(LARGEST)
}

/// Standard Gumbel variable `-ln(-ln(1 - w))`. The upper tail, which decides samples, sits at small `w`, where an
/// f32 is fine-grained: the largest value is 22.9, not the 16.6 that a 24-bit uniform would allow.
fn gumbel(word: u32) -> f32 {
    -(-(-unit(word)).ln_1p()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn gumbel_is_finite_and_has_the_right_moments() {
        assert!(gumbel(0).is_finite() && gumbel(u32::MAX).is_finite());
        let mut noise = vec![0.0; 200_000];
        Stream { seed: 7, image: 0 }.gumbel(Purpose::Token, 0, 3, &mut noise);
        let n = noise.len() as f64;
        let mean = noise.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = noise.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        // Euler's constant and pi^2/6, with five standard errors.
        assert!((mean - 0.577_215_66).abs() < 0.015, "mean {mean}");
        assert!((variance - 1.644_934).abs() < 0.05, "variance {variance}");
    }

    #[test]
    fn normal_has_the_right_moments_and_correlates_with_nothing() {
        let mut noise = vec![0.0; 200_000];
        Stream { seed: 7, image: 0 }.normal(Purpose::Denoise, 0, 3, &mut noise);
        let n = noise.len() as f64;
        let mean_of = |f: &dyn Fn(f64) -> f64| noise.iter().map(|&x| f(f64::from(x))).sum::<f64>() / n;
        // Five standard errors of each.
        let (first, second) = (mean_of(&|x| x), mean_of(&|x| x * x));
        assert!(first.abs() < 0.012 && (second - 1.0).abs() < 0.016, "{first}, {second}");
        let fourth = mean_of(&|x| x.powi(4));
        assert!((fourth - 3.0).abs() < 0.11, "{fourth}");
        for lag in 1..4 {
            let product: f64 = noise.windows(lag + 1).map(|w| f64::from(w[0] * w[lag])).sum::<f64>() / n;
            assert!(product.abs() < 0.012, "lag {lag}: {product}");
        }
    }

    #[test]
    fn streams_differ_in_every_coordinate() {
        let draw = |seed, image, purpose, round, position| Stream { seed, image }.uniform(purpose, round, position);
        let base = draw(1, 2, Purpose::Accept, 3, 4);
        for other in [
            draw(1 << 40, 2, Purpose::Accept, 3, 4),
            draw(1, 3, Purpose::Accept, 3, 4),
            draw(1, 2, Purpose::Residual, 3, 4),
            draw(1, 2, Purpose::Accept, 4, 4),
            draw(1, 2, Purpose::Accept, 3, 5),
        ] {
            assert_ne!(base, other);
        }
    }
}
