// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadow doorbells: doorbell values in guest memory, so that a driver need not trap for each
//! (Doorbell Buffer Config, NVMe Base 2.1, section 5.2.5 and annex B.5).
//!
//! Owned by the controller while they are configured. While the poller is awake it reads the
//! doorbells; before it sleeps it leaves in the EventIdx buffer at which value it wants a real
//! doorbell, and looks once more. The admin queue keeps its real doorbells.

use super::queues::{InvalidDoorbell, Queues};
use crate::memory::DmaError;
use crate::pci::Bus;
use std::sync::atomic::{fence, Ordering};

/// Bytes per queue pair: submission queue tail, completion queue head.
const PAIR: usize = 8;
/// Queue pairs whose doorbells fit one page of 4 KiB.
const MAX_PAIRS: usize = 512;

/// Where the buffers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shadow {
    /// IOVA of the shadow doorbell buffer (PRP1).
    pub(super) doorbells: u64,
    /// IOVA of the EventIdx buffer (PRP2).
    pub(super) event_indices: u64,
}

impl Shadow {
    /// Takes over all doorbells. One access to guest memory, whatever the number of queues. The
    /// inner error says that some value is not allowed; the others were taken.
    pub(super) fn read(
        &self,
        queues: &mut Queues,
        bus: &Bus<'_>,
    ) -> Result<Result<bool, InvalidDoorbell>, DmaError> {
        let mut raw = [[0; PAIR]; MAX_PAIRS];
        // From queue 1 to the highest.
        let count = usize::from(queues.highest()).min(MAX_PAIRS - 1);
        let raw = &mut raw[..count];
        if raw.is_empty() {
            return Ok(Ok(false));
        }
        let first = self.doorbells.checked_add(PAIR as u64);
        bus.read(first.ok_or(DmaError::NotMapped)?, raw.as_flattened_mut())?;
        // The driver wrote the entries before the doorbells.
        fence(Ordering::Acquire);
        let mut moved = Ok(false);
        for (id, &[a, b, c, d, e, f, g, h]) in (1..).zip(raw.iter()) {
            let tail = u32::from_le_bytes([a, b, c, d]) & 0xffff;
            let head = u32::from_le_bytes([e, f, g, h]) & 0xffff;
            let tail = queues.submission(id).map(|queue| queue.ring_tail(tail));
            let head = queues.completion(id).map(|queue| queue.ring_head(head));
            for change in [tail, head].into_iter().flatten() {
                moved = match (moved, change) {
                    (Ok(before), Ok(now)) => Ok(before | now),
                    _ => Err(InvalidDoorbell),
                };
            }
        }
        Ok(moved)
    }

    /// Asks for real doorbells: for each submission queue at the next entry, for each completion
    /// queue at the next entry only when it is full. Says whether a doorbell moved meanwhile.
    pub(super) fn arm(&mut self, queues: &mut Queues, bus: &Bus<'_>) -> Result<bool, DmaError> {
        let mut raw = [[0; PAIR]; MAX_PAIRS];
        let count = usize::from(queues.highest()).min(MAX_PAIRS - 1);
        let raw = &mut raw[..count];
        if raw.is_empty() {
            return Ok(false);
        }
        for (id, place) in (1..).zip(raw.iter_mut()) {
            let tail = queues.submission(id).map_or(0, |queue| queue.ring.tail());
            let head = queues.completion(id).map_or(0, |queue| queue.wanted_head());
            place[..4].copy_from_slice(&u32::from(tail).to_le_bytes());
            place[4..].copy_from_slice(&u32::from(head).to_le_bytes());
        }
        let first = self.event_indices.checked_add(PAIR as u64);
        bus.write(first.ok_or(DmaError::NotMapped)?, raw.as_flattened())?;
        // The driver writes its doorbell, then reads EventIdx; here it is the other way round. Each
        // needs its store to be visible before its load, or both could miss the other.
        fence(Ordering::SeqCst);
        Ok(self.read(queues, bus)?.unwrap_or(true))
    }
}
