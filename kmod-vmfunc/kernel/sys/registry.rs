// SPDX-License-Identifier: GPL-2.0-only

//! The attached VMs, found by the probe at each entry of every VM of this host.
//!
//! Readers run with interrupts off, so a grace period of RCU waits for them. A VM that is not ours
//! pays a load and a comparison with null, as long as few are attached.

use crate::vm::Vm;
use core::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::{
    bindings,
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// Heads of the lists.
const BUCKETS: usize = 64;

extern "C" {
    // The probe looks here first.
    #[link_name = "zs_attached"]
    static HEADS: [AtomicPtr<c_void>; BUCKETS];
    fn zs_bucket(name: usize) -> usize;
}

kernel::sync::global_lock! {
    // SAFETY: initialised by module init, before the first user.
    pub(crate) unsafe(uninit) static WRITERS: Mutex<()> = ();
}

/// Where a VM is in its list.
///
/// The pointers are to `Vm`, but C has the heads and knows no such type.
pub(crate) struct Link(AtomicPtr<c_void>);

impl Link {
    /// Of a VM that is in no list.
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }
}

fn head(name: usize) -> &'static AtomicPtr<c_void> {
    // SAFETY: `helpers.c` has as many pointers, which are only used here and, to see whether they
    // are null, by the probe.
    // INDEXING: `zs_bucket` is below the length.
    unsafe { &HEADS[zs_bucket(name)] }
}

/// The VM of this name in the list that begins with `at`.
///
/// # Safety
///
/// `at` was read from the list's head, and since then, and as long as what comes back is used,
/// interrupts are off.
pub(crate) unsafe fn find<'a>(mut at: *const c_void, name: usize) -> Option<ArcBorrow<'a, Vm>> {
    while !at.is_null() {
        // SAFETY: from `into_raw` in `insert`. What is in a list keeps its count at least until a
        // grace period after it was taken out, and this reader ends before that.
        let vm = unsafe { ArcBorrow::from_raw(at.cast::<Vm>()) };
        if vm.name() == name {
            return Some(vm);
        }
        at = vm.link.0.load(Ordering::Acquire);
    }
    None
}

/// Makes a VM known. EBUSY when it is already.
pub(crate) fn insert(vm: Arc<Vm>) -> Result {
    let _writers = WRITERS.lock();
    let head = head(vm.name());
    let first = head.load(Ordering::Relaxed);
    let mut at = first;
    // SAFETY: only writers take out, and we are the one.
    while let Some(other) = unsafe { at.cast::<Vm>().as_ref() } {
        if other.name() == vm.name() {
            return Err(EBUSY);
        }
        at = other.link.0.load(Ordering::Relaxed);
    }
    vm.link.0.store(first, Ordering::Relaxed);
    // The list has this count from here on.
    head.store(Arc::into_raw(vm).cast_mut().cast(), Ordering::Release);
    Ok(())
}

/// Takes a VM out, waits until no probe uses it, and gives the list's count back.
pub(crate) fn remove(vm: &Vm) -> Option<Arc<Vm>> {
    let found = {
        let _writers = WRITERS.lock();
        let mut link = head(vm.name());
        loop {
            let at = link.load(Ordering::Relaxed);
            // SAFETY: only writers take out, and we are the one.
            let other = unsafe { at.cast::<Vm>().as_ref() }?;
            if ptr::eq(other, vm) {
                link.store(other.link.0.load(Ordering::Relaxed), Ordering::Release);
                break at;
            }
            link = &other.link.0;
        }
    };
    wait_for_probes();
    // SAFETY: from `into_raw` in `insert`, and taken out by us, once.
    Some(unsafe { Arc::from_raw(found.cast::<Vm>()) })
}

/// Waits until every probe that runs now has ended. Sleeps.
pub(crate) fn wait_for_probes() {
    // SAFETY: no preconditions but the context.
    unsafe { bindings::synchronize_rcu() }
}
