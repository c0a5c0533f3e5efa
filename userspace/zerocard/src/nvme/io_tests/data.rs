// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads, writes and compares: every way to describe data, every alignment, and every limit.

use super::*;

const NS_MEMORY: u32 = 1;
const NS_FILE: u32 = 2;
const NS_LARGE: u32 = 4;

/// A namespace in memory, one in a file, and one in a file with blocks of 4 KiB.
fn rig(directory: &Path) -> Rig {
    Rig::with_queue(vec![
        memory(NS_MEMORY),
        file(NS_FILE, &directory.join("a"), 9, false),
        file(NS_LARGE, &directory.join("b"), 12, false),
    ])
}

/// An SGL descriptor: address, length, type and subtype.
fn descriptor(address: u64, length: u32, identifier: u8) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[15] = identifier;
    bytes
}

/// The command with an SGL instead of PRP entries (PSDT 01b).
fn with_sgl(command: Command, first: [u8; 16]) -> Command {
    Command {
        flags: 0x40,
        prp1: u64::from_le_bytes(first[..8].try_into().unwrap()),
        prp2: u64::from_le_bytes(first[8..].try_into().unwrap()),
        ..command
    }
}

/// The command with data of `len` bytes in pages from `iova` on, listed backwards from the end of
/// RAM so that nothing is contiguous, and where the bytes are.
fn with_prp_list(rig: &Rig, command: Command, iova: u64, len: u64) -> (Command, Vec<(u64, u64)>) {
    let mut parts = vec![(iova, (0x1000 - iova % 0x1000).min(len))];
    let mut rest = len - parts[0].1;
    let mut page = RAM - 0x1000;
    while rest > 0 {
        parts.push((page, rest.min(0x1000)));
        rest -= rest.min(0x1000);
        page -= 0x2000;
    }
    let pages: Vec<u64> = parts[1..].iter().map(|part| part.0).collect();
    let prp2 = match pages[..] {
        [] => 0,
        [one] => one,
        _ => {
            // At the end of a page, so that the list continues on the next one.
            let at = LIST + 0xff0;
            let link = LIST + 0x4000;
            if pages.len() > 2 {
                rig.put(at, &pages[0].to_le_bytes());
                rig.put(at + 8, &link.to_le_bytes());
                for (page, place) in pages[1..].iter().zip(0u64..) {
                    rig.put(link + place * 8, &page.to_le_bytes());
                }
            } else {
                rig.put(at, &pages[0].to_le_bytes());
                rig.put(at + 8, &pages[1].to_le_bytes());
            }
            at
        }
    };
    let command = Command {
        prp1: iova,
        prp2,
        ..command
    };
    (command, parts)
}

fn gather(rig: &Rig, parts: &[(u64, u64)]) -> Vec<u8> {
    let all = parts
        .iter()
        .map(|(iova, len)| rig.bytes(*iova, *len as usize));
    all.flatten().collect()
}

fn scatter(rig: &Rig, parts: &[(u64, u64)], mut data: &[u8]) {
    for (iova, len) in parts {
        let (now, later) = data.split_at(*len as usize);
        rig.put(*iova, now);
        data = later;
    }
}

#[test]
fn prp_lists_of_every_length_and_offset_move_the_right_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for (nsid, block) in [(NS_MEMORY, 512u64), (NS_FILE, 512), (NS_LARGE, 4096)] {
        for blocks in [1u64, 2, 3, 7, 8, 9, 16, 17, 64, 127, 128] {
            let len = blocks * block;
            for offset in [0u64, 4, 0x7fc, 0xe00, 0xffc] {
                let slba = 100 + blocks * 3;
                let data = pattern(len + offset + u64::from(nsid), len as usize);
                let write = block_command(WRITE, nsid, slba, blocks as u32);
                let (write, parts) = with_prp_list(&rig, write, DATA + offset, len);
                scatter(&rig, &parts, &data);
                assert_eq!(rig.status(write), 0, "{blocks} from {offset:#x}");
                scatter(&rig, &parts, &vec![0; len as usize]);
                // Back to another offset.
                let other = (offset + 0x204) % 0x1000;
                let read = block_command(READ, nsid, slba, blocks as u32);
                let (read, parts) = with_prp_list(&rig, read, DATA + other, len);
                assert_eq!(rig.status(read), 0);
                let found = gather(&rig, &parts);
                assert!(found == data, "{nsid}: {blocks} blocks, {offset:#x}");
            }
        }
    }
}

#[test]
fn a_read_writes_its_bytes_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for nsid in [NS_MEMORY, NS_FILE] {
        rig.put(DATA, &[0xee; 0x3000]);
        let read = Command {
            prp1: DATA + 0xe04,
            ..block_command(READ, nsid, 0, 3)
        };
        assert_eq!(rig.status(read), 0);
        let mut expected = vec![0xee; 0x3000];
        expected[0xe04..0x1000].fill(0);
        expected[0x1000..0x1404].fill(0);
        assert!(rig.bytes(DATA, 0x3000) == expected);
    }
}

#[test]
fn sgls_describe_any_bytes_in_any_order() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for nsid in [NS_MEMORY, NS_FILE] {
        let data = pattern(nsid.into(), 4096);
        rig.put(DATA + 0x1003, &data);
        let write = block_command(WRITE, nsid, 40, 8);
        let write = with_sgl(write, descriptor(DATA + 0x1003, 4096, 0x00));
        assert_eq!(rig.status(write), 0);
        // Last segment of three blocks with odd addresses and lengths, and a bit bucket.
        let list = [
            descriptor(DATA + 0x5001, 1001, 0x00),
            descriptor(0, 1000, 0x10),
            descriptor(DATA + 0x3777, 2047, 0x00),
            descriptor(DATA + 0x1, 48, 0x00),
        ];
        rig.put(LIST + 8, list.as_flattened());
        rig.put(DATA, &[0xee; 0x8000]);
        let read = block_command(READ, nsid, 40, 8);
        let read = with_sgl(read, descriptor(LIST + 8, 64, 0x30));
        assert_eq!(rig.status(read), 0);
        let mut expected = vec![0xee; 0x8000];
        expected[0x5001..][..1001].copy_from_slice(&data[..1001]);
        expected[0x3777..][..2047].copy_from_slice(&data[2001..4048]);
        expected[1..49].copy_from_slice(&data[4048..]);
        assert!(rig.bytes(DATA, 0x8000) == expected, "namespace {nsid}");
    }
}

#[test]
fn data_pointers_that_make_no_sense_fail_and_move_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for nsid in [NS_MEMORY, NS_FILE] {
        for opcode in [READ, WRITE, COMPARE] {
            // A compare that can get at its data finds no difference.
            let fill = if opcode == COMPARE { 0 } else { 0xee };
            rig.put(DATA, &[fill; 0x2000]);
            let one = block_command(opcode, nsid, 0, 8);
            let sgl = |first| with_sgl(one, first);
            let cases = [
                (
                    Command {
                        prp1: DATA + 2,
                        ..one
                    },
                    0x013,
                ),
                (
                    Command {
                        prp1: DATA + 8,
                        prp2: DATA + 0x1004,
                        ..one
                    },
                    0x013,
                ),
                (Command { prp1: RAM, ..one }, 0x004),
                (
                    Command {
                        prp1: DATA + 8,
                        prp2: RAM,
                        ..one
                    },
                    0x004,
                ),
                (
                    Command {
                        prp1: !0xfff,
                        ..one
                    },
                    0x004,
                ),
                // A list outside memory, and a list that names something outside.
                (
                    Command {
                        prp2: RAM,
                        ..block_command(opcode, nsid, 0, 64)
                    },
                    0x004,
                ),
                (
                    Command {
                        prp2: LIST,
                        ..block_command(opcode, nsid, 0, 64)
                    },
                    0x004,
                ),
                (Command { flags: 0xc0, ..one }, 0x002),
                (sgl(descriptor(DATA, 4095, 0x00)), 0x00f),
                (sgl(descriptor(RAM - 2048, 4096, 0x00)), 0x004),
                (sgl(descriptor(RAM, 32, 0x30)), 0x004),
                (sgl(descriptor(DATA, 4096, 0x50)), 0x011),
                (sgl(descriptor(LIST, 8, 0x30)), 0x00d),
            ];
            rig.put(LIST, RAM.to_le_bytes().repeat(16).as_slice());
            for (command, expected) in cases {
                assert_eq!(rig.status(command), expected, "{command:?}");
            }
            assert_eq!(rig.bytes(DATA, 0x2000), [fill; 0x2000]);
        }
        assert_eq!(rig.status(block_command(READ, nsid, 0, 8)), 0);
        assert_eq!(rig.bytes(DATA, 0x1000), [0; 0x1000], "nothing was written");
    }
    assert_eq!(rig.get(0x1c), 1, "none of it is fatal");
}

#[test]
fn memory_that_may_only_be_read_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    let rom = memfd(0x1000);
    rustix::io::pwrite(&rom, &[0x77; 0x1000], 0).unwrap();
    let mut map = request(0x4000_0000, 0x1000, 0);
    map.writable = false;
    rig.bench.memory.map(map, Some(&rom)).unwrap();
    for nsid in [NS_MEMORY, NS_FILE] {
        let at = |opcode| Command {
            prp1: 0x4000_0000,
            ..block_command(opcode, nsid, 0, 8)
        };
        assert_eq!(rig.status(at(READ)), 0x004);
        assert_eq!(rig.status(at(WRITE)), 0);
        assert_eq!(rig.status(at(COMPARE)), 0);
    }
    assert_eq!(rig.bytes(0x4000_0000, 16), [0x77; 16]);
}

#[test]
fn blocks_end_where_the_namespace_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for (nsid, count) in [(NS_MEMORY, 16384u64), (NS_FILE, 16384), (NS_LARGE, 2048)] {
        for opcode in [READ, WRITE, COMPARE, WRITE_ZEROES] {
            for (slba, blocks, expected) in [
                (count - 1, 1, 0x000),
                (count - 2, 2, 0x000),
                (count, 1, 0x080),
                (count - 1, 2, 0x080),
                (0, 65536, if opcode == WRITE_ZEROES { 0x080 } else { 0x002 }),
                (1 << 32, 1, 0x080),
                (u64::MAX, 1, 0x080),
                (u64::MAX, 2, 0x080),
                (1 << 55, 1, 0x080),
            ] {
                // 65,536 blocks of 512 bytes are more than there are, too.
                rig.put(DATA, &[0; 0x2000]);
                let found = rig.status(block_command(opcode, nsid, slba, blocks));
                assert_eq!(found, expected, "{opcode:#x} {slba:#x} {blocks}");
            }
        }
    }
}

#[test]
fn a_transfer_is_at_most_what_mdts_says() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    // 2^7 pages of 4 KiB.
    for (nsid, most) in [(NS_MEMORY, 1024), (NS_LARGE, 128)] {
        for opcode in [WRITE, READ, COMPARE] {
            for (blocks, expected) in [(most, 0), (most + 1, 0x002)] {
                let block = (512 << 10) / u64::from(most);
                let data = descriptor(DATA, (u64::from(blocks) * block) as u32, 0x00);
                let transfer = with_sgl(block_command(opcode, nsid, 0, blocks), data);
                assert_eq!(rig.status(transfer), expected, "{opcode} {blocks}");
            }
        }
        // No data, no limit.
        assert_eq!(
            rig.status(block_command(WRITE_ZEROES, nsid, 0, most + 1)),
            0
        );
    }
}

#[test]
fn compare_finds_the_one_byte_that_differs() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    for nsid in [NS_MEMORY, NS_FILE] {
        let data = pattern(9, 0x4000);
        rig.put(DATA, &data);
        let all = |opcode| {
            let first = descriptor(DATA, 0x4000, 0x00);
            with_sgl(block_command(opcode, nsid, 7, 32), first)
        };
        assert_eq!(rig.status(all(WRITE)), 0);
        assert_eq!(rig.status(all(COMPARE)), 0);
        for at in [0u64, 1, 511, 512, 0xfff, 0x1000, 0x2345, 0x3fff] {
            rig.put(DATA + at, &[!data[at as usize]]);
            assert_eq!(rig.status(all(COMPARE)), 0x285, "byte {at:#x}");
            rig.put(DATA + at, &[data[at as usize]]);
        }
        assert_eq!(rig.status(all(COMPARE)), 0);
        assert!(rig.bytes(DATA, 0x4000) == data, "host memory is only read");
    }
}

#[test]
fn commands_that_are_not_there_or_not_allowed_end_with_their_status() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    let one = |opcode| block_command(opcode, NS_MEMORY, 0, 1);
    // Write Uncorrectable, Verify, reservations, Copy, I/O management, and what nobody defined.
    for opcode in [
        0x04, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x19, 0x12, 0x1d, 0x7f, 0x80, 0xff,
    ] {
        assert_eq!(rig.status(one(opcode)), 0x001, "opcode {opcode:#x}");
    }
    for opcode in [
        FLUSH,
        READ,
        WRITE,
        COMPARE,
        WRITE_ZEROES,
        DATASET_MANAGEMENT,
    ] {
        for flags in [1, 2] {
            let fused = Command {
                flags,
                ..one(opcode)
            };
            assert_eq!(rig.status(fused), 0x002, "fused {opcode:#x}");
        }
        // 3 could be attached and is not, the others could never be.
        for (nsid, expected) in [(0, 0x00b), (3, 0x002), (5, 0x00b), (0xffff_fffe, 0x00b)] {
            let elsewhere = Command {
                nsid,
                ..one(opcode)
            };
            assert_eq!(rig.status(elsewhere), expected, "namespace {nsid:#x}");
        }
    }
    for opcode in [READ, WRITE, COMPARE, WRITE_ZEROES, DATASET_MANAGEMENT] {
        let all = Command {
            nsid: u32::MAX,
            ..one(opcode)
        };
        assert_eq!(rig.status(all), 0x00b, "all namespaces, {opcode:#x}");
    }
    // VWC says that Flush does not take all namespaces either.
    let all = Command {
        nsid: u32::MAX,
        ..one(FLUSH)
    };
    assert_eq!(rig.status(all), 0x00b);
}

#[test]
fn failures_say_whether_to_try_again_and_are_in_the_error_log() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = rig(directory.path());
    let beyond = Command {
        cid: 0x4321,
        ..block_command(READ, NS_FILE, 0x1_2345, 1)
    };
    let done = rig.io(beyond);
    // DNR, More, SCT 0, SC 80h.
    assert_eq!(done.status.bits(), 0x6080);
    let outside = Command {
        prp1: RAM,
        ..block_command(READ, NS_FILE, 0, 1)
    };
    assert_eq!(
        rig.io(outside).status.bits(),
        0x2004,
        "may work another time"
    );
    assert_eq!(rig.admin_status(command(0x02, 0x001f_0001)), 0);
    let log = rig.bytes(DATA, 128);
    assert_eq!(
        log[64..72],
        [1, 0, 0, 0, 0, 0, 0, 0],
        "the older one second"
    );
    assert_eq!(log[72..76], [1, 0, 0x21, 0x43], "queue and command");
    assert_eq!(log[76..78], [0x00, 0xc1], "status, above the phase tag");
    assert_eq!(log[80..88], [0x45, 0x23, 1, 0, 0, 0, 0, 0], "block");
    assert_eq!(log[88..92], [2, 0, 0, 0], "namespace");
}
