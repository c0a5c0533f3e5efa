// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random messages, repeatably: whatever a client and its guest send, the process answers or
//! disconnects, and serves the next client as if nothing had been.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use crate::client::*;
use crate::disk::{self, Disk};
use crate::driver::{eventfd, memfd, Driver, CQ, DATA, SQ};
use crate::io::card;
use crate::server::Server;

const MESSAGES: u32 = 4000;

/// xorshift64*: seeded, so that a failure can be run again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A number that is likely to matter: small, near a border, or anything.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(16),
            1 => self.pick(&[
                0x1000,
                0x2000,
                0x8000,
                0x10_0000,
                1 << 32,
                1 << 63,
                u64::MAX,
            ]),
            2 => (self.below(0x200) * 0x1000)
                .wrapping_add(self.below(3))
                .wrapping_sub(1),
            _ => self.next(),
        }
    }
}

fn body(random: &mut Random, command: u16) -> Vec<u8> {
    let mut body = Vec::new();
    match command {
        DMA_MAP => {
            body.extend(bytes32(&[32, random.below(5) as u32]));
            (0..3).for_each(|_| body.extend(random.number().to_le_bytes()));
        }
        DMA_UNMAP => {
            body.extend(bytes32(&[24, random.below(4) as u32]));
            (0..2).for_each(|_| body.extend(random.number().to_le_bytes()));
        }
        REGION_READ | REGION_WRITE => {
            let region = random.pick(&[BAR0, BAR0, CONFIG, 1, 8, 77]);
            let count = random.pick(&[1, 2, 4, 4, 4, 8, 3, 7, 64, 4096]);
            let offset = match random.below(5) {
                0 => random.pick(&[0x14, 0x24, 0x28, 0x30, 0x1000, 0x1004, 0x200c, 0x52, 0x04]),
                // The doorbells of the first I/O queue pair.
                2 => random.pick(&[0x1008, 0x1008, 0x100c]),
                1 => random.number(),
                _ => random.below(0x4000),
            };
            body.extend(offset.to_le_bytes());
            body.extend(bytes32(&[region, count]));
            if command == REGION_WRITE {
                match random.below(3) {
                    0 => body.extend(random.pick(&[0x0046_0001u64, SQ, CQ, 3]).to_le_bytes()),
                    1 => body.extend(random.bytes(u64::from(count))),
                    _ => body.extend((random.below(32) as u32).to_le_bytes()),
                }
            }
        }
        SET_IRQS => {
            let flags = random.below(64) as u32;
            let (start, count) = (random.below(3) as u32, random.below(3) as u32);
            body.extend(bytes32(&[20, flags, random.below(6) as u32, start, count]));
            body.extend(vec![1; random.below(3) as usize]);
        }
        _ => body = vec![32; random.below(48) as usize],
    }
    if random.below(16) == 0 {
        body.truncate(random.below(body.len() as u64 + 1) as usize);
    }
    if random.below(32) == 0 && !body.is_empty() {
        let at = random.below(body.len() as u64) as usize;
        body[at] ^= 1 << random.below(8);
    }
    body
}

/// An I/O command with fields that are likely to matter.
fn command(random: &mut Random) -> Vec<u8> {
    let mut entry = vec![0; 64];
    entry[0] = random.pick(&[0, 1, 1, 2, 2, 2, 5, 8, 9, 0x0c, 0x7f]);
    entry[1] = random.pick(&[0, 0, 0, 0x40, 0x80, 1]);
    let nsid = random.pick(&[1, 2, 2, 3, 0, u32::MAX]);
    entry[4..8].copy_from_slice(&nsid.to_le_bytes());
    for at in [24, 32] {
        entry[at..at + 8].copy_from_slice(&random.number().to_le_bytes());
    }
    let (slba, blocks) = (random.below(17000), random.below(300) as u32);
    entry[40..48].copy_from_slice(&slba.to_le_bytes());
    entry[48..52].copy_from_slice(&blocks.to_le_bytes());
    entry
}

/// A kind of function under fuzz.
struct Target {
    server: Server,
    name: &'static str,
    /// Where noise in guest memory matters.
    places: [u64; 3],
}

impl Target {
    fn administrative() -> Self {
        Self {
            server: Server::start(),
            name: "admin",
            places: [SQ, CQ, DATA],
        }
    }

    fn io() -> Self {
        Self {
            server: card(1),
            name: "nvme1",
            places: [disk::SQ, disk::CQ, 0x1000],
        }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.server.socket_of(self.name))
    }

    /// A client with a controller that works, and its RAM.
    fn start(&self) -> (Client, OwnedFd) {
        let socket = self.server.socket_of(self.name);
        if self.name == "admin" {
            let driver = Driver::start(&socket);
            (driver.client, driver.ram)
        } else {
            let disk = Disk::start(&socket);
            (disk.client, disk.ram)
        }
    }

    /// The function serves a client as if nothing had been.
    fn check(&mut self, seed: u64) {
        assert!(self.server.alive(), "seed {seed}");
        let socket = self.server.socket_of(self.name);
        if self.name == "admin" {
            assert_eq!(Driver::start(&socket).identify()[111], 3, "seed {seed}");
        } else {
            let mut disk = Disk::start(&socket);
            let data = disk::pattern(seed, 0x3000);
            for nsid in [1, 2] {
                disk.write(nsid, 100, &data);
                assert!(disk.read(nsid, 100, 0x3000) == data, "seed {seed}");
            }
        }
        assert_eq!(self.server.maps("fuzz-ram"), 0, "seed {seed}");
    }
}

fn run(seed: u64, mut target: Target) {
    let mut random = Random(seed);
    let mut client = target.connect();
    let fuzz_ram = memfd("fuzz-ram", 0x10_0000);
    let mut ram = fuzz_ram.try_clone().unwrap();
    let event = eventfd();
    for step in 0..MESSAGES {
        // A working controller now and then, or most of the messages hit a closed door.
        if random.below(100) == 0 {
            drop(client);
            (client, ram) = target.start();
        }
        if random.below(8) == 0 {
            let noise = random.bytes(64);
            rustix::io::pwrite(&ram, &noise, random.pick(&target.places)).unwrap();
        }
        if target.name != "admin" && random.below(4) == 0 {
            let at = target.places[0] + random.below(32) * 64;
            rustix::io::pwrite(&ram, &command(&mut random), at).unwrap();
        }
        if random.below(200) == 0 {
            // Bytes without any form. What follows them is not in step, so a new client follows;
            // the server may have hung up in the middle of it.
            let garbage = random.bytes(200);
            let _ = client.stream.write_all(&garbage);
            // It goes first: the server may be waiting for the rest of what looked like a message.
            drop(client);
            client = target.connect();
            client.map(0, 0x10_0000, 0, &fuzz_ram).unwrap();
            ram = fuzz_ram.try_clone().unwrap();
            continue;
        }
        let mut command =
            random.pick(&[1, 2, 3, 4, 5, 7, 8, 9, 9, 10, 10, 10, 10, 13, 0, 6, 11, 200]);
        let ends_io = matches!(command, DMA_UNMAP | DEVICE_RESET);
        if ends_io && target.name != "admin" && random.below(8) > 0 {
            command = REGION_WRITE;
        }
        let body = body(&mut random, command);
        let (no_reply, id) = (random.below(16) == 0, step as u16);
        let fds: Vec<_> = match random.below(6) {
            0 | 1 => vec![fuzz_ram.as_fd()],
            2 => vec![event.as_fd(); random.below(18) as usize],
            _ => vec![],
        };
        client.send(
            &message(id, command, if no_reply { 0x10 } else { 0 }, &body),
            &fds,
        );
        if !no_reply {
            let (reply_id, reply_command, _) = client.receive();
            assert_eq!(
                (reply_id, reply_command),
                (id, command),
                "seed {seed} step {step}"
            );
        }
    }
    drop(client);
    target.check(seed);
}

#[test]
fn random_messages_never_end_the_process() {
    for seed in [1, 0x5a53_0001, 0xdead_beef_cafe] {
        run(seed, Target::administrative());
    }
}

#[test]
fn random_messages_and_commands_never_end_an_io_function() {
    for seed in [2, 0x5a53_0002, 0xfeed_beef_cafe] {
        run(seed, Target::io());
    }
}
