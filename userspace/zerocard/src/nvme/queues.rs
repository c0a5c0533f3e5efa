// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Submission and completion queues: ring positions, doorbells, phase, and batches of entries.
//!
//! Owned by the controller while it is enabled; queue 0 is the admin queue. Everything in here
//! derives from values that were checked when a queue was made or a doorbell was written, so
//! positions are always inside the rings. It never interprets a command.
//!
//! A command is fetched only when its completion has a place to go: a completion queue counts what
//! is outstanding on it beside what it holds.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::{Completion, PHASE_DWORD};

use crate::faults::Field;
use crate::memory::DmaError;
use crate::pci::Bus;

/// Entries that one access to guest memory fetches or posts at most.
pub(super) const BATCH: usize = 32;

/// A doorbell value that the specification does not allow; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidDoorbell;

/// One ring: `head` is where the consumer is, `tail` where the producer is.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    base: u64,
    entries: u32,
    pub(super) head: u32,
    pub(super) tail: u32,
    /// EventIdx of the doorbell, as the driver was told.
    event_index: u32,
    /// A shadow doorbell value that is not allowed and was reported.
    refused: Option<u32>,
}

impl Ring {
    /// An empty ring of `size` + 1 entries.
    fn new(base: u64, size: u16) -> Self {
        Self {
            base,
            entries: u32::from(size) + 1,
            head: 0,
            tail: 0,
            event_index: 0,
            refused: None,
        }
    }

    fn used(&self) -> u32 {
        self.distance(self.head, self.tail)
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from {
            to - from
        } else {
            to + self.entries - from
        }
    }

    fn advance(&self, position: u32, by: u32) -> u32 {
        let next = position + by;
        if next >= self.entries {
            next - self.entries
        } else {
            next
        }
    }

    fn address(&self, position: u32, entry: usize) -> Result<u64, DmaError> {
        let offset = u64::from(position) * entry as u64;
        self.base.checked_add(offset).ok_or(DmaError::NotMapped)
    }

    /// Sets EventIdx for a doorbell that stands at `position`: at it when the next move is to ring,
    /// else one before it, which a driver does not pass before it has gone round.
    pub(super) fn set_event_index(&mut self, position: u32, ring: bool) -> u16 {
        let back = if ring { 0 } else { self.entries - 1 };
        self.event_index = self.advance(position, back);
        // Below the number of entries, which came from a u16.
        self.event_index as u16
    }

    /// What a shadow doorbell value came to. One that is not allowed is an error once; as long as it
    /// stands there, it is no news.
    pub(super) fn shadowed(
        &mut self,
        value: u32,
        change: Result<bool, InvalidDoorbell>,
    ) -> Result<bool, InvalidDoorbell> {
        match change {
            Ok(moved) => {
                self.refused = None;
                Ok(moved)
            }
            Err(InvalidDoorbell) if self.refused == Some(value) => Ok(false),
            Err(InvalidDoorbell) => {
                self.refused = Some(value);
                Err(InvalidDoorbell)
            }
        }
    }

    /// Whether the doorbell at `position` is halfway round to EventIdx.
    fn event_index_lags(&self, position: u32) -> bool {
        self.distance(self.event_index, position) >= self.entries.div_ceil(2)
    }

    /// Address of the first entry.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Size as commands and registers give it, 0's based.
    pub(super) fn size(&self) -> u16 {
        // Made from a u16.
        (self.entries - 1) as u16
    }

    /// Where the consumer is.
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }

    /// Where the producer is.
    pub(super) fn tail(&self) -> u16 {
        self.tail as u16
    }

    /// Nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }
}

/// A submission queue.
#[derive(Clone, Debug)]
pub(super) struct SubmissionQueue {
    pub(super) ring: Ring,
    /// The completion queue that it is bound to.
    pub(super) completion: u16,
    /// Commands that were fetched and are not complete.
    pub(super) outstanding: u32,
    /// It is being deleted: nothing is fetched any more.
    pub(super) deleted: bool,
}

impl SubmissionQueue {
    /// An empty queue.
    pub(super) fn new(base: u64, size: u16, completion: u16) -> Self {
        Self {
            ring: Ring::new(base, size),
            completion,
            outstanding: 0,
            deleted: false,
        }
    }

    /// A queue in the middle of its life, as a controller state gives it.
    pub(super) fn restore(
        base: u64,
        size: u16,
        completion: u16,
        head: u16,
        tail: u16,
    ) -> Option<Self> {
        let mut queue = Self::new(base, size, completion);
        (queue.ring.head, queue.ring.tail) = (head.into(), tail.into());
        (head <= size && tail <= size).then_some(queue)
    }

    /// A new tail. Says whether it changed.
    pub(super) fn ring_tail(&mut self, value: u32) -> Result<bool, InvalidDoorbell> {
        let ring = &mut self.ring;
        if value == ring.tail {
            return Ok(false);
        }
        if value >= ring.entries {
            return Err(InvalidDoorbell);
        }
        let added = ring.distance(ring.tail, value);
        if added > ring.entries - 1 - ring.used() {
            return Err(InvalidDoorbell);
        }
        ring.tail = value;
        Ok(true)
    }

    /// Commands that wait.
    pub(super) fn waiting(&self) -> u32 {
        if self.deleted {
            0
        } else {
            self.ring.used()
        }
    }

    /// Copies up to `max` waiting entries, as many as follow each other in memory, into `entries`
    /// and gives their number. Copies: the guest may change its own afterwards. Nothing is consumed
    /// before [`SubmissionQueue::consume`].
    pub(super) fn peek(
        &self,
        max: u32,
        bus: &Bus<'_>,
        entries: &mut [[u8; Command::SIZE]],
    ) -> Result<u32, DmaError> {
        let ring = &self.ring;
        let count = self
            .waiting()
            .min(max)
            .min(ring.entries - ring.head)
            .min(entries.len() as u32);
        if count == 0 {
            return Ok(0);
        }
        let address = ring.address(ring.head, Command::SIZE)?;
        let place = &mut entries[..count as usize];
        bus.read(address, place.as_flattened_mut())?;
        Ok(count)
    }

    /// One peeked entry is being executed.
    pub(super) fn consume(&mut self) {
        self.ring.head = self.ring.advance(self.ring.head, 1);
    }
}

/// A completion queue.
#[derive(Clone, Debug)]
pub(super) struct CompletionQueue {
    pub(super) ring: Ring,
    pub(super) phase: bool,
    /// Interrupt vector.
    pub(super) vector: u16,
    /// Interrupts enabled.
    pub(super) interrupts: bool,
    /// Fetched commands whose completions will come here.
    pub(super) outstanding: u32,
    /// Completions without a place in the ring yet, in order; and what a fault makes of them.
    ready: Vec<(Completion, Option<Field>)>,
}

impl CompletionQueue {
    /// An empty queue.
    pub(super) fn new(base: u64, size: u16, vector: u16, interrupts: bool) -> Self {
        Self {
            ring: Ring::new(base, size),
            phase: true,
            vector,
            interrupts,
            outstanding: 0,
            ready: Vec::new(),
        }
    }

    /// A queue in the middle of its life, as a controller state gives it. `slot_0_phase` is the
    /// phase tag of the entry in slot 0.
    pub(super) fn restore(mut self, head: u16, tail: u16, slot_0_phase: bool) -> Option<Self> {
        let size = self.ring.size();
        (self.ring.head, self.ring.tail) = (head.into(), tail.into());
        // Slot 0 was written in the present round, unless the round has not begun.
        self.phase = slot_0_phase != (tail == 0);
        (head <= size && tail <= size).then_some(self)
    }

    /// Phase tag of the entry in slot 0.
    pub(super) fn slot_0_phase(&self) -> bool {
        self.phase != (self.ring.tail == 0)
    }

    /// A new head. Says whether it changed.
    pub(super) fn ring_head(&mut self, value: u32) -> Result<bool, InvalidDoorbell> {
        let ring = &mut self.ring;
        if value == ring.head {
            return Ok(false);
        }
        if value >= ring.entries || ring.distance(ring.head, value) > ring.used() {
            return Err(InvalidDoorbell);
        }
        ring.head = value;
        Ok(true)
    }

    /// Commands that may be fetched now: each has a place for its completion.
    pub(super) fn room(&self) -> u32 {
        let taken = self.ring.used() + self.outstanding + self.ready.len() as u32;
        (self.ring.entries - 1).saturating_sub(taken)
    }

    /// Free entries in the ring.
    fn free(&self) -> u32 {
        self.ring.entries - 1 - self.ring.used()
    }

    /// Whether anything waits for [`CompletionQueue::post`].
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Adds a completion, to be posted with others. Phase is filled in when it is.
    pub(super) fn push(&mut self, completion: Completion, broken: Option<Field>) {
        self.ready.push((completion, broken));
    }

    /// What waits for [`CompletionQueue::post`].
    pub(super) fn ready(&self) -> impl Iterator<Item = Completion> + '_ {
        self.ready.iter().map(|(completion, _)| *completion)
    }

    /// Posts what is ready and has a place. Says how many there were.
    ///
    /// Entries that follow each other in memory are written at once, all but the phase tag of the
    /// first, which still says "old"; then that dword is published. A driver looks at the first
    /// entry before the others, so when it sees that one, it sees all.
    pub(super) fn post(&mut self, bus: &Bus<'_>) -> Result<u32, DmaError> {
        let mut posted = 0;
        loop {
            let count = (self.ready.len() - posted)
                .min(self.free() as usize)
                .min((self.ring.entries - self.ring.tail) as usize)
                .min(BATCH);
            if count == 0 {
                break;
            }
            let batch = &mut self.ready[posted..posted + count];
            let mut bytes = [[0; Completion::SIZE]; BATCH];
            for ((completion, broken), bytes) in batch.iter_mut().zip(&mut bytes) {
                completion.phase = self.phase;
                if let Some(field) = broken {
                    field.corrupt(completion);
                }
                *bytes = completion.to_bytes();
            }
            let address = self.ring.address(self.ring.tail, Completion::SIZE)?;
            let phase_address = address
                .checked_add(PHASE_DWORD as u64)
                .ok_or(DmaError::NotMapped)?;
            let [.., a, b, c, d] = bytes[0];
            // The phase tag is bit 0 of the status half of the dword.
            let status = &mut bytes[0][PHASE_DWORD + 2];
            *status = *status & !1 | u8::from(!self.phase);
            bus.write(address, bytes[..count].as_flattened())?;
            bus.publish_u32(phase_address, u32::from_le_bytes([a, b, c, d]))?;
            // At most BATCH.
            self.ring.tail = self.ring.advance(self.ring.tail, count as u32);
            if self.ring.tail == 0 {
                self.phase = !self.phase;
            }
            posted += count;
        }
        self.ready.drain(..posted);
        Ok(posted as u32)
    }
}

/// The queues of a controller, by identifier.
#[derive(Default)]
pub(super) struct Queues {
    pub(super) submission: Vec<Option<SubmissionQueue>>,
    pub(super) completion: Vec<Option<CompletionQueue>>,
}

impl Queues {
    /// The admin queue pair alone, and room for `io_queues` more pairs.
    pub(super) fn new(admin: (SubmissionQueue, CompletionQueue), io_queues: u16) -> Self {
        let mut queues = Self::without_admin(io_queues);
        queues.submission[0] = Some(admin.0);
        queues.completion[0] = Some(admin.1);
        queues
    }

    /// Room for the admin queue pair and `io_queues` more.
    pub(super) fn without_admin(io_queues: u16) -> Self {
        let mut queues = Self::default();
        let count = usize::from(io_queues) + 1;
        queues.submission.resize(count, None);
        queues.completion.resize(count, None);
        queues
    }

    /// A submission queue that exists.
    pub(super) fn submission(&mut self, id: u16) -> Option<&mut SubmissionQueue> {
        self.submission.get_mut(usize::from(id))?.as_mut()
    }

    /// A completion queue that exists.
    pub(super) fn completion(&mut self, id: u16) -> Option<&mut CompletionQueue> {
        self.completion.get_mut(usize::from(id))?.as_mut()
    }

    /// Highest identifier of an I/O queue that exists, 0 when there is none.
    pub(super) fn highest(&self) -> u16 {
        let used = |id: &usize| self.submission[*id].is_some() || self.completion[*id].is_some();
        // Both have one entry per identifier, at most 65,536.
        (1..self.submission.len()).rev().find(used).unwrap_or(0) as u16
    }

    /// Whether some doorbell is about to be passed a second time by a stale EventIdx.
    pub(super) fn event_index_lags(&self) -> bool {
        // The admin queue has no shadow doorbells.
        let mut submission = self.submission.iter().skip(1).flatten();
        let mut completion = self.completion.iter().skip(1).flatten();
        submission.any(|queue| queue.ring.event_index_lags(queue.ring.tail))
            || completion.any(|queue| queue.ring.event_index_lags(queue.ring.head))
    }

    /// Completes a command of a submission queue: fills in queue and head, and hands it to the
    /// completion queue. The queues may be gone; then so is the completion.
    pub(super) fn complete(&mut self, id: u16, mut completion: Completion, broken: Option<Field>) {
        let Some(Some(submission)) = self.submission.get_mut(usize::from(id)) else {
            return;
        };
        submission.outstanding = submission.outstanding.saturating_sub(1);
        completion.sqid = id;
        completion.sqhd = submission.ring.head();
        let to = submission.completion;
        if let Some(queue) = self.completion(to) {
            queue.outstanding = queue.outstanding.saturating_sub(1);
            queue.push(completion, broken);
        }
    }

    /// A fetched command is kept for an unknown time: it takes no place in the completion queue.
    pub(super) fn held(&mut self, id: u16) {
        let Some(Some(submission)) = self.submission.get_mut(usize::from(id)) else {
            return;
        };
        submission.outstanding = submission.outstanding.saturating_sub(1);
        let to = submission.completion;
        if let Some(queue) = self.completion(to) {
            queue.outstanding = queue.outstanding.saturating_sub(1);
        }
    }

    /// Completes a command that was held.
    pub(super) fn complete_held(&mut self, id: u16, mut completion: Completion) {
        let Some(Some(submission)) = self.submission.get(usize::from(id)) else {
            return;
        };
        completion.sqid = id;
        completion.sqhd = submission.ring.head();
        let to = submission.completion;
        if let Some(queue) = self.completion(to) {
            queue.push(completion, None);
        }
    }

    /// A command was fetched from a submission queue.
    pub(super) fn fetched(&mut self, id: u16) {
        let Some(Some(submission)) = self.submission.get_mut(usize::from(id)) else {
            return;
        };
        submission.consume();
        submission.outstanding += 1;
        let to = submission.completion;
        if let Some(queue) = self.completion(to) {
            queue.outstanding += 1;
        }
    }
}

#[cfg(test)]
#[path = "queues_tests.rs"]
mod tests;
