// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver and its memory move from one function to another, with everything that is under way; the
//! driver must not see a difference.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Case {
    entries: u32,
    shadow: bool,
    /// I/O commands that run before, and are seen by the driver.
    before: usize,
    /// I/O commands whose completions the driver has not looked at.
    unread: u32,
    /// I/O commands that come in while suspended.
    waiting: u32,
    /// The same for the admin queue.
    admin_before: usize,
    admin_waiting: u16,
    /// Asynchronous Event Requests.
    requests: u16,
    /// Dwords of a part.
    part: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let counts = (0..20usize, 0..4u32, 0..4u32);
    let admin = (0..12usize, 0..3u16, 0..4u16);
    (3..9u32, any::<bool>(), counts, admin, 16..2048usize).prop_map(
        |(entries, shadow, (before, unread, waiting), admin, part)| {
            // A ring holds one less than its entries.
            let unread = unread.min(entries - 2);
            Case {
                entries,
                shadow,
                before,
                unread,
                waiting: waiting.min(entries - 1 - unread).max(1),
                admin_before: admin.0,
                admin_waiting: admin.1,
                requests: admin.2,
                part,
            }
        },
    )
}

impl Rig {
    /// Moves the driver of ONE to TWO and lets it go on there.
    fn migrate(&mut self, state: &[u8], part: usize) {
        assert_eq!(self.status(suspend(2)), 0);
        assert_eq!(self.give(2, state, part), 0);
        let driver = std::mem::replace(&mut self.hosts[ONE].driver, Driver::new());
        self.hosts[ONE].function.reset();
        let two = &mut self.hosts[TWO];
        two.function.unmap_all();
        two.driver = driver;
        two.plug();
        assert_eq!(self.status(resume(2)), 0);
    }
}

fn check(case: &Case) {
    let mut rig = Rig::new("memory=64K");
    rig.start(ONE, case.entries);
    if case.shadow {
        rig.shadow(ONE);
    }
    let features = [(0x0b, 0x02), (0x06, 0), (0x05, 0x1234), (0x02, 0x20)];
    for (feature, value) in features {
        let set = Command {
            cdw10: feature,
            cdw11: value,
            ..Command::new(0x09)
        };
        assert_eq!(rig.command(ONE, 0, set).status.bits(), 0);
    }
    rig.hosts[ONE].driver.write(DATA, b"the host's identifier");
    let identifier = Command {
        prp1: DATA,
        cdw10: 0x81,
        cdw11: 1,
        ..Command::new(0x09)
    };
    assert_eq!(rig.command(ONE, 0, identifier).status.bits(), 0);
    for cid in 0..case.requests {
        let request = Command {
            cid: 0x100 + cid,
            ..Command::new(0x0c)
        };
        rig.hosts[ONE].driver.queue(0, &request);
        rig.hosts[ONE].ring(0);
    }
    for n in 0..case.admin_before {
        let get = Command {
            cid: n as u16,
            cdw10: 0x0b,
            ..Command::new(0x0a)
        };
        assert_eq!(rig.command(ONE, 0, get).dw0, 2);
    }
    for n in 0..case.before {
        rig.command(ONE, 1, block(0x01, n as u16, 0, DATA));
    }
    let mut next = 0x200;
    let mut expected = Vec::new();
    for _ in 0..case.unread {
        rig.hosts[ONE]
            .driver
            .queue(1, &block(0x02, next, 0, DATA + 0x1000));
        expected.push(next);
        next += 1;
    }
    rig.hosts[ONE].ring(1);
    rig.run();

    assert_eq!(rig.status(suspend(1)), 0);
    for _ in 0..case.waiting {
        rig.hosts[ONE]
            .driver
            .queue(1, &block(0x02, next, 0, DATA + 0x1000));
        expected.push(next);
        next += 1;
    }
    rig.hosts[ONE].ring(1);
    for cid in 0..case.admin_waiting {
        let get = Command {
            cid: 0x300 + cid,
            cdw10: 0x05,
            ..Command::new(0x0a)
        };
        rig.hosts[ONE].driver.queue(0, &get);
    }
    rig.hosts[ONE].ring(0);
    rig.run();
    let state = rig.state(1);
    rig.migrate(&state, case.part);
    assert!(fired(&rig.hosts[TWO].interrupts[1]) > 0 || case.unread == 0);

    // Registers look as if nothing had happened.
    let two = &rig.hosts[TWO];
    assert_eq!((two.get(0x14), two.get(0x1c)), (0x0046_0001, 1));
    assert_eq!((two.get(0x24), two.get(0x28)), (0x0007_0007, 0x1000));
    // Everything completes once, in order, with the right phase.
    rig.run();
    let mut seen = Vec::new();
    for _ in 0..3 {
        while let Some(completion) = rig.hosts[TWO].driver.reap(1) {
            assert!(completion.status.is_success());
            seen.push(completion.cid);
        }
        rig.hosts[TWO].ring(1);
        rig.run();
    }
    assert_eq!(seen, expected);
    for cid in 0..case.admin_waiting {
        let completion = rig.hosts[TWO].driver.reap(0).unwrap();
        assert_eq!((completion.cid, completion.dw0), (0x300 + cid, 0x1234));
    }
    rig.hosts[TWO].ring(0);
    assert_eq!(rig.hosts[TWO].driver.reap(0), None);
    for n in 0..20 {
        rig.command(TWO, 1, block(0x02, n, 0, DATA));
        rig.command(TWO, 2, block(0x02, n, 0, DATA));
    }
    for (feature, value) in features {
        let get = Command {
            cdw10: feature,
            ..Command::new(0x0a)
        };
        assert_eq!(rig.command(TWO, 0, get).dw0, value, "feature {feature:#x}");
    }
    let identifier = Command {
        prp1: DATA,
        cdw10: 0x81,
        cdw11: 1,
        ..Command::new(0x0a)
    };
    rig.command(TWO, 0, identifier);
    assert_eq!(rig.hosts[TWO].driver.read(DATA, 16), b"the host's ident");
    // The requests for events came along: the first one takes a temperature event.
    let threshold = Command {
        cid: 0x400,
        cdw10: 0x04,
        cdw11: 299,
        ..Command::new(0x09)
    };
    rig.command(TWO, 0, threshold);
    let event = rig.hosts[TWO].driver.reap(0);
    let event = event.map(|event| (event.cid, event.dw0));
    assert_eq!(event, (case.requests > 0).then_some((0x100, 0x0002_0101)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_driver_does_not_notice(case in case()) {
        check(&case);
    }
}

#[test]
fn the_state_has_its_layout() {
    let mut rig = Rig::new("memory=64K");
    rig.start(ONE, 5);
    for cid in 0..7 {
        rig.command(ONE, 1, block(0x02, cid, 0, DATA));
    }
    assert_eq!(rig.status(suspend(1)), 0);
    let state = rig.state(1);
    // Two queues of each kind: (8 + 4 * 24) / 4 dwords.
    assert_eq!(state[..3], [0, 0, 1]);
    assert_eq!(state[16..20], [26, 0, 0, 0]);
    assert_eq!(state[48..56], [0, 0, 2, 0, 2, 0, 0, 0]);
    // Seven commands in rings of five: position 2, second round.
    let first_sq = [
        0, 0xa0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 1, 0, 1, 0, 2, 0, 2, 0, 0, 0, 0, 0,
    ];
    assert_eq!(state[56..80], first_sq);
    let first_cq = [
        0, 0xb0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 2, 0, 2, 0, 3, 0, 1, 0, 0, 0, 0, 0,
    ];
    assert_eq!(state[104..128], first_cq, "S0PT is 0 in the second round");
    let second_cq = [
        0, 0xd0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 0, 0, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0,
    ];
    assert_eq!(
        state[128..152],
        second_cq,
        "an unused ring holds old phases"
    );
    // Vendor specific data: format 1, NVMe.
    assert_eq!(state[152..164], [0, 0, 0, 0x80, 4, 0, 0, 0, 1, 0, 1, 0]);
    // Identity.
    assert_eq!(state[164..172], [1, 0, 0, 0x80, 0x48, 1, 0, 0]);
    assert_eq!(&state[172..192], b"ZS00000001          ");
    assert_eq!(&state[192..210], b"Zeroshift zerocard");
    assert_eq!(&state[232..253], b"nqn.2014-08.org.nvmex");
    // MDTS, DSTRD, SQES, CQES; MQES, queues, vectors.
    assert_eq!(
        state[488..500],
        [7, 0, 0x66, 0x44, 0xff, 0x0f, 3, 0, 4, 0, 0, 0]
    );
    // One namespace of 128 blocks of 512 bytes.
    assert_eq!(state[500..508], [2, 0, 0, 0x80, 32, 0, 0, 0]);
    assert_eq!(
        state[508..524],
        [1, 0, 0, 0, 9, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(state[536..540], [0, 0, 0, 1], "NGUID ends with the NSID");
    // CC, CSTS, AQA, reserved, ASQ, ACQ.
    assert_eq!(state[540..548], [3, 0, 0, 0x80, 32, 0, 0, 0]);
    assert_eq!(state[548..556], [1, 0, 0x46, 0, 1, 0, 0, 0]);
    assert_eq!(state[556..564], [7, 0, 7, 0, 0, 0, 0, 0]);
    assert_eq!(
        state[564..580],
        [0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]
    );
    // Admin queues: four commands in rings of eight.
    assert_eq!(state[580..588], [4, 0, 0, 0x80, 36, 0, 0, 0]);
    assert_eq!(
        state[588..604],
        [0, 0x10, 0, 0, 0, 0, 0, 0, 7, 0, 4, 0, 4, 0, 0, 0]
    );
    assert_eq!(
        state[604..620],
        [0, 0x20, 0, 0, 0, 0, 0, 0, 7, 0, 4, 0, 4, 0, 0, 0]
    );
    assert_eq!(state[620..624], [1, 12, 0, 0]);
    // Features.
    assert_eq!(state[624..632], [5, 0, 0, 0x80, 72, 0, 0, 0]);
    assert_eq!(state[632..642], [0, 1, 0x57, 1, 0, 0, 0, 0, 0, 0]);
    // Events, then pending interrupts.
    assert_eq!(state[704..716], [6, 0, 0, 0x80, 4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(state[716..724], [9, 0, 0, 0x80, 32, 0, 0, 0]);
    assert_eq!(
        state[756..772],
        [10, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(state[772..780], [0xff, 0, 0, 0x80, 4, 0, 0, 0]);
    assert_eq!(state.len(), 784);
    assert_eq!(state[32..36], [158, 0, 0, 0]);
}

#[test]
fn an_image_stays_as_it_was_taken() {
    let mut rig = Rig::new("memory=64K");
    rig.start(ONE, 5);
    assert_eq!(rig.status(suspend(1)), 0);
    let state = rig.state(1);
    // The guest rings a doorbell: the image in parts has nothing of it, a new one has.
    rig.hosts[ONE].set(0x1008, 3);
    assert_eq!(rig.status(get(1, 56, 6)), 0);
    assert_eq!(rig.hosts[ADMIN].driver.read(DATA, 24), state[56..80]);
    assert_eq!(rig.status(get(1, 0, 20)), 0);
    let again = rig.hosts[ADMIN].driver.read(DATA, 80);
    assert_eq!((state[74], again[74]), (0, 3), "tail");
}

#[test]
fn another_card_or_another_namespace_is_refused() {
    let source = |rig: &mut Rig| {
        rig.start(ONE, 5);
        assert_eq!(rig.status(suspend(1)), 0);
        rig.state(1)
    };
    let state = source(&mut Rig::new("memory=64K"));
    for other in ["memory=128K", "memory=64K,block=4096"] {
        let mut rig = Rig::new(other);
        assert_eq!(rig.status(suspend(2)), 0);
        assert_eq!(rig.give(2, &state, 300), 0x002, "{other}");
        assert_eq!(rig.hosts[TWO].get(0x14), 0);
        assert_eq!(rig.status(resume(2)), 0);
    }
    // The same card elsewhere.
    let mut rig = Rig::new("memory=64K");
    assert_eq!(rig.status(suspend(2)), 0);
    assert_eq!(rig.give(2, &state, 300), 0);
}

#[test]
fn the_standard_part_alone_gives_io_queues_to_an_enabled_controller() {
    let mut rig = Rig::new("memory=64K");
    rig.start(ONE, 5);
    assert_eq!(rig.command(ONE, 1, block(0x02, 1, 0, DATA)).cid, 1);
    assert_eq!(rig.status(suspend(1)), 0);
    let standard = |controller: u32, base: Command, shift: u32| Command {
        cdw11: base.cdw11 & !(0xff << shift) | controller,
        ..base
    };
    assert_eq!(rig.status(standard(1, get(1, 0, 38), 16)), 0);
    let state = rig.hosts[ADMIN].driver.read(DATA, 152);
    assert_eq!(state[32..36], [0; 4], "VSS");

    assert_eq!(rig.status(suspend(2)), 0);
    let give = standard(2, set(2, 3, 0, 38), 24);
    assert_eq!(rig.send(give, &state), 0x002, "it is not enabled");
    rig.hosts[TWO].enable(8);
    assert_eq!(rig.send(give, &state), 0);
    assert_eq!(rig.send(give, &state), 0x002, "it has I/O queues");
    let queues: Vec<_> = rig.hosts[ONE].driver.queues[1..].to_vec();
    rig.hosts[TWO].driver.queues.extend(queues);
    // The driver's memory did not come along; the rings are where they were.
    let cq = rig.hosts[ONE].driver.read(0xb000, 0x1000);
    rig.hosts[TWO].driver.write(0xb000, &cq);
    assert_eq!(rig.status(resume(2)), 0);
    assert_eq!(rig.command(TWO, 1, block(0x02, 5, 0, DATA)).cid, 5);
    assert_eq!(rig.command(TWO, 0, Command::new(0x06)).cid, 0);
}

#[test]
fn a_completion_without_a_place_moves_along() {
    let mut rig = Rig::new("memory=64K");
    rig.start(ONE, 5);
    let queue = |rig: &mut Rig, command: Command| {
        rig.hosts[ONE].driver.queue(0, &command);
        rig.hosts[ONE].ring(0);
    };
    let request = Command {
        cid: 0x100,
        ..Command::new(0x0c)
    };
    queue(&mut rig, request);
    for cid in 0..6 {
        let get = Command {
            cid,
            cdw10: 0x0b,
            ..Command::new(0x0a)
        };
        queue(&mut rig, get);
    }
    // Two completions, and one place in a ring of eight.
    let abort = Command {
        cid: 0x200,
        cdw10: 0x100 << 16,
        ..Command::new(0x08)
    };
    queue(&mut rig, abort);
    assert_eq!(rig.status(suspend(1)), 0);
    let host = &mut rig.hosts[ONE];
    let seen: Vec<_> = std::iter::from_fn(|| host.driver.reap(0)).collect();
    assert_eq!(seen.len(), 7);
    assert_eq!((seen[6].cid, seen[6].status.code()), (0x100, 0x07));
    // There is a place now, but nothing is written while suspended.
    host.ring(0);
    rig.run();
    assert_eq!(rig.hosts[ONE].driver.reap(0), None);
    let state = rig.state(1);
    rig.migrate(&state, 300);
    let last = rig.hosts[TWO].driver.reap(0).unwrap();
    assert_eq!((last.cid, last.dw0, last.status.bits()), (0x200, 0, 0));
    assert_eq!(rig.hosts[TWO].driver.reap(0), None);
}
