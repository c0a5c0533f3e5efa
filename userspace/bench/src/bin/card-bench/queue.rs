// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One pair of I/O queues, polled: the load that the card is measured under.
//!
//! Doorbells go to memory and to the register only when EventIdx asks for it, as Linux' driver does
//! it (`nvme_dbbuf_update_and_check_event`).

use std::sync::atomic::{fence, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::{phase_of_dword, Completion, PHASE_DWORD};
use zeroshift_nvme::nvm::{io, BlockCommand};
use zeroshift_nvme::registers;

use crate::client::Region;
use crate::controller::{self, Controller, Doorbells};
use crate::load::{Load, BLOCK};
use crate::sys::Direction;

/// How long the card may do nothing.
const LIMIT: Duration = Duration::from_secs(30);
/// Fruitless looks at the completion queue between looks at the clock.
const PATIENCE: u32 = 1 << 16;
/// Identifier of both queues.
const ID: u16 = 1;
/// A logical block of the namespace.
const SECTOR: u64 = 512;

/// See the module.
pub(crate) struct Queue {
    submission: u64,
    completion: u64,
    entries: u16,
    tail: u16,
    head: u16,
    phase: bool,
    doorbells: Doorbells,
}

impl Queue {
    /// Empty queues at these addresses.
    pub(crate) fn new(
        submission: u64,
        completion: u64,
        entries: u16,
        doorbells: Doorbells,
    ) -> Self {
        Self {
            submission,
            completion,
            entries,
            tail: 0,
            head: 0,
            phase: true,
            doorbells,
        }
    }

    /// Does all I/Os of a load. With `lockstep`, the next batch of `depth` is submitted only when the
    /// last one is complete; else the queue is kept full.
    pub(crate) fn run(
        &mut self,
        controller: &mut Controller,
        load: &mut Load,
        lockstep: bool,
    ) -> Result<()> {
        let mut free: Vec<u16> = (0..load.depth).rev().collect();
        let mut last_progress = Instant::now();
        let mut fruitless = 0;
        while !load.is_over() || free.len() < usize::from(load.depth) {
            if !lockstep || free.len() == usize::from(load.depth) {
                self.submit(controller, load, &mut free)?;
            }
            if self.reap(controller, &mut free)? {
                fruitless = 0;
                continue;
            }
            std::hint::spin_loop();
            fruitless += 1;
            if fruitless == 1 {
                last_progress = Instant::now();
            } else if fruitless % PATIENCE == 0 {
                let waited = last_progress.elapsed();
                ensure!(waited < LIMIT, "the card has stopped completing commands");
            }
        }
        Ok(())
    }

    fn submit(
        &mut self,
        controller: &mut Controller,
        load: &mut Load,
        free: &mut Vec<u16>,
    ) -> Result<()> {
        let before = self.tail;
        while let Some(&cid) = free.last() {
            let Some(transfer) = load.next(cid) else {
                break;
            };
            free.pop();
            let opcode = match load.direction {
                Direction::Read => io::READ,
                Direction::Write => io::WRITE,
            };
            let fields = BlockCommand {
                slba: transfer.offset / SECTOR,
                blocks: BLOCK / SECTOR as u32,
                control: 0,
            };
            let mut command = fields.to_command(opcode, 1);
            (command.cid, command.prp1) = (cid, transfer.address);
            let at = self.submission + u64::from(self.tail) * Command::SIZE as u64;
            controller.ram.write(at, &command.to_bytes());
            self.tail = (self.tail + 1) % self.entries;
        }
        if self.tail == before {
            return Ok(());
        }
        let register = registers::submission_tail_doorbell(ID, 0);
        self.ring(controller, register, 2 * u64::from(ID), self.tail)
    }

    /// Takes every completion there is. Says whether there was one.
    fn reap(&mut self, controller: &mut Controller, free: &mut Vec<u16>) -> Result<bool> {
        let before = self.head;
        loop {
            let at = self.completion + u64::from(self.head) * Completion::SIZE as u64;
            if phase_of_dword(controller.ram.load(at + PHASE_DWORD as u64)) != self.phase {
                break;
            }
            let mut entry = [0; Completion::SIZE];
            controller.ram.read(at, &mut entry);
            let completion = Completion::from_bytes(&entry);
            let status = completion.status;
            ensure!(status.is_success(), "an I/O command failed: {status:?}");
            free.push(completion.cid);
            self.head = (self.head + 1) % self.entries;
            self.phase ^= self.head == 0;
        }
        if self.head == before {
            return Ok(false);
        }
        let register = registers::completion_head_doorbell(ID, 0);
        self.ring(controller, register, 2 * u64::from(ID) + 1, self.head)?;
        Ok(true)
    }

    fn ring(
        &self,
        controller: &mut Controller,
        register: usize,
        index: u64,
        value: u16,
    ) -> Result<()> {
        if self.doorbells == Doorbells::Shadow {
            let (shadow, event_index) = controller::shadow(index);
            let old = controller.ram.load(shadow) as u16;
            controller.ram.store(shadow, value.into());
            // The card writes EventIdx, then reads the doorbell; here it is the other way round.
            fence(Ordering::SeqCst);
            let wanted = controller.ram.load(event_index) as u16;
            let passed = value.wrapping_sub(wanted).wrapping_sub(1) < value.wrapping_sub(old);
            if !passed {
                return Ok(());
            }
        }
        let value = u32::from(value).to_le_bytes();
        controller.client.write(Region::Bar0, register, &value)
    }
}
