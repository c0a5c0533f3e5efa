// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What an I/O controller says about itself, its namespaces and its doings, byte by byte.

use super::*;

/// Namespaces 1 (memory, shared), 2 (blocks of 4 KiB) and 4 (read-only); 3 is not attached.
fn rig(directory: &Path) -> Rig {
    let rom = directory.join("rom");
    std::fs::write(&rom, [0; 8192]).unwrap();
    Rig::with_queue(vec![
        memory(1),
        file(2, &directory.join("disk"), 12, false),
        file(4, &rom, 9, true),
    ])
}

fn identify(rig: &mut Rig, cns: u32, nsid: u32, csi: u8) -> Result<Vec<u8>, u16> {
    rig.put(DATA, &[0xee; 4096]);
    let identify = Command {
        nsid,
        cdw11: u32::from(csi) << 24,
        ..command(0x06, cns)
    };
    match rig.admin_status(identify) {
        0 => Ok(rig.bytes(DATA, 4096)),
        status => Err(status),
    }
}

/// A page that is zero but for these bytes.
fn page(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut page = vec![0; 4096];
    for (at, bytes) in parts {
        page[*at..][..bytes.len()].copy_from_slice(bytes);
    }
    page
}

#[test]
fn identify_controller_offers_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    let found = identify(&mut rig, 0x01, 0, 0).unwrap();
    for (at, bytes) in [
        (0, &[0x53, 0x5a, 0x53, 0x5a][..]),
        (4, b"ZS00000001          "),
        (76, &[0x03]),        // CMIC: ports, controllers
        (77, &[7]),           // MDTS
        (78, &[2, 0]),        // CNTLID
        (80, &[0, 1, 2, 0]),  // VER
        (111, &[1]),          // CNTRLTYPE: I/O
        (256, &[0, 1]),       // OACS: Doorbell Buffer Config
        (262, &[15]),         // ELPE
        (266, &[0x57, 0x01]), // WCTEMP
        (268, &[0x61, 0x01]), // CCTEMP
        (512, &[0x66, 0x44]), // SQES, CQES
        (516, &[4, 0, 0, 0]), // NN
        (520, &[0x0d, 0]),    // ONCS: Compare, Dataset Management, Write Zeroes
        (522, &[0, 0]),       // FUSES
        (525, &[0x05]),       // VWC: present, no Flush of all namespaces
        (536, &[1, 0, 5, 0]), // SGLS
        (768, b"nqn.2014-08.org.nvmexpress:test\0"),
        (2048, &[0xc4, 0x09]), // maximum power of power state 0
    ] {
        assert_eq!(&found[at..at + bytes.len()], bytes, "byte {at}");
    }
    assert_eq!(rig.get(0x04) >> 5 & 0xff, 0x01, "CAP.CSS");
    assert_eq!(rig.get(0x04) & 0xf, 0, "CAP.DSTRD");
}

#[test]
fn identify_namespace_describes_each_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    let blocks = |count: u64| count.to_le_bytes();
    for (nsid, count, shift, shared, read_only) in [
        (1u32, 16384, 9, 1, 0),
        (2, 2048, 12, 0, 0),
        (4, 16, 9, 0, 1),
    ] {
        let expected = page(&[
            (0, &blocks(count)),           // NSZE
            (8, &blocks(count)),           // NCAP
            (16, &blocks(count)),          // NUSE
            (30, &[shared]),               // NMIC
            (33, &[0x09]),                 // DLFEAT: zeroes, also after Write Zeroes
            (48, &blocks(count << shift)), // NVMCAP
            (99, &[read_only]),            // NSATTR
            (104, &[nsid as u8; 16]),      // NGUID
            (130, &[shift]),               // LBAF0.LBADS
        ]);
        let found = identify(&mut rig, 0x00, nsid, 0).unwrap();
        let differ = (0..4096).find(|at| found[*at] != expected[*at]);
        assert_eq!(differ, None, "namespace {nsid}");
        // Identification descriptors: NGUID (2), command set (4).
        let mut descriptors = vec![2, 16, 0, 0];
        descriptors.extend([nsid as u8; 16]);
        descriptors.extend([4, 1, 0, 0, 0]);
        let expected = page(&[(0, &descriptors)]);
        assert!(identify(&mut rig, 0x03, nsid, 0).unwrap() == expected);
        // I/O command set specific: nothing of it.
        assert!(identify(&mut rig, 0x05, nsid, 0).unwrap() == page(&[]));
        // I/O command set independent: NMIC, NSATTR, NSTAT ready.
        let found = identify(&mut rig, 0x08, nsid, 0).unwrap();
        assert_eq!((found[1], found[14]), (shared, 1), "namespace {nsid}");
    }
}

#[test]
fn identify_lists_start_where_they_are_asked_to() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for cns in [0x02, 0x07] {
        let all = page(&[(0, &[1, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0])]);
        assert!(identify(&mut rig, cns, 0, 0).unwrap() == all);
        let rest = page(&[(0, &[4, 0, 0, 0])]);
        assert!(identify(&mut rig, cns, 2, 0).unwrap() == rest);
        assert!(identify(&mut rig, cns, 4, 0).unwrap() == page(&[]));
        assert!(identify(&mut rig, cns, 0xffff_fffd, 0).unwrap() == page(&[]));
        assert_eq!(identify(&mut rig, cns, 0xffff_fffe, 0), Err(0x00b));
        assert_eq!(identify(&mut rig, cns, 0xffff_ffff, 0), Err(0x00b));
    }
    let all = page(&[(0, &[4, 0, 0, 0, 1, 0, 2, 0, 5, 0])]);
    assert!(identify(&mut rig, 0x13, 0, 0).unwrap() == all);
    let rest = page(&[(0, &[2, 0, 2, 0, 5, 0])]);
    assert!(identify(&mut rig, 2 << 16 | 0x13, 0, 0).unwrap() == rest);
    assert!(identify(&mut rig, 6 << 16 | 0x13, 0, 0).unwrap() == page(&[]));
    // I/O command set specific controller: no limits.
    assert!(identify(&mut rig, 0x06, 0, 0).unwrap() == page(&[]));
}

#[test]
fn identify_of_what_is_not_there_fails() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for (cns, nsid, csi, expected) in [
        (0x00, 0, 0, Err(0x00b)),
        (0x00, 5, 0, Err(0x00b)),
        (0x00, u32::MAX, 0, Err(0x00b)),
        (0x00, 3, 0, Ok(page(&[]))), // could be attached and is not: all zeroes
        (0x03, 0, 0, Err(0x00b)),
        (0x03, 5, 0, Err(0x00b)),
        (0x03, 3, 0, Err(0x002)),
        (0x05, 1, 2, Err(0x002)), // Zoned
        (0x06, 0, 2, Err(0x002)),
        (0x07, 0, 1, Err(0x002)), // Key Value
        (0x08, 3, 0, Err(0x002)),
        (0x04, 0, 0, Err(0x002)), // NVM sets
        (0xff, 0, 0, Err(0x002)),
    ] {
        let found = identify(&mut rig, cns, nsid, csi);
        assert!(found == expected, "CNS {cns:#x} of {nsid:#x}, CSI {csi}");
    }
}

#[test]
fn the_number_of_queues_is_asked_before_there_are_any() {
    let mut rig = Rig::enabled(vec![memory(1)]);
    let feature = |opcode, cdw11| Command {
        cdw11,
        ..command(opcode, 0x07)
    };
    let there = u32::from(QUEUES - 1) << 16 | u32::from(QUEUES - 1);
    for asked in [0x0000_0000, 0x0001_0001, 0x00ff_00ff, 0xfffe_fffe] {
        let done = rig.admin(feature(0x09, asked));
        assert_eq!((code(&done), done.dw0), (0, there));
    }
    assert_eq!(rig.admin_status(feature(0x09, 0xffff_0000)), 0x002);
    rig.create_cq(1, 16);
    assert_eq!(rig.admin_status(feature(0x09, 0x0001_0001)), 0x00c);
    assert_eq!(rig.admin(feature(0x0a, 0)).dw0, there, "reading goes on");
    assert_eq!(rig.admin_status(command(0x04, 1)), 0);
    assert_eq!(rig.admin_status(feature(0x09, 0x0001_0001)), 0);
}

fn log(rig: &mut Rig, page: u32, len: usize) -> Vec<u8> {
    rig.put(DATA, &[0xee; 4096]);
    let dwords = len as u32 / 4 - 1;
    let get = Command {
        nsid: u32::MAX,
        prp2: DATA + 0x1000,
        ..command(0x02, dwords << 16 | page)
    };
    assert_eq!(rig.admin_status(get), 0, "page {page:#x}");
    rig.bytes(DATA, len)
}

#[test]
fn log_pages_list_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    let pages = log(&mut rig, 0x00, 1024);
    for page in [0x00, 0x01, 0x02, 0x03, 0x05, 0x12] {
        assert_eq!(pages[page * 4] & 1, 1, "page {page:#x}");
    }
    assert_eq!(pages[0x04 * 4] & 1, 0, "no changed namespace list");
    let effects = log(&mut rig, 0x05, 4096);
    let dword = |at: usize| u32::from_le_bytes(effects[at..at + 4].try_into().unwrap());
    // Delete and create queues, log pages, Identify, Abort, features, events, shadow doorbells.
    for opcode in [
        0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x7c,
    ] {
        assert_eq!(dword(opcode * 4) & 1, 1, "admin {opcode:#x}");
    }
    for (opcode, expected) in [
        (0x00, 1),
        (0x01, 3), // changes content
        (0x02, 1),
        (0x04, 0),
        (0x05, 1),
        (0x08, 3),
        (0x09, 3),
        (0x0d, 0),
    ] {
        assert_eq!(dword(1024 + opcode * 4), expected, "I/O {opcode:#x}");
    }
    for opcode in 0..=255u32 {
        // What the page does not list is refused, what it lists is not.
        let listed = dword(1024 + opcode as usize * 4) & 1 == 1;
        let found = rig.status(Command {
            nsid: 3,
            ..block_command(opcode as u8, 1, 0, 1)
        });
        assert_eq!(found != 0x001, listed, "opcode {opcode:#x}: {found:#x}");
    }
}

#[test]
fn the_health_log_counts_what_was_done() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    let number = |page: &[u8], at: usize| {
        assert_eq!(page[at + 8..at + 16], [0; 8]);
        u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
    };
    let before = log(&mut rig, 0x02, 512);
    assert_eq!((before[0], before[3], before[4]), (0, 100, 10));
    assert_eq!(before[1..3], [0x2c, 0x01], "300 K");
    assert!((32..192).all(|at| before[at] == 0));
    // 1001 blocks read: 513 kB are two units of 1000 blocks, begun ones counted.
    for (opcode, times) in [(READ, 91), (WRITE, 5), (COMPARE, 1), (FLUSH, 1)] {
        for _ in 0..times {
            assert_eq!(rig.status(block_command(opcode, 1, 0, 11)), 0);
        }
    }
    rig.status(block_command(READ, 3, 0, 1));
    let after = log(&mut rig, 0x02, 512);
    assert_eq!(number(&after, 32), 2, "Data Units Read");
    assert_eq!(number(&after, 48), 1, "Data Units Written");
    assert!(
        (91..=93).contains(&number(&after, 64)),
        "Host Read Commands"
    );
    assert!((5..=6).contains(&number(&after, 80)), "Host Write Commands");
    assert_eq!(number(&after, 176), 1, "Error Information Log Entries");
}
