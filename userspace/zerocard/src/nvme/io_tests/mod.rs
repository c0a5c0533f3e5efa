// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An I/O controller driven as a driver drives it: registers, queues and data in guest memory, with
//! a real ring behind it and passes of the poller made by hand. No threads: what is in flight stays
//! so until a test reaps it. Offsets and codes are literal, from the specification's tables.

mod data;
mod describe;
mod media;
mod queues;
mod shadow;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::Completion;

use super::admin::{Identity, Personality, Role};
use super::controller::Controller;
use super::namespace::Namespace;
use crate::backing::{FileMedium, FileOptions, Medium, MemoryMedium};
use crate::memory::tests::{memfd, request};
use crate::pci::msix::tests::{eventfd, fired};
use crate::pci::tests::Bench;
use crate::pci::{Kind, Progress};
use crate::poller::{Io, SLOTS};
use crate::sys::Ring;

const RAM: u64 = 16 << 20;
const ADMIN_SQ: u64 = 0x1000;
const ADMIN_CQ: u64 = 0x2000;
const DOORBELLS: u64 = 0x3000;
const EVENT_INDICES: u64 = 0x4000;
/// PRP and SGL lists.
const LIST: u64 = 0x8000;
const DATA: u64 = 0x80_0000;
const QUEUES: u16 = 4;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const COMPARE: u8 = 0x05;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;

/// Where a submission queue of this identifier is.
fn sq_base(id: u16) -> u64 {
    0x10_0000 + u64::from(id) * 0x4_0000
}

/// Where a completion queue of this identifier is.
fn cq_base(id: u16) -> u64 {
    0x30_0000 + u64::from(id) * 0x1_0000
}

/// A driver's view of a submission queue.
#[derive(Clone, Debug)]
struct Sq {
    id: u16,
    base: u64,
    entries: u32,
    tail: u32,
}

/// A driver's view of a completion queue.
#[derive(Clone, Debug)]
struct Cq {
    id: u16,
    base: u64,
    entries: u32,
    head: u32,
    phase: u8,
}

impl Sq {
    fn new(id: u16, base: u64, entries: u32) -> Self {
        let tail = 0;
        Self {
            id,
            base,
            entries,
            tail,
        }
    }
}

impl Cq {
    fn new(id: u16, base: u64, entries: u32) -> Self {
        Self {
            id,
            base,
            entries,
            head: 0,
            phase: 1,
        }
    }
}

/// A controller, its guest and its driver.
struct Rig {
    bench: Bench,
    ram: OwnedFd,
    controller: Controller,
    ring: Ring,
    interrupts: Vec<OwnedFd>,
    sq: Vec<Sq>,
    cq: Vec<Cq>,
}

impl Rig {
    /// Not enabled yet.
    fn disabled(namespaces: Vec<Arc<Namespace>>, queues: u16) -> Self {
        let mut bench = Bench::with_vectors(queues + 1);
        let ram = memfd(RAM);
        bench.memory.map(request(0, RAM, 0), Some(&ram)).unwrap();
        let mut interrupts = Vec::new();
        for vector in 0..=queues {
            let (mine, theirs) = eventfd();
            bench.msix.set_trigger(vector, Some(theirs));
            interrupts.push(mine);
        }
        let controller = Controller::new(Personality {
            identity: Identity {
                serial: "ZS00000001".into(),
                controller_id: 2,
                subnqn: "nqn.2014-08.org.nvmexpress:test".into(),
                controllers: vec![0, 1, 2, 5],
            },
            role: Role::Io { namespaces, queues },
        });
        Self {
            bench,
            ram,
            controller,
            ring: Ring::new(SLOTS).unwrap(),
            interrupts,
            sq: Vec::new(),
            cq: Vec::new(),
        }
    }

    /// Enabled, with the admin queue pair only.
    fn enabled(namespaces: Vec<Arc<Namespace>>) -> Self {
        let mut rig = Self::disabled(namespaces, QUEUES);
        rig.enable();
        rig
    }

    /// Enabled, with one pair of I/O queues of 64 entries and vector 1.
    fn with_queue(namespaces: Vec<Arc<Namespace>>) -> Self {
        let mut rig = Self::enabled(namespaces);
        rig.create_pair(1, 64);
        rig
    }

    fn enable(&mut self) {
        self.sq = vec![Sq::new(0, ADMIN_SQ, 16)];
        self.cq = vec![Cq::new(0, ADMIN_CQ, 16)];
        self.put(ADMIN_CQ, &[0; 0x1000]);
        self.set(0x24, 15 << 16 | 15);
        self.set(0x28, ADMIN_SQ as u32);
        self.set(0x30, ADMIN_CQ as u32);
        self.set(0x14, 0x0046_0001);
        assert_eq!(self.get(0x1c), 1, "CSTS");
    }

    fn set(&mut self, offset: usize, value: u32) {
        let mut bus = self.bench.bus();
        self.controller
            .write(offset, &value.to_le_bytes(), &mut bus);
    }

    fn get(&mut self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.controller.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes to guest memory as its processors do, unseen by the card.
    fn put(&self, iova: u64, data: &[u8]) {
        let written = rustix::io::pwrite(&self.ram, data, iova).unwrap();
        assert_eq!(written, data.len());
    }

    fn bytes(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.bench.memory.read(iova, &mut data).unwrap();
        data
    }

    /// Creates a completion queue (vector = identifier) and a submission queue of the same
    /// identifier.
    fn create_pair(&mut self, id: u16, entries: u32) {
        self.create_cq(id, entries);
        self.create_sq(id, id, entries);
    }

    fn create_cq(&mut self, id: u16, entries: u32) {
        self.put(cq_base(id), &vec![0; entries as usize * 16]);
        let create = create_cq(id, entries, cq_base(id), id);
        assert_eq!(self.admin_status(create), 0);
        self.cq.push(Cq::new(id, cq_base(id), entries));
    }

    fn create_sq(&mut self, id: u16, cq: u16, entries: u32) {
        self.create_sq_at(sq_base(id), id, cq, entries);
    }

    fn create_sq_at(&mut self, base: u64, id: u16, cq: u16, entries: u32) {
        let create = create_sq(id, entries, base, cq);
        assert_eq!(self.admin_status(create), 0);
        self.sq.push(Sq::new(id, base, entries));
    }

    fn sq(&mut self, id: u16) -> &mut Sq {
        self.sq.iter_mut().find(|queue| queue.id == id).unwrap()
    }

    fn cq(&mut self, id: u16) -> &mut Cq {
        self.cq.iter_mut().find(|queue| queue.id == id).unwrap()
    }

    /// Puts a command into a submission queue without ringing.
    fn queue(&mut self, id: u16, command: &Command) {
        let queue = self.sq(id);
        let at = queue.base + u64::from(queue.tail) * 64;
        queue.tail = (queue.tail + 1) % queue.entries;
        self.put(at, &command.to_bytes());
    }

    /// Rings the doorbell of a submission queue: 1000h + 2 * id * 4.
    fn ring(&mut self, id: u16) {
        let tail = self.sq(id).tail;
        self.set(0x1000 + usize::from(id) * 8, tail);
    }

    fn submit(&mut self, id: u16, command: &Command) {
        self.queue(id, command);
        self.ring(id);
    }

    /// The next completion of a queue, if there is one. The doorbell is rung with `ring_head`.
    fn reap(&mut self, id: u16) -> Option<Completion> {
        let queue = self.cq(id).clone();
        let entry = self.bytes(queue.base + u64::from(queue.head) * 16, 16);
        if entry[14] & 1 != queue.phase {
            return None;
        }
        let queue = self.cq(id);
        queue.head = (queue.head + 1) % queue.entries;
        if queue.head == 0 {
            queue.phase ^= 1;
        }
        Some(Completion::from_bytes(&entry.try_into().unwrap()))
    }

    fn reap_all(&mut self, id: u16) -> Vec<Completion> {
        let mut all = Vec::new();
        while let Some(completion) = self.reap(id) {
            all.push(completion);
        }
        all
    }

    /// Rings the doorbell of a completion queue: 1000h + (2 * id + 1) * 4.
    fn ring_head(&mut self, id: u16) {
        let head = self.cq(id).head;
        self.set(0x1004 + usize::from(id) * 8, head);
    }

    /// The controller's part of a pass of the poller, and what it began is begun. Says whether
    /// something was done.
    fn pass(&mut self) -> bool {
        self.pass_at(Instant::now()).worked
    }

    fn pass_at(&mut self, now: Instant) -> Progress {
        let mut bus = self.bench.bus();
        let mut io = Io::new(&mut self.ring, 0, now);
        let progress = self.controller.poll(&mut bus, &mut io);
        self.ring.submit().unwrap();
        progress
    }

    /// Takes back what the kernel has finished. Says whether there was anything.
    fn collect(&mut self) -> bool {
        self.collect_as(|result| result)
    }

    /// The same with results that the kernel could have given.
    fn collect_as(&mut self, change: impl Fn(i32) -> i32) -> bool {
        let mut completed = Vec::new();
        self.ring.reap(&mut completed);
        let mut io = Io::new(&mut self.ring, 0, Instant::now());
        for &(slot, result) in &completed {
            let mut bus = self.bench.bus();
            let result = change(result);
            self.controller.finish(slot, result, &mut bus, &mut io);
        }
        !completed.is_empty()
    }

    /// Runs an I/O command on queue 1 whose first piece of work ends in another way.
    fn io_as(&mut self, command: Command, change: impl Fn(i32) -> i32) -> u16 {
        self.submit(1, &command);
        self.pass();
        while !self.collect_as(&change) {
            self.ring.wait(Some(Duration::from_secs(30))).unwrap();
        }
        self.settle();
        let completion = self.reap(1).expect("no completion");
        self.ring_head(1);
        code(&completion)
    }

    /// Passes until there is nothing more to do.
    fn settle(&mut self) {
        loop {
            let collected = self.collect();
            let worked = self.pass();
            if collected || worked {
                continue;
            }
            if self.ring.in_flight() == 0 {
                return;
            }
            self.ring.wait(Some(Duration::from_secs(30))).unwrap();
        }
    }

    /// Runs an admin command.
    fn admin(&mut self, command: Command) -> Completion {
        self.submit(0, &command);
        let completion = self.reap(0).expect("no completion");
        self.ring_head(0);
        assert_eq!(completion.cid, command.cid);
        completion
    }

    fn admin_status(&mut self, command: Command) -> u16 {
        code(&self.admin(command))
    }

    /// Runs an I/O command on queue 1.
    fn io(&mut self, command: Command) -> Completion {
        self.submit(1, &command);
        self.settle();
        let completion = self.reap(1).expect("no completion");
        self.ring_head(1);
        assert_eq!((completion.cid, completion.sqid), (command.cid, 1));
        assert!(self.reap(1).is_none(), "one completion for a command");
        completion
    }

    fn status(&mut self, command: Command) -> u16 {
        code(&self.io(command))
    }

    fn fired(&self, vector: u16) -> u64 {
        fired(&self.interrupts[usize::from(vector)])
    }
}

/// SCT and SC.
fn code(completion: &Completion) -> u16 {
    completion.status.without_flags().bits()
}

fn command(opcode: u8, cdw10: u32) -> Command {
    Command {
        cid: 0x1234,
        prp1: DATA,
        cdw10,
        ..Command::new(opcode)
    }
}

/// Create I/O Completion Queue: identifier and size, vector with interrupts enabled, contiguous.
fn create_cq(id: u16, entries: u32, base: u64, vector: u16) -> Command {
    Command {
        prp1: base,
        cdw11: u32::from(vector) << 16 | 3,
        ..command(0x05, entries.wrapping_sub(1) << 16 | u32::from(id))
    }
}

/// Create I/O Submission Queue.
fn create_sq(id: u16, entries: u32, base: u64, cq: u16) -> Command {
    Command {
        prp1: base,
        cdw11: u32::from(cq) << 16 | 1,
        ..command(0x01, entries.wrapping_sub(1) << 16 | u32::from(id))
    }
}

/// A command on `blocks` blocks from `slba` on, with contiguous data at `DATA`.
fn block_command(opcode: u8, nsid: u32, slba: u64, blocks: u32) -> Command {
    Command {
        nsid,
        prp2: DATA + 0x1000,
        cdw11: (slba >> 32) as u32,
        cdw12: blocks.wrapping_sub(1) & 0xffff,
        ..command(opcode, slba as u32)
    }
}

fn namespace(id: u32, medium: Medium, block_shift: u8) -> Arc<Namespace> {
    Arc::new(Namespace {
        id,
        blocks: medium.size() >> block_shift,
        medium,
        block_shift,
        nguid: [id as u8; 16],
        shared: id == 1,
    })
}

/// 8 MiB of memory in blocks of 512 bytes.
fn memory(id: u32) -> Arc<Namespace> {
    let medium = MemoryMedium::new(8 << 20, 512).unwrap();
    namespace(id, Medium::Memory(medium), 9)
}

/// 8 MiB of a file.
fn file(id: u32, path: &Path, block_shift: u8, read_only: bool) -> Arc<Namespace> {
    let options = FileOptions {
        size: (!read_only).then_some(8 << 20),
        block_size: 1 << block_shift,
        read_only,
    };
    let medium = FileMedium::open(path, options).unwrap();
    namespace(id, Medium::File(medium), block_shift)
}

/// Bytes that tell where they are from.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend(state.to_le_bytes());
    }
    data.truncate(len);
    data
}
