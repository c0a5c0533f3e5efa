// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The controller: registers, life cycle (CC and CSTS), doorbells, and the loop that runs commands.
//!
//! A device kind: it owns all NVMe state of one function and is driven by register accesses alone.
//! What a command does is in `admin`; this file decides when commands are fetched at all. A queue
//! that guest memory does not back is fatal (CSTS.CFS), as the specification has it; nothing a
//! guest writes may end the process.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::registers::{self, Aqa, Cap, Cc, Csts, Version};

use super::admin::{Admin, Context, Identity, Outcome};
use super::admin_queue::AdminQueue;
use crate::memory::DmaError;
use crate::pci::{Bus, Kind};
use crate::throttle::Throttle;

/// The version of the specification that VS and Identify Controller claim.
pub(super) const VERSION: Version = Version::new(2, 1, 0);

/// Queues up to 4096 entries (all that AQA can say), contiguous, ready within 500 ms, no I/O
/// command set, pages of 4 KiB to 64 KiB, ready with media.
const CAPABILITIES: Cap = Cap(0)
    .with_mqes(4095)
    .with_cqr(true)
    .with_to(1)
    .with_css(Cap::CSS_NOIOCSS)
    .with_mpsmin(0)
    .with_mpsmax(4)
    .with_crms(Cap::CRMS_CRWMS);

/// Controller Ready Timeouts: CRWMT in units of 500 ms, as CAP.TO says it.
const READY_TIMEOUTS: u32 = CAPABILITIES.to() as u32;

/// Vector of the admin completion queue.
const ADMIN_VECTOR: u16 = 0;

/// Registers up to here can be read; the rest up to the doorbells is reserved.
const REGISTERS: usize = registers::CRTO + 4;

/// An NVMe controller.
pub(crate) struct Controller {
    cc: Cc,
    csts: Csts,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    queue: Option<AdminQueue>,
    /// Memory page size in bytes, as CC.MPS had it when the controller was enabled.
    page_size: u64,
    admin: Admin,
    warnings: Throttle,
}

impl Controller {
    /// A controller after power-on.
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            cc: Cc::default(),
            csts: Csts::default(),
            aqa: Aqa::default(),
            asq: 0,
            acq: 0,
            queue: None,
            page_size: 0x1000,
            admin: Admin::new(identity),
            warnings: Throttle::default(),
        }
    }

    fn registers(&self) -> [u8; REGISTERS] {
        let mut bytes = [0; REGISTERS];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(registers::CAP, &CAPABILITIES.0.to_le_bytes());
        put(registers::VS, &VERSION.0.to_le_bytes());
        put(registers::CC, &self.cc.0.to_le_bytes());
        put(registers::CSTS, &self.csts.0.to_le_bytes());
        put(registers::AQA, &self.aqa.0.to_le_bytes());
        put(registers::ASQ, &self.asq.to_le_bytes());
        put(registers::ACQ, &self.acq.to_le_bytes());
        put(registers::CRTO, &READY_TIMEOUTS.to_le_bytes());
        bytes
    }

    fn write_register(&mut self, offset: usize, value: u32, bus: &mut Bus<'_>) {
        const ASQ_HIGH: usize = registers::ASQ + 4;
        const ACQ_HIGH: usize = registers::ACQ + 4;
        match offset {
            registers::CC => self.write_cc(Cc(value & Cc::DEFINED), bus),
            registers::AQA => self.aqa = Aqa(value & Aqa::DEFINED),
            // The low twelve bits of both base addresses are reserved.
            registers::ASQ => self.asq = low(self.asq, value & !0xfff),
            ASQ_HIGH => self.asq = high(self.asq, value),
            registers::ACQ => self.acq = low(self.acq, value & !0xfff),
            ACQ_HIGH => self.acq = high(self.acq, value),
            registers::DOORBELLS.. => self.write_doorbell(offset, value, bus),
            // CAP, VS and CSTS.RDY are read-only, INTMS and INTMC do nothing with MSI-X, and
            // CSTS.NSSRO can never be set.
            _ => {}
        }
    }

    fn write_cc(&mut self, new: Cc, bus: &mut Bus<'_>) {
        let old = self.cc;
        if old.en() && !new.en() {
            tracing::debug!("controller reset");
            return self.controller_reset();
        }
        self.cc = new;
        if !old.en() && new.en() {
            // Enabling is also how a host leaves a shutdown that it asked for while disabled.
            self.csts = self.csts.with_shst(Csts::SHST_NORMAL);
            self.enable();
        }
        if new.shn() != Cc::SHN_NONE && new.shn() != old.shn() {
            // Nothing is cached, so nothing has to happen before the shutdown is complete.
            tracing::debug!("shutdown");
            self.csts = self.csts.with_shst(Csts::SHST_COMPLETE);
        }
        self.run(bus);
    }

    fn enable(&mut self) {
        if let Err(reason) = self.check_configuration() {
            if self.warnings.ready() {
                tracing::warn!("the driver enabled the controller with {reason}: fatal status");
            }
            self.csts = self.csts.with_cfs(true);
            return;
        }
        self.page_size = self.configured_page_size();
        self.queue = Some(AdminQueue::new(self.aqa, self.asq, self.acq));
        self.csts = self.csts.with_rdy(true);
        tracing::debug!("enabled: {:?}", self.queue);
    }

    fn check_configuration(&self) -> Result<(), &'static str> {
        if self.cc.mps() > CAPABILITIES.mpsmax() {
            return Err("a page size it does not support");
        }
        if self.cc.ams() != 0 {
            return Err("an arbitration mechanism it does not support");
        }
        // 000b is accepted besides 111b: drivers that know no administrative controller select the
        // NVM command set, and nothing that exists here depends on it.
        if !matches!(self.cc.css(), Cc::CSS_ADMIN | Cc::CSS_NVM | Cc::CSS_ALL) {
            return Err("a reserved command set");
        }
        if self.aqa.asqs() == 0 || self.aqa.acqs() == 0 {
            return Err("an admin queue of less than two entries");
        }
        let page = self.configured_page_size();
        if self.asq % page != 0 || self.acq % page != 0 {
            return Err("an admin queue that does not start a page");
        }
        Ok(())
    }

    fn configured_page_size(&self) -> u64 {
        0x1000 << self.cc.mps()
    }

    /// A Controller Level Reset by CC.EN: everything but AQA, ASQ and ACQ.
    fn controller_reset(&mut self) {
        self.cc = Cc::default();
        self.csts = Csts::default();
        self.queue = None;
        self.admin.reset();
    }

    fn write_doorbell(&mut self, offset: usize, value: u32, bus: &mut Bus<'_>) {
        const TAIL: usize = registers::submission_tail_doorbell(0, 0);
        const HEAD: usize = registers::completion_head_doorbell(0, 0);
        let Some(queue) = &mut self.queue else {
            return;
        };
        // The upper half of a doorbell is reserved.
        let value = value & 0xffff;
        let valid = match offset {
            TAIL => queue.ring_tail(value),
            HEAD => queue.ring_head(value),
            _ => {
                tracing::debug!("doorbell write to a queue that does not exist ({offset:#x})");
                self.admin.doorbell_of_no_queue();
                return self.run(bus);
            }
        };
        if valid.is_err() {
            tracing::debug!("invalid doorbell value {value:#x} at {offset:#x}");
            self.admin.invalid_doorbell_value();
        }
        self.run(bus);
    }

    /// Does whatever can be done: runs commands, reports events. One interrupt for all of it.
    fn run(&mut self, bus: &mut Bus<'_>) {
        let stopped = self.csts.cfs() || self.csts.shst() != Csts::SHST_NORMAL;
        if stopped || !bus.master() {
            return;
        }
        let mut posted = false;
        if let Err(error) = self.process(bus, &mut posted) {
            if self.warnings.ready() {
                tracing::warn!("admin queue memory: {error}: fatal status");
            }
            self.csts = self.csts.with_cfs(true);
        }
        if posted {
            bus.interrupt(ADMIN_VECTOR);
        }
    }

    fn process(&mut self, bus: &Bus<'_>, posted: &mut bool) -> Result<(), DmaError> {
        let page_size = self.page_size;
        let Some(queue) = &mut self.queue else {
            return Ok(());
        };
        loop {
            // A command is fetched only when its completion has a place to go.
            while queue.has_room() {
                let Some(completion) = self.admin.next_completion() else {
                    break;
                };
                queue.post(completion, bus)?;
                *posted = true;
            }
            if !queue.has_room() {
                return Ok(());
            }
            let Some(command) = queue.fetch(bus)? else {
                return Ok(());
            };
            let context = Context { bus, page_size };
            match self.admin.execute(&command, &context) {
                Outcome::Held => {}
                Outcome::Done(completion) => self.admin.complete(&command, completion),
            }
        }
    }
}

impl Kind for Controller {
    fn read(&mut self, offset: usize, data: &mut [u8]) {
        let bytes = self.registers();
        for (i, byte) in data.iter_mut().enumerate() {
            // Reserved registers read zero; so do doorbells, which are write-only.
            *byte = bytes.get(offset + i).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, offset: usize, data: &[u8], bus: &mut Bus<'_>) {
        // Hosts shall access registers by aligned dwords, or both halves of a 64-bit one at once.
        // Any two neighbours are taken one after the other; the rest is the host's error and has
        // no effect.
        let whole = matches!(data.len(), 4 | 8) && offset % 4 == 0;
        if !whole {
            tracing::debug!(
                "register write of {} bytes at {offset:#x} ignored",
                data.len()
            );
            return;
        }
        for (i, dword) in data.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([dword[0], dword[1], dword[2], dword[3]]);
            self.write_register(offset + 4 * i, value, bus);
        }
    }

    fn resume(&mut self, bus: &mut Bus<'_>) {
        self.run(bus);
    }

    fn reset(&mut self) {
        self.controller_reset();
        self.aqa = Aqa::default();
        self.asq = 0;
        self.acq = 0;
    }
}

fn low(register: u64, value: u32) -> u64 {
    (register & !0xffff_ffff) | u64::from(value)
}

fn high(register: u64, value: u32) -> u64 {
    (register & 0xffff_ffff) | u64::from(value) << 32
}

/// A completion for a command, without position and phase, which the queue knows.
pub(super) fn completion_for(command: &Command) -> Completion {
    Completion {
        cid: command.cid,
        ..Completion::default()
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
