// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What every misuse is answered with: status codes as numbers, SCT in bits 10:8.

use super::*;

const INVALID_FIELD: u16 = 0x002;
const SEQUENCE: u16 = 0x00c;
const PRP_OFFSET: u16 = 0x013;
const CONTROLLER: u16 = 0x11f;
const DATA_QUEUE: u16 = 0x137;
const RESOURCES: u16 = 0x138;
const SUSPENDED: u16 = 0x139;
const NOT_SUSPENDED: u16 = 0x13a;

fn rig() -> Rig {
    let mut rig = Rig::new("memory=1M");
    rig.start(ONE, 4);
    rig
}

fn raw(opcode: u8, cdw10: u32, cdw11: u32) -> Command {
    Command {
        cdw10,
        cdw11,
        ..Command::new(opcode)
    }
}

#[test]
fn fields_that_do_not_exist_and_controllers_that_are_not_managed() {
    let mut rig = rig();
    let odd = Command {
        cdw12: 2,
        ..get(1, 0, 4)
    };
    let expected = [
        ("Track Send: SEL 2", raw(0x3d, 2, 1), INVALID_FIELD),
        ("user data: LACT 2", raw(0x3d, 2 << 16, 1), INVALID_FIELD),
        ("user data", raw(0x3d, 1 << 16, 0), DATA_QUEUE),
        ("Track Receive: SEL 1", raw(0x3e, 1, 1), INVALID_FIELD),
        ("Migration Send: SEL 3", raw(0x41, 3, 1), INVALID_FIELD),
        ("STYPE 2", raw(0x41, 0, 2 << 16 | 1), INVALID_FIELD),
        ("Migration Receive: SEL 1", raw(0x42, 1, 1), INVALID_FIELD),
        ("Controller Data Queue", raw(0x45, 0, 0), 0x001),
        ("its feature, set", raw(0x09, 0x21, 0), INVALID_FIELD),
        ("its feature, get", raw(0x0a, 0x21, 0), INVALID_FIELD),
        ("odd offset, get", odd, INVALID_FIELD),
        ("odd offset, set", set(1, 3, 2, 4), INVALID_FIELD),
        ("no data in the first", set(1, 1, 0, 0), INVALID_FIELD),
        ("stop of what is not tracked", track(1, false), CONTROLLER),
        ("report of what is not tracked", raw(0x3e, 0, 1), CONTROLLER),
        ("a running controller", resume(1), NOT_SUSPENDED),
        ("a running controller", set(1, 3, 0, 4), NOT_SUSPENDED),
        ("a disabled controller", set(2, 3, 0, 4), CONTROLLER),
    ];
    for (what, command, status) in expected {
        assert_eq!(rig.status(command), status, "{what}");
    }
    for id in [0, 3, 0xffff] {
        for command in [
            track(id, true),
            track(id, false),
            raw(0x3e, 0, id),
            raw(0x41, 0, id),
            suspend(id),
            resume(id),
            get(id, 0, 4),
            set(id, 3, 0, 4),
        ] {
            assert_eq!(rig.status(command), CONTROLLER, "{id}: {command:?}");
        }
    }
    // On a function that is managed, none of it exists.
    for opcode in [0x3d, 0x3e, 0x41, 0x42] {
        let status = rig.command(ONE, 0, raw(opcode, 0, 2)).status;
        assert_eq!(status.without_flags().bits(), 0x001);
    }
}

#[test]
fn do_not_retry_is_for_what_will_not_change() {
    let mut rig = rig();
    assert!(!rig.manage(resume(1)).status.do_not_retry());
    assert!(rig.manage(resume(7)).status.do_not_retry());
    rig.status(suspend(1));
    assert!(!rig.manage(track(1, false)).status.do_not_retry());
}

#[test]
fn tracking_refuses_what_it_cannot_do() {
    let mut rig = rig();
    let good: &[(u64, u32)] = &[(0, 16)];
    let mut version = request_for(0, good);
    version[0] = 1;
    let expected = [
        ("version", version, INVALID_FIELD),
        ("no range", request_for(0, &[]), INVALID_FIELD),
        (
            "granule above MAXMRTG",
            request_for(10, good),
            INVALID_FIELD,
        ),
        ("granule above any", request_for(60, good), INVALID_FIELD),
        ("empty range", request_for(0, &[(0, 0)]), INVALID_FIELD),
        ("unaligned", request_for(1, &[(0x1000, 1)]), INVALID_FIELD),
        (
            "beyond 2^64",
            request_for(0, &[(u64::MAX - 0xfff, 2)]),
            INVALID_FIELD,
        ),
        (
            "overlap",
            request_for(0, &[(0, 2), (0x1000, 2)]),
            INVALID_FIELD,
        ),
        (
            "more than NMMRTD",
            request_for(0, &[(0, 1); 7]),
            INVALID_FIELD,
        ),
    ];
    for (what, data, status) in expected {
        assert_eq!(rig.send(track(1, true), &data), status, "{what}");
    }
    let mut huge = request_for(0, good);
    huge[4..8].fill(0xff);
    assert_eq!(rig.send(track(1, true), &huge), INVALID_FIELD);
    // The header must not cross a page: what PRP2 means is not known before it is read.
    let crossing = Command {
        prp1: DATA + 0xffc,
        prp2: DATA + 0x1000,
        ..track(1, true)
    };
    let status = rig.command(ADMIN, 0, crossing).status;
    assert_eq!(status.without_flags().bits(), PRP_OFFSET);

    // The sum over both targets counts.
    let four: Vec<_> = (0..4).map(|n| (n << 20, 1)).collect();
    let three = &four[..3];
    assert_eq!(rig.send(track(1, true), &request_for(0, &four)), 0);
    assert_eq!(rig.send(track(1, true), &request_for(0, good)), CONTROLLER);
    let more = request_for(0, three);
    assert_eq!(rig.send(track(2, true), &more), INVALID_FIELD);
    assert_eq!(rig.send(track(2, true), &request_for(0, &four[..2])), 0);
    assert_eq!(rig.status(track(1, false)), 0);
    assert_eq!(rig.status(track(1, false)), CONTROLLER);
    assert_eq!(rig.send(track(1, true), &request_for(9, &[(0, 1)])), 0);
}

#[test]
fn granules_below_the_smallest_are_refused_and_limits_change_at_once() {
    use crate::control::ControlTarget;
    let mut rig = rig();
    rig.card
        .set_limits(control::Limits {
            max_ranges: 2,
            max_ranges_subsystem: 300,
            min_granule: 2,
            max_granule: 3,
        })
        .unwrap();
    let good: &[(u64, u32)] = &[(0, 1)];
    for (granularity, status) in [(1, 2), (2, 0), (3, 0), (4, 2)] {
        let data = request_for(granularity, good);
        assert_eq!(rig.send(track(1, true), &data), status, "{granularity}");
        rig.status(track(1, false));
    }
    let three = request_for(2, &[(0, 1), (1 << 20, 1), (2 << 20, 1)]);
    assert_eq!(rig.send(track(1, true), &three), INVALID_FIELD);
    assert_eq!(rig.status(raw(0x06, 1, 0)), 0);
    let page = rig.hosts[ADMIN].driver.read(DATA, 0x1000);
    assert_eq!(page[570..577], [2, 0, 0x2c, 1, 2, 3, 1]);
    assert_eq!(page[256..258], [0, 8], "OACS.HMLMS");
    // The other controllers show none of it.
    let identify = Command {
        prp1: DATA,
        ..raw(0x06, 1, 0)
    };
    rig.command(ONE, 0, identify);
    let page = rig.hosts[ONE].driver.read(DATA, 0x1000);
    assert_eq!((page[257] & 8, &page[570..577]), (0, &[0; 7][..]));
}

#[test]
fn too_much_memory_is_answered_with_what_fits() {
    let mut rig = rig();
    let limits = rig.limits();
    // One bit for each of 2^19 granules.
    limits.set_bitmap_bytes(1 << 16);
    let data = request_for(0, &[(0, 1 << 20), (1 << 40, 8)]);
    rig.hosts[ADMIN].driver.write(DATA, &data);
    let completion = rig.manage(track(1, true));
    assert_eq!(completion.status.without_flags().bits(), RESOURCES);
    assert_eq!((completion.dw0, completion.dw1), (2, 6));
    let fits = request_for(2, &[(0, 1 << 18), (1 << 40, 2)]);
    assert_eq!(rig.send(track(1, true), &fits), 0);
    rig.status(track(1, false));
    limits.set_bitmap_bytes(8);
    rig.hosts[ADMIN].driver.write(DATA, &data);
    let completion = rig.manage(track(1, true));
    assert_eq!(completion.status.without_flags().bits(), RESOURCES);
    assert_eq!((completion.dw0, completion.dw1), (9, 0), "no granule helps");
}

#[test]
fn reports_need_room_and_lose_nothing_when_they_cannot_be_delivered() {
    let mut rig = rig();
    assert_eq!(rig.send(track(1, true), &request_for(0, &[(0, 256)])), 0);
    let receive = |dwords: u32| Command {
        cdw12: dwords - 1,
        ..raw(0x3e, 0, 1)
    };
    assert_eq!(rig.status(receive(3)), INVALID_FIELD, "not even a header");
    assert_eq!(rig.status(receive(4)), 0, "nothing to report");
    assert_eq!(rig.status(receive(1 << 20)), INVALID_FIELD, "beyond MDTS");
    let completion = rig.command(ONE, 1, block(0x02, 1, 0, DATA + 0x5000));
    assert_eq!(completion.status.bits(), 0);
    assert_eq!(rig.status(receive(7)), INVALID_FIELD, "half a descriptor");
    let nowhere = Command {
        prp1: 0x4000_0000,
        ..receive(1024)
    };
    let status = rig.command(ADMIN, 0, nowhere).status;
    assert_eq!(status.without_flags().bits(), 0x004);
    assert_eq!(rig.status(receive(8)), 0);
    let page = rig.hosts[ADMIN].driver.read(DATA, 48);
    let mut expected = vec![0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // The completion queue of queue pair 1.
    expected.extend([0, 0xb0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(page[..32], expected, "MTR, one descriptor");
    assert_eq!(rig.report(1), (BTreeSet::from([DATA + 0x5000]), 0));
}

#[test]
fn suspended_controllers_are_neither_tracked_anew_nor_let_go() {
    let mut rig = rig();
    assert_eq!(rig.send(track(1, true), &request_for(0, &[(0, 256)])), 0);
    assert_eq!(rig.status(suspend(1)), 0);
    assert_eq!(rig.status(suspend(1)), 0, "twice is once");
    assert_eq!(rig.status(track(1, false)), SUSPENDED);
    assert_eq!(
        rig.send(track(1, true), &request_for(0, &[(0, 1)])),
        SUSPENDED
    );
    assert_eq!(rig.report(1).1, 2, "SUSP, no MTR");
    assert_eq!(rig.status(resume(1)), 0);
    assert_eq!(rig.status(resume(1)), NOT_SUSPENDED);
    assert_eq!(rig.report(1).1, 0);
    assert_eq!(rig.status(track(1, false)), 0);
    // A notification changes nothing.
    assert_eq!(rig.status(raw(0x41, 0, 1)), 0);
    assert_eq!(rig.hosts[ONE].phase(), Phase::Running);
}

#[test]
fn state_comes_in_parts_in_order_or_not_at_all() {
    let mut rig = rig();
    assert_eq!(rig.status(suspend(1)), 0);
    assert_eq!(rig.status(suspend(2)), 0);
    let state = rig.state(1);
    let dwords = state.len() as u32 / 4;
    let half = dwords / 2;
    let (first, second) = state.split_at(half as usize * 4);
    let bad_indices = [(2u32, 1u32), (1, 2), (0xff, 0), (0, 0xff), (0, 0)];
    for (version, uuid) in bad_indices {
        let command = Command {
            cdw11: uuid << 24 | version << 16 | 2,
            ..set(2, 3, 0, 4)
        };
        assert_eq!(rig.status(command), INVALID_FIELD, "{version} {uuid}");
        if (version, uuid) == (0, 0) {
            continue;
        }
        let command = Command {
            cdw10: version << 16,
            cdw11: uuid << 16 | 1,
            ..get(1, 0, 4)
        };
        assert_eq!(rig.status(command), INVALID_FIELD, "{version} {uuid}");
    }
    let middle = set(2, 0, half * 4, dwords - half);
    assert_eq!(rig.send(middle, second), SEQUENCE, "nothing began");
    assert_eq!(rig.status(set(2, 2, 0, 0)), SEQUENCE);
    assert_eq!(rig.send(set(2, 1, 4, half), first), INVALID_FIELD, "a gap");
    assert_eq!(rig.send(set(2, 1, 0, half), first), 0);
    assert_eq!(rig.status(resume(2)), SEQUENCE, "not committed");
    let gap = set(2, 2, half * 4 + 4, dwords - half);
    assert_eq!(rig.send(gap, second), INVALID_FIELD);
    assert_eq!(rig.send(middle, second), SEQUENCE, "a failure drops all");
    assert_eq!(
        rig.status(set(2, 3, 0, 1 << 18)),
        INVALID_FIELD,
        "beyond MDTS"
    );
    assert_eq!(rig.send(set(2, 1, 0, half), first), 0);
    let other = Command {
        cdw11: 1 << 16 | 2,
        ..middle
    };
    assert_eq!(rig.send(other, second), INVALID_FIELD, "other indices");
    assert_eq!(rig.send(set(2, 1, 0, half), first), 0);
    assert_eq!(rig.status(set(2, 2, 0, 0)), INVALID_FIELD, "incomplete");
    assert_eq!(rig.status(resume(2)), 0, "and it is as it was");
    assert_eq!(rig.hosts[TWO].get(0x14), 0);

    // A reset of the target drops what it was sent.
    assert_eq!(rig.status(suspend(2)), 0);
    assert_eq!(rig.send(set(2, 1, 0, half), first), 0);
    rig.hosts[TWO].function.reset();
    rig.hosts[TWO].configure();
    assert_eq!(rig.send(middle, second), CONTROLLER);
    assert_eq!(rig.status(suspend(2)), 0);
    assert_eq!(rig.send(middle, second), SEQUENCE);

    assert_eq!(rig.send(set(2, 1, 0, half), first), 0);
    assert_eq!(rig.send(middle, second), 0);
    assert_eq!(rig.status(set(2, 2, 0, 0)), 0, "the last may be empty");
    assert_eq!(rig.hosts[TWO].get(0x14), 0x0046_0001, "CC");
    assert_eq!(rig.send(set(2, 1, 0, half), first), 0);
    assert_eq!(
        rig.send(set(2, 2, half * 4, dwords - half), second),
        INVALID_FIELD,
        "I/O queues"
    );
    assert_eq!(rig.status(resume(2)), 0);
}

#[test]
fn state_can_be_read_at_any_time_and_not_beyond_its_end() {
    let mut rig = rig();
    let completion = rig.manage(get(1, 0, 12));
    assert_eq!((completion.status.bits(), completion.dw0), (0, 0), "CSUP");
    let header = rig.hosts[ADMIN].driver.read(DATA, 48);
    assert_eq!(header[2], 0, "CSATTR");
    assert_eq!(rig.status(suspend(1)), 0);
    let completion = rig.manage(get(1, 0, 12));
    assert_eq!((completion.status.bits(), completion.dw0), (0, 1), "CSUP");
    let header = rig.hosts[ADMIN].driver.read(DATA, 48);
    assert_eq!(header[2], 1, "CSATTR");
    let end = rig.state(1).len() as u32;
    rig.hosts[ADMIN].driver.write(DATA, &[0xee; 16]);
    assert_eq!(rig.status(get(1, end, 2)), 0);
    assert_eq!(rig.status(get(1, end + 4, 1)), INVALID_FIELD);
    assert_eq!(rig.status(get(1, 0, (512 << 10) / 4 + 1)), INVALID_FIELD);
    let nothing = Command {
        cdw10: 0,
        cdw11: 1,
        ..get(1, 0, 12)
    };
    assert_eq!(rig.status(nothing), 0);
    let header = rig.hosts[ADMIN].driver.read(DATA, 48);
    assert!(header[3..].iter().all(|byte| *byte == 0), "a header alone");
}

#[test]
fn state_formats_are_listed() {
    let mut rig = rig();
    assert_eq!(rig.status(raw(0x06, 0x20, 0)), 0);
    let page = rig.hosts[ADMIN].driver.read(DATA, 0x1000);
    assert_eq!(page[..4], [1, 1, 0, 0], "one version, 0; one UUID");
    let uuid = [
        0x9e, 0xdb, 0xdb, 0x91, 0x8d, 0x5f, 0x46, 0xfc, 0xb4, 0x82, 0x6c, 0x7d, 0x39, 0x3c, 0x7a,
        0x9b,
    ];
    assert_eq!(page[4..20], uuid);
    assert!(page[20..].iter().all(|byte| *byte == 0));
    let status = rig.command(ONE, 0, raw(0x06, 0x20, 0)).status;
    assert_eq!(status.without_flags().bits(), INVALID_FIELD);
    // Commands Supported and Effects: CSUPP of Track Send and so on.
    let effects = Command {
        cdw10: 0x03ff_0005,
        ..Command::new(0x02)
    };
    assert_eq!(rig.status(effects), 0);
    let page = rig.hosts[ADMIN].driver.read(DATA, 0x1000);
    for (opcode, supported) in [(0x3d, 1), (0x3e, 1), (0x41, 1), (0x42, 1), (0x45, 0)] {
        assert_eq!(page[opcode * 4] & 1, supported, "{opcode:#x}");
    }
}
