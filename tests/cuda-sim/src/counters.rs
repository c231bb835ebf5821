//! Counters of a launch.

/// What one host thread counts for a launch; summed at its end.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Operations of tensor cores, a multiply-add being two.
    pub matrix_flops: u64,
    /// Arrivals of warps at barriers.
    pub barriers: u64,
}
