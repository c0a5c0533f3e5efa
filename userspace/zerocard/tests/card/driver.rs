// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The least that an NVMe driver has to do: enable, submit, reap. Over a client, with a memfd as
//! RAM, at literal offsets of the specification.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::client::{u32_at, Client, BAR0, CONFIG};
use crate::server::LIMIT;

pub(crate) const RAM: u64 = 0x10_0000;
pub(crate) const SQ: u64 = 0x1000;
pub(crate) const CQ: u64 = 0x2000;
pub(crate) const DATA: u64 = 0x8000;
pub(crate) const ENTRIES: u32 = 4;

pub(crate) fn memfd(name: &str, len: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, len).unwrap();
    file
}

pub(crate) fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap()
}

/// Waits until the eventfd fires and gives its count.
pub(crate) fn wait_fired(eventfd: &OwnedFd) -> u64 {
    let limit = Timespec {
        tv_sec: LIMIT.as_secs() as i64,
        tv_nsec: 0,
    };
    let ready = rustix::event::poll(&mut [PollFd::new(eventfd, PollFlags::IN)], Some(&limit));
    assert_eq!(ready, Ok(1), "no interrupt");
    fired(eventfd)
}

/// How often the eventfd has fired by now.
pub(crate) fn fired(eventfd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(eventfd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// A completion queue entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) dw0: u32,
    pub(crate) sqhd: u16,
    pub(crate) cid: u16,
    /// SCT and SC, without flags.
    pub(crate) status: u16,
}

pub(crate) struct Driver {
    pub(crate) client: Client,
    pub(crate) ram: OwnedFd,
    pub(crate) interrupt: OwnedFd,
    pub(crate) tail: u32,
    head: u32,
    phase: u8,
    cid: u16,
}

impl Driver {
    /// Connects, maps RAM at IOVA 0, assigns the eventfd, enables the function and the controller.
    pub(crate) fn start(path: &Path) -> Self {
        let mut driver = Self::attach(path);
        driver.enable();
        driver
    }

    pub(crate) fn attach(path: &Path) -> Self {
        let mut client = Client::connect(path);
        let ram = memfd("guest-ram", RAM);
        client.map(0, RAM, 0, &ram).unwrap();
        let interrupt = eventfd();
        // DATA_EVENTFD, ACTION_TRIGGER.
        client
            .set_irqs(0x24, 0, 1, &[], &[interrupt.as_fd()])
            .unwrap();
        Self {
            client,
            ram,
            interrupt,
            tail: 0,
            head: 0,
            phase: 1,
            cid: 0x100,
        }
    }

    /// What a driver does at probe and after every reset.
    pub(crate) fn enable(&mut self) {
        // Memory space and bus master; MSI-X enable (capability at 50h).
        self.client.write(CONFIG, 0x04, &[0x06, 0x00]).unwrap();
        self.client.write(CONFIG, 0x52, &[0x00, 0x80]).unwrap();
        rustix::io::pwrite(&self.ram, &[0; 16 * ENTRIES as usize], CQ).unwrap();
        self.client
            .write32(BAR0, 0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.client.write(BAR0, 0x28, &SQ.to_le_bytes()).unwrap();
        self.client.write(BAR0, 0x30, &CQ.to_le_bytes()).unwrap();
        self.client.write32(BAR0, 0x14, 0x0046_0001);
        assert_eq!(self.csts(), 1);
        (self.tail, self.head, self.phase) = (0, 0, 1);
    }

    pub(crate) fn csts(&mut self) -> u32 {
        self.client.read32(BAR0, 0x1c)
    }

    /// Submits a command and gives its identifier.
    pub(crate) fn submit(&mut self, opcode: u8, prp: [u64; 2], cdw10: u32) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[2..4].copy_from_slice(&self.cid.to_le_bytes());
        entry[24..32].copy_from_slice(&prp[0].to_le_bytes());
        entry[32..40].copy_from_slice(&prp[1].to_le_bytes());
        entry[40..44].copy_from_slice(&cdw10.to_le_bytes());
        rustix::io::pwrite(&self.ram, &entry, SQ + u64::from(self.tail) * 64).unwrap();
        self.tail = (self.tail + 1) % ENTRIES;
        let tail = self.tail;
        self.client.write32(BAR0, 0x1000, tail);
        self.cid
    }

    /// The next completion, if the phase says that there is one; frees its entry.
    pub(crate) fn reap(&mut self) -> Option<Entry> {
        let mut entry = [0; 16];
        rustix::io::pread(&self.ram, &mut entry[..], CQ + u64::from(self.head) * 16).unwrap();
        if entry[14] & 1 != self.phase {
            return None;
        }
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase ^= 1;
        }
        let head = self.head;
        self.client.write32(BAR0, 0x1004, head);
        Some(Entry {
            dw0: u32_at(&entry, 0),
            sqhd: u16::from_le_bytes([entry[8], entry[9]]),
            cid: u16::from_le_bytes([entry[12], entry[13]]),
            status: u16::from_le_bytes([entry[14], entry[15]]) >> 1 & 0x7ff,
        })
    }

    /// Runs a command to its completion, interrupt included.
    pub(crate) fn run(&mut self, opcode: u8, prp: [u64; 2], cdw10: u32) -> Entry {
        let cid = self.submit(opcode, prp, cdw10);
        wait_fired(&self.interrupt);
        let entry = self.reap().expect("interrupt without a completion");
        assert_eq!(entry.cid, cid);
        entry
    }

    pub(crate) fn identify(&mut self) -> Vec<u8> {
        assert_eq!(self.run(0x06, [DATA, 0], 1).status, 0);
        let mut page = vec![0; 4096];
        rustix::io::pread(&self.ram, &mut page[..], DATA).unwrap();
        page
    }
}
