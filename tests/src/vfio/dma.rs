// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of this process at I/O addresses: everything that a test lets a device read or write.

use super::log::{range, Range, PAGE};
use super::memory::Memory;
use super::space::Space;
use anyhow::{Context as _, Result};
use std::cell::Cell;

/// Windows of one memory in an address space. Addresses outside of them are a mistake of the test
/// and panic.
#[derive(Debug)]
pub struct Dma {
    /// The address space.
    pub space: Space,
    memory: Memory,
    windows: Vec<(Range, usize)>,
    next: Cell<u64>,
}

/// Where queues, lists and answers are: a window that every test has.
pub const QUEUES: Range = range(0x10_0000, 0x10_0000);
/// Where the data of the tests goes.
pub const DATA: Range = range(0x100_0000, 0x40_0000);
/// Small windows at the odd places of a PC below 1 MiB, as QEMU maps them.
pub const LOW: [Range; 3] = [
    range(0xc_0000, 0xa000),
    range(0xc_a000, 0x3000),
    range(0xe_8000, 0x8000),
];

impl Dma {
    /// Maps all windows in `space`, which has a device.
    pub fn new(space: Space) -> Result<Self> {
        let mut windows = Vec::new();
        let mut offset = 0;
        for window in [QUEUES, DATA].into_iter().chain(LOW) {
            windows.push((window, offset));
            offset += usize::try_from(window.length)?;
        }
        let memory = Memory::new(offset).context("cannot get memory for DMA")?;
        for (window, offset) in &windows {
            let length = usize::try_from(window.length)?;
            space
                .map(window.iova, &memory, *offset, length)
                .with_context(|| format!("cannot map {window:x?}"))?;
        }
        Ok(Self {
            space,
            memory,
            windows,
            next: Cell::new(QUEUES.iova),
        })
    }

    /// Address of `pages` pages of the window for queues that nobody else has, zeroed.
    pub fn take(&self, pages: u64) -> u64 {
        let address = self.next.get();
        let end = address + pages * PAGE;
        assert!(
            end <= QUEUES.iova + QUEUES.length,
            "no room for {pages} pages"
        );
        self.next.set(end);
        for page in range(address, pages * PAGE).pages() {
            self.write(page, &[0; PAGE as usize]);
        }
        address
    }

    /// Forgets all that was taken.
    pub fn take_back(&self) {
        self.next.set(QUEUES.iova);
    }

    fn offset(&self, iova: u64, length: usize) -> usize {
        // CAST: 64-bit machines only.
        let length = length as u64;
        let mut windows = self.windows.iter();
        let inside =
            |window: &Range| iova >= window.iova && iova + length <= window.iova + window.length;
        let (window, offset) = windows
            .find(|(window, _)| inside(window))
            .unwrap_or_else(|| panic!("{length} bytes at {iova:#x} are in no window"));
        offset + (iova - window.iova) as usize
    }

    /// Copies out.
    pub fn read(&self, iova: u64, data: &mut [u8]) {
        self.memory.read(self.offset(iova, data.len()), data);
    }

    /// Copies in.
    pub fn write(&self, iova: u64, data: &[u8]) {
        self.memory.write(self.offset(iova, data.len()), data);
    }

    /// Loads an aligned dword, and then what the device wrote before it is visible.
    pub fn load32(&self, iova: u64) -> u32 {
        self.memory.load32(self.offset(iova, 4))
    }

    /// A page.
    pub fn page(&self, iova: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE as usize];
        self.read(iova, &mut page);
        page
    }
}
