// SPDX-License-Identifier: GPL-2.0-only

//! The memory that a controller's admin queue shares with the card.
//!
//! Owned by the device (devres), so it goes only after unbind has stopped the controller; reached
//! through `Devres`, never kept. The card may write anywhere in it at any time: every value is read
//! once, copied out, and judged by the caller. Who may use which entry or buffer is the queue's
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

/// Bytes that a command can transfer.
pub(crate) const BUFFER: usize = 64 << 10;

/// Memory pages of the controller (CC.MPS is 0).
const PAGE: usize = 4096;

const WORD: usize = size_of::<u64>();
const BUFFER_WORDS: usize = BUFFER / WORD;
const COMPLETION_DWORDS: usize = Completion::SIZE / size_of::<u32>();

/// Entries of a PRP list: the pages of a buffer behind the first one, and one to make it a power of
/// two, so that no list crosses a page.
const LIST: usize = BUFFER / PAGE;

/// Two queues, and a buffer with its PRP list for each command in flight.
pub(crate) struct Memory {
    submission: Coherent<[[u8; Command::SIZE]]>,
    completion: Coherent<[[u32; COMPLETION_DWORDS]]>,
    buffers: KVec<Coherent<[u64; BUFFER_WORDS]>>,
    lists: Coherent<[[u64; LIST]]>,
}

impl Memory {
    /// Zeroed memory for queues of `depth` entries and for `slots` commands.
    pub(crate) fn new(dev: &device::Device<Bound>, slots: usize, depth: u16) -> Result<Self> {
        let mut buffers = KVec::with_capacity(slots, GFP_KERNEL)?;
        let lists: Coherent<[[u64; LIST]]> = Coherent::zeroed_slice(dev, slots, GFP_KERNEL)?;
        for slot in 0..slots {
            let buffer: Coherent<[u64; BUFFER_WORDS]> = Coherent::zeroed(dev, GFP_KERNEL)?;
            for entry in 0..LIST - 1 {
                // CAST: widens.
                let page = buffer.dma_handle() + ((entry + 1) * PAGE) as u64;
                dma_write!(lists, [try: slot][try: entry], page.to_le());
            }
            buffers.push(buffer, GFP_KERNEL)?;
        }
        Ok(Self {
            submission: Coherent::zeroed_slice(dev, usize::from(depth), GFP_KERNEL)?,
            completion: Coherent::zeroed_slice(dev, usize::from(depth), GFP_KERNEL)?,
            buffers,
            lists,
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

    /// Fills a slot's buffer with `data`, and with zeroes up to `length`; returns both PRP entries
    /// for a transfer of `length` bytes.
    pub(crate) fn prepare(&self, slot: usize, data: &[u8], length: usize) -> Result<(u64, u64)> {
        let buffer = self.buffers.get(slot).ok_or(EIO)?;
        if data.len() > length || length > BUFFER {
            return Err(EINVAL);
        }
        let mut parts = data.chunks(WORD);
        for index in 0..length.div_ceil(WORD) {
            let mut word = [0; WORD];
            if let Some(part) = parts.next() {
                for (to, from) in word.iter_mut().zip(part) {
                    *to = *from;
                }
            }
            dma_write!(buffer, [try: index], u64::from_ne_bytes(word));
        }
        let first = buffer.dma_handle();
        // CAST: widens.
        let page = PAGE as u64;
        Ok((
            first,
            match length.div_ceil(PAGE) {
                0 | 1 => 0,
                2 => first + page,
                _ => self.lists.dma_handle() + (slot * size_of::<[u64; LIST]>()) as u64,
            },
        ))
    }

    /// Copies from a slot's buffer, from `offset` on, a multiple of 8.
    pub(crate) fn read(&self, slot: usize, offset: usize, to: &mut [u8]) -> Result {
        let buffer = self.buffers.get(slot).ok_or(EIO)?;
        let start = offset / WORD;
        for (index, part) in to.chunks_mut(WORD).enumerate() {
            let word = dma_read!(buffer, [try: start + index]);
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
