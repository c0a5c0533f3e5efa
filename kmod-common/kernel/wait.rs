// SPDX-License-Identifier: GPL-2.0-only

//! A completion that can be used again and waited for with a limit, and the read barrier for
//! memory that a device writes.
//!
//! `kernel::sync::Completion` completes for ever and waits for ever. Owned by whoever waits; the
//! side that completes must know that it still exists.

use kernel::{bindings, prelude::*, time::Jiffies, types::Opaque};

extern "C" {
    fn zs_reinit_completion(done: *mut bindings::completion);
    fn zs_dma_rmb();
}

/// A completion for one waiter at a time.
///
/// # Invariants
///
/// `inner` is an initialised `struct completion`.
#[pin_data]
pub(crate) struct Completion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: a `struct completion` is bound to no task.
unsafe impl Send for Completion {}

// SAFETY: a `struct completion` has its own lock.
unsafe impl Sync for Completion {}

impl Completion {
    /// Creates an initialiser for a completion that is not done.
    pub(crate) fn new() -> impl PinInit<Self> {
        // INVARIANT: `init_completion` initialises it.
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for a write, and pinned from here on.
                unsafe { bindings::init_completion(slot) }
            }),
        })
    }

    /// Makes it not done again. Only its waiter calls this, before it tells anybody to complete it.
    pub(crate) fn reinit(&self) {
        // SAFETY: initialised by the type invariant.
        unsafe { zs_reinit_completion(self.inner.get()) }
    }

    /// Lets the waiter go. Callable from interrupt context and under spinlocks.
    pub(crate) fn complete(&self) {
        // SAFETY: initialised by the type invariant.
        unsafe { bindings::complete(self.inner.get()) }
    }

    /// Waits, uninterruptibly, for [`Self::complete`]. For what is certain to come. Sleeps.
    pub(crate) fn wait(&self) {
        // SAFETY: initialised by the type invariant.
        unsafe { bindings::wait_for_completion(self.inner.get()) }
    }

    /// Waits, uninterruptibly, for [`Self::complete`] or until `limit` is over; says whether it
    /// was completed. Sleeps.
    pub(crate) fn wait_timeout(&self, limit: Jiffies) -> bool {
        // SAFETY: initialised by the type invariant.
        unsafe { bindings::wait_for_completion_timeout(self.inner.get(), limit) != 0 }
    }
}

/// Orders reads of memory that a device writes: those before it come first.
pub(crate) fn dma_read_barrier() {
    // SAFETY: a barrier has no preconditions.
    unsafe { zs_dma_rmb() }
}
