// SPDX-License-Identifier: Apache-2.0 OR MIT

//! "There is work for the poller": a flag per function, and a way to wake the thread.
//!
//! Owned by a function and shared with whoever makes work for it. Raised any number of times, taken
//! once: what made the work was done before the flag was raised, under the function's lock, so a
//! poller that takes the flag and then the lock sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::sys::Waker;

/// The flag and the poller behind it.
#[derive(Default)]
pub(crate) struct Attention {
    raised: AtomicBool,
    poller: OnceLock<Arc<Waker>>,
}

impl Attention {
    /// Connects the function to its poller. What was raised before is still raised.
    pub(crate) fn connect(&self, poller: Arc<Waker>) {
        // A function has one poller for its life; a second call changes nothing.
        let _ = self.poller.set(poller);
        if self.raised.load(Ordering::Acquire) {
            self.wake();
        }
    }

    /// Says that there is work.
    pub(crate) fn call(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Whether there is work; lowers the flag.
    pub(crate) fn take(&self) -> bool {
        // The load keeps the cache line shared while nothing happens.
        self.raised.load(Ordering::Relaxed) && self.raised.swap(false, Ordering::AcqRel)
    }

    fn wake(&self) {
        if let Some(poller) = self.poller.get() {
            poller.wake();
        }
    }
}
