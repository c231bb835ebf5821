//! When a second thread pays.

use rayon::prelude::*;

/// Serial time below which waking another thread costs more than it saves.
const WORTH_NANOSECONDS: f64 = 40_000.0;

/// Threads that work of this serial time should use.
pub(super) fn threads_for(nanoseconds: f64) -> usize {
    if nanoseconds < WORTH_NANOSECONDS { 1 } else { rayon::current_num_threads() }
}

/// Calls `task` for `0..tasks` on up to `threads` threads (one, or all of the pool).
pub(super) fn for_each(threads: usize, tasks: usize, task: impl Fn(usize) + Sync + Send) {
    if threads > 1 && tasks > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}
