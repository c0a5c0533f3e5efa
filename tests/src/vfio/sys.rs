// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The unsafe ground of the VFIO layer: ioctls with the kernel's structures, memory that a device
//! shares.
//!
//! Owned by this folder; nothing above it has `unsafe`. No reference into shared memory may ever
//! exist: bytes are copied with volatile accesses.

use iommufd_bindings::{iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap};
use rustix::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};
use rustix::io::{Errno, Result};
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use rustix::mm::{madvise, mmap, mmap_anonymous, munmap, Advice, MapFlags, ProtFlags};
use std::ffi::{c_void, CStr};
use std::ptr;
use std::sync::atomic::{fence, Ordering};
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_info, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_irq_info, vfio_region_info,
};

/// A structure that an ioctl takes.
///
/// # Safety
///
/// Every pattern of bytes is a value of it, and the ioctls that it is given to write no more than
/// its size.
pub(super) unsafe trait Argument {}

macro_rules! arguments {
    ($($type:ty)*) => {
        // SAFETY: integers only; these are the kernel's own structures, whose size (`argsz`,
        // `size`) says how much is written.
        $(unsafe impl Argument for $type {})*
    };
}

arguments! {
    i32
    iommu_ioas_alloc iommu_ioas_map iommu_ioas_unmap
    vfio_device_attach_iommufd_pt vfio_device_bind_iommufd vfio_device_info vfio_group_status
    vfio_iommu_type1_dma_map vfio_iommu_type1_dma_unmap vfio_irq_info vfio_region_info
}

struct Call<'a, T> {
    number: Opcode,
    argument: &'a mut T,
}

// SAFETY: `Argument` says that the kernel may fill it.
unsafe impl<T: Argument> Ioctl for Call<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::from_mut(self.argument).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<()> {
        Ok(())
    }
}

/// An ioctl with a structure, in and out.
pub(super) fn ioctl_with(file: impl AsFd, number: u32, argument: &mut impl Argument) -> Result<()> {
    // SAFETY: by `Argument`; the numbers in this folder take the structures they are used with.
    unsafe { ioctl(file, Call { number, argument }) }
}

struct OpenByName<'a> {
    number: Opcode,
    name: &'a CStr,
}

// SAFETY: the kernel reads a string and returns a file descriptor.
unsafe impl Ioctl for OpenByName<'_> {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.number
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.name.as_ptr().cast_mut().cast()
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> Result<OwnedFd> {
        // SAFETY: the ioctl succeeded, so this is a new descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// An ioctl that takes a name and returns a file.
pub(super) fn ioctl_open(file: impl AsFd, number: u32, name: &CStr) -> Result<OwnedFd> {
    // SAFETY: `VFIO_GROUP_GET_DEVICE_FD`, the only one, does just that.
    unsafe { ioctl(file, OpenByName { number, name }) }
}

/// Takes a file that the kernel returned as a number in a structure.
pub(super) fn take_file(fd: i32) -> Option<OwnedFd> {
    // SAFETY: callers pass what the kernel has just made for them, once.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A mapping that somebody else changes at any time.
///
/// Invariant: `start` is the start of a mapping of `length` bytes that lives as long as this value.
#[derive(Debug)]
pub(super) struct Mapping {
    start: *mut c_void,
    length: usize,
}

// SAFETY: the mapping belongs to the process; it is only reached by bounds-checked volatile
// accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory of its own.
    pub(super) fn anonymous(length: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), length, protection, flags) }?;
        Ok(Self { start, length })
    }

    /// The same of this process alone, in large pages where the kernel has some.
    pub(super) fn private(length: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as above.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE) }?;
        let mapping = Self { start, length };
        match mapping.advise(Advice::LinuxHugepage) {
            // This kernel has none.
            Err(Errno::INVAL) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        mapping.advise(Advice::LinuxPopulateWrite)?;
        Ok(mapping)
    }

    /// madvise of all of it. It may lose what is in it, and that it may do at any time anyway.
    pub(super) fn advise(&self, advice: Advice) -> Result<()> {
        // SAFETY: ours, and nobody has a reference into it.
        unsafe { madvise(self.start, self.length, advice) }
    }

    /// Part of a device.
    pub(super) fn of_file(file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        Self::map_file(file, offset, length, protection)
    }

    /// The same, where writing raises a signal.
    pub(super) fn read_only_of_file(
        file: BorrowedFd<'_>,
        offset: u64,
        length: usize,
    ) -> Result<Self> {
        Self::map_file(file, offset, length, ProtFlags::READ)
    }

    fn map_file(
        file: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        protection: ProtFlags,
    ) -> Result<Self> {
        let flags = MapFlags::SHARED;
        // SAFETY: as above.
        let start = unsafe { mmap(ptr::null_mut(), length, protection, flags, file, offset) }?;
        Ok(Self { start, length })
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    pub(super) fn address(&self) -> u64 {
        // CAST: 64-bit machines only.
        self.start.expose_provenance() as u64
    }

    /// Pointer to `count` bytes at `offset`. Panics when they are not inside.
    fn at(&self, offset: usize, count: usize) -> *mut u8 {
        let end = offset.checked_add(count);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{count} bytes at {offset:#x} of {:#x}",
            self.length
        );
        // SAFETY: inside of the mapping, or at its end.
        unsafe { self.start.cast::<u8>().add(offset) }
    }

    /// Copies out, eight bytes at a time where that is aligned.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let from = self.at(offset, data.len());
        let words = from.cast::<u64>().is_aligned();
        let whole = if words { data.len() / 8 * 8 } else { 0 };
        let (head, tail) = data.split_at_mut(whole);
        for (i, chunk) in head.chunks_exact_mut(8).enumerate() {
            // SAFETY: inside, checked by at(), and aligned.
            let word = unsafe { from.cast::<u64>().add(i).read_volatile() };
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        for (i, byte) in tail.iter_mut().enumerate() {
            // SAFETY: inside, checked by at().
            *byte = unsafe { from.add(whole + i).read_volatile() };
        }
    }

    /// Copies in, eight bytes at a time where that is aligned.
    pub(super) fn write(&self, offset: usize, data: &[u8]) {
        let to = self.at(offset, data.len());
        let words = to.cast::<u64>().is_aligned();
        let whole = if words { data.len() / 8 * 8 } else { 0 };
        let (head, tail) = data.split_at(whole);
        for (i, chunk) in head.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(chunk.try_into().unwrap());
            // SAFETY: inside, checked by at(), and aligned.
            unsafe { to.cast::<u64>().add(i).write_volatile(word) };
        }
        for (i, byte) in tail.iter().enumerate() {
            // SAFETY: inside, checked by at().
            unsafe { to.add(whole + i).write_volatile(*byte) };
        }
    }

    /// Loads a dword; what was written before it by the other side is visible after.
    pub(super) fn load32(&self, offset: usize) -> u32 {
        let from = self.at(offset, 4).cast::<u32>();
        assert!(from.is_aligned(), "dword at {offset:#x}");
        // SAFETY: inside and aligned, just checked.
        let value = unsafe { from.read_volatile() };
        fence(Ordering::Acquire);
        value
    }

    /// Stores a dword; what was written before it is visible to who sees it.
    pub(super) fn store32(&self, offset: usize, value: u32) {
        let to = self.at(offset, 4).cast::<u32>();
        assert!(to.is_aligned(), "dword at {offset:#x}");
        fence(Ordering::SeqCst);
        // SAFETY: inside and aligned, just checked.
        unsafe { to.write_volatile(value) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our mapping, and no reference into it exists.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
