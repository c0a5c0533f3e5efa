// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The unsafe ground of the test programs: ioctls with any number and address, memory with a hole
//! behind it, registers.

use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::{Errno, Result};
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use rustix::mm::{mmap, mmap_anonymous, mprotect, munmap, MapFlags, MprotectFlags, ProtFlags};
use std::ffi::c_void;
use std::ptr;

/// Size of a page on the machines that the modules are for.
pub const PAGE: usize = 4096;

struct Raw {
    number: Opcode,
    argument: usize,
}

// SAFETY: number and argument go to the kernel as they are, which is what the caller asked for;
// nothing is read back here.
unsafe impl Ioctl for Raw {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::without_provenance_mut(self.argument)
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<()> {
        Ok(())
    }
}

/// An ioctl with an argument that need not be a good address.
///
/// # Safety
///
/// If the kernel writes to the memory at `argument`, nothing in this process may mind.
pub unsafe fn ioctl_at(file: impl AsFd, number: u32, argument: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { ioctl(file, Raw { number, argument }) }
}

/// An ioctl on a buffer. The kernel must not write behind it; to notice when it does, put the
/// buffer at the end of [`Pages`].
pub fn ioctl_on(file: impl AsFd, number: u32, buffer: &mut [u8]) -> Result<()> {
    let argument = buffer.as_mut_ptr().expose_provenance();
    // SAFETY: the buffer is borrowed for writing; what lies behind it is the module's promise,
    // which is what is being tested.
    unsafe { ioctl_at(file, number, argument) }
}

/// A structure of an ioctl: integers only, so any bytes are one.
///
/// # Safety
///
/// No padding, and every pattern of bits is a value.
pub unsafe trait Plain {}

macro_rules! plain {
    ($($name:ty)*) => {
        // SAFETY: integers and arrays of them; `migdirty.h`, `vmfunc.h` and their tests say that nothing
        // is between.
        $(unsafe impl Plain for $name {})*
    };
}

plain!(migdirty_uapi::MigdirtyFunctionInfo migdirty_uapi::MigdirtyTarget
    migdirty_uapi::MigdirtyLogStart migdirty_uapi::MigdirtyLogSync migdirty_uapi::MigdirtyState
    migdirty_uapi::MigdirtyIdentity migdirty_uapi::MigdirtyRange
    vmfunc_uapi::VmfuncAttach vmfunc_uapi::VmfuncView vmfunc_uapi::VmfuncWindow
    vmfunc_uapi::VmfuncVcpu vmfunc_uapi::VmfuncQuery vmfunc_uapi::VmfuncEventfd);

/// An ioctl on a structure, which may point to more: see [`ioctl_on`].
pub fn ioctl_with<T: Plain>(file: impl AsFd, number: u32, argument: &mut T) -> Result<()> {
    let argument = ptr::from_mut(argument).expose_provenance();
    // SAFETY: borrowed for writing, and any bytes are a value; what lies behind it, and what it
    // points to, is the module's promise, which is what is being tested.
    unsafe { ioctl_at(file, number, argument) }
}

/// The address of memory, for a structure of an ioctl to point to.
pub fn address_of<T: Plain>(slice: &mut [T]) -> u64 {
    // CAST: an address.
    slice.as_mut_ptr().expose_provenance() as u64
}

/// The address of bytes, for a structure of an ioctl to point to.
pub fn address_of_bytes(slice: &mut [u8]) -> u64 {
    // CAST: an address.
    slice.as_mut_ptr().expose_provenance() as u64
}

/// Two pages of memory of which the second cannot be touched.
#[derive(Debug)]
pub struct Pages {
    start: *mut c_void,
    writable: bool,
}

impl Pages {
    /// Maps them, the first one zeroed.
    pub fn new() -> Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                2 * PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let pages = Self {
            start,
            writable: true,
        };
        // SAFETY: the second page is ours and nobody has a reference into it.
        unsafe { mprotect(start.byte_add(PAGE), PAGE, MprotectFlags::empty()) }?;
        Ok(pages)
    }

    /// Forbids writing to the first page.
    pub fn make_read_only(&mut self) -> Result<()> {
        self.writable = false;
        // SAFETY: the page is ours, and `&mut` says that nobody has a reference into it.
        unsafe { mprotect(self.start, PAGE, MprotectFlags::READ) }
    }

    /// Address of the last `length` bytes of the first page.
    pub fn end(&self, length: usize) -> usize {
        self.start.expose_provenance() + PAGE - length
    }

    /// The first page. Panics after [`Self::make_read_only`].
    pub fn first(&mut self) -> &mut [u8] {
        assert!(self.writable, "the page is read-only");
        // SAFETY: mapped for reading and writing, zeroed, ours, and borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), PAGE) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our mapping, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start, 2 * PAGE) };
    }
}

/// The first page of a PCI function's BAR, for reading.
#[derive(Debug)]
pub struct Bar {
    start: *mut c_void,
    writable: bool,
}

impl Bar {
    /// Maps it from a `resourceN` file of sysfs that is open for reading.
    pub fn new(resource: BorrowedFd<'_>) -> Result<Self> {
        Self::map(resource, ProtFlags::READ)
    }

    /// Maps it from one that is open for writing too.
    pub fn new_writable(resource: BorrowedFd<'_>) -> Result<Self> {
        Self::map(resource, ProtFlags::READ | ProtFlags::WRITE)
    }

    fn map(resource: BorrowedFd<'_>, protection: ProtFlags) -> Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                PAGE,
                protection,
                MapFlags::SHARED,
                resource,
                0,
            )
        }?;
        Ok(Self {
            start,
            writable: protection.contains(ProtFlags::WRITE),
        })
    }

    /// Reads a 32-bit register.
    pub fn read32(&self, offset: usize) -> Result<u32> {
        if offset % 4 != 0 || offset > PAGE - 4 {
            return Err(Errno::INVAL);
        }
        // SAFETY: inside of the mapping and aligned, just checked.
        Ok(unsafe { self.start.byte_add(offset).cast::<u32>().read_volatile() })
    }

    /// Writes a 32-bit register. `EACCES` when it is not mapped for that.
    pub fn write32(&self, offset: usize, value: u32) -> Result<()> {
        if offset % 4 != 0 || offset > PAGE - 4 {
            return Err(Errno::INVAL);
        }
        if !self.writable {
            return Err(Errno::ACCESS);
        }
        // SAFETY: inside of the mapping, aligned and writable, just checked.
        unsafe {
            self.start
                .byte_add(offset)
                .cast::<u32>()
                .write_volatile(value);
        }
        Ok(())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: our mapping, and nothing points into it.
        let _ = unsafe { munmap(self.start, PAGE) };
    }
}
