// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that a device or a guest shares with this process, and BARs of the device in this process.
//!
//! Offsets are bytes from the start; one beyond the end is a mistake of the test and panics.

use super::sys::Mapping;
use rustix::io::Result;
use rustix::mm::Advice;
use std::os::fd::{AsFd, BorrowedFd};

/// Memory of this process that can be mapped for a device or a guest.
#[derive(Debug)]
pub struct Memory(Mapping);

impl Memory {
    /// `length` zeroed bytes, a multiple of 4096.
    pub fn new(length: usize) -> Result<Self> {
        Mapping::anonymous(length).map(Self)
    }

    /// The same that is no other process's, in pages of 2 MiB where the kernel has some. It can be
    /// taken away piece by piece.
    pub fn private(length: usize) -> Result<Self> {
        Mapping::private(length).map(Self)
    }

    /// Gives the pages of [`Self::private`] back: they are zeroes afterwards.
    pub fn discard(&self) -> Result<()> {
        self.0.advise(Advice::LinuxDontNeed)
    }

    /// Lets the kernel put the pages somewhere else: they are the same when they are used again.
    pub fn page_out(&self) -> Result<()> {
        self.0.advise(Advice::LinuxPageOut)
    }

    /// Memory that a driver gives by mmap of its file, which it keeps open.
    pub fn of_file(file: impl AsFd, offset: u64, length: usize, writable: bool) -> Result<Self> {
        match writable {
            true => Mapping::of_file(file.as_fd(), offset, length),
            false => Mapping::read_only_of_file(file.as_fd(), offset, length),
        }
        .map(Self)
    }

    /// Its size.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// Address in this process.
    pub fn address(&self) -> u64 {
        self.0.address()
    }

    /// Copies out.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    /// Copies in. A signal ends the program where it is not writable.
    pub fn write(&self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }

    /// Loads an aligned dword, and then what the device wrote before it is visible.
    pub fn load32(&self, offset: usize) -> u32 {
        self.0.load32(offset)
    }
}

/// A BAR, or its beginning, mapped from the device file.
#[derive(Debug)]
pub struct Bar(Mapping);

impl Bar {
    /// Maps `length` bytes at `offset` of the device file.
    pub(super) fn new(file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<Self> {
        Mapping::of_file(file, offset, length).map(Self)
    }

    /// Reads a 32-bit register.
    pub fn read32(&self, offset: usize) -> u32 {
        self.0.load32(offset)
    }

    /// Writes a 32-bit register.
    pub fn write32(&self, offset: usize, value: u32) {
        self.0.store32(offset, value);
    }

    /// Reads a 64-bit register, low half first.
    pub fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    /// Writes a 64-bit register, low half first.
    pub fn write64(&self, offset: usize, value: u64) {
        // CAST: the two halves.
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}
