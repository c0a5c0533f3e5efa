// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Mappings: guest RAM, memory media, and bounce memory.
//!
//! Owned by `memory` and `backing`, which decide what may be accessed; this file guarantees that no
//! access leaves a mapping or meets one that was revoked. A guest changes the bytes at any time, so no reference into a mapping
//! may ever exist: data is copied, once, with volatile or atomic accesses.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use super::bytes;
use super::sigbus::Registration;

/// Memory of `len` bytes: a shared mapping of the start of a file, or private memory.
///
/// Invariant: `base` is the start of a mapping of `len` bytes that lives as long as this value,
/// writable when `writable` is set, and `registration` is of just this range. The handler of SIGBUS may
/// replace the content at any time; after [`Mapping::revoke`] the range cannot be accessed at all. It
/// stays taken either way.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    /// Of mappings of files; private memory raises no SIGBUS.
    registration: Option<Registration>,
}

// SAFETY: the mapping belongs to the process, not to a thread; it is only reached through the
// bounds-checked volatile accesses below, which tolerate concurrent changes by design (the guest
// makes them all the time).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` (not zero) bytes of `file` from its start.
    pub(crate) fn new(file: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Self> {
        let registration = Registration::new()?;
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is.
        let base = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0)
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping that nobody else knows; drop() ends the registration before it. The
        // address is exposed for the handler, which makes a pointer of it.
        unsafe { registration.publish(base.as_ptr().expose_provenance(), len) };
        Ok(Self {
            base,
            len,
            writable,
            registration: Some(registration),
        })
    }

    /// Private memory of `len` (not zero) bytes, zeroed and page-aligned.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as in new().
        let base = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE)
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            base,
            len,
            writable: true,
            registration: None,
        })
    }

    /// Mapped bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether [`Mapping::write`] can succeed at all.
    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// Pointer to `count` bytes at `offset`, `None` when they are not all inside or the mapping was
    /// revoked.
    fn at(&self, offset: usize, count: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(count)? > self.len || self.revoked() {
            return None;
        }
        // SAFETY: offset is at most len, so the result stays within the mapping (or one past it).
        Some(unsafe { self.base.add(offset) })
    }

    /// As [`Mapping::at`], for writes: `None` also when the mapping is read-only.
    fn at_writable(&self, offset: usize, count: usize) -> Option<NonNull<u8>> {
        self.at(offset, count).filter(|_| self.writable)
    }

    /// For the kernel: pointer to `count` bytes at `offset`. Valid while `self` lives.
    pub(super) fn address(&self, offset: usize, count: usize) -> Option<*mut u8> {
        self.at(offset, count).map(NonNull::as_ptr)
    }

    /// Copies out; `None` when the range is not inside or the mapping was revoked.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) -> Option<()> {
        let source = self.at(offset, data.len())?.as_ptr();
        // SAFETY: at() checked that many bytes.
        unsafe { bytes::load(source, data) };
        Some(())
    }

    /// Copies in; `None` when the range is not inside or the mapping is read-only.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Option<()> {
        let target = self.at_writable(offset, data.len())?.as_ptr();
        // SAFETY: at_writable() checked that many bytes.
        unsafe { bytes::store(target, data) };
        Some(())
    }

    /// Copies between mappings; `None` when a range is not inside or `to` is read-only. When the
    /// ranges are the same memory in part, the result is some mixture of their bytes.
    pub(crate) fn copy(
        from: &Self,
        from_offset: usize,
        to: &Self,
        to_offset: usize,
        len: usize,
    ) -> Option<()> {
        let source = from.at(from_offset, len)?.as_ptr();
        let target = to.at_writable(to_offset, len)?.as_ptr();
        // SAFETY: at() and at_writable() checked len bytes each.
        unsafe { bytes::transfer(source, target, len) };
        Some(())
    }

    /// Writes zeroes; `None` when the range is not inside or the mapping is read-only.
    pub(crate) fn fill_zero(&self, offset: usize, len: usize) -> Option<()> {
        let target = self.at_writable(offset, len)?.as_ptr();
        // SAFETY: at_writable() checked len bytes.
        unsafe { bytes::zero(target, len) };
        Some(())
    }

    /// Stores a little-endian dword so that all earlier writes are visible to whoever sees it;
    /// `None` when it is not inside, not aligned, or the mapping is read-only.
    pub(crate) fn publish_u32(&self, offset: usize, value: u32) -> Option<()> {
        let target = self.at_writable(offset, 4)?.as_ptr().cast::<u32>();
        if !target.is_aligned() {
            return None;
        }
        // SAFETY: four mapped, writable, aligned bytes that are never reached through a reference
        // other than a short-lived atomic one.
        unsafe { AtomicU32::from_ptr(target) }.store(value.to_le(), Ordering::Release);
        Some(())
    }

    /// Lets go of the memory. From its return on, all accesses through this mapping are refused, and
    /// the kernel gets EFAULT in the middle of requests that it still holds: not zeroes, which it
    /// would write to a file. There is no way back. Memory of our own, which nobody else has, stays.
    ///
    /// No access may be under way on another thread: it would end the process (SIGSEGV). The lock of
    /// the function sees to that, under which guest memory is accessed as well as taken away.
    ///
    /// Ends the process when the kernel refuses, which it does only for lack of memory.
    pub(crate) fn revoke(&self) {
        if let Some(registration) = &self.registration {
            registration.revoke();
        }
    }

    /// Whether the memory was let go of: by [`Mapping::revoke`], or because its file shrank and an
    /// access found nothing. When this gives false, what was read before the call was real; when it
    /// gives true, it may have been zeroes.
    pub(crate) fn revoked(&self) -> bool {
        let registration = self.registration.as_ref();
        registration.is_some_and(Registration::revoked)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before the range can become somebody else's.
        self.registration = None;
        let base = self.base.as_ptr().cast::<c_void>();
        // SAFETY: base and len describe a mapping of ours, and no pointer into it outlives a call:
        // what has one in the kernel (a ring) keeps this value alive.
        let result = unsafe { rustix::mm::munmap(base, self.len) };
        debug_assert!(result.is_ok());
    }
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
