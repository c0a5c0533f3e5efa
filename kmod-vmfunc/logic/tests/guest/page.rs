// SPDX-License-Identifier: GPL-2.0-only

//! A page of code in this process.

use rustix::mm::{mmap_anonymous, munmap, MapFlags, ProtFlags};
use std::ptr;

/// It can be written as well: there is a counter in it.
pub(crate) struct Executable(*mut u8);

const SIZE: usize = 4096;

impl Executable {
    pub(crate) fn new(code: &[u8; SIZE]) -> Self {
        let all = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        // SAFETY: a mapping where nothing is.
        let page = unsafe { mmap_anonymous(ptr::null_mut(), SIZE, all, MapFlags::PRIVATE) };
        let page = page.expect("memory that can be executed").cast::<u8>();
        // SAFETY: it is a page, and nobody else's.
        unsafe { page.copy_from_nonoverlapping(code.as_ptr(), SIZE) };
        Self(page)
    }

    pub(crate) fn start(&self) -> *const u8 {
        self.0
    }

    /// Panics when it is not inside.
    pub(crate) fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        assert!(at + N <= SIZE);
        // SAFETY: inside of the page; code in it changes it only when it is called.
        unsafe { self.0.add(at).cast::<[u8; N]>().read_volatile() }
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: the mapping is its own, and nobody runs in it any more.
        let unmapped = unsafe { munmap(self.0.cast(), SIZE) };
        assert!(unmapped.is_ok());
    }
}
