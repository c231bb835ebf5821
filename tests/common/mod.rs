//! What tests against oracles in fp32 share.

/// Relative L2 distance. Weights are exact in bf16; what differs is the rounding of activations to bf16 at every product and
/// of keys and values in the cache: 2^-9 relative each.
pub fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    (difference / theirs.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}
