// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What commands do to the medium: zeroes, deallocation, safety, write protection, sharing.

use super::*;
use crate::tracking::{DirtyLog, Limits, Range};

fn fill(rig: &mut Rig, nsid: u32, value: u8) {
    // The first 64 KiB.
    for slba in (0..128).step_by(16) {
        rig.put(DATA, &[value; 0x2000]);
        assert_eq!(rig.status(block_command(WRITE, nsid, slba, 16)), 0);
    }
}

/// The first byte of each of the first 128 blocks; blocks hold one value throughout.
fn blocks(rig: &mut Rig, nsid: u32) -> Vec<u8> {
    let mut all = Vec::new();
    for slba in (0..128).step_by(16) {
        rig.put(DATA, &[0x55; 0x2000]);
        assert_eq!(rig.status(block_command(READ, nsid, slba, 16)), 0);
        for block in rig.bytes(DATA, 0x2000).chunks(512) {
            assert!(block.iter().all(|byte| *byte == block[0]));
            all.push(block[0]);
        }
    }
    all
}

fn rig(directory: &Path) -> Rig {
    Rig::with_queue(vec![memory(1), file(2, &directory.join("disk"), 9, false)])
}

#[test]
fn write_zeroes_clears_its_blocks_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for nsid in [1, 2] {
        for (slba, count) in [(0, 1), (3, 9), (17, 111), (0, 128)] {
            // With Deallocate (bit 25) and Force Unit Access (bit 30), and without.
            for flags in [0, 1 << 25, 1 << 30] {
                fill(&mut rig, nsid, 7);
                let mut zero = block_command(WRITE_ZEROES, nsid, slba, count);
                zero.cdw12 |= flags;
                // Its data pointer means nothing.
                (zero.prp1, zero.prp2) = (3, u64::MAX);
                assert_eq!(rig.status(zero), 0);
                let mut expected = vec![7; 128];
                expected[slba as usize..][..count as usize].fill(0);
                assert_eq!(blocks(&mut rig, nsid), expected, "{slba} {count}");
            }
        }
    }
}

/// A range of Dataset Management: context attributes, length in blocks, first block.
fn range(slba: u64, blocks: u32) -> [u8; 16] {
    let mut range = [0xff; 16];
    range[4..8].copy_from_slice(&blocks.to_le_bytes());
    range[8..].copy_from_slice(&slba.to_le_bytes());
    range
}

/// Dataset Management of the ranges at `DATA`; `attributes` is CDW11, bit 2 deallocates.
fn manage(nsid: u32, ranges: u32, attributes: u32) -> Command {
    Command {
        nsid,
        cdw11: attributes,
        ..command(DATASET_MANAGEMENT, ranges - 1)
    }
}

#[test]
fn deallocated_ranges_read_as_zeroes() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for nsid in [1, 2] {
        fill(&mut rig, nsid, 9);
        let ranges = [range(8, 8), range(100, 0), range(64, 16), range(16, 3)];
        rig.put(DATA, ranges.as_flattened());
        assert_eq!(rig.status(manage(nsid, 4, 1 << 2)), 0);
        let mut expected = vec![9; 128];
        expected[8..19].fill(0);
        expected[64..80].fill(0);
        assert_eq!(blocks(&mut rig, nsid), expected);
        // As many as there can be, through a list that crosses a page.
        fill(&mut rig, nsid, 9);
        let many: Vec<_> = (0..256).map(|i| range(i / 4, 1)).collect();
        rig.put(DATA + 0x800, many.as_flattened());
        let many = Command {
            prp1: DATA + 0x800,
            prp2: DATA + 0x1000,
            ..manage(nsid, 256, 1 << 2)
        };
        assert_eq!(rig.status(many), 0);
        expected = vec![9; 128];
        expected[..64].fill(0);
        assert_eq!(blocks(&mut rig, nsid), expected);
    }
}

#[test]
fn a_range_that_is_not_there_changes_nothing_of_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for nsid in [1, 2] {
        fill(&mut rig, nsid, 9);
        for bad in [
            range(16384, 1),
            range(16383, 2),
            range(u64::MAX, 1),
            range(0, u32::MAX),
        ] {
            let ranges = [range(0, 8), bad, range(8, 8)];
            rig.put(DATA, ranges.as_flattened());
            assert_eq!(rig.status(manage(nsid, 3, 1 << 2)), 0x080);
        }
        let outside = Command {
            prp1: RAM,
            ..manage(nsid, 1, 1 << 2)
        };
        assert_eq!(rig.status(outside), 0x004);
        // Hints for reading and writing are taken and do nothing.
        rig.put(DATA, &range(0, 128));
        assert_eq!(rig.status(manage(nsid, 1, 0b011)), 0);
        assert_eq!(blocks(&mut rig, nsid), [9; 128]);
    }
}

#[test]
fn what_must_be_safe_goes_to_the_file_and_flush_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut rig = rig(directory.path());
    rig.put(DATA, &[0x42; 512]);
    let fua = Command {
        cdw12: 1 << 30,
        ..block_command(WRITE, 2, 5, 1)
    };
    assert_eq!(rig.status(fua), 0);
    assert_eq!(std::fs::read(&path).unwrap()[5 * 512..6 * 512], [0x42; 512]);
    for nsid in [1, 2] {
        let read = Command {
            cdw12: 1 << 30,
            ..block_command(READ, nsid, 5, 1)
        };
        assert_eq!(rig.status(read), 0);
        assert_eq!(rig.status(block_command(FLUSH, nsid, 0, 1)), 0);
    }
    // Flush of a file is the kernel's work: it is in flight, and one after the other.
    rig.submit(1, &block_command(FLUSH, 2, 0, 1));
    rig.pass();
    assert_eq!(rig.ring.in_flight(), 1);
    assert!(!rig.controller.uses(0, u64::MAX), "it has no data");
    rig.settle();
    assert_eq!(rig.reap_all(1).len(), 1);
    rig.ring_head(1);
    // Without the volatile write cache every write is safe before it completes.
    let off = Command {
        cdw11: 0,
        ..command(0x09, 0x06)
    };
    assert_eq!(rig.admin_status(off), 0);
    rig.put(DATA, &[0x43; 512]);
    assert_eq!(rig.status(block_command(WRITE, 2, 5, 1)), 0);
    assert_eq!(rig.status(block_command(WRITE_ZEROES, 2, 6, 1)), 0);
    assert_eq!(std::fs::read(&path).unwrap()[5 * 512..6 * 512], [0x43; 512]);
}

#[test]
fn a_read_only_namespace_is_read_and_never_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rom");
    let content = pattern(3, 0x1_0000);
    std::fs::write(&path, &content).unwrap();
    let mut rig = Rig::with_queue(vec![file(1, &path, 9, true)]);
    assert_eq!(rig.status(block_command(READ, 1, 3, 8)), 0);
    assert!(rig.bytes(DATA, 0x1000) == content[3 * 512..11 * 512]);
    rig.put(DATA, &content[..0x1000]);
    assert_eq!(rig.status(block_command(COMPARE, 1, 0, 8)), 0);
    assert_eq!(rig.status(block_command(WRITE, 1, 0, 8)), 0x020);
    assert_eq!(rig.status(block_command(WRITE_ZEROES, 1, 0, 8)), 0x020);
    rig.put(DATA, &range(0, 8));
    assert_eq!(rig.status(manage(1, 1, 1 << 2)), 0x020);
    assert_eq!(rig.status(manage(1, 1, 0)), 0, "a hint changes nothing");
    assert_eq!(rig.status(block_command(FLUSH, 1, 0, 1)), 0);
    assert!(std::fs::read(&path).unwrap() == content);
    // Identify Namespace, NSATTR: write protected.
    let identify = Command {
        nsid: 1,
        ..command(0x06, 0)
    };
    assert_eq!(rig.admin_status(identify), 0);
    assert_eq!(rig.bytes(DATA + 99, 1), [1]);
}

#[test]
fn a_file_that_became_shorter_fails_reads_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut rig = rig(directory.path());
    let disk = std::fs::File::options().write(true).open(&path).unwrap();
    disk.set_len(1 << 20).unwrap();
    assert_eq!(rig.status(block_command(READ, 2, 0, 8)), 0);
    assert_eq!(rig.status(block_command(READ, 2, 2048, 8)), 0x281);
    assert_eq!(rig.status(block_command(COMPARE, 2, 2048, 8)), 0x281);
    // Across the new end: a part comes, then nothing.
    assert_eq!(rig.status(block_command(READ, 2, 2044, 8)), 0x281);
    assert_eq!(rig.status(block_command(WRITE, 2, 2048, 8)), 0);
    assert_eq!(rig.status(block_command(READ, 2, 2048, 8)), 0);
    assert_eq!(rig.get(0x1c), 1);
}

/// Linux error numbers, negated.
const EINTR: i32 = -4;
const EIO: i32 = -5;
const EAGAIN: i32 = -11;
const EFAULT: i32 = -14;
const ENOSPC: i32 = -28;
const ECANCELED: i32 = -125;

#[test]
fn work_that_the_kernel_did_in_part_goes_on_where_it_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut rig = rig(directory.path());
    let data = pattern(4, 0x2000);
    let unaligned = |opcode| Command {
        prp1: DATA + 0x204,
        prp2: LIST,
        ..block_command(opcode, 2, 8, 16)
    };
    let pages = [DATA + 0x4000, DATA + 0x2000];
    rig.put(LIST, pages.map(u64::to_le_bytes).as_flattened());
    let parts = [
        (DATA + 0x204, 0xdfc),
        (DATA + 0x4000, 0x1000),
        (DATA + 0x2000, 0x204),
    ];
    for part in [1, 511, 0xdfc, 0xdfd, 0x1fff] {
        std::fs::write(&path, vec![0; 8 << 20]).unwrap();
        let mut rest = &data[..];
        for (iova, len) in parts {
            rig.put(iova, &rest[..len]);
            rest = &rest[len..];
        }
        // The rest of what the kernel wrote is gone, as if it had not been written.
        rig.submit(1, &unaligned(WRITE));
        rig.pass();
        while rig.ring.in_flight() > 0 && !rig.collect_cut(part, &path) {}
        rig.settle();
        assert_eq!(code(&rig.reap(1).unwrap()), 0);
        rig.ring_head(1);
        let found = std::fs::read(&path).unwrap();
        assert!(found[0x1000..0x3000] == data, "{part} bytes written first");
        for (iova, len) in parts {
            rig.put(iova, &vec![0; len]);
        }
        assert_eq!(rig.io_as(unaligned(READ), |_| part as i32), 0);
        let found: Vec<u8> = parts
            .iter()
            .flat_map(|(iova, len)| rig.bytes(*iova, *len))
            .collect();
        assert!(found == data, "{part} bytes read first");
        assert_eq!(rig.io_as(unaligned(COMPARE), |_| part as i32), 0);
    }
}

impl Rig {
    /// Collects a write that is said to have ended after `part` bytes, and was undone beyond.
    fn collect_cut(&mut self, part: u64, path: &Path) -> bool {
        use std::os::unix::fs::FileExt;
        let disk = std::fs::File::options().write(true).open(path).unwrap();
        self.collect_as(|_| {
            let rest = vec![0; 0x2000 - part as usize];
            disk.write_all_at(&rest, 0x1000 + part).unwrap();
            part as i32
        })
    }
}

#[test]
fn what_the_kernel_says_becomes_the_status_that_fits() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for (opcode, result, expected) in [
        (READ, EAGAIN, 0x000), // again, and then it works
        (WRITE, EINTR, 0x000),
        (READ, EIO, 0x281),
        (READ, 0, 0x281), // the file has become shorter
        (COMPARE, EIO, 0x281),
        (WRITE, EIO, 0x280),
        (WRITE, ENOSPC, 0x280),
        (WRITE_ZEROES, EIO, 0x280),
        (READ, EFAULT, 0x004),
        (WRITE, EFAULT, 0x004),
        (READ, ECANCELED, 0x007),
        (WRITE, ECANCELED, 0x007),
    ] {
        rig.put(DATA, &[0; 0x1000]);
        let found = rig.io_as(block_command(opcode, 2, 0, 8), |_| result);
        assert_eq!(found, expected, "{opcode:#x} with {result}");
    }
}

#[test]
fn controllers_that_share_a_namespace_see_each_others_writes() {
    let directory = tempfile::tempdir().unwrap();
    let shared = [memory(1), file(2, &directory.path().join("disk"), 9, false)];
    let mut one = Rig::with_queue(shared.to_vec());
    let mut other = Rig::with_queue(shared.to_vec());
    for nsid in [1, 2] {
        for round in 0..4u8 {
            one.put(DATA, &[round * 2 + 1; 0x1000]);
            assert_eq!(one.status(block_command(WRITE, nsid, 64, 8)), 0);
            assert_eq!(other.status(block_command(READ, nsid, 64, 8)), 0);
            assert_eq!(other.bytes(DATA, 0x1000), [round * 2 + 1; 0x1000]);
            other.put(DATA, &[round * 2 + 2; 512]);
            assert_eq!(other.status(block_command(WRITE, nsid, 65, 1)), 0);
            one.put(DATA, &[round * 2 + 2; 512]);
            assert_eq!(one.status(block_command(COMPARE, nsid, 65, 1)), 0);
            assert_eq!(one.status(block_command(COMPARE, nsid, 64, 1)), 0x285);
        }
    }
    // A reset of one does not disturb the other.
    one.set(0x14, 0);
    assert_eq!(other.status(block_command(READ, 1, 64, 8)), 0);
}

/// Pages that became dirty since the last call, as a driver of migration sees them.
fn harvest(log: &DirtyLog) -> Vec<u64> {
    let mut pages = Vec::new();
    while log.harvest(64, &mut |start, granules| {
        pages.extend((0..u64::from(granules)).map(|granule| start + granule * 0x1000));
    }) {}
    pages.sort_unstable();
    pages
}

#[test]
fn exactly_what_is_written_to_guest_memory_is_dirty() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    let all = Range {
        start: 0,
        granules: (RAM / 0x1000) as u32,
    };
    let log = Arc::new(DirtyLog::start(&[all], 12, Limits::default()).unwrap());
    rig.bench.memory.set_log(Some(Arc::clone(&log)));
    let completions = cq_base(1);
    for nsid in [1, 2] {
        let unaligned = |opcode| Command {
            prp1: DATA + 0xe04,
            ..block_command(opcode, nsid, 0, 3)
        };
        for (opcode, dirty) in [
            (READ, vec![completions, DATA, DATA + 0x1000]),
            (WRITE, vec![completions]),
            (COMPARE, vec![completions]),
            (WRITE_ZEROES, vec![completions]),
            (FLUSH, vec![completions]),
        ] {
            assert_eq!(rig.status(unaligned(opcode)), 0);
            assert_eq!(harvest(&log), dirty, "{opcode:#x} of namespace {nsid}");
        }
    }
    // What an orphan of a reset wrote is dirty, and that before CSTS.RDY falls.
    rig.submit(1, &block_command(READ, 2, 0, 16));
    rig.pass();
    rig.set(0x14, 0);
    assert_eq!((rig.get(0x1c), harvest(&log)), (1, vec![]));
    rig.settle();
    assert_eq!(rig.get(0x1c), 0);
    assert_eq!(harvest(&log), [DATA, DATA + 0x1000]);
}
