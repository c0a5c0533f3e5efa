// SPDX-License-Identifier: GPL-2.0-only

//! Pages that processors walk or guests see.

use crate::logic::ept::ENTRIES;
use core::{
    ffi::c_void,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};
use kernel::{page::Page, prelude::*};

extern "C" {
    fn zs_page_physical(page: *mut c_void) -> u64;
    fn zs_page_is_poisoned(page: *mut c_void) -> bool;
    fn zs_page_address(page: *mut c_void) -> *mut c_void;
    fn zs_physical_address(physical: u64) -> *mut c_void;
}

/// A page of zeroes.
pub(crate) fn zeroed() -> Result<Page> {
    Ok(Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?)
}

/// Physical address of a page.
pub(crate) fn physical(page: &Page) -> u64 {
    // SAFETY: a live page.
    unsafe { zs_page_physical(page.as_ptr().cast()) }
}

/// Whether the kernel has given a page up after a memory error.
pub(crate) fn is_poisoned(page: &Page) -> bool {
    // SAFETY: a live page.
    unsafe { zs_page_is_poisoned(page.as_ptr().cast()) }
}

/// A paging structure, or an EPTP list: 512 entries that processors read at any time.
pub(crate) struct Table {
    _page: Page,
    physical: u64,
    entries: NonNull<[AtomicU64; ENTRIES]>,
}

// SAFETY: the entries are atomic, and belong to the page, which has no thread.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// One whose entries are all `fill`.
    pub(crate) fn new(fill: u64) -> Result<Self> {
        let page = zeroed()?;
        // SAFETY: a live page of the direct map: x86-64 has no other kind.
        let address = unsafe { zs_page_address(page.as_ptr().cast()) };
        let entries = NonNull::new(address.cast()).ok_or(EINVAL)?;
        let table = Self {
            physical: physical(&page),
            _page: page,
            entries,
        };
        for entry in table.entries() {
            entry.store(fill, Ordering::Relaxed);
        }
        Ok(table)
    }

    /// Its physical address.
    pub(crate) fn physical(&self) -> u64 {
        self.physical
    }

    /// Its entries.
    pub(crate) fn entries(&self) -> &[AtomicU64; ENTRIES] {
        // SAFETY: the page is mapped, 4096 bytes long and lives as long as `self`; everybody uses
        // its entries as atomics.
        unsafe { self.entries.as_ref() }
    }

    /// Writes an entry, after everything that it leads to.
    pub(crate) fn set(&self, index: usize, value: u64) {
        if let Some(entry) = self.entries().get(index) {
            entry.store(value, Ordering::Release);
        }
    }
}

/// Looks at the entries of a table that is not ours.
///
/// # Safety
///
/// There is a table of 512 entries at the physical address `table`, in the direct map, and it stays
/// while `look` runs.
pub(crate) unsafe fn with_table<R>(table: u64, look: impl FnOnce(&[AtomicU64; ENTRIES]) -> R) -> R {
    // SAFETY: the caller's promise. KVM changes entries as 8 bytes at once.
    look(unsafe { &*zs_physical_address(table).cast::<[AtomicU64; ENTRIES]>() })
}

/// A page with these bytes.
pub(crate) fn from_bytes(bytes: &[u8; 4096]) -> Result<Page> {
    let page = zeroed()?;
    // SAFETY: a whole page is read, and nobody else has the new one.
    unsafe { page.write_raw(bytes.as_ptr(), 0, bytes.len()) }?;
    Ok(page)
}
