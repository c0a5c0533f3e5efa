// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands on media of both kinds, without queues: start, the kernel's part, finish.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::backing::{FileMedium, FileOptions, MemoryMedium};
use crate::memory::tests::{memfd, request};
use crate::pci::tests::Bench;
use crate::sys::Ring;

const SIZE: u64 = 1 << 20;
const DATA: u64 = 0x2_0000;

fn file(directory: &Path) -> Medium {
    let options = FileOptions {
        size: Some(SIZE),
        block_size: 512,
        read_only: false,
    };
    Medium::File(FileMedium::open(&directory.join("disk"), options).unwrap())
}

fn memory() -> Medium {
    Medium::Memory(MemoryMedium::new(SIZE, 512).unwrap())
}

/// A namespace, guest memory at IOVA 0, and one slot.
struct Rig {
    bench: Bench,
    namespaces: [Arc<Namespace>; 1],
    requests: Requests,
    ring: Ring,
    /// Whether writes are durable without asking.
    durable: bool,
}

impl Rig {
    fn new(medium: Medium) -> Self {
        let mut bench = Bench::new();
        let ram = memfd(SIZE);
        bench.memory.map(request(0, SIZE, 0), Some(&ram)).unwrap();
        let namespace = Namespace {
            id: 1,
            medium,
            block_shift: 9,
            blocks: SIZE >> 9,
            nguid: [1; 16],
            shared: false,
        };
        Self {
            bench,
            namespaces: [Arc::new(namespace)],
            requests: Requests::new(1),
            ring: Ring::new(1).unwrap(),
            durable: false,
        }
    }

    /// Runs a command to its end. The first piece that the kernel does gets the result that
    /// `result` makes of its own.
    fn run(&mut self, command: Command, result: impl Fn(i32) -> i32) -> Status {
        let slot = self.requests.take().unwrap();
        let request = self.requests.get(slot).unwrap();
        let now = Instant::now();
        request.begin(1, command, None, now);
        let bus = self.bench.bus();
        let around = Surroundings {
            namespaces: &self.namespaces,
            page_size: 4096,
            durable: self.durable,
            bus: &bus,
        };
        let mut step = start(request, slot, &around, &mut Io::new(&mut self.ring, 0, now));
        let mut first = true;
        let status = loop {
            match step {
                Step::Done(status) => break status,
                Step::InFlight => {
                    let mut completed = Vec::new();
                    while completed.is_empty() {
                        self.ring.wait(Some(Duration::from_secs(60))).unwrap();
                        self.ring.reap(&mut completed);
                    }
                    let own = completed[0].1;
                    let given = if first { result(own) } else { own };
                    first = false;
                    let mut io = Io::new(&mut self.ring, 0, now);
                    step = finish(request, slot, given, &around, &mut io);
                }
            }
        };
        self.requests.give_back(slot);
        status
    }

    fn status(&mut self, command: Command) -> Status {
        self.run(command, |own| own)
    }
}

/// A command on blocks from 8 on, with its data in one page.
fn command(opcode: u8, cdw12: u32) -> Command {
    Command {
        nsid: 1,
        prp1: DATA,
        cdw10: 8,
        cdw12,
        ..Command::new(opcode)
    }
}

/// Bit 30 of command dword 12.
const FUA: u32 = 1 << 30;
/// Write Fault (media errors, 80h) with Do Not Retry, as in the completion entry's bits 31:17.
const WRITE_FAULT_DNR: u16 = 0x4280;

fn eio(_: i32) -> i32 {
    -5
}

#[test]
fn what_a_sync_may_have_lost_is_never_reported_safe() {
    let directory = tempfile::tempdir().unwrap();
    // Flush, a durable write, and a durable zeroing, whose sync comes second where the file can zero.
    let failing = [command(0x00, 0), command(0x01, FUA)];
    for (failing, name) in failing.into_iter().zip(["flush", "write"]) {
        let path = directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        let mut rig = Rig::new(file(&path));
        assert_eq!(rig.status(command(0x00, 0)), Status::SUCCESS);
        assert_eq!(rig.run(failing, eio).bits(), WRITE_FAULT_DNR, "{name}");
        for promise in [
            command(0x00, 0),
            command(0x01, FUA),
            command(0x08, FUA),
            command(0x00, 0),
        ] {
            assert_eq!(rig.status(promise).bits(), WRITE_FAULT_DNR, "after {name}");
        }
        // Nothing is promised here.
        for other in [command(0x02, 0), command(0x01, 0), command(0x08, 0)] {
            assert_eq!(rig.status(other), Status::SUCCESS, "after {name}");
        }
        rig.durable = true;
        let status = rig.status(command(0x01, 0));
        assert_eq!(status.bits(), WRITE_FAULT_DNR, "no write cache");
    }
}

#[test]
fn what_says_nothing_about_the_storage_does_not_condemn_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(file(directory.path()));
    // ECANCELED, EFAULT, EINTR (tried again), and an error of a write that promises nothing.
    let cancelled = rig.run(command(0x00, 0), |_| -125);
    assert_eq!(cancelled, Status::ABORT_REQUESTED);
    let memory_gone = rig.run(command(0x01, FUA), |_| -14);
    assert_eq!(memory_gone, Status::DATA_TRANSFER_ERROR);
    assert_eq!(rig.run(command(0x00, 0), |_| -4), Status::SUCCESS);
    assert_eq!(rig.run(command(0x01, 0), eio), Status::WRITE_FAULT);
    assert_eq!(
        rig.run(command(0x02, 0), eio),
        Status::UNRECOVERED_READ_ERROR
    );
    assert_eq!(rig.status(command(0x00, 0)), Status::SUCCESS);
    assert_eq!(rig.status(command(0x01, FUA)), Status::SUCCESS);
}

#[test]
fn a_success_beside_a_failure_counts_for_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(file(directory.path()));
    let namespace = Arc::clone(&rig.namespaces[0]);
    // While this flush is under way, another one takes the report.
    let status = rig.run(command(0x00, 0), |own| {
        let Medium::File(file) = &namespace.medium else {
            unreachable!()
        };
        file.note_sync_failure(rustix::io::Errno::IO);
        own
    });
    assert_eq!(status.bits(), WRITE_FAULT_DNR);
    assert_eq!(Rig::new(memory()).status(command(0x00, 0)), Status::SUCCESS);
}

const LIST: u64 = 0x1_0000;

/// A command on `pieces` / 64 blocks with an SGL of data blocks of 8 bytes, 16 bytes apart.
fn scattered(rig: &Rig, opcode: u8, first: u64, pieces: u64) -> Command {
    let mut list = Vec::new();
    for piece in 0..pieces {
        list.extend((first + piece * 16).to_le_bytes());
        // Length, and the descriptor type (0h: data block).
        list.extend([8, 0, 0, 0, 0, 0, 0, 0]);
    }
    rig.bench.memory.write(LIST, &list).unwrap();
    Command {
        // SGL Last Segment descriptor (3h).
        flags: 0x40,
        prp1: LIST,
        prp2: (0x30 << 56) | list.len() as u64,
        ..command(opcode, pieces as u32 / 64 - 1)
    }
}

/// More pieces than the kernel takes in one request (1024).
#[test]
fn lists_of_any_number_of_pieces_move_the_right_bytes() {
    let directory = tempfile::tempdir().unwrap();
    for medium in [file(directory.path()), memory()] {
        let mut rig = Rig::new(medium);
        for pieces in [1024, 1088, 1536, 2048, 4096] {
            let len = pieces as usize * 8;
            let data: Vec<u8> = (0..len).map(|i| (i / 8 + i * 31 + len) as u8).collect();
            for (piece, at) in data.chunks(8).zip(0u64..) {
                rig.bench.memory.write(DATA + at * 16, piece).unwrap();
            }
            let write = scattered(&rig, 0x01, DATA, pieces);
            assert_eq!(rig.status(write), Status::SUCCESS, "{pieces}");
            let compare = scattered(&rig, 0x05, DATA, pieces);
            assert_eq!(rig.status(compare), Status::SUCCESS, "{pieces}");
            let read = scattered(&rig, 0x02, DATA + 8, pieces);
            assert_eq!(rig.status(read), Status::SUCCESS, "{pieces}");
            let mut found = vec![0; len];
            for (piece, at) in found.chunks_mut(8).zip(0u64..) {
                rig.bench.memory.read(DATA + 8 + at * 16, piece).unwrap();
            }
            assert!(found == data, "{pieces} pieces");
            // What is on the medium, in one piece.
            let whole = Command {
                flags: 0x40,
                prp1: 0x8_0000,
                prp2: len as u64,
                ..command(0x02, pieces as u32 / 64 - 1)
            };
            assert_eq!(rig.status(whole), Status::SUCCESS);
            rig.bench.memory.read(0x8_0000, &mut found).unwrap();
            assert!(found == data, "{pieces} pieces on the medium");
        }
    }
}

#[test]
fn a_piece_in_two_maps_may_be_the_last_that_fits() {
    let directory = tempfile::tempdir().unwrap();
    for medium in [file(directory.path()), memory()] {
        let mut rig = Rig::new(medium);
        let border = 0x9_0000;
        rig.bench.memory.unmap(border, 0x1000);
        let other = memfd(0x1000);
        let map = request(border, 0x1000, 0);
        rig.bench.memory.map(map, Some(&other)).unwrap();
        let data: Vec<u8> = (0..520).map(|i| (i % 251) as u8).collect();
        rig.bench.memory.write(border - 8, &data).unwrap();
        // 1023 pieces, and one of 520 bytes: 17 blocks.
        let mut write = scattered(&rig, 0x01, DATA, 1023);
        let mut last = (border - 8).to_le_bytes().to_vec();
        last.extend([8, 2, 0, 0, 0, 0, 0, 0]);
        rig.bench.memory.write(LIST + 1023 * 16, &last).unwrap();
        (write.prp2, write.cdw12) = ((0x30 << 56) | (1024 * 16), 16);
        assert_eq!(rig.status(write), Status::SUCCESS);
        let read = Command {
            flags: 0x40,
            prp1: 0xa_0000,
            prp2: 17 * 512,
            ..command(0x02, 16)
        };
        assert_eq!(rig.status(read), Status::SUCCESS);
        let mut found = [0; 520];
        rig.bench
            .memory
            .read(0xa_0000 + 1023 * 8, &mut found)
            .unwrap();
        assert!(found[..] == data);
    }
}
