// SPDX-License-Identifier: GPL-2.0-only

//! The memory that a controller's admin queue shares with the card.
//!
//! Owned by the device (devres), so it goes only after unbind has stopped the controller; reached
//! through `Devres`, never kept. The card may write anywhere in it at any time: every value is read
//! once, copied out, and judged by the caller. Who may use which entry or page is the queue's
//! business; nothing here is locked.

use crate::common::wait::dma_read_barrier;
use crate::nvme::{
    command::Command,
    completion::{phase_of_dword, Completion, PHASE_DWORD},
};
use core::mem::size_of;
use kernel::{
    device::{self, Bound},
    dma::Coherent,
    dma_read, dma_write,
    prelude::*,
};

/// Bytes that a command can transfer: one page, so one PRP entry is enough.
const PAGE: usize = 4096;

const PAGE_WORDS: usize = PAGE / size_of::<u64>();
const COMPLETION_DWORDS: usize = Completion::SIZE / size_of::<u32>();

/// Two queues, and a page for each command in flight.
pub(crate) struct Memory {
    submission: Coherent<[[u8; Command::SIZE]]>,
    completion: Coherent<[[u32; COMPLETION_DWORDS]]>,
    pages: KVec<Coherent<[u64; PAGE_WORDS]>>,
}

impl Memory {
    /// Zeroed memory for queues of `depth` entries and for `slots` commands.
    pub(crate) fn new(dev: &device::Device<Bound>, slots: usize, depth: u16) -> Result<Self> {
        let mut pages = KVec::with_capacity(slots, GFP_KERNEL)?;
        for _ in 0..slots {
            pages.push(Coherent::zeroed(dev, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self {
            submission: Coherent::zeroed_slice(dev, usize::from(depth), GFP_KERNEL)?,
            completion: Coherent::zeroed_slice(dev, usize::from(depth), GFP_KERNEL)?,
            pages,
        })
    }

    /// DMA address of the submission queue.
    pub(crate) fn submission_address(&self) -> u64 {
        self.submission.dma_handle()
    }

    /// DMA address of the completion queue.
    pub(crate) fn completion_address(&self) -> u64 {
        self.completion.dma_handle()
    }

    /// Zeroes the page of a slot and returns its DMA address.
    pub(crate) fn clear_page(&self, slot: usize) -> Result<u64> {
        let page = self.pages.get(slot).ok_or(EIO)?;
        for index in 0..PAGE_WORDS {
            dma_write!(page, [try: index], 0);
        }
        Ok(page.dma_handle())
    }

    /// Copies the start of a slot's page.
    pub(crate) fn copy_page(&self, slot: usize, to: &mut [u8]) -> Result {
        let page = self.pages.get(slot).ok_or(EIO)?;
        for (index, part) in to.chunks_mut(size_of::<u64>()).enumerate() {
            let word = dma_read!(page, [try: index]);
            for (to, from) in part.iter_mut().zip(word.to_ne_bytes()) {
                *to = from;
            }
        }
        Ok(())
    }

    /// Writes a submission queue entry.
    pub(crate) fn write_submission(&self, index: u16, entry: [u8; Command::SIZE]) -> Result {
        dma_write!(self.submission, [try: usize::from(index)], entry);
        Ok(())
    }

    /// The completion queue entry at `index`, if `is_new` says so of its phase tag.
    pub(crate) fn completion(
        &self,
        index: u16,
        is_new: impl FnOnce(bool) -> bool,
    ) -> Result<Option<Completion>> {
        const DWORD: usize = PHASE_DWORD / size_of::<u32>();

        let index = usize::from(index);
        let last = dma_read!(self.completion, [try: index][try: DWORD]);
        if !is_new(phase_of_dword(u32::from_le(last))) {
            return Ok(None);
        }
        // The card wrote the rest before the phase; so it must be read after it.
        dma_read_barrier();
        let dwords = dma_read!(self.completion, [try: index]);
        let mut bytes = [0; Completion::SIZE];
        let read = dwords.iter().flat_map(|dword| dword.to_ne_bytes());
        for (to, from) in bytes.iter_mut().zip(read) {
            *to = from;
        }
        Ok(Some(Completion::from_bytes(&bytes)))
    }
}
