//! Who may call the driver: one thread at a time, for as long as what it queues belongs together.

use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, PoisonError};

/// A lock that its owner may take again.
#[derive(Default)]
pub(super) struct Gate {
    /// The owner and how often it came in.
    owner: Mutex<(usize, usize)>,
    free: Condvar,
}

/// Being inside; other threads wait until it is dropped.
pub(super) struct Entered<'a> {
    gate: &'a Gate,
    /// It is dropped by the thread that made it.
    here: PhantomData<*const ()>,
}

impl Gate {
    /// Waits until no other thread is inside.
    pub(super) fn enter(&self) -> Entered<'_> {
        let me = this_thread();
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        while owner.1 > 0 && owner.0 != me {
            owner = self.free.wait(owner).unwrap_or_else(PoisonError::into_inner);
        }
        *owner = (me, owner.1 + 1);
        Entered { gate: self, here: PhantomData }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut owner = self.gate.owner.lock().unwrap_or_else(PoisonError::into_inner);
        owner.1 -= 1;
        if owner.1 == 0 {
            self.gate.free.notify_one();
        }
    }
}

/// A number that no other living thread has.
fn this_thread() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| std::ptr::from_ref(place) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_owner_comes_in_again_and_others_wait() {
        let (gate, inside) = (Gate::default(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let outer = gate.enter();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        drop(gate.enter());
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(outer);
                    }
                });
            }
        });
    }
}
