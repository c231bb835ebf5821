//! Checks: what is looked for beside the results.

/// Which checks are on. Bounds and alignment are always checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Reads of bytes that nothing has written, in global and shared memory.
    pub init: bool,
    /// Races in shared and global memory.
    pub race: bool,
    /// Collective instructions that threads do not reach together, and what barriers are told wrongly.
    pub sync: bool,
}

impl Checks {
    /// Every check.
    pub const ALL: Checks = Checks { init: true, race: true, sync: true };
    /// The cheap ones.
    pub const DEFAULT: Checks = Checks { init: false, race: false, sync: true };
    /// None but bounds and alignment.
    pub const NONE: Checks = Checks { init: false, race: false, sync: false };
}

impl Default for Checks {
    fn default() -> Self {
        Checks::DEFAULT
    }
}
