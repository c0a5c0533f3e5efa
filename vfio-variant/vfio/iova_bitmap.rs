// SPDX-License-Identifier: GPL-2.0-only

//! The bitmap of a report, in the memory of the user who asked for it.
//!
//! Only with CONFIG_IOMMUFD_DRIVER; without it the kernel has no such thing, and reports cannot be.

use crate::logic::log::{cut, span};
use core::marker::PhantomData;
use kernel::bindings;

/// A bitmap that a report is written into.
///
/// # Invariants
///
/// `raw` is a bitmap over `span` that nobody else uses during `'a`.
pub(crate) struct IovaBitmap<'a> {
    #[cfg_attr(not(CONFIG_IOMMUFD_DRIVER), allow(dead_code))]
    raw: *mut bindings::iova_bitmap,
    /// First and last byte; `None` for a report over nothing.
    span: Option<(u64, u64)>,
    _exclusive: PhantomData<&'a mut bindings::iova_bitmap>,
}

impl IovaBitmap<'_> {
    /// # Safety
    ///
    /// `raw` comes from the core, over `length` bytes from `iova`, and nobody else uses it as long as
    /// the result exists.
    pub(super) unsafe fn new(raw: *mut bindings::iova_bitmap, iova: u64, length: u64) -> Self {
        // INVARIANT: the caller's promise.
        Self {
            raw,
            span: span(iova, length),
            _exclusive: PhantomData,
        }
    }

    /// Sets the bits of `length` bytes from `iova`, as far as they lie in what is reported.
    ///
    /// Faults pages of the caller's process in, so no lock that a page fault or a reset takes may
    /// be held. Memory that is gone is passed over in silence: the kernel has no way to say so.
    pub(crate) fn set(&mut self, iova: u64, length: u64) {
        // What begins in the bitmap and ends behind it would set bits behind it.
        let Some((iova, length)) = self.span.and_then(|span| cut(iova, length, span)) else {
            return;
        };
        // CAST: both have 64 bits on the architectures that have VFIO migration.
        #[cfg(CONFIG_IOMMUFD_DRIVER)]
        // SAFETY: the bitmap is valid and ours by the type invariant, and has these bytes.
        unsafe {
            bindings::iova_bitmap_set(self.raw, iova as usize, length as usize)
        }
        #[cfg(not(CONFIG_IOMMUFD_DRIVER))]
        let _ = (iova, length);
    }
}
