// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The controller driven by register accesses alone, as a driver would: life cycle, doorbells,
//! and what commands end with. Offsets are literal, from the specification's tables.

use super::*;
use crate::memory::tests::{memfd, request};
use crate::nvme::admin::{Identity, Role};
use crate::pci::msix::tests::{eventfd, fired};
use crate::pci::tests::Bench;

const SQ: u64 = 0x1000;
const CQ: u64 = 0x2000;
const DATA: u64 = 0x1_0000;
const ENTRIES: u32 = 8;

/// A controller with memory, and a driver that knows where it is in the rings.
struct Rig {
    bench: Bench,
    controller: Controller,
    interrupts: std::os::fd::OwnedFd,
    tail: u32,
    head: u32,
    phase: u8,
}

impl Rig {
    fn disabled() -> Self {
        let mut bench = Bench::new();
        bench
            .memory
            .map(request(0, 0x10_0000, 0), Some(&memfd(0x10_0000)))
            .unwrap();
        let (interrupts, theirs) = eventfd();
        bench.msix.set_trigger(0, Some(theirs));
        let controller = Controller::new(Personality {
            identity: Identity {
                serial: "ZS00000001".into(),
                controller_id: 7,
                subnqn: "nqn.2014-08.org.nvmexpress:test".into(),
                controllers: vec![7],
            },
            role: Role::Administrative {
                fleet: std::sync::Arc::default(),
            },
        });
        Self {
            bench,
            controller,
            interrupts,
            tail: 0,
            head: 0,
            phase: 1,
        }
    }

    fn enabled() -> Self {
        let mut rig = Self::disabled();
        rig.enable();
        rig
    }

    fn enable(&mut self) {
        self.set(0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.set(0x28, SQ as u32);
        self.set(0x30, CQ as u32);
        // A completion left from before would look new.
        self.bench
            .memory
            .write(CQ, &[0; 16 * ENTRIES as usize])
            .unwrap();
        (self.tail, self.head, self.phase) = (0, 0, 1);
        self.set(0x14, 0x0046_0001);
    }

    fn set(&mut self, offset: usize, value: u32) {
        self.controller
            .write(offset, &value.to_le_bytes(), &mut self.bench.bus());
    }

    fn get(&mut self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.controller.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Puts a command into the queue without ringing.
    fn queue(&mut self, command: Command) {
        let slot = SQ + u64::from(self.tail) * 64;
        self.bench.memory.write(slot, &command.to_bytes()).unwrap();
        self.tail = (self.tail + 1) % ENTRIES;
    }

    fn ring(&mut self) {
        let tail = self.tail;
        self.set(0x1000, tail);
    }

    /// The next completion, if there is one; the head doorbell is the test's business.
    fn reap(&mut self) -> Option<Completion> {
        let mut entry = [0; 16];
        self.bench
            .memory
            .read(CQ + u64::from(self.head) * 16, &mut entry)
            .unwrap();
        if entry[14] & 1 != self.phase {
            return None;
        }
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase ^= 1;
        }
        Some(Completion::from_bytes(&entry))
    }

    fn run(&mut self, command: Command) -> Completion {
        self.queue(command);
        self.ring();
        let completion = self.reap().expect("no completion");
        let head = self.head;
        self.set(0x1004, head);
        completion
    }

    fn status(&mut self, command: Command) -> u16 {
        self.run(command).status.without_flags().bits()
    }
}

fn command(opcode: u8, cdw10: u32) -> Command {
    Command {
        cid: 0x1234,
        prp1: DATA,
        cdw10,
        ..Command::new(opcode)
    }
}

#[test]
fn registers_after_power_on() {
    let mut rig = Rig::disabled();
    assert_eq!(rig.get(0x00) & 0xffff, 4095, "CAP.MQES");
    assert_eq!(
        rig.get(0x04) >> 5 & 0xff,
        0x80,
        "CAP.CSS: no I/O command set"
    );
    assert_eq!(rig.get(0x08), 0x0002_0100, "VS");
    assert_eq!((rig.get(0x14), rig.get(0x1c), rig.get(0x24)), (0, 0, 0));
    assert_eq!(rig.get(0x68), 1, "CRTO.CRWMT");
    let mut odd = [0xff; 7];
    rig.controller.read(0x07, &mut odd);
    assert_eq!(odd[1..5], [0x00, 0x01, 0x02, 0x00]);
    let mut beyond = [0xff; 8];
    rig.controller.read(0x1000, &mut beyond);
    assert_eq!(beyond, [0; 8], "doorbells are write-only");
}

#[test]
fn base_addresses_take_both_halves_in_any_order() {
    let mut rig = Rig::disabled();
    rig.set(0x2c, 0x1122_3344);
    rig.set(0x28, 0x5566_7fff);
    assert_eq!((rig.get(0x28), rig.get(0x2c)), (0x5566_7000, 0x1122_3344));
    let both = 0xaabb_ccdd_0000_1000u64;
    rig.controller
        .write(0x30, &both.to_le_bytes(), &mut rig.bench.bus());
    assert_eq!((rig.get(0x30), rig.get(0x34)), (0x0000_1000, 0xaabb_ccdd));
    rig.controller.write(0x30, &[1, 2], &mut rig.bench.bus());
    rig.controller
        .write(0x31, &[1, 2, 3, 4], &mut rig.bench.bus());
    assert_eq!(
        rig.get(0x30),
        0x1000,
        "accesses of other widths have no effect"
    );
}

#[test]
fn enable_becomes_ready_and_disable_resets() {
    let mut rig = Rig::enabled();
    assert_eq!(rig.get(0x1c), 1);
    rig.run(command(0x06, 1));
    rig.set(0x14, 0);
    assert_eq!((rig.get(0x1c), rig.get(0x14)), (0, 0));
    assert_eq!(
        rig.get(0x28),
        SQ as u32,
        "the admin queue registers survive"
    );
    assert_eq!(rig.get(0x24), 0x0007_0007);
    rig.enable();
    assert_eq!(rig.run(command(0x06, 1)).sqhd, 1, "the rings start over");
    rig.controller.reset();
    assert_eq!((rig.get(0x1c), rig.get(0x24), rig.get(0x28)), (0, 0, 0));
}

#[test]
fn a_configuration_that_cannot_work_is_fatal_until_reset() {
    let configurations = [
        (0x24, 0x0007_0000, 0x0046_0001), // submission queue of one entry
        (0x24, 0x0000_0007, 0x0046_0001), // completion queue of one entry
        (0x24, 0x0007_0007, 0x0046_0281), // CC.MPS 5, above CAP.MPSMAX
        (0x24, 0x0007_0007, 0x0046_0801), // CC.AMS 1
        (0x24, 0x0007_0007, 0x0046_0011), // CC.CSS reserved
        (0x24, 0x0007_0007, 0x0046_0081), // pages of 8 KiB, queues at odd multiples of 4 KiB
    ];
    for (offset, value, cc) in configurations {
        let mut rig = Rig::disabled();
        rig.set(offset, value);
        rig.set(0x28, SQ as u32);
        rig.set(0x30, CQ as u32);
        rig.set(0x14, cc);
        assert_eq!(rig.get(0x1c), 2, "CSTS.CFS for CC {cc:#x} AQA {value:#x}");
        rig.set(0x1000, 1);
        rig.set(0x14, 0);
        assert_eq!(rig.get(0x1c), 0);
        rig.enable();
        assert_eq!(rig.get(0x1c), 1);
    }
}

#[test]
fn shutdown_completes_stops_and_ends_with_a_reset() {
    let mut rig = Rig::enabled();
    rig.set(0x14, 0x0046_4001);
    assert_eq!(rig.get(0x1c), 0x9, "ready, shutdown complete");
    rig.queue(command(0x06, 1));
    rig.ring();
    assert!(rig.reap().is_none());
    rig.set(0x14, 0);
    assert_eq!(rig.get(0x1c), 0);
    rig.enable();
    assert_eq!(rig.status(command(0x06, 1)), 0);
    let mut rig = Rig::disabled();
    rig.set(0x14, 0x0000_8000);
    assert_eq!(rig.get(0x1c), 0x8, "an abrupt shutdown while disabled");
    rig.enable();
    assert_eq!(rig.get(0x1c), 1);
}

#[test]
fn identify_controller_says_what_it_is() {
    let mut rig = Rig::enabled();
    let completion = rig.run(command(0x06, 0x01));
    assert!(completion.status.is_success());
    assert_eq!(
        (completion.cid, completion.sqid, completion.sqhd),
        (0x1234, 0, 1)
    );
    assert_eq!(fired(&rig.interrupts), 1);
    let mut page = [0; 4096];
    rig.bench.memory.read(DATA, &mut page).unwrap();
    assert_eq!(page[0..4], [0x53, 0x5a, 0x53, 0x5a]);
    assert_eq!(&page[4..24], b"ZS00000001          ");
    assert_eq!(&page[24..42], b"Zeroshift zerocard");
    assert_eq!(page[77], 7, "MDTS");
    assert_eq!(page[78..80], [7, 0], "CNTLID");
    assert_eq!(page[80..84], [0x00, 0x01, 0x02, 0x00], "VER");
    assert_eq!(page[111], 3, "CNTRLTYPE: administrative");
    assert_eq!(
        page[256..258],
        [0, 8],
        "OACS: Host Managed Live Migration and nothing else"
    );
    assert_eq!(page[512..514], [0x66, 0x44]);
    assert_eq!(page[516..520], [0; 4], "NN");
    assert_eq!(&page[768..799], b"nqn.2014-08.org.nvmexpress:test");
    assert_eq!(page[799], 0);
}

#[test]
fn commands_end_with_the_status_that_fits() {
    let mut rig = Rig::enabled();
    let psdt = Command {
        flags: 0x40,
        ..command(0x06, 1)
    };
    let fused = Command {
        flags: 0x01,
        ..command(0x06, 1)
    };
    let all = Command {
        nsid: u32::MAX,
        ..command(0x06, 2)
    };
    let unaligned = Command {
        prp1: DATA + 2,
        ..command(0x06, 1)
    };
    let second = Command {
        prp1: DATA + 4,
        prp2: DATA + 0x1008,
        ..command(0x06, 1)
    };
    let outside = Command {
        prp1: 0x4000_0000,
        ..command(0x06, 1)
    };
    let long = Command {
        cdw11: 2,
        ..command(0x02, 0x0000_0001)
    };
    let expected = [
        (command(0x06, 0x01), 0x000),
        (command(0x06, 0x02), 0x000),
        (command(0x06, 0x00), 0x00b),
        (command(0x06, 0x20), 0x000), // controller state formats
        (command(0x01, 0), 0x001),    // Create I/O Submission Queue
        (command(0x18, 0), 0x001),    // Keep Alive: KAS is 0
        (command(0x3d, 0), 0x137),    // Track Send for user data: no such queue
        (command(0x41, 0), 0x11f),    // Migration Send: no such controller
        (command(0x45, 0), 0x001),    // Controller Data Queue: TRATTR.TUDCS is 0
        (command(0x09, 0x21), 0x002), // and neither is its feature
        (command(0x7c, 0), 0x001),    // Doorbell Buffer Config
        (command(0xff, 0), 0x001),
        (psdt, 0x002),
        (fused, 0x002),
        (all, 0x00b),
        (unaligned, 0x013),
        (second, 0x013),
        (outside, 0x004),
        (command(0x02, 0x000f_0077), 0x109), // Get Log Page of a page that is not there
        (long, 0x002),                       // longer than MDTS
        (command(0x08, 0x0001), 0x002),      // Abort in queue 1
    ];
    for (command, status) in expected {
        assert_eq!(rig.status(command), status, "{command:?}");
    }
    assert_eq!(rig.get(0x1c), 1, "none of it is fatal");
}

#[test]
fn a_second_page_receives_the_rest() {
    let mut rig = Rig::enabled();
    rig.bench.memory.write(DATA, &[0xee; 0x3000]).unwrap();
    let split = Command {
        prp1: DATA + 0xffc,
        prp2: DATA + 0x2000,
        ..command(0x06, 1)
    };
    assert_eq!(rig.status(split), 0);
    let mut bytes = [0; 8];
    rig.bench.memory.read(DATA + 0xff8, &mut bytes).unwrap();
    assert_eq!(bytes, [0xee, 0xee, 0xee, 0xee, 0x53, 0x5a, 0x53, 0x5a]);
    rig.bench.memory.read(DATA + 0x2000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"ZS000000");
    rig.bench.memory.read(DATA + 0x2ff8, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
}

#[test]
fn the_page_size_is_the_one_of_enable_time() {
    let mut rig = Rig::enabled();
    rig.set(0x14, 0x0046_0781);
    assert_eq!(rig.get(0x1c), 1);
    let split = Command {
        prp1: DATA + 0x800,
        prp2: DATA + 0x2000,
        ..command(0x06, 1)
    };
    assert_eq!(rig.status(split), 0);
    let mut bytes = [0; 4];
    rig.bench.memory.read(DATA + 0x1000, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4], "not contiguous with the first page");
    rig.bench.memory.write(DATA, &[0; 0x3000]).unwrap();
    rig.set(0x14, 0);
    rig.set(0x28, 0x2_0000);
    rig.set(0x30, 0x3_0000);
    rig.set(0x14, 0x0046_0201);
    assert_eq!(rig.get(0x1c), 1, "pages of 64 KiB");
    let command = Command {
        prp1: DATA + 0x800,
        ..command(0x06, 1)
    };
    rig.bench
        .memory
        .write(0x2_0000, &command.to_bytes())
        .unwrap();
    rig.set(0x1000, 1);
    rig.bench.memory.read(DATA + 0x800, &mut bytes).unwrap();
    assert_eq!(bytes, [0x53, 0x5a, 0x53, 0x5a]);
    rig.bench.memory.read(DATA + 0x1000, &mut bytes).unwrap();
    assert_eq!(bytes, [0xc4, 0x09, 0, 0], "power state 0, at byte 2048");
}

#[test]
fn log_pages_have_offsets_and_ends() {
    let mut rig = Rig::enabled();
    rig.bench.memory.write(DATA, &[0xee; 64]).unwrap();
    // Firmware slots from byte 8 on, 2 dwords.
    let slot = Command {
        cdw12: 8,
        ..command(0x02, 0x0001_0003)
    };
    assert_eq!(rig.status(slot), 0);
    let mut bytes = [0; 12];
    rig.bench.memory.read(DATA, &mut bytes).unwrap();
    assert_eq!(&bytes[..5], env!("CARGO_PKG_VERSION").as_bytes());
    assert_eq!(bytes[8..], [0xee; 4], "only what was asked for");
    // Across the end of the page: zeroes.
    let tail = Command {
        cdw12: 508,
        ..command(0x02, 0x0001_0003)
    };
    assert_eq!(rig.status(tail), 0);
    rig.bench.memory.read(DATA, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
    for (cdw12, cdw13) in [(513, 0), (516, 0), (2, 0), (0, 1)] {
        let beyond = Command {
            cdw12,
            cdw13,
            ..command(0x02, 0x0001_0003)
        };
        assert_eq!(rig.status(beyond), 0x002, "offset {cdw13:x}:{cdw12:x}");
    }
    let other = Command {
        nsid: 1,
        ..command(0x02, 0x007f_0002)
    };
    assert_eq!(rig.status(other), 0x002, "health of one namespace");
}

#[test]
fn a_full_completion_queue_holds_commands_back_and_loses_none() {
    let mut rig = Rig::enabled();
    for cid in 0..7 {
        rig.queue(Command {
            cid,
            ..command(0x06, 1)
        });
    }
    rig.ring();
    for cid in 7..14 {
        rig.queue(Command {
            cid,
            prp1: DATA + 0x4000,
            ..command(0x06, 1)
        });
    }
    rig.ring();
    let mut data = [0xff; 4];
    rig.bench.memory.read(DATA + 0x4000, &mut data).unwrap();
    assert_eq!(
        data, [0; 4],
        "a command without room for its completion does not run"
    );
    let mut seen = Vec::new();
    while let Some(completion) = rig.reap() {
        seen.push(completion.cid);
    }
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6], "one slot stays empty");
    let head = rig.head;
    rig.set(0x1004, head);
    while let Some(completion) = rig.reap() {
        seen.push(completion.cid);
    }
    assert_eq!(seen, (0..14).collect::<Vec<_>>());
    assert_eq!(fired(&rig.interrupts), 2, "one interrupt for each batch");
}

#[test]
fn bad_doorbells_become_an_event_and_nothing_else() {
    let mut rig = Rig::enabled();
    rig.set(0x1000, ENTRIES);
    assert!(rig.reap().is_none(), "no request is held yet");
    rig.queue(Command {
        cid: 0x77,
        ..command(0x0c, 0)
    });
    rig.ring();
    let event = rig.reap().unwrap();
    assert_eq!(
        (event.cid, event.dw0),
        (0x77, 0x0001_0100),
        "invalid doorbell value"
    );
    // Masked until the error log is read; a doorbell of queue 1 is another kind of error.
    rig.set(0x1008, 1);
    rig.queue(Command {
        cid: 0x78,
        ..command(0x0c, 0)
    });
    rig.ring();
    assert!(rig.reap().is_none());
    let head = rig.head;
    rig.set(0x1004, head);
    let retained = command(0x02, 0x000f_8001);
    assert_eq!(rig.run(retained).cid, 0x1234);
    assert!(rig.reap().is_none(), "Retain Asynchronous Event");
    assert_eq!(rig.run(command(0x02, 0x000f_0001)).cid, 0x1234);
    let event = rig.reap().unwrap();
    assert_eq!(
        (event.cid, event.dw0),
        (0x78, 0x0001_0000),
        "invalid doorbell register"
    );
    let mut entry = [0; 16];
    rig.bench.memory.read(DATA, &mut entry).unwrap();
    assert_eq!(entry[8..12], [0xff; 4], "caused by no queue and no command");
    assert_eq!(rig.get(0x1c), 1);
}

#[test]
fn a_reset_empties_the_error_log_and_keeps_the_count() {
    let mut rig = Rig::enabled();
    assert_eq!(rig.status(command(0xff, 0)), 0x001);
    rig.set(0x14, 0);
    rig.enable();
    let mut count = [0xee; 8];
    rig.bench.memory.write(DATA, &count).unwrap();
    assert_eq!(rig.status(command(0x02, 0x000f_0001)), 0);
    rig.bench.memory.read(DATA, &mut count).unwrap();
    assert_eq!(count, [0; 8], "no entry");
    assert_eq!(rig.status(command(0xff, 0)), 0x001);
    assert_eq!(rig.status(command(0x02, 0x000f_0001)), 0);
    rig.bench.memory.read(DATA, &mut count).unwrap();
    assert_eq!(count, [2, 0, 0, 0, 0, 0, 0, 0], "the second error ever");
}

#[test]
fn held_requests_have_a_limit_and_can_be_aborted() {
    let mut rig = Rig::enabled();
    for cid in 0..4 {
        rig.queue(Command {
            cid,
            ..command(0x0c, 0)
        });
    }
    rig.ring();
    assert!(rig.reap().is_none());
    let fifth = Command {
        cid: 4,
        ..command(0x0c, 0)
    };
    assert_eq!(rig.status(fifth), 0x105);
    let conflict = Command {
        cid: 2,
        ..command(0x06, 1)
    };
    assert_eq!(rig.status(conflict), 0x003);
    rig.queue(command(0x08, 2 << 16));
    rig.ring();
    let aborted = rig.reap().unwrap();
    assert_eq!(
        (aborted.cid, aborted.status.without_flags().bits()),
        (2, 0x007)
    );
    let abort = rig.reap().unwrap();
    assert_eq!(
        (abort.cid, abort.dw0, abort.status.is_success()),
        (0x1234, 0, true)
    );
    let head = rig.head;
    rig.set(0x1004, head);
    assert_eq!(
        rig.run(command(0x08, 2 << 16)).dw0,
        1,
        "nothing left to abort"
    );
    rig.set(0x14, 0);
    rig.enable();
    assert_eq!(
        rig.run(command(0x08, 1 << 16)).dw0,
        1,
        "a reset drops held requests"
    );
}

#[test]
fn a_temperature_threshold_below_the_temperature_is_an_event() {
    let mut rig = Rig::enabled();
    rig.queue(Command {
        cid: 9,
        ..command(0x0c, 0)
    });
    rig.ring();
    assert_eq!(
        rig.status(Command {
            cdw11: 2,
            ..command(0x09, 0x0b)
        }),
        0
    );
    rig.queue(Command {
        cdw11: 299,
        ..command(0x09, 0x04)
    });
    rig.ring();
    assert_eq!(rig.reap().unwrap().cid, 0x1234);
    let event = rig.reap().unwrap();
    assert_eq!((event.cid, event.dw0), (9, 0x0002_0101));
}

#[test]
fn queues_that_guest_memory_does_not_back_are_fatal() {
    let mut rig = Rig::enabled();
    rig.bench.memory.unmap(SQ, 0x1000);
    rig.set(0x1000, 1);
    assert_eq!(rig.get(0x1c), 3, "ready and fatal");
    let mut rig = Rig::enabled();
    rig.queue(command(0x06, 1));
    rig.bench.memory.unmap(CQ, 0x1000);
    rig.ring();
    assert_eq!(rig.get(0x1c), 3);
}

#[test]
fn work_waits_for_the_bus() {
    let mut rig = Rig::enabled();
    rig.bench.master = false;
    rig.queue(command(0x06, 1));
    rig.ring();
    assert!(rig.reap().is_none());
    assert_eq!(rig.get(0x1c), 1);
    rig.bench.master = true;
    rig.controller.resume(&mut rig.bench.bus());
    assert!(rig.reap().unwrap().status.is_success());
}
