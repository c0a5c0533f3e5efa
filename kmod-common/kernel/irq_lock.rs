// SPDX-License-Identifier: GPL-2.0-only

//! A spinlock that may also be taken in an interrupt handler.
//!
//! `kernel::sync::SpinLock` leaves interrupts on, so a handler that takes the same lock on the same
//! CPU would wait for ever. This one switches them off while it is held, with the lock and the
//! lockdep class of the kernel. A holder must never sleep, and must be short.

use kernel::{
    bindings,
    ffi::{c_char, c_int, c_ulong},
    sync::lock::{spinlock::SpinLockBackend, Backend, Lock},
};

/// A spinlock held with interrupts off.
pub(crate) type IrqSpinLock<T> = Lock<T, IrqSpinLockBackend>;

/// Creates an [`IrqSpinLock`] initialiser with the given name and a lock class of its own.
macro_rules! new_irq_spinlock {
    ($inner:expr, $name:literal) => {
        $crate::common::irq_lock::IrqSpinLock::new(
            $inner,
            ::kernel::optional_name!($name),
            ::kernel::static_lock_class!(),
        )
    };
}
pub(crate) use new_irq_spinlock;

extern "C" {
    fn zs_spin_lock_irqsave(lock: *mut bindings::spinlock_t) -> c_ulong;
    fn zs_spin_trylock_irqsave(lock: *mut bindings::spinlock_t, flags: *mut c_ulong) -> c_int;
    fn zs_spin_unlock_irqrestore(lock: *mut bindings::spinlock_t, flags: c_ulong);
}

/// `spin_lock_irqsave` as a backend of [`Lock`].
pub(crate) struct IrqSpinLockBackend;

// SAFETY: `spinlock_t` gives mutual exclusion between `spin_lock_irqsave` and
// `spin_unlock_irqrestore`, and a failed try does not take it. The guard's state is the flags that
// the matching unlock wants.
unsafe impl Backend for IrqSpinLockBackend {
    type State = bindings::spinlock_t;
    type GuardState = c_ulong;

    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut bindings::lock_class_key) {
        // SAFETY: the caller's promises are the same.
        unsafe { SpinLockBackend::init(ptr, name, key) }
    }

    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: the caller promises that the lock is initialised, so `ptr` is valid.
        unsafe { zs_spin_lock_irqsave(ptr) }
    }

    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        let mut flags = 0;
        // SAFETY: the caller promises that the lock is initialised; `flags` is a live local.
        (unsafe { zs_spin_trylock_irqsave(ptr, &mut flags) } != 0).then_some(flags)
    }

    unsafe fn unlock(ptr: *mut Self::State, guard_state: &Self::GuardState) {
        // SAFETY: the caller owns the lock, and the flags are those of its acquisition.
        unsafe { zs_spin_unlock_irqrestore(ptr, *guard_state) }
    }

    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: the caller's promises are the same.
        unsafe { SpinLockBackend::assert_is_held(ptr) }
    }
}
