// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shadow doorbells and EventIdx (Base 2.1, annex B.5), against the driver's half of the protocol as
//! Linux has it: a driver that does not ring must have been seen.

use std::sync::atomic::{fence, Ordering};
use std::sync::mpsc;

use super::*;
use crate::memory::GuestMemory;

/// Offset of a doorbell in both buffers: that of the real one behind 1000h.
fn place(id: u16, head: bool) -> u64 {
    u64::from(id) * 8 + u64::from(head) * 4
}

fn number(memory: &GuestMemory, at: u64) -> u32 {
    let mut bytes = [0; 4];
    memory.read(at, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// The first half of an update: the new value is there. Gives the old one.
fn store(memory: &GuestMemory, at: u64, value: u32) -> u32 {
    let old = number(memory, DOORBELLS + at);
    memory.publish_u32(DOORBELLS + at, value).unwrap();
    // Also Linux has a full barrier between the two halves.
    fence(Ordering::SeqCst);
    old
}

/// The second half: whether the controller wants a real doorbell for this move.
fn must_ring(memory: &GuestMemory, at: u64, value: u32, old: u32) -> bool {
    let event = number(memory, EVENT_INDICES + at) as u16;
    let (value, old) = (value as u16, old as u16);
    value.wrapping_sub(event).wrapping_sub(1) < value.wrapping_sub(old)
}

fn configure(rig: &mut Rig) {
    rig.put(DOORBELLS, &[0; 0x1000]);
    rig.put(EVENT_INDICES, &[0; 0x1000]);
    let config = Command {
        prp1: DOORBELLS,
        prp2: EVENT_INDICES,
        ..command(0x7c, 0)
    };
    assert_eq!(rig.admin_status(config), 0);
}

/// Entries of the submission and of the completion queue 1.
fn rig(sq: u32, cq: u32) -> Rig {
    let mut rig = Rig::enabled(vec![memory(1)]);
    configure(&mut rig);
    rig.create_cq(1, cq);
    rig.create_sq(1, 1, sq);
    rig
}

#[test]
fn buffers_start_pages() {
    let mut rig = Rig::enabled(vec![memory(1)]);
    for (prp1, prp2) in [
        (DOORBELLS + 8, EVENT_INDICES),
        (DOORBELLS, EVENT_INDICES + 4),
    ] {
        let config = Command {
            prp1,
            prp2,
            ..command(0x7c, 0)
        };
        assert_eq!(rig.admin_status(config), 0x013);
    }
}

#[test]
fn doorbells_in_memory_are_seen_without_real_ones() {
    let mut rig = rig(16, 16);
    for round in 1..=40u32 {
        rig.queue(1, &block_command(READ, 1, 0, 1));
        let tail = rig.sq(1).tail;
        store(&rig.bench.memory, place(1, false), tail);
        assert!(rig.pass(), "round {round}");
        assert_eq!(code(&rig.reap(1).unwrap()), 0);
        let head = rig.cq(1).head;
        store(&rig.bench.memory, place(1, true), head);
    }
    // A real doorbell says "look", and its value nothing.
    rig.queue(1, &block_command(READ, 1, 0, 1));
    let tail = rig.sq(1).tail;
    store(&rig.bench.memory, place(1, false), tail);
    rig.set(0x1008, 9999);
    assert!(rig.bench.attention.take());
    rig.settle();
    assert!(rig.reap(1).is_some());
    // The admin queue keeps its doorbells.
    assert_eq!(rig.admin_status(command(0x06, 1)), 0);
}

#[test]
fn every_one_of_many_queue_pairs_has_its_place_in_the_buffers() {
    let mut rig = Rig::disabled(vec![memory(1)], 70);
    rig.enable();
    configure(&mut rig);
    // With gaps, and around multiples of 32.
    let ids = [1, 2, 31, 32, 33, 34, 63, 64, 65, 70];
    for id in ids {
        rig.create_cq(id, 4);
        rig.create_sq_at(0x60_0000 + u64::from(id) * 0x1000, id, id, 4);
    }
    for round in 1..=9u32 {
        for id in ids {
            let cid = id << 8 | round as u16;
            let read = Command {
                cid,
                ..block_command(READ, 1, 0, 1)
            };
            rig.queue(id, &read);
            let tail = rig.sq(id).tail;
            store(&rig.bench.memory, place(id, false), tail);
            rig.settle();
            assert_eq!(rig.reap(id).map(|done| done.cid), Some(cid));
            let head = rig.cq(id).head;
            store(&rig.bench.memory, place(id, true), head);
        }
    }
    // Asleep, it wants to be called for the next command of each.
    rig.settle();
    let mut bus = rig.bench.bus();
    assert!(!rig.controller.arm(&mut bus));
    for id in ids {
        let old = rig.sq(id).tail;
        let new = (old + 1) % 4;
        assert!(must_ring(&rig.bench.memory, place(id, false), new, old));
        let old = rig.cq(id).head;
        let new = (old + 1) % 4;
        assert!(!must_ring(&rig.bench.memory, place(id, true), new, old));
    }
    assert_eq!(rig.get(0x1c), 1);
}

#[test]
fn a_doorbell_in_memory_that_is_not_allowed_is_an_event_and_moves_nothing() {
    let mut rig = rig(16, 16);
    let request = Command {
        cid: 0x77,
        ..command(0x0c, 0)
    };
    rig.submit(0, &request);
    store(&rig.bench.memory, place(1, false), 16);
    rig.pass();
    let event = rig.reap(0).unwrap();
    assert_eq!((event.cid, event.dw0), (0x77, 0x0001_0100));
    assert!(rig.reap(1).is_none());
    assert_eq!(rig.get(0x1c), 1);
}

#[test]
fn buffers_that_are_not_mapped_are_fatal_and_a_reset_forgets_them() {
    let mut rig = rig(16, 16);
    rig.bench.memory.unmap(DOORBELLS, 0x1000);
    rig.pass();
    assert_eq!(rig.get(0x1c), 3);
    rig.set(0x14, 0);
    rig.enable();
    rig.create_pair(1, 16);
    assert_eq!(
        rig.status(block_command(READ, 1, 0, 1)),
        0,
        "real doorbells"
    );
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

/// An update of a doorbell between its halves.
struct Update {
    at: u64,
    register: usize,
    value: u32,
    old: u32,
}

#[test]
fn no_interleaving_loses_a_wake_up() {
    // A completion queue with less room than the submission queue makes head doorbells count.
    for (sq, cq) in [(2, 2), (3, 2), (8, 8), (8, 3), (64, 5)] {
        for seed in 1..=60u64 {
            interleave(sq, cq, seed);
        }
    }
}

/// Driver and poller take turns at random, in steps that are halves of doorbell updates, passes,
/// and going to sleep. When neither has anything left to do, nothing may be lying around.
fn interleave(entries: u32, cq: u32, seed: u64) {
    let mut rig = rig(entries, cq);
    let mut random = Random(seed);
    let (mut submitted, mut completed, mut rung) = (0u32, 0u32, 0u32);
    let mut half: Option<Update> = None;
    let (mut asleep, mut unreaped) = (false, false);
    // The poller goes to sleep only after a pass that found nothing.
    let mut worked = true;
    let begin = |rig: &Rig, at, register, value| {
        let old = store(&rig.bench.memory, at, value);
        Some(Update {
            at,
            register,
            value,
            old,
        })
    };
    let target = 300;
    while completed < target {
        let room = submitted - completed < entries - 1 && submitted < target;
        match random.below(6) {
            // The second half of an update: it rings, or not.
            0 | 1 if half.is_some() => {
                let Some(update) = half.take() else { continue };
                if must_ring(&rig.bench.memory, update.at, update.value, update.old) {
                    rung += 1;
                    rig.set(update.register, update.value);
                }
            }
            // Submits some, and the first half of the tail's update.
            0 if room && half.is_none() => {
                let most = entries - 1 - (submitted - completed);
                for _ in 0..=random.below(u64::from(most)) {
                    rig.queue(1, &block_command(READ, 1, 0, 1));
                    submitted += 1;
                }
                let tail = rig.sq(1).tail;
                half = begin(&rig, place(1, false), 0x1008, tail);
            }
            // Reaps some, and the first half of the head's update.
            1 if half.is_none() => {
                let before = completed;
                unreaped = false;
                while rig.reap(1).is_some() {
                    completed += 1;
                    if random.below(3) == 0 {
                        unreaped = true;
                        break;
                    }
                }
                if completed > before {
                    let head = rig.cq(1).head;
                    half = begin(&rig, place(1, true), 0x100c, head);
                }
            }
            // The poller: awake it passes, or goes to sleep; asleep it wakes when it was called.
            2 | 3 if !asleep => {
                worked = rig.bench.attention.take() | rig.pass();
                unreaped = true;
            }
            4 if !asleep && !worked => {
                let mut bus = rig.bench.bus();
                asleep = !rig.controller.arm(&mut bus);
                worked = true;
            }
            _ if asleep && rig.bench.attention.take() => asleep = false,
            _ => {
                let idle = half.is_none() && asleep && !unreaped;
                assert!(
                    !idle || submitted == completed,
                    "lost: {entries} and {cq} entries, seed {seed}: {submitted} submitted, {completed} \
                     completed"
                );
            }
        }
    }
    assert!(rung > 0, "a sleeping controller is woken now and then");
    assert_eq!(rig.get(0x1c), 1);
}

/// The same with real threads, so that also the steps within a pass and within going to sleep meet
/// those of the driver in any order the machine finds.
#[test]
fn a_driver_on_another_processor_is_never_overlooked() {
    const COMMANDS: u32 = 20_000;
    const LIMIT: Duration = Duration::from_secs(60);
    for (sq, cq) in [(4, 4), (32, 32), (32, 4)] {
        let mut rig = rig(sq, cq);
        let (doorbells, rung) = mpsc::channel::<(usize, u32)>();
        let mut driver = Driver {
            memory: GuestMemory::default(),
            doorbells,
            sq: rig.sq(1).clone(),
            cq: rig.cq(1).clone(),
        };
        let map = request(0, RAM, 0);
        driver.memory.map(map, Some(&rig.ram)).unwrap();
        let driver = std::thread::spawn(move || driver.run(COMMANDS));
        // Ends when the driver does, which drops its end of the channel.
        loop {
            let worked = rig.pass();
            let mut bus = rig.bench.bus();
            if worked || rig.controller.arm(&mut bus) {
                while let Ok((register, value)) = rung.try_recv() {
                    rig.set(register, value);
                }
                continue;
            }
            match rung.recv_timeout(LIMIT) {
                Ok((register, value)) => rig.set(register, value),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("a wake-up was lost"),
            }
        }
        driver.join().unwrap();
        assert_eq!(rig.get(0x1c), 1);
    }
}

struct Driver {
    memory: GuestMemory,
    doorbells: mpsc::Sender<(usize, u32)>,
    sq: Sq,
    cq: Cq,
}

impl Driver {
    fn update(&self, head: bool, value: u32) {
        let at = place(1, head);
        let old = store(&self.memory, at, value);
        if must_ring(&self.memory, at, value, old) {
            let register = 0x1008 + usize::from(head) * 4;
            self.doorbells.send((register, value)).unwrap();
        }
    }

    fn run(&mut self, commands: u32) {
        let (mut submitted, mut completed) = (0, 0);
        let mut random = Random(7);
        while completed < commands {
            let most = (self.sq.entries - 1 - (submitted - completed)).min(commands - submitted);
            let count = random.below(u64::from(most) + 1) as u32;
            for _ in 0..count {
                let at = self.sq.base + u64::from(self.sq.tail) * 64;
                let read = block_command(READ, 1, 0, 1).to_bytes();
                self.memory.write(at, &read).unwrap();
                self.sq.tail = (self.sq.tail + 1) % self.sq.entries;
                submitted += 1;
            }
            if count > 0 {
                self.update(false, self.sq.tail);
            }
            let before = completed;
            while submitted > completed {
                let at = self.cq.base + u64::from(self.cq.head) * 16;
                if number(&self.memory, at + 12) >> 16 & 1 != u32::from(self.cq.phase) {
                    std::thread::yield_now();
                    if completed > before {
                        break;
                    }
                    continue;
                }
                self.cq.head = (self.cq.head + 1) % self.cq.entries;
                self.cq.phase ^= u8::from(self.cq.head == 0);
                completed += 1;
            }
            if completed > before {
                self.update(true, self.cq.head);
            }
        }
    }
}
