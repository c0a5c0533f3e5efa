// SPDX-License-Identifier: GPL-2.0-only

//! The bitmap of a report, in the memory of the user who asked for it.
//!
//! Only with CONFIG_IOMMUFD_DRIVER; without it the kernel has no such thing, and reports cannot be.

use kernel::{bindings, types::Opaque};

/// A bitmap that a report is written into.
#[repr(transparent)]
pub(crate) struct IovaBitmap(Opaque<bindings::iova_bitmap>);

impl IovaBitmap {
    /// # Safety
    ///
    /// `bitmap` comes from the core, for the length of `'a`, and nobody else uses it meanwhile.
    pub(super) unsafe fn from_raw<'a>(bitmap: *mut bindings::iova_bitmap) -> &'a mut Self {
        // SAFETY: transparent; the rest is the caller's promise.
        unsafe { &mut *bitmap.cast() }
    }

    /// Sets the bits of `length` bytes from `iova`, which lie in what is reported.
    ///
    /// Faults pages of the caller's process in, so no lock that a page fault or a reset takes may
    /// be held. Memory that is gone is passed over in silence: the kernel has no way to say so.
    pub(crate) fn set(&mut self, iova: u64, length: u64) {
        if length == 0 {
            return;
        }
        // CAST: both have 64 bits on the architectures that have VFIO migration.
        #[cfg(CONFIG_IOMMUFD_DRIVER)]
        // SAFETY: the bitmap is valid and ours; a range outside of it is ignored.
        unsafe {
            bindings::iova_bitmap_set(self.0.get(), iova as usize, length as usize)
        }
        #[cfg(not(CONFIG_IOMMUFD_DRIVER))]
        let _ = iova;
    }
}
