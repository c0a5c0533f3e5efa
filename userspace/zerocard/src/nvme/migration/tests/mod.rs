// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A card with an administrative controller and two others, each with a driver, its memory and its
//! place in the rings; the test is the poller. Nothing runs unless the test lets it, so a request is
//! in flight exactly as long as the test wants. Offsets are literal, from the specification.

mod damaged;
mod dirty;
mod misuse;
mod moving;
mod namespaces;
mod suspending;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::Completion;

use super::Limits;
use crate::card::{self, Card};
use crate::control;
use crate::memory::tests::{memfd, request};
use crate::pci::msix::tests::{eventfd, fired};
use crate::pci::{Function, Phase};
use crate::poller::{Io, SLOTS};
use crate::sys::Ring;
use crate::transport::device::{Device, Region, VectorAction};

/// Bytes of memory that each driver has, from IOVA 0.
const RAM: u64 = 0x10_0000;
/// Shadow doorbells and their EventIdx buffer.
const SHADOW: u64 = 0x6000;
const EVENT_IDX: u64 = 0x7000;
/// Where data goes, to the end of memory.
const DATA: u64 = 0x2_0000;

/// The administrative controller and the other two, by index and controller id.
const ADMIN: usize = 0;
const ONE: usize = 1;
const TWO: usize = 2;

/// A queue pair as its driver sees it.
#[derive(Clone, Debug)]
struct Queue {
    sq: u64,
    cq: u64,
    entries: u32,
    tail: u32,
    head: u32,
    phase: u8,
}

/// A driver: its memory, and where it is in its queues.
struct Driver {
    ram: OwnedFd,
    queues: Vec<Queue>,
    shadow: bool,
}

impl Driver {
    fn new() -> Self {
        Self {
            ram: memfd(RAM),
            queues: Vec::new(),
            shadow: false,
        }
    }

    fn write(&self, iova: u64, bytes: &[u8]) {
        assert_eq!(
            rustix::io::pwrite(&self.ram, bytes, iova).unwrap(),
            bytes.len()
        );
    }

    fn read(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert_eq!(
            rustix::io::pread(&self.ram, &mut bytes[..], iova).unwrap(),
            len
        );
        bytes
    }

    /// Puts a command into a queue. Nobody is told.
    fn queue(&mut self, id: usize, command: &Command) {
        let queue = &mut self.queues[id];
        let at = queue.sq + u64::from(queue.tail) * 64;
        queue.tail = (queue.tail + 1) % queue.entries;
        self.write(at, &command.to_bytes());
    }

    /// The next completion, if there is one. Nobody is told.
    fn reap(&mut self, id: usize) -> Option<Completion> {
        let queue = self.queues[id].clone();
        let entry = self.read(queue.cq + u64::from(queue.head) * 16, 16);
        if entry[14] & 1 != queue.phase {
            return None;
        }
        let queue = &mut self.queues[id];
        queue.head = (queue.head + 1) % queue.entries;
        if queue.head == 0 {
            queue.phase ^= 1;
        }
        Some(Completion::from_bytes(&entry.try_into().unwrap()))
    }
}

/// The machine of a driver, with a function of the card in it.
struct Host {
    function: std::sync::Arc<Function>,
    driver: Driver,
    interrupts: Vec<OwnedFd>,
}

impl Host {
    fn set(&self, offset: usize, value: u32) {
        self.function
            .write(Region::Bar0, offset, &value.to_le_bytes());
    }

    fn get(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.function.read(Region::Bar0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Memory space and bus master, MSI-X.
    fn configure(&self) {
        self.function.write(Region::Config, 4, &[6]);
        self.function.write(Region::Config, 0x53, &[0x80]);
    }

    /// Gives the function the driver's memory and interrupts.
    fn plug(&mut self) {
        let file = Some(&self.driver.ram);
        self.function.map(request(0, RAM, 0), file).unwrap();
        self.interrupts.clear();
        for vector in 0..self.function.vectors() {
            let (mine, theirs) = eventfd();
            self.interrupts.push(mine);
            let action = VectorAction::Assign(Some(theirs));
            self.function.vector(vector, action);
        }
        self.configure();
    }

    fn enable(&mut self, entries: u32) {
        self.set(0x24, (entries - 1) << 16 | (entries - 1));
        self.set(0x28, 0x1000);
        self.set(0x30, 0x2000);
        self.driver.write(0x2000, &[0; 0x1000]);
        self.driver.queues = vec![Queue {
            sq: 0x1000,
            cq: 0x2000,
            entries,
            tail: 0,
            head: 0,
            phase: 1,
        }];
        self.driver.shadow = false;
        self.set(0x14, 0x0046_0001);
        assert_eq!(self.get(0x1c), 1, "CSTS");
    }

    /// Says where the driver is in a queue.
    fn ring(&self, id: usize) {
        let (tail, head) = (self.driver.queues[id].tail, self.driver.queues[id].head);
        if self.driver.shadow && id != 0 {
            let at = SHADOW + id as u64 * 8;
            self.driver.write(at, &tail.to_le_bytes());
            self.driver.write(at + 4, &head.to_le_bytes());
        } else {
            self.set(0x1000 + id * 8, tail);
            self.set(0x1004 + id * 8, head);
        }
    }

    fn phase(&self) -> Phase {
        self.function.lock().kind.phase()
    }
}

struct Rig {
    card: Card,
    hosts: Vec<Host>,
    ring: Ring,
    completed: Vec<(u32, i32)>,
}

impl Rig {
    /// A card whose functions share a namespace of this description, and are not enabled.
    fn new(namespace: &str) -> Self {
        Self::with(&[namespace], ["queues=3"; 2])
    }

    /// A card with these namespaces and functions.
    fn with(namespaces: &[&str], functions: [&str; 2]) -> Self {
        let namespaces: Vec<_> = namespaces.iter().map(|it| it.parse().unwrap()).collect();
        let card = Card::new(&card::Options {
            serial: &"ZS00000001".parse().unwrap(),
            namespaces: &namespaces,
            functions: &functions.map(|function| function.parse().unwrap()),
            seed: 1,
            limits: control::Limits {
                max_ranges: 8,
                max_ranges_subsystem: 6,
                min_granule: 0,
                max_granule: 9,
            },
        })
        .unwrap();
        let mut hosts = Vec::new();
        for slot in card.slots() {
            let mut host = Host {
                function: std::sync::Arc::clone(&slot.function),
                driver: Driver::new(),
                interrupts: Vec::new(),
            };
            host.plug();
            hosts.push(host);
        }
        let mut rig = Self {
            card,
            hosts,
            ring: Ring::new(3 * SLOTS).unwrap(),
            completed: Vec::new(),
        };
        rig.hosts[ADMIN].enable(16);
        rig
    }

    /// Lets the poller have a look at everything. What the kernel finishes stays with it.
    fn poll(&mut self) {
        for (host, index) in self.hosts.iter().zip(0..) {
            let mut io = Io::new(&mut self.ring, index, Instant::now());
            host.function.poll(&mut io);
        }
        self.ring.submit().unwrap();
    }

    /// As a poller does it: only functions that called. Says which did.
    fn poll_callers(&mut self) -> Vec<usize> {
        let mut callers = Vec::new();
        for (host, index) in self.hosts.iter().zip(0..) {
            if host.function.attention.take() {
                callers.push(index as usize);
                let mut io = Io::new(&mut self.ring, index, Instant::now());
                host.function.poll(&mut io);
            }
        }
        self.ring.submit().unwrap();
        callers
    }

    /// Takes back what the kernel has, when it is finished.
    fn finish(&mut self) {
        while self.ring.in_flight() > 0 {
            self.ring.wait(Some(Duration::from_secs(10))).unwrap();
            self.ring.reap(&mut self.completed);
            for (token, result) in std::mem::take(&mut self.completed) {
                let index = token / SLOTS;
                let mut io = Io::new(&mut self.ring, index, Instant::now());
                let function = &self.hosts[index as usize].function;
                function.finish(&[(token, result)], &mut io);
            }
            self.ring.submit().unwrap();
        }
    }

    /// Lets everything happen that can.
    fn run(&mut self) {
        self.poll();
        self.finish();
        self.poll();
    }

    /// Runs a command of a queue to its end.
    fn command(&mut self, host: usize, queue: usize, command: Command) -> Completion {
        self.hosts[host].driver.queue(queue, &command);
        self.hosts[host].ring(queue);
        self.run();
        let completion = self.hosts[host].driver.reap(queue).expect("no completion");
        assert_eq!(completion.cid, command.cid);
        self.hosts[host].ring(queue);
        completion
    }

    /// Runs a command of the administrative controller, with data at DATA.
    fn manage(&mut self, command: Command) -> Completion {
        let command = Command {
            prp1: DATA,
            prp2: DATA + 0x1000,
            ..command
        };
        self.command(ADMIN, 0, command)
    }

    /// The same, as its status.
    fn status(&mut self, command: Command) -> u16 {
        self.manage(command).status.without_flags().bits()
    }

    /// The same with data.
    fn send(&mut self, command: Command, data: &[u8]) -> u16 {
        assert!(data.len() <= 0x2000);
        self.hosts[ADMIN].driver.write(DATA, data);
        self.status(command)
    }

    /// Enables a function with two I/O queue pairs of `entries`, interrupts on.
    fn start(&mut self, host: usize, entries: u32) {
        self.hosts[host].enable(8);
        for id in 1..=2u64 {
            let (sq, cq) = (0x8000 + id * 0x2000, 0x9000 + id * 0x2000);
            self.hosts[host].driver.write(cq, &[0; 0x1000]);
            let size = (entries - 1) << 16 | id as u32;
            let create = Command {
                prp1: cq,
                cdw10: size,
                // Interrupts enabled, contiguous; a vector of its own.
                cdw11: (id as u32) << 16 | 3,
                ..Command::new(0x05)
            };
            assert_eq!(self.command(host, 0, create).status.bits(), 0);
            let create = Command {
                prp1: sq,
                cdw10: size,
                cdw11: (id as u32) << 16 | 1,
                ..Command::new(0x01)
            };
            assert_eq!(self.command(host, 0, create).status.bits(), 0);
            self.hosts[host].driver.queues.push(Queue {
                sq,
                cq,
                entries,
                tail: 0,
                head: 0,
                phase: 1,
            });
        }
    }

    /// Configures shadow doorbells. The queues are fresh.
    fn shadow(&mut self, host: usize) {
        let config = Command {
            prp1: SHADOW,
            prp2: EVENT_IDX,
            ..Command::new(0x7c)
        };
        assert_eq!(self.command(host, 0, config).status.bits(), 0);
        self.hosts[host].driver.shadow = true;
    }

    /// What tracking may cost.
    fn limits(&self) -> std::sync::Arc<Limits> {
        std::sync::Arc::clone(&self.card.limits)
    }

    /// The whole state of a controller, in parts of 256 dwords.
    fn state(&mut self, controller: u32) -> Vec<u8> {
        assert_eq!(self.status(get(controller, 0, 12)), 0);
        let header = self.hosts[ADMIN].driver.read(DATA, 48);
        let dwords = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let total = 48 + 4 * (dwords(16) + dwords(32)) as usize;
        let mut state = Vec::new();
        while state.len() < total {
            assert_eq!(self.status(get(controller, state.len() as u32, 256)), 0);
            state.extend(self.hosts[ADMIN].driver.read(DATA, 1024));
        }
        assert!(state.drain(total..).all(|byte| byte == 0));
        state
    }

    /// Gives a state to a controller, in parts of so many dwords.
    fn give(&mut self, controller: u32, state: &[u8], part: usize) -> u16 {
        let parts = state.chunks(part * 4);
        let count = parts.len();
        for (n, data) in parts.enumerate() {
            let sequence = match (n == 0, n + 1 == count) {
                (true, true) => 3,
                (true, false) => 1,
                (false, false) => 0,
                (false, true) => 2,
            };
            let dwords = data.len() as u32 / 4;
            let command = set(controller, sequence, (n * part * 4) as u32, dwords);
            let status = self.send(command, data);
            if status != 0 {
                return status;
            }
        }
        0
    }

    /// The granules in a report, in bytes of address, and its attributes; takes it whole.
    fn report(&mut self, controller: u32) -> (BTreeSet<u64>, u8) {
        let mut granules = BTreeSet::new();
        loop {
            let receive = Command {
                cdw11: controller,
                cdw12: 2048 - 1,
                ..Command::new(0x3e)
            };
            assert_eq!(self.status(receive), 0);
            let data = self.hosts[ADMIN].driver.read(DATA, 0x2000);
            let count = u32::from_le_bytes(data[4..8].try_into().unwrap());
            let granule = 0x1000u64 << u16::from_le_bytes(data[8..10].try_into().unwrap());
            for entry in data[16..].chunks(16).take(count as usize) {
                let address = u64::from_le_bytes(entry[..8].try_into().unwrap());
                let len = u32::from_le_bytes(entry[8..12].try_into().unwrap());
                for n in 0..u64::from(len) {
                    assert!(granules.insert(address + n * granule), "reported twice");
                }
            }
            if data[1] & 1 == 0 {
                return (granules, data[1]);
            }
        }
    }
}

/// A read or write of one block of 512 bytes.
fn block(opcode: u8, cid: u16, lba: u32, iova: u64) -> Command {
    Command {
        cid,
        nsid: 1,
        prp1: iova,
        cdw10: lba,
        ..Command::new(opcode)
    }
}

fn track(controller: u32, start: bool) -> Command {
    Command {
        cdw10: 1 | u32::from(start) << 16,
        cdw11: controller,
        ..Command::new(0x3d)
    }
}

fn suspend(controller: u32) -> Command {
    Command {
        cdw11: 1 << 16 | controller,
        ..Command::new(0x41)
    }
}

fn resume(controller: u32) -> Command {
    Command {
        cdw10: 1,
        cdw11: controller,
        ..Command::new(0x41)
    }
}

/// Get Controller State with both formats.
fn get(controller: u32, offset: u32, dwords: u32) -> Command {
    Command {
        cdw10: 1 << 16,
        cdw11: 1 << 16 | controller,
        cdw12: offset,
        cdw15: dwords - 1,
        ..Command::new(0x42)
    }
}

/// Set Controller State with both formats. `sequence` is SEQIND.
fn set(controller: u32, sequence: u32, offset: u32, dwords: u32) -> Command {
    Command {
        cdw10: 2 | sequence << 16,
        cdw11: 1 << 24 | 1 << 16 | controller,
        cdw12: offset,
        cdw15: dwords,
        ..Command::new(0x41)
    }
}

/// The data of a start: header and 12-byte descriptors.
fn request_for(granularity: u8, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut data = vec![0, 0, 0, granularity];
    data.extend((ranges.len() as u32).to_le_bytes());
    for (address, granules) in ranges {
        data.extend(address.to_le_bytes());
        data.extend(granules.to_le_bytes());
    }
    data
}
