// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest RAM: a memfd that both sides map.
//!
//! The card changes the bytes at any time, so no reference into the mapping exists: everything is
//! copied with volatile or atomic accesses. Offsets are checked; one outside is a bug of the bench
//! and panics.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// See the module. Invariant: `base` is the start of a shared, writable mapping of `len` bytes.
pub(crate) struct Ram {
    file: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

impl Ram {
    /// `len` bytes of zeroes, all of them backed by memory already.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, base, len })
    }

    /// The memfd.
    pub(crate) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Pointer to `count` bytes at `offset`, which is a multiple of `align`.
    pub(super) fn at(&self, offset: u64, count: usize, align: usize) -> *mut u8 {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let inside = offset.checked_add(count).is_some_and(|end| end <= self.len);
        assert!(inside && offset % align == 0, "no RAM at {offset:#x}");
        // SAFETY: offset is inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Copies in, dword by dword; `data` has a multiple of four bytes.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let to = self.at(offset, data.len(), 4).cast::<u32>();
        for (i, dword) in data.chunks_exact(4).enumerate() {
            let value = u32::from_ne_bytes([dword[0], dword[1], dword[2], dword[3]]);
            // SAFETY: at() checked the range and the alignment, and i dwords fit.
            unsafe { to.add(i).write_volatile(value) };
        }
    }

    /// Copies out, dword by dword; `data` has a multiple of four bytes.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let from = self.at(offset, data.len(), 4).cast::<u32>();
        for (i, dword) in data.chunks_exact_mut(4).enumerate() {
            // SAFETY: at() checked the range and the alignment, and i dwords fit.
            dword.copy_from_slice(&unsafe { from.add(i).read_volatile() }.to_ne_bytes());
        }
    }

    /// Loads a little-endian dword: what was written before it is visible after.
    pub(crate) fn load(&self, offset: u64) -> u32 {
        let dword = self.at(offset, 4, 4).cast::<u32>();
        // SAFETY: four mapped, aligned bytes, reached by volatile and atomic accesses only.
        u32::from_le(unsafe { AtomicU32::from_ptr(dword) }.load(Ordering::Acquire))
    }

    /// Stores a little-endian dword: whoever sees it sees what was written before.
    pub(crate) fn store(&self, offset: u64, value: u32) {
        let dword = self.at(offset, 4, 4).cast::<u32>();
        // SAFETY: as in load().
        unsafe { AtomicU32::from_ptr(dword) }.store(value.to_le(), Ordering::Release);
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a pointer into it: rings borrow the RAM.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
