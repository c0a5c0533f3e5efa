// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The admin submission and completion queue pair: ring positions, doorbells and phase.
//!
//! Owned by the controller while it is enabled. Everything in it derives from values that were
//! checked when the queues were made or when a doorbell was written, so positions are always inside
//! the rings. It never interprets a command.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::{Completion, PHASE_DWORD};
use zeroshift_nvme::registers::Aqa;

use crate::memory::DmaError;
use crate::pci::Bus;

/// A doorbell value that the specification does not allow; nothing changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidDoorbell;

/// One ring: `head` is where the consumer is, `tail` where the producer is.
#[derive(Debug)]
struct Ring {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
}

impl Ring {
    fn new(base: u64, size: u16) -> Self {
        Self {
            base,
            entries: u32::from(size) + 1,
            head: 0,
            tail: 0,
        }
    }

    fn used(&self) -> u32 {
        (self.tail + self.entries - self.head) % self.entries
    }

    fn is_full(&self) -> bool {
        self.used() == self.entries - 1
    }

    fn next(&self, position: u32) -> u32 {
        (position + 1) % self.entries
    }

    fn address(&self, position: u32, entry: usize) -> Result<u64, DmaError> {
        let offset = u64::from(position) * entry as u64;
        self.base.checked_add(offset).ok_or(DmaError::NotMapped)
    }
}

/// The admin queue pair.
#[derive(Debug)]
pub(super) struct AdminQueue {
    submission: Ring,
    completion: Ring,
    phase: bool,
}

impl AdminQueue {
    /// Empty queues at the addresses and sizes that the registers give.
    pub(super) fn new(attributes: Aqa, submission: u64, completion: u64) -> Self {
        Self {
            submission: Ring::new(submission, attributes.asqs()),
            completion: Ring::new(completion, attributes.acqs()),
            phase: true,
        }
    }

    /// A write of the Submission Queue 0 Tail Doorbell.
    pub(super) fn ring_tail(&mut self, value: u32) -> Result<(), InvalidDoorbell> {
        let ring = &mut self.submission;
        if value >= ring.entries {
            return Err(InvalidDoorbell);
        }
        let added = (value + ring.entries - ring.tail) % ring.entries;
        if added > ring.entries - 1 - ring.used() {
            return Err(InvalidDoorbell);
        }
        ring.tail = value;
        Ok(())
    }

    /// A write of the Completion Queue 0 Head Doorbell.
    pub(super) fn ring_head(&mut self, value: u32) -> Result<(), InvalidDoorbell> {
        let ring = &mut self.completion;
        if value >= ring.entries {
            return Err(InvalidDoorbell);
        }
        let consumed = (value + ring.entries - ring.head) % ring.entries;
        if consumed > ring.used() {
            return Err(InvalidDoorbell);
        }
        ring.head = value;
        Ok(())
    }

    /// Whether a completion can be posted now.
    pub(super) fn has_room(&self) -> bool {
        !self.completion.is_full()
    }

    /// Fetches the next command, if there is one. A copy: the guest may change its own afterwards.
    pub(super) fn fetch(&mut self, bus: &Bus<'_>) -> Result<Option<Command>, DmaError> {
        let ring = &mut self.submission;
        if ring.head == ring.tail {
            return Ok(None);
        }
        let mut entry = [0; Command::SIZE];
        bus.read(ring.address(ring.head, Command::SIZE)?, &mut entry)?;
        ring.head = ring.next(ring.head);
        Ok(Some(Command::from_bytes(&entry)))
    }

    /// Posts a completion; the caller made sure that there is room. Queue, head and phase are
    /// filled in here. The dword with the phase becomes visible last.
    pub(super) fn post(
        &mut self,
        mut completion: Completion,
        bus: &Bus<'_>,
    ) -> Result<(), DmaError> {
        let ring = &mut self.completion;
        completion.sqid = 0;
        // Entries are at most 4096, so the position fits.
        completion.sqhd = self.submission.head as u16;
        completion.phase = self.phase;
        let entry = completion.to_bytes();
        let address = ring.address(ring.tail, Completion::SIZE)?;
        let (first, last) = entry.split_at(PHASE_DWORD);
        let last = u32::from_le_bytes([last[0], last[1], last[2], last[3]]);
        let phase_address = address
            .checked_add(PHASE_DWORD as u64)
            .ok_or(DmaError::NotMapped)?;
        bus.write(address, first)?;
        bus.publish_u32(phase_address, last)?;
        ring.tail = ring.next(ring.tail);
        if ring.tail == 0 {
            self.phase = !self.phase;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::{memfd, request};
    use crate::pci::tests::Bench;

    fn bench() -> Bench {
        let mut bench = Bench::new();
        bench
            .memory
            .map(request(0, 0x4000, 0), Some(&memfd(0x4000)))
            .unwrap();
        bench
    }

    fn queue() -> AdminQueue {
        AdminQueue::new(Aqa(0x0002_0003), 0x1000, 0x2000)
    }

    #[test]
    fn phase_flips_when_the_completion_queue_wraps() {
        let mut bench = bench();
        let mut queue = queue();
        let mut phases = Vec::new();
        for i in 0..7u32 {
            queue
                .post(
                    Completion {
                        cid: i as u16,
                        ..Completion::default()
                    },
                    &bench.bus(),
                )
                .unwrap();
            let mut entry = [0; 16];
            bench
                .memory
                .read(0x2000 + u64::from(i % 3) * 16, &mut entry)
                .unwrap();
            assert_eq!(entry[12], i as u8);
            phases.push(entry[14] & 1);
            queue.ring_head((i + 1) % 3).unwrap();
        }
        assert_eq!(phases, [1, 1, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn fetch_wraps_and_reports_the_head() {
        let mut bench = bench();
        let mut queue = queue();
        for i in 0..6u32 {
            let slot = 0x1000 + u64::from(i % 4) * 64;
            bench.memory.write(slot, &[0x06, 0, i as u8, 0]).unwrap();
            queue.ring_tail((i + 1) % 4).unwrap();
            assert_eq!(queue.fetch(&bench.bus()).unwrap().unwrap().cid, i as u16);
            assert!(queue.fetch(&bench.bus()).unwrap().is_none());
            queue.post(Completion::default(), &bench.bus()).unwrap();
            let mut head = [0; 2];
            bench
                .memory
                .read(0x2000 + u64::from(i % 3) * 16 + 8, &mut head)
                .unwrap();
            assert_eq!(u16::from_le_bytes(head), ((i + 1) % 4) as u16);
            queue.ring_head((i + 1) % 3).unwrap();
        }
    }

    #[test]
    fn tail_doorbell_stays_in_range_and_never_overruns_the_head() {
        let mut queue = queue();
        assert_eq!(queue.ring_tail(4), Err(InvalidDoorbell));
        assert_eq!(queue.ring_tail(u32::MAX), Err(InvalidDoorbell));
        queue.ring_tail(3).unwrap();
        for overrun in [0, 1, 2] {
            assert_eq!(queue.ring_tail(overrun), Err(InvalidDoorbell));
        }
        queue.ring_tail(3).unwrap();
    }

    #[test]
    fn head_doorbell_frees_only_what_was_posted() {
        let mut bench = bench();
        let mut queue = queue();
        assert_eq!(queue.ring_head(1), Err(InvalidDoorbell));
        queue.post(Completion::default(), &bench.bus()).unwrap();
        assert!(queue.has_room());
        queue.post(Completion::default(), &bench.bus()).unwrap();
        assert!(!queue.has_room());
        assert_eq!(queue.ring_head(3), Err(InvalidDoorbell));
        queue.ring_head(2).unwrap();
        assert!(queue.has_room());
        assert_eq!(queue.ring_head(0), Err(InvalidDoorbell));
    }

    #[test]
    fn queues_outside_guest_memory_fail() {
        let mut bench = bench();
        let mut queue = AdminQueue::new(Aqa(0x0003_0003), 0x3fe0, u64::MAX - 8);
        queue.ring_tail(1).unwrap();
        assert_eq!(queue.fetch(&bench.bus()), Err(DmaError::NotMapped));
        assert!(queue.post(Completion::default(), &bench.bus()).is_err());
    }
}
