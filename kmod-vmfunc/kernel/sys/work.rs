// SPDX-License-Identifier: GPL-2.0-only

//! The module's workqueue: what runs on it ends before the module's code goes.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::{
    bindings,
    prelude::*,
    workqueue::{Queue, RawWorkItem, Work},
};

extern "C" {
    fn zs_vmfunc_workqueue() -> *mut bindings::workqueue_struct;
}

/// Null, or a workqueue that stays until [`WorkQueue`] is dropped.
static QUEUE: AtomicPtr<bindings::workqueue_struct> = AtomicPtr::new(ptr::null_mut());

/// The life of the workqueue.
pub(crate) struct WorkQueue;

impl WorkQueue {
    /// Makes it.
    ///
    /// # Safety
    ///
    /// Once, by module init, which drops it behind everything that enqueues.
    pub(crate) unsafe fn new() -> Result<Self> {
        // SAFETY: no preconditions; sleeps, as module init may.
        let queue = unsafe { zs_vmfunc_workqueue() };
        if queue.is_null() {
            return Err(ENOMEM);
        }
        QUEUE.store(queue, Ordering::Release);
        Ok(Self)
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        let queue = QUEUE.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: made by `new`, and nobody enqueues any more. Waits for what is on it.
        unsafe { bindings::destroy_workqueue(queue) };
    }
}

/// Runs `work` soon, in process context. Callable in any context. When it is waiting already it
/// runs once.
pub(crate) fn enqueue<W, const ID: u64>(work: W)
where
    W: RawWorkItem<ID> + Send + 'static,
{
    let queue = QUEUE.load(Ordering::Acquire);
    if queue.is_null() {
        return;
    }
    // SAFETY: not null, so it is the module's, which outlives everything that enqueues (`new`).
    let queue = unsafe { Queue::from_raw(queue) };
    let _ = queue.enqueue(work);
}

/// Waits until `work` neither waits nor runs. Not from within it. Sleeps.
pub(crate) fn flush<T: ?Sized, const ID: u64>(work: &Work<T, ID>) {
    // SAFETY: a live `Work` holds an initialised work item.
    unsafe { bindings::flush_work(Work::raw_get(work)) };
}
