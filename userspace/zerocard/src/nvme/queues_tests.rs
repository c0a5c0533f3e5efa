// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rings, doorbells, batches and phase, at literal offsets of the specification.

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
