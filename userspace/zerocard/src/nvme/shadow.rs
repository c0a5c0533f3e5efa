// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadow doorbells: doorbell values in guest memory, so that a driver need not trap for each
//! (Doorbell Buffer Config, NVMe Base 2.1, section 5.2.5 and annex B.5).
//!
//! Owned by the controller while they are configured. While the poller is awake it reads the
//! doorbells; before it sleeps it leaves in the EventIdx buffer at which value it wants a real
//! doorbell, and looks once more. The admin queue keeps its real doorbells.

use std::sync::atomic::{fence, Ordering};

use super::queues::{InvalidDoorbell, Queues};
use crate::memory::DmaError;
use crate::pci::Bus;

/// Bytes per queue pair: submission queue tail, completion queue head.
const PAIR: usize = 8;
/// Queue pairs that one access covers.
const CHUNK: u16 = 32;

/// Where the buffers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shadow {
    /// IOVA of the shadow doorbell buffer (PRP1).
    pub(super) doorbells: u64,
    /// IOVA of the EventIdx buffer (PRP2).
    pub(super) event_indices: u64,
}

impl Shadow {
    /// Takes over all doorbells; one access to guest memory for every 32 queue pairs. The inner error
    /// says that some value is not allowed; the others were taken.
    pub(super) fn read(
        &self,
        queues: &mut Queues,
        bus: &Bus<'_>,
    ) -> Result<Result<bool, InvalidDoorbell>, DmaError> {
        let mut moved = Ok(false);
        for (first, count) in chunks(queues) {
            let mut raw = [[0; PAIR]; CHUNK as usize];
            let raw = &mut raw[..usize::from(count)];
            bus.read(place(self.doorbells, first)?, raw.as_flattened_mut())?;
            // The driver wrote the entries before the doorbells.
            fence(Ordering::Acquire);
            for (id, &[a, b, c, d, e, f, g, h]) in (first..).zip(raw.iter()) {
                let tail = u32::from_le_bytes([a, b, c, d]) & 0xffff;
                let head = u32::from_le_bytes([e, f, g, h]) & 0xffff;
                let tail = queues.submission(id).map(|queue| {
                    let change = queue.ring_tail(tail);
                    queue.ring.shadowed(tail, change)
                });
                let head = queues.completion(id).map(|queue| {
                    let change = queue.ring_head(head);
                    queue.ring.shadowed(head, change)
                });
                for change in [tail, head].into_iter().flatten() {
                    moved = match (moved, change) {
                        (Ok(before), Ok(now)) => Ok(before | now),
                        _ => Err(InvalidDoorbell),
                    };
                }
            }
        }
        Ok(moved)
    }

    /// Asks for real doorbells: for each submission queue at the next entry, for each completion
    /// queue at the next entry only when it is full. Says whether a doorbell moved meanwhile.
    pub(super) fn arm(&self, queues: &mut Queues, bus: &Bus<'_>) -> Result<bool, DmaError> {
        self.write_event_indices(queues, true, bus)?;
        // The driver writes its doorbell, then reads EventIdx; here it is the other way round. Each
        // needs its store to be visible before its load, or both could miss the other.
        fence(Ordering::SeqCst);
        Ok(self.read(queues, bus)?.unwrap_or(true))
    }

    /// Keeps drivers from ringing while the poller is awake: an EventIdx that was left behind would
    /// be passed once in every round of its ring. To be called when doorbells have moved.
    pub(super) fn hush(&self, queues: &mut Queues, bus: &Bus<'_>) -> Result<(), DmaError> {
        if queues.event_index_lags() {
            self.write_event_indices(queues, false, bus)?;
        }
        Ok(())
    }

    fn write_event_indices(
        &self,
        queues: &mut Queues,
        ring: bool,
        bus: &Bus<'_>,
    ) -> Result<(), DmaError> {
        for (first, count) in chunks(queues) {
            let mut raw = [[0; PAIR]; CHUNK as usize];
            let raw = &mut raw[..usize::from(count)];
            for (id, pair) in (first..).zip(raw.iter_mut()) {
                let tail = queues
                    .submission(id)
                    .map_or(0, |queue| queue.ring.set_event_index(queue.ring.tail, ring));
                let head = queues.completion(id).map_or(0, |queue| {
                    let full = ring && queue.room() == 0;
                    queue.ring.set_event_index(queue.ring.head, full)
                });
                pair[..4].copy_from_slice(&u32::from(tail).to_le_bytes());
                pair[4..].copy_from_slice(&u32::from(head).to_le_bytes());
            }
            bus.write(place(self.event_indices, first)?, raw.as_flattened())?;
        }
        Ok(())
    }
}

/// I/O queue pairs up to the highest that exists, as first identifier and count.
fn chunks(queues: &Queues) -> impl Iterator<Item = (u16, u16)> {
    let highest = queues.highest();
    let firsts = (1..=highest).step_by(CHUNK.into());
    firsts.map(move |first| (first, (highest - first + 1).min(CHUNK)))
}

/// Where a queue pair's doorbells are in a buffer.
fn place(buffer: u64, id: u16) -> Result<u64, DmaError> {
    let offset = PAIR as u64 * u64::from(id);
    buffer.checked_add(offset).ok_or(DmaError::NotMapped)
}
