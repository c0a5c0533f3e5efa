// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The least that a driver of an I/O controller has to do: an admin queue pair, one I/O queue pair,
//! PRP lists, interrupts. Over a client, with a memfd as RAM, at literal offsets of the
//! specification.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::client::{Client, BAR0, CONFIG};
use crate::driver::{eventfd, memfd, wait_fired};

pub(crate) const RAM: u64 = 16 << 20;
const ADMIN_SQ: u64 = 0x1000;
const ADMIN_CQ: u64 = 0x2000;
pub(crate) const SQ: u64 = 0x4000;
pub(crate) const CQ: u64 = 0x6000;
const LISTS: u64 = 0x10_0000;
pub(crate) const DATA: u64 = 0x20_0000;
/// Bytes of data that each command may have.
pub(crate) const SLOT: u64 = 0x8_0000;
/// Commands at once, each with its part of the data.
pub(crate) const DEPTH: u16 = 16;
const ENTRIES: u32 = 32;

pub(crate) const FLUSH: u8 = 0;
pub(crate) const WRITE: u8 = 1;
pub(crate) const READ: u8 = 2;
/// Force Unit Access, in CDW12.
pub(crate) const FUA: u32 = 1 << 30;

struct Queue {
    id: u64,
    sq: u64,
    cq: u64,
    tail: u32,
    head: u32,
    phase: u8,
}

impl Queue {
    fn new(id: u64, sq: u64, cq: u64) -> Self {
        Self {
            id,
            sq,
            cq,
            tail: 0,
            head: 0,
            phase: 1,
        }
    }
}

/// A completion: command identifier, SCT and SC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) cid: u16,
    pub(crate) status: u16,
}

pub(crate) struct Disk {
    pub(crate) client: Client,
    pub(crate) ram: OwnedFd,
    interrupts: [OwnedFd; 2],
    admin: Queue,
    io: Queue,
}

impl Disk {
    pub(crate) fn start(path: &Path) -> Self {
        let mut disk = Self::attach(path);
        disk.enable();
        disk
    }

    /// Connects, maps RAM at IOVA 0 and assigns eventfds; the function is not touched.
    pub(crate) fn attach(path: &Path) -> Self {
        Self::attach_to(Client::connect(path))
    }

    pub(crate) fn attach_to(mut client: Client) -> Self {
        let ram = memfd("disk-ram", RAM);
        client.map(0, RAM, 0, &ram).unwrap();
        let interrupts = [eventfd(), eventfd()];
        let fds = [interrupts[0].as_fd(), interrupts[1].as_fd()];
        client.set_irqs(0x24, 0, 2, &[], &fds).unwrap();
        Self {
            client,
            ram,
            interrupts,
            admin: Queue::new(0, ADMIN_SQ, ADMIN_CQ),
            io: Queue::new(1, SQ, CQ),
        }
    }

    /// What a driver does at probe and after every reset: enables the function and the controller,
    /// and makes the queues.
    pub(crate) fn enable(&mut self) {
        // Memory space and bus master; MSI-X enable (capability at 50h).
        self.client.write(CONFIG, 0x04, &[0x06, 0x00]).unwrap();
        self.client.write(CONFIG, 0x52, &[0x00, 0x80]).unwrap();
        self.put(ADMIN_CQ, &[0; 0x1000]);
        self.put(CQ, &[0; 0x1000]);
        let aqa = (ENTRIES - 1) << 16 | (ENTRIES - 1);
        self.client.write32(BAR0, 0x24, aqa);
        self.client
            .write(BAR0, 0x28, &ADMIN_SQ.to_le_bytes())
            .unwrap();
        self.client
            .write(BAR0, 0x30, &ADMIN_CQ.to_le_bytes())
            .unwrap();
        self.client.write32(BAR0, 0x14, 0x0046_0001);
        assert_eq!(self.csts(), 1);
        self.admin = Queue::new(0, ADMIN_SQ, ADMIN_CQ);
        self.io = Queue::new(1, SQ, CQ);
        let size = (ENTRIES - 1) << 16 | 1;
        // Create I/O Completion Queue (vector 1, interrupts), Create I/O Submission Queue.
        assert_eq!(self.admin(0x05, CQ, [size, 1 << 16 | 3]), 0);
        assert_eq!(self.admin(0x01, SQ, [size, 1 << 16 | 1]), 0);
    }

    pub(crate) fn csts(&mut self) -> u32 {
        self.client.read32(BAR0, 0x1c)
    }

    pub(crate) fn put(&self, iova: u64, data: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.ram, data, iova), Ok(data.len()));
    }

    pub(crate) fn bytes(&self, iova: u64, len: u64) -> Vec<u8> {
        let mut data = vec![0; len as usize];
        assert_eq!(
            rustix::io::pread(&self.ram, &mut data[..], iova),
            Ok(data.len())
        );
        data
    }

    /// Runs an admin command and gives its status.
    pub(crate) fn admin(&mut self, opcode: u8, prp1: u64, cdw10: [u32; 2]) -> u16 {
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[24..32].copy_from_slice(&prp1.to_le_bytes());
        entry[40..44].copy_from_slice(&cdw10[0].to_le_bytes());
        entry[44..48].copy_from_slice(&cdw10[1].to_le_bytes());
        self.put(self.admin.sq + u64::from(self.admin.tail) * 64, &entry);
        self.admin.tail = (self.admin.tail + 1) % ENTRIES;
        self.client.write32(BAR0, 0x1000, self.admin.tail);
        loop {
            if let Some(done) = reap(&mut self.client, &self.ram, &mut self.admin) {
                return done.status;
            }
            wait_fired(&self.interrupts[0]);
        }
    }

    /// Where the data of a command is.
    pub(crate) fn data(cid: u16) -> u64 {
        DATA + u64::from(cid % DEPTH) * SLOT
    }

    /// Queues a command on `blocks` blocks of 512 bytes of namespace `nsid`, without ringing.
    pub(crate) fn queue(&mut self, opcode: u8, nsid: u32, slba: u64, blocks: u32, cid: u16) {
        self.queue_with(opcode, nsid, slba, blocks, cid, 0);
    }

    pub(crate) fn queue_with(
        &mut self,
        opcode: u8,
        nsid: u32,
        slba: u64,
        blocks: u32,
        cid: u16,
        flags: u32,
    ) {
        let data = Self::data(cid);
        let list = LISTS + u64::from(cid % DEPTH) * 0x1000;
        let pages: Vec<u8> = (1..SLOT / 0x1000)
            .flat_map(|page| (data + page * 0x1000).to_le_bytes())
            .collect();
        self.put(list, &pages);
        let two = u64::from(blocks) * 512 <= 0x2000;
        let prp2 = if two { data + 0x1000 } else { list };
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[2..4].copy_from_slice(&cid.to_le_bytes());
        entry[4..8].copy_from_slice(&nsid.to_le_bytes());
        entry[24..32].copy_from_slice(&data.to_le_bytes());
        entry[32..40].copy_from_slice(&prp2.to_le_bytes());
        entry[40..48].copy_from_slice(&slba.to_le_bytes());
        let cdw12 = blocks.wrapping_sub(1) & 0xffff | flags;
        entry[48..52].copy_from_slice(&cdw12.to_le_bytes());
        self.put(self.io.sq + u64::from(self.io.tail) * 64, &entry);
        self.io.tail = (self.io.tail + 1) % ENTRIES;
    }

    pub(crate) fn ring(&mut self) {
        self.client.write32(BAR0, 0x1008, self.io.tail);
    }

    /// The next completion of the I/O queue, if there is one.
    pub(crate) fn reap(&mut self) -> Option<Done> {
        reap(&mut self.client, &self.ram, &mut self.io)
    }

    /// Waits for the next completion of the I/O queue.
    pub(crate) fn wait(&mut self) -> Done {
        loop {
            if let Some(done) = self.reap() {
                return done;
            }
            wait_fired(&self.interrupts[1]);
        }
    }

    /// Runs a command to its completion and gives its status.
    pub(crate) fn run(&mut self, opcode: u8, nsid: u32, slba: u64, blocks: u32) -> u16 {
        self.queue(opcode, nsid, slba, blocks, 0);
        self.ring();
        let done = self.wait();
        assert_eq!(done.cid, 0, "a completion of another command");
        done.status
    }

    pub(crate) fn write(&mut self, nsid: u32, slba: u64, data: &[u8]) {
        self.put(Self::data(0), data);
        let blocks = data.len() as u32 / 512;
        assert_eq!(self.run(WRITE, nsid, slba, blocks), 0);
    }

    pub(crate) fn read(&mut self, nsid: u32, slba: u64, len: u64) -> Vec<u8> {
        self.put(Self::data(0), &vec![0xee; len as usize]);
        assert_eq!(self.run(READ, nsid, slba, (len / 512) as u32), 0);
        self.bytes(Self::data(0), len)
    }
}

fn reap(client: &mut Client, ram: &OwnedFd, queue: &mut Queue) -> Option<Done> {
    let mut entry = [0; 16];
    let at = queue.cq + u64::from(queue.head) * 16;
    rustix::io::pread(ram, &mut entry[..], at).unwrap();
    if entry[14] & 1 != queue.phase {
        return None;
    }
    // Read again: what was read before the phase tag may be older than it.
    rustix::io::pread(ram, &mut entry[..], at).unwrap();
    queue.head = (queue.head + 1) % ENTRIES;
    queue.phase ^= u8::from(queue.head == 0);
    client.write32(BAR0, 0x1004 + queue.id * 8, queue.head);
    Some(Done {
        cid: u16::from_le_bytes([entry[12], entry[13]]),
        status: u16::from_le_bytes([entry[14], entry[15]]) >> 1 & 0x7ff,
    })
}

/// Bytes that tell where they are from.
pub(crate) fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len as usize).collect()
}
