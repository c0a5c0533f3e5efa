// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The only unsafe code of zerocard: shared mappings of guest RAM and accesses to them.
//!
//! Owned by `memory`, which decides what may be accessed; this file only guarantees that no access
//! leaves a mapping. The bytes are shared with a guest that changes them at any time, so nothing
//! here may ever hand out a reference into a mapping: data is copied, once, with volatile accesses.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// A shared mapping of the first `len` bytes of a file.
///
/// Invariant: `base` is the start of a mapping of `len` bytes that lives as long as this value,
/// writable when `writable` is set.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
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
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is.
        let base = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0)
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            base,
            len,
            writable,
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

    /// Pointer to `count` bytes at `offset`, `None` when they are not all inside.
    fn at(&self, offset: usize, count: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(count)? > self.len {
            return None;
        }
        // SAFETY: offset is at most len, so the result stays within the mapping (or one past it).
        Some(unsafe { self.base.add(offset) })
    }

    /// Copies out; `None` when the range is not inside.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) -> Option<()> {
        let source = self.at(offset, data.len())?.as_ptr();
        let head = source.align_offset(8).min(data.len());
        let (first, rest) = data.split_at_mut(head);
        for (i, byte) in first.iter_mut().enumerate() {
            // SAFETY: i < data.len(), and at() checked that many bytes.
            *byte = unsafe { source.add(i).read_volatile() };
        }
        let mut done = head;
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            // SAFETY: done + 8 <= data.len(), and source + done is 8-byte aligned: head bytes
            // reached an alignment boundary and done grew by eights.
            let value = unsafe { source.add(done).cast::<u64>().read_volatile() };
            word.copy_from_slice(&value.to_ne_bytes());
            done += 8;
        }
        for (i, byte) in words.into_remainder().iter_mut().enumerate() {
            // SAFETY: done + i < data.len(), and at() checked that many bytes.
            *byte = unsafe { source.add(done + i).read_volatile() };
        }
        Some(())
    }

    /// Copies in; `None` when the range is not inside or the mapping is read-only.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Option<()> {
        let target = self
            .at(offset, data.len())
            .filter(|_| self.writable)?
            .as_ptr();
        let (first, rest) = data.split_at(target.align_offset(8).min(data.len()));
        for (i, byte) in first.iter().enumerate() {
            // SAFETY: i < data.len(), at() checked that many bytes, and the mapping is writable.
            unsafe { target.add(i).write_volatile(*byte) };
        }
        let mut done = first.len();
        let words = rest.chunks_exact(8);
        let tail = words.remainder();
        for word in words {
            let mut value = [0; 8];
            value.copy_from_slice(word);
            // SAFETY: done + 8 <= data.len(), and target + done is 8-byte aligned as in read().
            unsafe {
                target
                    .add(done)
                    .cast::<u64>()
                    .write_volatile(u64::from_ne_bytes(value))
            };
            done += 8;
        }
        for (i, byte) in tail.iter().enumerate() {
            // SAFETY: done + i < data.len(), and at() checked that many bytes.
            unsafe { target.add(done + i).write_volatile(*byte) };
        }
        Some(())
    }

    /// Stores a little-endian dword so that all earlier writes are visible to whoever sees it;
    /// `None` when it is not inside, not aligned, or the mapping is read-only.
    pub(crate) fn publish_u32(&self, offset: usize, value: u32) -> Option<()> {
        let target = self
            .at(offset, 4)
            .filter(|_| self.writable)?
            .as_ptr()
            .cast::<u32>();
        if !target.is_aligned() {
            return None;
        }
        // SAFETY: four mapped, writable, aligned bytes that are never reached through a reference
        // other than this short-lived atomic one.
        unsafe { AtomicU32::from_ptr(target) }.store(value.to_le(), Ordering::Release);
        Some(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let base = self.base.as_ptr().cast::<c_void>();
        // SAFETY: base and len describe a mapping of ours, and no pointer into it outlives a call.
        let result = unsafe { rustix::mm::munmap(base, self.len) };
        debug_assert!(result.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn copies_at_every_alignment_and_stays_inside() {
        let file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let mapping = Mapping::new(file.as_fd(), 4096, true).unwrap();
        let pattern: Vec<u8> = (0..40).map(|i| i as u8 + 1).collect();
        for offset in 0..17 {
            for len in 0..=pattern.len() {
                mapping.write(100, &[0xee; 64]).unwrap();
                mapping.write(101 + offset, &pattern[..len]).unwrap();
                let mut around = [0u8; 64];
                mapping.read(100, &mut around).unwrap();
                let mut expected = [0xee; 64];
                expected[1 + offset..1 + offset + len].copy_from_slice(&pattern[..len]);
                assert_eq!(around, expected, "offset {offset} len {len}");
                let mut back = vec![0; len];
                mapping.read(101 + offset, &mut back).unwrap();
                assert_eq!(back, pattern[..len]);
            }
        }
        assert!(mapping.read(4090, &mut [0; 7]).is_none());
        assert!(mapping.write(usize::MAX, &[0]).is_none());
        assert!(mapping.publish_u32(4094, 0).is_none());
        assert!(mapping.publish_u32(2, 0).is_none());
        assert!(mapping.publish_u32(4092, 7).is_some());
    }

    #[test]
    fn a_read_only_mapping_takes_no_writes() {
        let file = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let mapping = Mapping::new(file.as_fd(), 4096, false).unwrap();
        assert!(mapping.write(0, &[1]).is_none() && mapping.publish_u32(0, 1).is_none());
        assert!(mapping.read(0, &mut [0]).is_some());
    }
}
