// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random messages, repeatably: whatever a client and its guest send, the process answers or
//! disconnects, and serves the next client as if nothing had been.

use std::io::Write;
use std::os::fd::AsFd;

use crate::client::*;
use crate::driver::{eventfd, memfd, Driver, CQ, DATA, SQ};
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
                1 => random.number(),
                _ => random.below(0x4000),
            };
            body.extend(offset.to_le_bytes());
            body.extend(bytes32(&[region, count]));
            if command == REGION_WRITE {
                match random.below(3) {
                    0 => body.extend(random.pick(&[0x0046_0001u64, SQ, CQ, 3]).to_le_bytes()),
                    1 => body.extend(random.bytes(u64::from(count))),
                    _ => body.extend((random.below(8) as u32).to_le_bytes()),
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

fn run(seed: u64) {
    let mut server = Server::start();
    let mut random = Random(seed);
    let mut client = Client::connect(&server.socket());
    let ram = memfd("fuzz-ram", 0x10_0000);
    let event = eventfd();
    for step in 0..MESSAGES {
        // A working controller now and then, or most of the messages hit a closed door.
        if random.below(100) == 0 {
            drop(client);
            client = Driver::start(&server.socket()).client;
            // The driver's RAM stays mapped in the card; its queues now hold noise.
        }
        if random.below(8) == 0 {
            let noise = random.bytes(64);
            rustix::io::pwrite(&ram, &noise, random.pick(&[SQ, CQ, DATA])).unwrap();
        }
        if random.below(200) == 0 {
            // Bytes without any form. What follows them is not in step, so a new client follows;
            // the server may have hung up in the middle of it.
            let garbage = random.bytes(200);
            let _ = client.stream.write_all(&garbage);
            // It goes first: the server may be waiting for the rest of what looked like a message.
            drop(client);
            client = Client::connect(&server.socket());
            client.map(0, 0x10_0000, 0, &ram).unwrap();
            continue;
        }
        let command = random.pick(&[1, 2, 3, 4, 5, 7, 8, 9, 9, 10, 10, 10, 10, 13, 0, 6, 11, 200]);
        let body = body(&mut random, command);
        let (no_reply, id) = (random.below(16) == 0, step as u16);
        let fds: Vec<_> = match random.below(6) {
            0 | 1 => vec![ram.as_fd()],
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
    assert!(server.alive(), "seed {seed}");
    let mut driver = Driver::start(&server.socket());
    assert_eq!(driver.identify()[111], 3, "seed {seed}");
    assert_eq!(server.maps("fuzz-ram"), 0, "seed {seed}");
}

#[test]
fn random_messages_never_end_the_process() {
    for seed in [1, 0x5a53_0001, 0xdead_beef_cafe] {
        run(seed);
    }
}
