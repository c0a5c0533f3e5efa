// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the administrative controller says of the namespaces of the card: which there are (Identify
//! CNS 10h), what each is (11h), and which controllers have it (12h; NVMe Base 2.1, 5.1.13.2).

use super::*;

const INVALID_FIELD: u16 = 0x002;
const INVALID_NAMESPACE: u16 = 0x00b;

/// Namespace 1 belongs to both controllers, 2 (blocks of 4 KiB) to the second one, 3 to none.
fn rig() -> Rig {
    let namespaces = ["memory=1M", "memory=8M,block=4096", "memory=1M"];
    Rig::with(&namespaces, ["namespaces=1", "namespaces=1:2"])
}

fn identify(rig: &mut Rig, cns: u32, nsid: u32) -> Result<Vec<u8>, u16> {
    rig.hosts[ADMIN].driver.write(DATA, &[0xee; 4096]);
    let command = Command {
        nsid,
        cdw10: cns,
        ..Command::new(0x06)
    };
    match rig.status(command) {
        0 => Ok(rig.hosts[ADMIN].driver.read(DATA, 4096)),
        status => Err(status),
    }
}

/// A page that begins with these bytes, and is zero behind them.
fn page(bytes: &[u8]) -> Vec<u8> {
    let mut page = bytes.to_vec();
    page.resize(4096, 0);
    page
}

#[test]
fn all_namespaces_are_listed_from_where_they_are_asked_for() {
    let mut rig = rig();
    let all = page(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
    assert!(identify(&mut rig, 0x10, 0).unwrap() == all);
    assert!(identify(&mut rig, 0x10, 2).unwrap() == page(&[3]));
    assert!(identify(&mut rig, 0x10, 3).unwrap() == page(&[]));
    assert!(identify(&mut rig, 0x10, 0xffff_fffd).unwrap() == page(&[]));
    for nsid in [0xffff_fffe, 0xffff_ffff] {
        assert_eq!(identify(&mut rig, 0x10, nsid), Err(INVALID_NAMESPACE));
    }
    // None of it is attached to the administrative controller itself.
    assert!(identify(&mut rig, 0x02, 0).unwrap() == page(&[]));
}

#[test]
fn each_namespace_is_what_its_controllers_say_it_is() {
    let mut rig = rig();
    rig.start(TWO, 4);
    for (nsid, blocks, shift, shared) in [(1, 2048u64, 9, 1), (2, 2048, 12, 0), (3, 2048, 9, 0)] {
        let found = identify(&mut rig, 0x11, nsid).unwrap();
        assert_eq!(found[..8], blocks.to_le_bytes(), "NSZE of {nsid}");
        assert_eq!(found[30], shared, "NMIC of {nsid}");
        assert_ne!(found[104..120], [0; 16], "NGUID of {nsid}");
        assert_eq!(found[130], shift, "LBADS of {nsid}");
        if nsid != 3 {
            let own = Command {
                nsid,
                prp1: DATA,
                ..Command::new(0x06)
            };
            assert_eq!(rig.command(TWO, 0, own).status.bits(), 0);
            let own = rig.hosts[TWO].driver.read(DATA, 4096);
            assert!(own == found, "namespace {nsid}");
        }
    }
    for nsid in [0, 4, u32::MAX] {
        assert_eq!(identify(&mut rig, 0x11, nsid), Err(INVALID_NAMESPACE));
    }
}

#[test]
fn the_controllers_of_a_namespace_are_listed_from_where_they_are_asked_for() {
    let mut rig = rig();
    let from = |id: u32| id << 16 | 0x12;
    // The number of identifiers, then these.
    for (cns, nsid, list) in [
        (from(0), 1, &[2, 0, 1, 0, 2, 0][..]),
        (from(1), 1, &[2, 0, 1, 0, 2, 0]),
        (from(2), 1, &[1, 0, 2, 0]),
        (from(3), 1, &[]),
        (from(0), 2, &[1, 0, 2, 0]),
        (from(0), 3, &[]),
    ] {
        let found = identify(&mut rig, cns, nsid).unwrap();
        assert!(found == page(list), "namespace {nsid}, {cns:#x}");
    }
    for nsid in [0, 4] {
        assert_eq!(identify(&mut rig, 0x12, nsid), Err(INVALID_NAMESPACE));
    }
    assert_eq!(identify(&mut rig, 0x12, u32::MAX), Err(INVALID_FIELD));
}

#[test]
fn a_controller_for_io_knows_nothing_of_others() {
    let mut rig = rig();
    rig.start(ONE, 4);
    for cns in [0x10, 0x11, 0x12] {
        let command = Command {
            nsid: 1,
            cdw10: cns,
            prp1: DATA,
            ..Command::new(0x06)
        };
        let status = rig.command(ONE, 0, command).status;
        assert_eq!(status.without_flags().bits(), INVALID_FIELD, "{cns:#x}");
    }
}
