// SPDX-License-Identifier: Apache-2.0 OR MIT

//! I/O queues: how they come and go, how completions find their way, and interrupts.

use super::*;

#[test]
fn queues_are_created_and_deleted_with_the_status_that_fits() {
    let mut rig = Rig::enabled(vec![memory(1)]);
    let (cq, sq) = (cq_base(1), sq_base(1));
    let cq_of = |cdw11: u32| Command {
        cdw11,
        ..create_cq(1, 8, cq, 1)
    };
    let sq_of = |cdw11: u32| Command {
        cdw11,
        ..create_sq(1, 8, sq, 1)
    };
    let delete_sq = |id: u32| command(0x00, id);
    let delete_cq = |id: u32| command(0x04, id);
    let steps = [
        // Create I/O Completion Queue
        (create_cq(0, 8, cq, 1), 0x101),
        (create_cq(QUEUES + 1, 8, cq, 1), 0x101),
        (create_cq(u16::MAX, 8, cq, 1), 0x101),
        (create_cq(1, 1, cq, 1), 0x102),
        (create_cq(1, 4097, cq, 1), 0x102),
        (create_cq(1, 65536, cq, 1), 0x102),
        (cq_of(1 << 16 | 2), 0x002), // not contiguous
        (create_cq(1, 8, cq + 8, 1), 0x013),
        (create_cq(1, 8, cq + 0x800, 1), 0x013),
        (create_cq(1, 8, cq, QUEUES + 1), 0x108),
        (create_cq(1, 8, cq, u16::MAX), 0x108),
        (create_sq(1, 8, sq, 1), 0x100), // its completion queue is not there yet
        (cq_of(0xffff << 16 | 1), 0x000), // a vector means nothing without interrupts
        (create_cq(1, 8, cq, 1), 0x101), // taken
        // Create I/O Submission Queue
        (create_sq(0, 8, sq, 1), 0x101),
        (create_sq(QUEUES + 1, 8, sq, 1), 0x101),
        (create_sq(1, 1, sq, 1), 0x102),
        (create_sq(1, 4097, sq, 1), 0x102),
        (sq_of(1 << 16), 0x002), // not contiguous
        (create_sq(1, 8, sq + 64, 1), 0x013),
        (create_sq(1, 8, sq, 0), 0x101), // bound to the admin completion queue
        (create_sq(1, 8, sq, QUEUES + 1), 0x101),
        (create_sq(1, 8, sq, 2), 0x100),
        (create_sq(1, 8, sq, 1), 0x000),
        (create_sq(1, 8, sq, 1), 0x101), // taken
        (sq_of(1 << 16 | 7), 0x101),     // also with another priority
        // Delete I/O Completion Queue, Delete I/O Submission Queue
        (delete_cq(1), 0x10c), // still in use
        (delete_cq(0), 0x101),
        (delete_cq(2), 0x101),
        (delete_cq(0xffff), 0x101),
        (delete_sq(0), 0x101),
        (delete_sq(2), 0x101),
        (delete_sq(0xffff), 0x101),
        (delete_sq(1), 0x000),
        (delete_sq(1), 0x101),
        (delete_cq(1), 0x000),
        (delete_cq(1), 0x101),
        // The same identifiers again, in the largest size that there is.
        (create_cq(1, 4096, cq, 1), 0x000),
        (create_sq(1, 4096, sq, 1), 0x000),
    ];
    for (number, (command, expected)) in steps.into_iter().enumerate() {
        let found = rig.admin_status(command);
        assert_eq!(found, expected, "step {number}: {command:?}");
    }
    assert_eq!(rig.get(0x1c), 1);
    // A reset takes the queues along.
    rig.set(0x14, 0);
    rig.enable();
    assert_eq!(rig.admin_status(delete_sq(1)), 0x101);
    rig.create_pair(1, 8);
    assert_eq!(rig.status(block_command(READ, 1, 0, 1)), 0);
}

#[test]
fn entries_wrap_many_times_and_heads_are_reported() {
    let mut rig = Rig::enabled(vec![memory(1)]);
    rig.create_cq(1, 3);
    rig.create_sq(1, 1, 5);
    for round in 1..=40u32 {
        let done = rig.io(Command {
            cid: round as u16,
            ..block_command(READ, 1, 0, 1)
        });
        assert_eq!((code(&done), done.dw0), (0, 0));
        assert_eq!(u32::from(done.sqhd), round % 5);
    }
}

#[test]
fn many_submission_queues_share_a_completion_queue() {
    let mut rig = Rig::enabled(vec![memory(1)]);
    rig.create_cq(2, 64);
    for id in 1..=QUEUES {
        rig.create_sq(id, 2, 16);
        for n in 0..10 {
            let read = Command {
                cid: id << 8 | n,
                ..block_command(READ, 1, 0, 1)
            };
            rig.queue(id, &read);
        }
    }
    (1..=QUEUES).for_each(|id| rig.ring(id));
    rig.settle();
    let mut seen = Vec::new();
    for completion in rig.reap_all(2) {
        assert_eq!(completion.sqid, completion.cid >> 8);
        assert!((1..=10).contains(&completion.sqhd));
        seen.push(completion.cid);
    }
    seen.sort_unstable();
    let all: Vec<u16> = (1..=QUEUES)
        .flat_map(|id| (0..10).map(move |n| id << 8 | n))
        .collect();
    assert_eq!(seen, all, "each once");
    assert_eq!((rig.fired(2), rig.fired(1)), (1, 0), "one for the batch");
    // The completion queue stays as long as any of them.
    for id in 1..=QUEUES {
        assert_eq!(rig.admin_status(command(0x04, 2)), 0x10c);
        assert_eq!(rig.admin_status(command(0x00, id.into())), 0);
    }
    assert_eq!(rig.admin_status(command(0x04, 2)), 0);
}

#[test]
fn a_full_completion_queue_holds_commands_back_until_there_is_room() {
    let mut rig = Rig::enabled(vec![memory(1)]);
    rig.create_cq(1, 4);
    rig.create_sq(1, 1, 64);
    rig.create_pair(2, 16);
    for cid in 0..10 {
        // Each writes its number to its own block.
        rig.put(DATA + u64::from(cid) * 512, &[cid as u8 + 1; 512]);
        let write = Command {
            cid,
            prp1: DATA + u64::from(cid) * 512,
            ..block_command(WRITE, 1, cid.into(), 1)
        };
        rig.queue(1, &write);
    }
    rig.ring(1);
    rig.settle();
    let read = |rig: &mut Rig, block: u64| {
        let read = Command {
            prp1: DATA + 0x10_0000,
            ..block_command(READ, 1, block, 1)
        };
        rig.submit(2, &read);
        rig.settle();
        assert_eq!(code(&rig.reap(2).unwrap()), 0);
        rig.ring_head(2);
        rig.bytes(DATA + 0x10_0000, 1)[0]
    };
    assert_eq!(read(&mut rig, 2), 3);
    assert_eq!(read(&mut rig, 3), 0, "no room, so not executed yet");
    let mut seen = Vec::new();
    while seen.len() < 10 {
        let now = rig.reap_all(1);
        assert!((1..=3).contains(&now.len()), "stuck after {seen:?}");
        seen.extend(now.iter().map(|completion| completion.cid));
        // A doorbell that only repeats the head gives no room.
        rig.ring_head(1);
        rig.settle();
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
    assert_eq!(read(&mut rig, 9), 10);
}

#[test]
fn a_submission_queue_is_gone_when_its_last_command_has_completed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut rig = Rig::with_queue(vec![file(1, &path, 9, false)]);
    for cid in 0..5 {
        rig.queue(
            1,
            &Command {
                cid,
                ..block_command(READ, 1, 0, 8)
            },
        );
    }
    rig.ring(1);
    rig.pass();
    assert_eq!(rig.ring.in_flight(), 5);
    // Two more, which nobody fetches any more.
    rig.queue(1, &block_command(READ, 1, 0, 1));
    rig.queue(1, &block_command(READ, 1, 0, 1));
    rig.submit(
        0,
        &Command {
            cid: 0x77,
            ..command(0x00, 1)
        },
    );
    rig.ring(1);
    rig.pass();
    assert!(rig.reap(0).is_none(), "commands are outstanding");
    assert_eq!(rig.admin_next(command(0x00, 1)), 0x101, "twice");
    assert_eq!(rig.admin_next(command(0x04, 1)), 0x10c);
    rig.settle();
    let deleted = rig.reap(0).unwrap();
    assert_eq!((deleted.cid, code(&deleted)), (0x77, 0));
    rig.ring_head(0);
    let done: Vec<u16> = rig.reap_all(1).iter().map(|done| done.cid).collect();
    assert_eq!(done.len(), 5, "and all of them completed: {done:?}");
    assert_eq!(rig.admin_status(command(0x04, 1)), 0);
}

impl Rig {
    /// The status of an admin command while another one is not complete.
    fn admin_next(&mut self, mut command: Command) -> u16 {
        command.cid = 0x88;
        self.submit(0, &command);
        let completion = self.reap(0).expect("no completion");
        assert_eq!(completion.cid, 0x88);
        self.ring_head(0);
        code(&completion)
    }
}

#[test]
fn a_batch_is_one_interrupt_and_a_mask_keeps_it_pending() {
    let mut rig = Rig::with_queue(vec![memory(1)]);
    let batch = |rig: &mut Rig| {
        for _ in 0..8 {
            rig.queue(1, &block_command(READ, 1, 0, 1));
        }
        rig.ring(1);
        rig.settle();
        assert_eq!(rig.reap_all(1).len(), 8);
        rig.ring_head(1);
    };
    batch(&mut rig);
    assert_eq!(rig.fired(1), 1);
    // Vector control of entry 1, at byte 12 of its 16.
    rig.bench.msix.write_table(16 + 12, &[1, 0, 0, 0]);
    batch(&mut rig);
    batch(&mut rig);
    let mut pending = [0];
    rig.bench.msix.read_pending(0, &mut pending);
    assert_eq!((pending, rig.fired(1)), ([0b10], 0));
    rig.bench.msix.write_table(16 + 12, &[0, 0, 0, 0]);
    assert_eq!(rig.fired(1), 1);
    // A queue without interrupts has none, whatever its vector.
    let quiet = Command {
        cdw11: 2 << 16 | 1,
        ..create_cq(2, 16, cq_base(2), 2)
    };
    assert_eq!(rig.admin_status(quiet), 0);
    rig.cq.push(Cq::new(2, cq_base(2), 16));
    rig.create_sq(2, 2, 16);
    rig.submit(2, &block_command(READ, 1, 0, 1));
    rig.settle();
    assert_eq!(rig.reap_all(2).len(), 1);
    assert_eq!((rig.fired(2), rig.fired(1)), (0, 0));
}

#[test]
fn bad_doorbells_of_io_queues_are_events_and_nothing_else() {
    let mut rig = Rig::with_queue(vec![memory(1)]);
    rig.submit(
        0,
        &Command {
            cid: 0x77,
            ..command(0x0c, 0)
        },
    );
    rig.set(0x1008, 64);
    rig.settle();
    let event = rig.reap(0).unwrap();
    assert_eq!((event.cid, event.dw0), (0x77, 0x0001_0100), "bad value");
    rig.ring_head(0);
    assert_eq!(rig.admin_status(command(0x02, 0x000f_0001)), 0, "unmask");
    rig.submit(
        0,
        &Command {
            cid: 0x78,
            ..command(0x0c, 0)
        },
    );
    // The submission queue of pair 2 does not exist.
    rig.set(0x1010, 1);
    rig.settle();
    let event = rig.reap(0).unwrap();
    assert_eq!((event.cid, event.dw0), (0x78, 0x0001_0000), "no queue");
    rig.ring_head(0);
    assert_eq!(rig.status(block_command(READ, 1, 0, 1)), 0);
    assert_eq!(rig.get(0x1c), 1);
}

#[test]
fn queues_that_guest_memory_does_not_back_are_fatal() {
    for gone in [sq_base(1), cq_base(1)] {
        let mut rig = Rig::with_queue(vec![memory(1)]);
        rig.queue(1, &block_command(READ, 1, 0, 1));
        rig.bench.memory.unmap(gone, 0x1000);
        rig.ring(1);
        rig.settle();
        assert_eq!(rig.get(0x1c), 3, "ready and fatal");
        rig.set(0x14, 0);
        rig.enable();
    }
}

#[test]
fn a_reset_with_commands_in_flight_is_done_when_the_kernel_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut rig = Rig::with_queue(vec![file(1, &path, 9, false)]);
    rig.put(DATA, &[0x5a; 0x1000]);
    for cid in 0..6 {
        rig.queue(
            1,
            &Command {
                cid,
                ..block_command(READ, 1, 0, 8)
            },
        );
    }
    rig.ring(1);
    rig.pass();
    rig.set(0x14, 0);
    assert_eq!(rig.get(0x1c) & 1, 1, "the kernel may still write");
    assert!(rig.controller.uses(DATA, DATA));
    assert!(!rig.controller.uses(DATA + 0x1000, DATA + 0x1fff));
    // A driver that does not wait.
    rig.set(0x14, 0x0046_0001);
    rig.ring(1);
    rig.pass();
    assert_eq!(rig.ring.in_flight(), 6);
    rig.put(cq_base(1), &[0; 64 * 16]);
    rig.settle();
    assert_eq!(rig.get(0x1c), 1, "disabled, and enabled again");
    assert!(!rig.controller.uses(0, u64::MAX));
    assert!(rig.reap(1).is_none(), "no completion of the past");
    rig.enable();
    rig.create_pair(1, 64);
    assert_eq!(rig.status(block_command(READ, 1, 0, 8)), 0);
}

#[test]
fn every_queue_has_its_turn() {
    let mut rig = Rig::enabled(vec![memory(1)]);
    for id in 1..=4 {
        rig.create_pair(id, 256);
        for cid in 0..200 {
            let read = block_command(READ, 1, 0, 1);
            rig.queue(id, &Command { cid, ..read });
        }
        rig.ring(id);
    }
    // A pass starts 64 commands, and a batch has 32: two queues in each.
    let mut served = [0; 4];
    for pass in 1..=4 {
        rig.pass();
        for id in 1..=4 {
            served[usize::from(id) - 1] += rig.reap_all(id).len();
        }
        let fewest = served.iter().min().unwrap();
        assert!(*fewest >= 32 * (pass / 2), "{served:?} after {pass}");
    }
}

#[test]
fn a_reset_gives_up_on_storage_that_keeps_a_request_and_says_when() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut rig = Rig::with_queue(vec![file(1, &path, 9, false)]);
    rig.submit(1, &block_command(READ, 1, 0, 8));
    rig.pass();
    rig.bench.attention.take();
    let before = Instant::now();
    rig.set(0x14, 0);
    let after = Instant::now();
    assert!(rig.bench.attention.take(), "the poller has to learn of it");
    let patience = Duration::from_secs(30);
    let deadline = rig.pass_at(after).deadline.unwrap();
    assert!((before + patience..=after + patience).contains(&deadline));
    assert!(!rig.bench.gave_up());
    let last = rig.pass_at(deadline).deadline.unwrap();
    assert_eq!(last, deadline + Duration::from_secs(10));
    assert!(!rig.bench.gave_up());
    rig.pass_at(last);
    assert!(rig.bench.gave_up());
    // What the function does then; the kernel's late result leads nowhere.
    rig.controller.reset();
    rig.controller.fail();
    rig.settle();
    assert_eq!(rig.get(0x1c), 2, "fatal");
    rig.enable();
    rig.create_pair(1, 64);
    assert_eq!(rig.status(block_command(READ, 1, 0, 8)), 0);
}

#[test]
fn a_shutdown_waits_for_what_is_in_flight_and_fetches_nothing_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut rig = Rig::with_queue(vec![file(1, &path, 9, false)]);
    rig.submit(1, &block_command(WRITE, 1, 0, 8));
    rig.pass();
    rig.submit(1, &block_command(WRITE, 1, 8, 8));
    rig.set(0x14, 0x0046_4001);
    assert_eq!(rig.get(0x1c), 0x5, "ready, shutdown occurring");
    rig.settle();
    assert_eq!(rig.get(0x1c), 0x9, "shutdown complete");
    assert_eq!(rig.reap_all(1).len(), 1);
    // Also with nothing under way: the file has to be made safe first.
    rig.set(0x14, 0);
    rig.enable();
    rig.set(0x14, 0x0046_4001);
    rig.pass();
    assert_eq!((rig.get(0x1c), rig.ring.in_flight()), (0x5, 1));
    rig.settle();
    assert_eq!(rig.get(0x1c), 0x9);
}
