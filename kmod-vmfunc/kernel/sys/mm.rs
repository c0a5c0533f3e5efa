// SPDX-License-Identifier: GPL-2.0-only

//! Address spaces: the end of a VM's, and memory of a caller's.

use super::kvm::Kvm;
use core::{
    ffi::{c_int, c_void},
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{self, NonNull},
};
use kernel::{
    error::{from_err_ptr, to_result},
    prelude::*,
    sync::Arc,
};

extern "C" {
    fn zs_mm_watch(
        kvm: *mut c_void,
        ended: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
    ) -> *mut c_void;
    fn zs_mm_unwatch(watch: *mut c_void);
    fn zs_pin(address: usize, count: usize, pages: *mut *mut c_void) -> c_int;
    fn zs_pin_file(fd: c_int, offset: u64, count: usize, pages: *mut *mut c_void) -> c_int;
    fn zs_unpin(pages: *mut *mut c_void, count: usize, mm: *mut c_void);
    fn zs_mm_grab() -> *mut c_void;
    fn zs_page_physical(page: *mut c_void) -> u64;
    fn zs_page_is_poisoned(page: *mut c_void) -> bool;
}

/// Wants to know when the address space ends that alone may run a VM.
pub(crate) trait Mourner: Send + Sync + 'static {
    /// It ended: no vCPU enters the guest any more. Also when the watch is given up. Process context,
    /// must not wait for the watch.
    fn ended(self: Arc<Self>);
}

/// A watch over a VM's address space.
pub(crate) struct Watch<T: Mourner> {
    raw: NonNull<c_void>,
    context: *const T,
    _context: PhantomData<Arc<T>>,
}

// SAFETY: the C side is for any thread, and so is an `Arc<T>`.
unsafe impl<T: Mourner> Send for Watch<T> {}
// SAFETY: a shared reference offers nothing.
unsafe impl<T: Mourner> Sync for Watch<T> {}

impl<T: Mourner> Watch<T> {
    /// Starts watching. ESRCH when it has ended.
    pub(crate) fn new(kvm: &Kvm, mourner: Arc<T>) -> Result<Self> {
        let context = Arc::into_raw(mourner);
        // SAFETY: the VM is live, `ended` takes what it is given here, and that is kept until the
        // watch is over.
        let raw = unsafe { zs_mm_watch(kvm.as_ptr(), Self::ended, context.cast_mut().cast()) };
        match from_err_ptr(raw) {
            Ok(raw) => Ok(Self {
                raw: NonNull::new(raw).ok_or(EINVAL)?,
                context,
                _context: PhantomData,
            }),
            Err(error) => {
                // SAFETY: from `into_raw`, and nobody was given it.
                drop(unsafe { Arc::from_raw(context) });
                Err(error)
            }
        }
    }

    /// # Safety
    ///
    /// Called by the C side with the context that `new` gave it, before the watch is over.
    unsafe extern "C" fn ended(context: *mut c_void) {
        let context: *const T = context.cast();
        // SAFETY: from `into_raw`, and the watch keeps the count.
        let mourner = ManuallyDrop::new(unsafe { Arc::from_raw(context) });
        (*mourner).clone().ended();
    }
}

impl<T: Mourner> Drop for Watch<T> {
    fn drop(&mut self) {
        // SAFETY: from `zs_mm_watch`, given back once. Waits for `ended`.
        unsafe { zs_mm_unwatch(self.raw.as_ptr()) };
        // SAFETY: from `into_raw`, and the C side does not use it any more.
        drop(unsafe { Arc::from_raw(self.context) });
    }
}

/// Memory of the caller's, or of a file of his, that stays where it is, to be read.
pub(crate) struct Pinned {
    pages: KVVec<*mut c_void>,
    mm: NonNull<c_void>,
}

// SAFETY: pinned pages and a counted mm have no thread.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Pins `count` pages at `address`, a multiple of 4096. EFAULT bad memory, ENOMEM also beyond
    /// the caller's limit of locked memory.
    pub(crate) fn new(address: usize, count: usize) -> Result<Self> {
        // SAFETY: there is room. In the context of the caller, whose memory it is.
        Self::by(count, |pages| unsafe { zs_pin(address, count, pages) })
    }

    /// Pins `count` pages of the caller's file `fd` from `offset` on, a multiple of 4096. EBADF no
    /// file, EACCES not open for reading, EINVAL not memory or not that long, ENOMEM also beyond the
    /// limit.
    pub(crate) fn of_file(fd: i32, offset: u64, count: usize) -> Result<Self> {
        // SAFETY: there is room. In the context of the caller, whose file and limit it is.
        Self::by(count, |pages| unsafe {
            zs_pin_file(fd, offset, count, pages)
        })
    }

    /// `pin` gets room for `count` pages, fills it, and counts them in the caller's mm.
    fn by(count: usize, pin: impl FnOnce(*mut *mut c_void) -> c_int) -> Result<Self> {
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL)?;
        pages.resize(count, ptr::null_mut(), GFP_KERNEL)?;
        to_result(pin(pages.as_mut_ptr()))?;
        // SAFETY: a process has an mm while it is in an ioctl.
        let mm = unsafe { zs_mm_grab() };
        Ok(Self {
            pages,
            mm: NonNull::new(mm).ok_or(EINVAL)?,
        })
    }

    /// Physical address of its page `number`.
    pub(crate) fn physical(&self, number: usize) -> Option<u64> {
        let page = self.pages.get(number)?;
        // SAFETY: pinned, so live.
        Some(unsafe { zs_page_physical(*page) })
    }

    /// Whether the kernel has given its page `number` up after a memory error.
    pub(crate) fn is_poisoned(&self, number: usize) -> bool {
        // SAFETY: pinned, so live.
        let poisoned = |page: &*mut c_void| unsafe { zs_page_is_poisoned(*page) };
        self.pages.get(number).is_some_and(poisoned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: pinned by `new` and counted in this mm, given back once.
        unsafe { zs_unpin(self.pages.as_mut_ptr(), self.pages.len(), self.mm.as_ptr()) }
    }
}
