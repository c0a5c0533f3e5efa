// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Wakes the thread that sleeps in [`Ring::wait`](super::Ring::wait), from any thread.
//!
//! One word says what the sleeper does; an eventfd that the ring polls ends the sleep. Not unsafe,
//! but one thing with the ring.
//!
//! Why no wake-up is lost: `state` is changed by swaps and compare-exchanges only, so all changes
//! have one order. A wake comes either before the sleeper's change to `SLEEPING`: that then fails,
//! and the sleeper does not sleep. Or after it: then the first wake finds `SLEEPING` and signals the
//! eventfd, which ends the sleep now or as soon as it begins; further ones find `NOTIFIED` and leave
//! it to the first. Whichever way the sleeper learns of it, it reads the word that the wakers wrote
//! (acquire), so it sees what they did before waking it (release).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::event::EventfdFlags;

/// The sleeper is not asleep, and nobody woke it since it last looked.
const AWAKE: u32 = 0;
/// Somebody woke it.
const NOTIFIED: u32 = 1;
/// It sleeps or is about to.
const SLEEPING: u32 = 2;

/// See the module.
pub(crate) struct Waker {
    state: AtomicU32,
    event: OwnedFd,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            state: AtomicU32::new(AWAKE),
            event: rustix::event::eventfd(0, flags)?,
        })
    }

    /// Ends the sleep of the ring's thread, or its next one when it does not sleep now. Wakes
    /// between two sleeps count as one. Without a sleeper, this is one atomic instruction.
    ///
    /// Whatever the caller did before is visible to the thread after the sleep.
    pub(crate) fn wake(&self) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == SLEEPING {
            // The counter only grows, by one for a sleep at most: it cannot overflow.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Before a sleep: whether there may be one. `false` when somebody woke this thread already.
    pub(super) fn begin_sleep(&self) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let begun = self
            .state
            .compare_exchange(AWAKE, SLEEPING, success, failure);
        if begun.is_err() {
            self.end_sleep();
        }
        begun.is_ok()
    }

    /// After a sleep.
    pub(super) fn end_sleep(&self) {
        self.state.swap(AWAKE, Ordering::AcqRel);
    }

    /// Readable for ever after the first sleep that was ended by it; each end is an edge.
    pub(super) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_before_a_sleep_prevent_just_that_one() {
        let signals = |waker: &Waker| {
            let mut count = [0; 8];
            rustix::io::read(&waker.event, &mut count).map(|_| u64::from_ne_bytes(count))
        };
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.wake();
        assert!(!waker.begin_sleep());
        assert!(signals(&waker).is_err());
        assert!(waker.begin_sleep());
        waker.wake();
        waker.wake();
        assert_eq!(signals(&waker), Ok(1));
        waker.end_sleep();
        assert!(waker.begin_sleep());
    }
}
