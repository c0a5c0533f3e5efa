// SPDX-License-Identifier: GPL-2.0-only

//! An eventfd that is signalled.

use core::{
    ffi::{c_int, c_void},
    ptr::NonNull,
};
use kernel::{error::from_err_ptr, prelude::*};

extern "C" {
    fn zs_eventfd_get(fd: c_int) -> *mut c_void;
    fn zs_eventfd_signal(context: *mut c_void);
    fn zs_eventfd_put(context: *mut c_void);
}

/// The counter behind an eventfd. It does not keep a file open.
pub(crate) struct Eventfd(NonNull<c_void>);

// SAFETY: counted, with a lock of its own.
unsafe impl Send for Eventfd {}
// SAFETY: as above.
unsafe impl Sync for Eventfd {}

impl Eventfd {
    /// Of a file descriptor of the caller. EBADF no file, EINVAL another kind of file.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: takes any number.
        let context = from_err_ptr(unsafe { zs_eventfd_get(fd) })?;
        Ok(Self(NonNull::new(context).ok_or(EINVAL)?))
    }

    /// Adds 1. Sleeps not, in any context, but it takes a spinlock and wakes who waits: not within
    /// what an eventfd wakes.
    pub(crate) fn signal(&self) {
        // SAFETY: we have a reference.
        unsafe { zs_eventfd_signal(self.0.as_ptr()) }
    }
}

impl Drop for Eventfd {
    fn drop(&mut self) {
        // SAFETY: our reference, given back once.
        unsafe { zs_eventfd_put(self.0.as_ptr()) }
    }
}
