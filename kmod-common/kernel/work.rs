// SPDX-License-Identifier: GPL-2.0-only

//! The module's workqueue: what runs on it ends before the module's code goes.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::{
    bindings::{self, delayed_work, work_struct, workqueue_struct},
    container_of,
    ffi::{c_char, c_int},
    prelude::*,
    time::Jiffies,
    workqueue::{DelayedWork, Queue, RawDelayedWorkItem, RawWorkItem, Work},
};

extern "C" {
    fn zs_workqueue(name: *const c_char) -> *mut workqueue_struct;
}

/// Null, or a workqueue that stays until [`WorkQueue`] is dropped.
static QUEUE: AtomicPtr<workqueue_struct> = AtomicPtr::new(ptr::null_mut());

/// The life of the workqueue.
pub(crate) struct WorkQueue;

impl WorkQueue {
    /// Makes it. Its works run on any CPU, and many at once: they wait for devices and not for a CPU.
    ///
    /// # Safety
    ///
    /// Once, by module init, which drops it behind everything that enqueues. No work waits for its
    /// time then ([`later`]).
    pub(crate) unsafe fn new(name: &CStr) -> Result<Self> {
        // SAFETY: a string; sleeps, as module init may.
        let queue = unsafe { zs_workqueue(name.as_char_ptr()) };
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

/// The queue, as long as there is one.
fn queue() -> Option<ptr::NonNull<workqueue_struct>> {
    ptr::NonNull::new(QUEUE.load(Ordering::Acquire))
}

/// Runs `work` soon, in process context. Callable in any context. When it is waiting already it
/// runs once.
pub(crate) fn enqueue<W, const ID: u64>(work: W)
where
    W: RawWorkItem<ID> + Send + 'static,
{
    if let Some(queue) = queue() {
        // SAFETY: the module's, which outlives everything that enqueues (`new`).
        let queue = unsafe { Queue::from_raw(queue.as_ptr()) };
        let _ = queue.enqueue(work);
    }
}

/// Waits until `work` neither waits nor runs. Not from within it. Sleeps.
pub(crate) fn flush<T: ?Sized, const ID: u64>(work: &Work<T, ID>) {
    // SAFETY: a live `Work` holds an initialised work item.
    unsafe { bindings::flush_work(Work::raw_get(work)) };
}

/// [`enqueue`] for a delayed work, also when it waits for a later time.
pub(crate) fn soon<W, const ID: u64>(work: W)
where
    W: RawDelayedWorkItem<ID> + Send + 'static,
{
    at(work, 0, |queue, work, delay| {
        // SAFETY: the caller's promise. False: it did not wait before.
        !unsafe { bindings::mod_delayed_work_on(ANY_CPU, queue, work, delay) }
    });
}

/// Runs `work` after a while, unless it is waiting already. Callable in any context.
pub(crate) fn later<W, const ID: u64>(work: W, delay: Jiffies)
where
    W: RawDelayedWorkItem<ID> + Send + 'static,
{
    at(work, delay, |queue, work, delay| {
        // SAFETY: the caller's promise.
        unsafe { bindings::queue_delayed_work_on(ANY_CPU, queue, work, delay) }
    });
}

// CAST: some thousand.
const ANY_CPU: c_int = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;

/// Lets `enqueue` have queue, work and delay, which are valid as long as it runs; when it says that it
/// has enqueued the work, until the work runs. It says no when the work was waiting.
fn at<W, const ID: u64>(
    work: W,
    delay: Jiffies,
    enqueue: impl FnOnce(*mut workqueue_struct, *mut delayed_work, Jiffies) -> bool,
) where
    W: RawDelayedWorkItem<ID> + Send + 'static,
{
    let Some(queue) = queue() else { return };
    let hand_over = move |work: *mut work_struct| {
        // SAFETY: the work of a `RawDelayedWorkItem` is part of one.
        let work = unsafe { container_of!(work, delayed_work, work) };
        enqueue(queue.as_ptr(), work, delay)
    };
    // SAFETY: the queue is the module's, which outlives everything that enqueues (`new`). What
    // `enqueue` says is true when the work has been handed to it.
    let _ = unsafe { work.__enqueue(hand_over) };
}

/// Runs a delayed `work` now if it waits, and waits until it does not run. Not from within it.
/// Sleeps.
pub(crate) fn flush_delayed<T: ?Sized, const ID: u64>(work: &DelayedWork<T, ID>) {
    // SAFETY: a live `DelayedWork` holds an initialised work item.
    unsafe {
        let work = Work::raw_get(DelayedWork::raw_as_work(work));
        bindings::flush_delayed_work(container_of!(work, delayed_work, work))
    };
}
