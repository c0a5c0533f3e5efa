// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rings, doorbells, batches and phase, at literal offsets of the specification.

use super::*;
use crate::memory::tests::{memfd, request};
use crate::pci::tests::Bench;

const SQ: u64 = 0x1000;
const CQ: u64 = 0x2000;

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench
        .memory
        .map(request(0, 0x4000, 0), Some(&memfd(0x4000)))
        .unwrap();
    bench
}

/// Four entries.
fn submission() -> SubmissionQueue {
    SubmissionQueue::new(SQ, 3, 0)
}

fn completion(entries: u16) -> CompletionQueue {
    CompletionQueue::new(CQ, entries - 1, 0, true)
}

fn done(cid: u16) -> Completion {
    Completion {
        cid,
        ..Completion::default()
    }
}

/// Posts one.
fn post(queue: &mut CompletionQueue, cid: u16, bench: &mut Bench) {
    queue.push(done(cid), None);
    assert_eq!(queue.post(&bench.bus()), Ok(1));
}

/// Command identifier and phase tag of an entry.
fn entry(bench: &Bench, slot: u32) -> (u16, u8) {
    let mut entry = [0; 16];
    let at = CQ + u64::from(slot) * 16;
    bench.memory.read(at, &mut entry).unwrap();
    (u16::from_le_bytes([entry[12], entry[13]]), entry[14] & 1)
}

/// Takes everything that waits, at most `max` at once, and gives the command identifiers.
fn take(queue: &mut SubmissionQueue, max: u32, bench: &mut Bench) -> Vec<u16> {
    let mut entries = [[0; Command::SIZE]; BATCH];
    let count = queue.peek(max, &bench.bus(), &mut entries).unwrap();
    let taken = &entries[..count as usize];
    taken.iter().for_each(|_| queue.consume());
    taken
        .iter()
        .map(|entry| Command::from_bytes(entry).cid)
        .collect()
}

#[test]
fn phase_flips_when_the_completion_queue_wraps() {
    let mut bench = bench();
    let mut queue = completion(3);
    let mut phases = Vec::new();
    for i in 0..7u32 {
        post(&mut queue, i as u16, &mut bench);
        let (cid, phase) = entry(&bench, i % 3);
        assert_eq!(cid, i as u16);
        phases.push(phase);
        queue.ring_head((i + 1) % 3).unwrap();
    }
    assert_eq!(phases, [1, 1, 1, 0, 0, 0, 1]);
}

#[test]
fn fetching_wraps_and_consumes_one_by_one() {
    let mut bench = bench();
    let mut queue = submission();
    let mut entries = [[0; Command::SIZE]; BATCH];
    for i in 0..6u32 {
        let slot = SQ + u64::from(i % 4) * 64;
        bench.memory.write(slot, &[0x06, 0, i as u8, 0]).unwrap();
        assert_eq!(queue.ring_tail((i + 1) % 4), Ok(true));
        assert_eq!(queue.ring_tail((i + 1) % 4), Ok(false), "the same again");
        for _ in 0..2 {
            assert_eq!(queue.peek(9, &bench.bus(), &mut entries), Ok(1));
        }
        assert_eq!(u32::from(queue.ring.head()), i % 4, "a peek takes nothing");
        assert_eq!(take(&mut queue, 9, &mut bench), [i as u16]);
        assert_eq!(u32::from(queue.ring.head()), (i + 1) % 4);
        assert_eq!(queue.peek(9, &bench.bus(), &mut entries), Ok(0));
    }
}

#[test]
fn a_batch_is_bounded_by_what_was_asked_for_by_the_end_of_the_ring_and_by_itself() {
    let mut bench = bench();
    let mut queue = SubmissionQueue::new(0, 39, 0);
    for slot in 0..40u64 {
        let head = [0x02, 0, slot as u8, 0];
        bench.memory.write(slot * 64, &head).unwrap();
    }
    queue.ring_tail(39).unwrap();
    assert!(take(&mut queue, 0, &mut bench).is_empty());
    assert_eq!(take(&mut queue, 2, &mut bench), [0, 1]);
    let next: Vec<u16> = (2..34).collect();
    assert_eq!(take(&mut queue, u32::MAX, &mut bench), next, "32 at once");
    queue.ring_tail(3).unwrap();
    assert_eq!(
        take(&mut queue, u32::MAX, &mut bench),
        [34, 35, 36, 37, 38, 39],
        "up to the end of the ring"
    );
    assert_eq!(take(&mut queue, u32::MAX, &mut bench), [0, 1, 2]);
    queue.ring_tail(6).unwrap();
    queue.deleted = true;
    assert_eq!(queue.waiting(), 0);
    assert!(take(&mut queue, u32::MAX, &mut bench).is_empty());
}

#[test]
fn tail_doorbell_stays_in_range_and_never_overruns_the_head() {
    let mut queue = submission();
    assert_eq!(queue.ring_tail(4), Err(InvalidDoorbell));
    assert_eq!(queue.ring_tail(u32::MAX), Err(InvalidDoorbell));
    queue.ring_tail(3).unwrap();
    for overrun in [0, 1, 2] {
        assert_eq!(queue.ring_tail(overrun), Err(InvalidDoorbell));
    }
    queue.ring_tail(3).unwrap();
    assert_eq!(queue.waiting(), 3);
}

#[test]
fn head_doorbell_frees_only_what_was_posted() {
    let mut bench = bench();
    let mut queue = completion(3);
    assert_eq!(queue.ring_head(1), Err(InvalidDoorbell));
    post(&mut queue, 0, &mut bench);
    assert_eq!(queue.room(), 1);
    post(&mut queue, 1, &mut bench);
    assert_eq!(queue.room(), 0);
    assert_eq!(queue.ring_head(3), Err(InvalidDoorbell));
    assert_eq!(queue.ring_head(2), Ok(true));
    assert_eq!(queue.ring_head(2), Ok(false));
    assert_eq!(queue.room(), 2);
    assert_eq!(queue.ring_head(0), Err(InvalidDoorbell));
}

#[test]
fn room_is_what_neither_the_ring_nor_outstanding_nor_ready_commands_need() {
    let mut bench = bench();
    let mut queue = completion(8);
    assert_eq!(queue.room(), 7);
    queue.outstanding = 3;
    assert_eq!(queue.room(), 4);
    queue.push(done(0), None);
    queue.push(done(1), None);
    assert_eq!(queue.room(), 2);
    assert_eq!(queue.post(&bench.bus()), Ok(2));
    assert_eq!(queue.room(), 2, "posted is not free");
    queue.ring_head(2).unwrap();
    assert_eq!(queue.room(), 4);
    queue.outstanding = 0;
    // Held commands complete beyond what was reserved; there is no room below none.
    (0..9).for_each(|cid| queue.push(done(cid), None));
    assert_eq!(queue.room(), 0);
    assert_eq!(queue.post(&bench.bus()), Ok(7));
    assert!(queue.has_ready());
    assert_eq!(queue.post(&bench.bus()), Ok(0), "it is full");
    queue.ring_head(1).unwrap();
    assert_eq!(queue.post(&bench.bus()), Ok(2));
    assert!(!queue.has_ready());
}

#[test]
fn a_batch_that_wraps_has_both_phases_and_loses_nothing() {
    let mut bench = bench();
    let mut queue = completion(5);
    for cid in 0..3 {
        post(&mut queue, cid, &mut bench);
    }
    queue.ring_head(3).unwrap();
    (10..14).for_each(|cid| queue.push(done(cid), None));
    assert_eq!(queue.post(&bench.bus()), Ok(4));
    let found: Vec<_> = (0..5).map(|slot| entry(&bench, slot)).collect();
    assert_eq!(found, [(12, 0), (13, 0), (2, 1), (10, 1), (11, 1)]);
    assert_eq!((queue.ring.tail(), queue.phase), (2, false));
}

#[test]
fn the_first_phase_tag_of_a_batch_is_published_after_all_other_bytes() {
    let mut bench = bench();
    // A dword that is not aligned cannot be published, so memory keeps what it was just before.
    let mut queue = CompletionQueue::new(CQ + 2, 7, 0, true);
    (1..6).for_each(|cid| queue.push(done(cid), None));
    assert_eq!(queue.post(&bench.bus()), Err(DmaError::Permission));
    let mut entries = [0xee; 6 * 16];
    bench.memory.read(CQ + 2, &mut entries).unwrap();
    let found: Vec<_> = entries.chunks(16).map(|e| (e[12], e[14] & 1)).collect();
    assert_eq!(found, [(1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (0, 0)]);
    // When it can, that takes two accesses however many entries there are.
    let mut queue = completion(16);
    (1..9).for_each(|cid| queue.push(done(cid), None));
    let before = bench.memory.accesses();
    assert_eq!(queue.post(&bench.bus()), Ok(8));
    assert_eq!(bench.memory.accesses() - before, 2);
    assert_eq!(entry(&bench, 0), (1, 1));
}

#[test]
fn a_restored_completion_queue_goes_on_where_the_driver_looks() {
    for entries in [2u16, 3, 8] {
        for posted in 0..5 * entries {
            let mut bench = bench();
            let mut queue = completion(entries);
            for cid in 0..posted {
                // The driver is one behind, so head and tail differ.
                queue.ring_head(u32::from(cid % entries)).unwrap();
                post(&mut queue, cid, &mut bench);
            }
            let (head, tail) = (queue.ring.head(), queue.ring.tail());
            assert_eq!(tail, posted % entries);
            let phase = entry(&bench, 0).1 == 1;
            assert_eq!(queue.slot_0_phase(), phase, "{posted} of {entries}");
            let fresh = completion(entries);
            let mut restored = fresh.restore(head, tail, phase).unwrap();
            assert_eq!(restored.room(), queue.room());
            restored.ring_head(tail.into()).unwrap();
            post(&mut restored, 0x77, &mut bench);
            // What a driver expects that has seen `posted` entries.
            let expected = u8::from(posted / entries % 2 == 0);
            let slot = u32::from(posted % entries);
            assert_eq!(
                entry(&bench, slot),
                (0x77, expected),
                "{posted} of {entries}"
            );
        }
    }
    assert!(completion(4).restore(4, 0, true).is_none());
    assert!(completion(4).restore(0, 4, true).is_none());
    assert!(completion(4).restore(3, 3, false).is_some());
}

#[test]
fn a_restored_submission_queue_fetches_what_waited() {
    let mut bench = bench();
    for slot in 0..4u64 {
        let head = [0x02, 0, slot as u8, 0];
        bench.memory.write(SQ + slot * 64, &head).unwrap();
    }
    let mut queue = SubmissionQueue::restore(SQ, 3, 5, 2, 1).unwrap();
    assert_eq!((queue.waiting(), queue.completion), (3, 5));
    assert_eq!(take(&mut queue, 9, &mut bench), [2, 3]);
    assert_eq!(take(&mut queue, 9, &mut bench), [0]);
    assert!(SubmissionQueue::restore(SQ, 3, 5, 4, 0).is_none());
    assert!(SubmissionQueue::restore(SQ, 3, 5, 0, 4).is_none());
}

/// Linux rings when its new value passes EventIdx: new - event - 1 < new - old, in 16 bits.
fn driver_rings(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[test]
fn an_event_index_makes_the_next_move_ring_or_none_of_a_whole_round() {
    for size in [1u16, 2, 7] {
        let entries = u32::from(size) + 1;
        for position in 0..entries {
            for ring in [true, false] {
                let mut moving = Ring::new(0, size);
                let event = moving.set_event_index(position, ring);
                // However far the driver goes at once: all but one entry at most.
                for steps in 1..entries {
                    let new = ((position + steps) % entries) as u16;
                    let rings = driver_rings(event, new, position as u16);
                    assert_eq!(rings, ring, "{steps} from {position} of {entries}");
                }
            }
        }
    }
    let mut ring = Ring::new(0, 7);
    ring.set_event_index(5, false);
    let lags: Vec<bool> = (5..12).map(|at| ring.event_index_lags(at % 8)).collect();
    assert_eq!(lags, [false, false, false, true, true, true, true]);
}

#[test]
fn a_command_is_counted_on_both_queues_until_it_completes() {
    let mut queues = Queues::new((submission(), completion(4)), 3);
    assert_eq!(queues.highest(), 0);
    queues.completion[3] = Some(CompletionQueue::new(0x3000, 7, 1, true));
    queues.submission[1] = Some(SubmissionQueue::new(0x3800, 3, 3));
    queues.submission[2] = Some(SubmissionQueue::new(0x3900, 3, 3));
    assert_eq!(queues.highest(), 3);
    for id in [1, 2] {
        queues.submission(id).unwrap().ring_tail(2).unwrap();
        queues.fetched(id);
    }
    queues.fetched(2);
    let outstanding = |queues: &mut Queues, id| queues.submission(id).unwrap().outstanding;
    assert_eq!(outstanding(&mut queues, 1), 1);
    assert_eq!(outstanding(&mut queues, 2), 2);
    assert_eq!(queues.completion(3).unwrap().outstanding, 3);
    queues.complete(2, done(9), None);
    assert_eq!(outstanding(&mut queues, 2), 1);
    let completion = queues.completion(3).unwrap();
    assert_eq!((completion.outstanding, completion.ready.len()), (2, 1));
    let ready = &completion.ready[0].0;
    assert_eq!((ready.cid, ready.sqid, ready.sqhd), (9, 2, 2));
    queues.held(1);
    assert_eq!(outstanding(&mut queues, 1), 0);
    assert_eq!(queues.completion(3).unwrap().outstanding, 1);
    queues.complete_held(1, done(10));
    let completion = queues.completion(3).unwrap();
    assert_eq!((completion.outstanding, completion.ready[1].0.sqid), (1, 1));
    // Queues that are gone, and identifiers that never were.
    queues.submission[1] = None;
    for id in [1, 3, 4, u16::MAX] {
        queues.complete(id, done(11), None);
        queues.complete_held(id, done(11));
        queues.fetched(id);
        queues.held(id);
    }
    assert_eq!(queues.completion(3).unwrap().ready.len(), 2);
    assert!(queues.submission(4).is_none() && queues.completion(u16::MAX).is_none());
}

#[test]
fn queues_outside_guest_memory_fail() {
    let mut bench = bench();
    let mut entries = [[0; Command::SIZE]; BATCH];
    let mut queue = SubmissionQueue::new(0x3fe0, 3, 0);
    queue.ring_tail(1).unwrap();
    let failed = queue.peek(1, &bench.bus(), &mut entries);
    assert_eq!(failed, Err(DmaError::NotMapped));
    let mut queue = CompletionQueue::new(u64::MAX - 8, 3, 0, true);
    queue.push(done(0), None);
    assert_eq!(queue.post(&bench.bus()), Err(DmaError::NotMapped));
}
