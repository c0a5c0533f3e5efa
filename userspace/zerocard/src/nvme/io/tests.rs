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
