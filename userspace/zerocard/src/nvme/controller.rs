// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The controller: registers, life cycle (CC and CSTS) and doorbells.
//!
//! A device kind: it owns all NVMe state of one function and is driven by register accesses and by
//! the poller. What a command does is in `admin` and `io`, how commands are run in
//! `commands.rs`; this file decides when they are fetched at all. A queue that guest memory does not back is fatal (CSTS.CFS), as the specification
//! has it; nothing a guest writes may end the process.
//!
//! A suspended controller fetches nothing and posts nothing (`state.rs` saves and loads one). A
//! Controller Level Reset ends its suspension.
//!
//! Admin commands run where the doorbell arrives, I/O commands in the poller. Both hold the lock of
//! the function.

mod commands;
mod state;

use std::time::{Duration, Instant};

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::nvm::io as opcode;
use zeroshift_nvme::registers::{self, Aqa, Cap, Cc, Csts, Version};

use super::admin::{Admin, Personality};
use super::io::{self, Requests, Step, Surroundings};
use super::queues::{CompletionQueue, InvalidDoorbell, Queues, SubmissionQueue};
use super::rate::Limiter;
use super::shadow::Shadow;
use super::staged::Staged;
use crate::control::Rate;
use crate::memory::DmaError;
use crate::pci::{Bus, Condition, Kind, Migratable, Phase, Progress};
use crate::poller::{Io, SLOTS};
use crate::throttle::Throttle;

/// The version of the specification that VS and Identify Controller claim.
pub(super) const VERSION: Version = Version::new(2, 1, 0);

/// Queues up to 4096 entries (all that AQA can say), contiguous, pages of 4 KiB to 64 KiB, ready with
/// media. Command sets and timeouts depend on the controller's type.
const CAPABILITIES: Cap = Cap(0)
    .with_mqes(4095)
    .with_cqr(true)
    .with_mpsmin(0)
    .with_mpsmax(4)
    .with_crms(Cap::CRMS_CRWMS);

/// CAP.TO of an administrative controller: it has nothing to wait for.
const TIMEOUT: u8 = 1;
/// CAP.TO of an I/O controller, a minute: a reset waits for storage, and a driver that loses its
/// patience gives the disk up.
const IO_TIMEOUT: u8 = 120;

/// How long requests that the kernel works on may hold up a reset by CC.EN before they are
/// cancelled. The driver polls CSTS.RDY and waits for as long as CAP.TO says, so slow storage costs
/// it nothing but time.
const RESET_PATIENCE: Duration = Duration::from_secs(30);
/// How long cancelled requests may take to end before guest memory is taken away from them.
const RESET_GRACE: Duration = Duration::from_secs(10);

/// No submission queue has this identifier.
const NO_QUEUE: u16 = u16::MAX;

/// Vector of the admin completion queue.
const ADMIN_VECTOR: u16 = 0;

/// Registers up to here can be read; the rest up to the doorbells is reserved.
const REGISTERS: usize = registers::CRTO + 4;

/// Entries that a queue may have: CAP.MQES, counted from one.
pub(super) const MAX_QUEUE_ENTRIES: u32 = CAPABILITIES.mqes() as u32 + 1;

/// An NVMe controller.
pub(crate) struct Controller {
    cap: Cap,
    cc: Cc,
    csts: Csts,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    queues: Option<Queues>,
    shadow: Option<Shadow>,
    /// Memory page size in bytes, as CC.MPS had it when the controller was enabled.
    page_size: u64,
    admin: Admin,
    requests: Requests,
    staged: Staged,
    limiter: Limiter,
    /// The I/O queue that is served first in the next pass.
    next_queue: u16,
    /// When CC.EN was cleared, while the kernel still works on requests: CSTS.RDY stays until it is
    /// done.
    resetting: Option<Resetting>,
    /// A shutdown is under way: the namespace to be flushed next.
    flushing: Option<usize>,
    phase: Phase,
    /// Suspensions so far; each has a number.
    suspensions: u64,
    /// Vectors that were pending on the other side of a migration.
    interrupts: Vec<u16>,
    warnings: Throttle,
}

impl Controller {
    /// A controller after power-on.
    pub(crate) fn new(personality: Personality) -> Self {
        let (css, timeout, slots) = if personality.is_administrative() {
            (Cap::CSS_NOIOCSS, TIMEOUT, 0)
        } else {
            (Cap::CSS_NVM, IO_TIMEOUT, SLOTS)
        };
        Self {
            cap: CAPABILITIES.with_css(css).with_to(timeout),
            cc: Cc::default(),
            csts: Csts::default(),
            aqa: Aqa::default(),
            asq: 0,
            acq: 0,
            queues: None,
            shadow: None,
            page_size: 0x1000,
            admin: Admin::new(personality),
            requests: Requests::new(slots),
            staged: Staged::default(),
            limiter: Limiter::default(),
            next_queue: 1,
            resetting: None,
            flushing: None,
            phase: Phase::Running,
            suspensions: 0,
            interrupts: Vec::new(),
            warnings: Throttle::default(),
        }
    }

    fn registers(&self) -> [u8; REGISTERS] {
        let mut bytes = [0; REGISTERS];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(registers::CAP, &self.cap.0.to_le_bytes());
        put(registers::VS, &VERSION.0.to_le_bytes());
        put(registers::CC, &self.cc.0.to_le_bytes());
        put(registers::CSTS, &self.csts.0.to_le_bytes());
        put(registers::AQA, &self.aqa.0.to_le_bytes());
        put(registers::ASQ, &self.asq.to_le_bytes());
        put(registers::ACQ, &self.acq.to_le_bytes());
        // CRWMT, in the units of CAP.TO.
        put(registers::CRTO, &u32::from(self.cap.to()).to_le_bytes());
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
            self.controller_reset();
            // It presses requests that do not end.
            return bus.call_poller();
        }
        self.cc = new;
        if !old.en() && new.en() && self.resetting.is_none() {
            self.enable();
        }
        if new.shn() != Cc::SHN_NONE && new.shn() != old.shn() {
            tracing::debug!("shutdown");
            self.csts = self.csts.with_shst(Csts::SHST_OCCURRING);
            self.flushing = Some(0);
            self.advance_shutdown();
            bus.call_poller();
        }
        self.run(bus);
    }

    /// A shutdown is complete when every namespace is flushed and nothing is under way any more.
    fn advance_shutdown(&mut self) {
        let all = self.admin.personality().namespaces().len();
        if self.flushing == Some(all) && self.requests.in_kernel() == 0 {
            self.flushing = None;
            self.csts = self.csts.with_shst(Csts::SHST_COMPLETE);
        }
    }

    /// Empties the volatile write cache for a shutdown: a Flush of each namespace, which no queue
    /// knows.
    fn flush_all(&mut self, bus: &mut Bus<'_>, io: &mut Io<'_>) {
        while let Some(next) = self.flushing {
            let Some(namespace) = self.admin.personality().namespaces().get(next) else {
                break;
            };
            if self.requests.room() == 0 {
                return;
            }
            let flush = Command {
                nsid: namespace.id,
                ..Command::new(opcode::FLUSH)
            };
            self.flushing = Some(next + 1);
            self.execute_io(NO_QUEUE, &flush, None, bus, io);
        }
        self.advance_shutdown();
    }

    fn enable(&mut self) {
        // Enabling is also how a host leaves a shutdown that it asked for while disabled, and a
        // failure that showed when it was.
        self.csts = Csts::default();
        self.flushing = None;
        if let Err(reason) = self.check_configuration() {
            if self.warnings.ready() {
                tracing::warn!("the driver enabled the controller with {reason}: fatal status");
            }
            self.csts = self.csts.with_cfs(true);
            return;
        }
        self.page_size = self.configured_page_size();
        let completion = CompletionQueue::new(self.acq, self.aqa.acqs(), ADMIN_VECTOR, true);
        let submission = SubmissionQueue::new(self.asq, self.aqa.asqs(), 0);
        let io_queues = self.admin.personality().io_queues();
        self.queues = Some(Queues::new((submission, completion), io_queues));
        self.csts = self.csts.with_rdy(true);
        tracing::debug!(
            "enabled: admin queues at {:#x} and {:#x}, AQA {:#x}",
            self.asq,
            self.acq,
            self.aqa.0
        );
    }

    fn check_configuration(&self) -> Result<(), &'static str> {
        if self.cc.mps() > self.cap.mpsmax() {
            return Err("a page size it does not support");
        }
        if self.cc.ams() != 0 {
            return Err("an arbitration mechanism it does not support");
        }
        // An administrative controller accepts 000b besides 111b: drivers that know none select the
        // NVM command set, and nothing that exists there depends on it.
        let administrative = self.admin.personality().is_administrative();
        match self.cc.css() {
            Cc::CSS_NVM => {}
            Cc::CSS_ADMIN | Cc::CSS_ALL if administrative => {}
            _ => return Err("a command set it does not support"),
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

    /// A Controller Level Reset by CC.EN: everything but AQA, ASQ and ACQ. CSTS.RDY falls when the
    /// kernel has let go of the last request: after that, nothing touches guest memory.
    fn controller_reset(&mut self) {
        self.cc = Cc::default();
        self.queues = None;
        self.shadow = None;
        self.requests.abandon();
        self.staged.clear();
        self.admin.reset();
        self.phase = Phase::Running;
        self.interrupts.clear();
        self.flushing = None;
        self.resetting = Some(Resetting {
            since: Instant::now(),
            cancelled: false,
        });
        self.advance_reset();
    }

    /// Storage that does not let go of requests: they are cancelled, then guest memory is taken away
    /// from them and the controller has failed. Gives the time of the next step.
    fn press_reset(&mut self, bus: &mut Bus<'_>, io: &mut Io<'_>) -> Option<Instant> {
        let Resetting { since, cancelled } = self.resetting?;
        let (cancel, give_up) = (since + RESET_PATIENCE, since + RESET_PATIENCE + RESET_GRACE);
        if io.now() < cancel {
            return Some(cancel);
        }
        if !cancelled {
            tracing::warn!("cancelling requests that the storage keeps");
            self.cancel(io);
            self.resetting = Some(Resetting {
                since,
                cancelled: true,
            });
        }
        if io.now() < give_up {
            return Some(give_up);
        }
        bus.give_up();
        None
    }

    fn advance_reset(&mut self) {
        if self.resetting.is_none() || self.requests.matter() {
            return;
        }
        self.resetting = None;
        self.csts = Csts::default();
        if self.cc.en() {
            // The host did not wait for CSTS.RDY.
            self.enable();
        }
    }

    fn write_doorbell(&mut self, offset: usize, value: u32, bus: &mut Bus<'_>) {
        bus.counters().connection.doorbells.count();
        let index = (offset - registers::DOORBELLS) / 4;
        // The doorbell page has 1024 dwords.
        let id = (index / 2) as u16;
        let Some(queues) = &mut self.queues else {
            return;
        };
        if id != 0 && self.shadow.is_some() {
            // The buffers say more recent things than a doorbell on its way here.
            return bus.call_poller();
        }
        // The upper half of a doorbell is reserved.
        let value = value & 0xffff;
        let valid = if index % 2 == 0 {
            queues.submission(id).map(|queue| queue.ring_tail(value))
        } else {
            queues.completion(id).map(|queue| queue.ring_head(value))
        };
        match valid {
            Some(Ok(_)) => {}
            Some(Err(InvalidDoorbell)) => {
                tracing::debug!("invalid doorbell value {value:#x} at {offset:#x}");
                self.admin.invalid_doorbell_value();
            }
            None => {
                tracing::debug!("doorbell write to a queue that does not exist ({offset:#x})");
                self.admin.doorbell_of_no_queue();
            }
        }
        if id == 0 {
            self.run(bus);
        } else {
            bus.call_poller();
        }
    }

    /// Whether the controller may execute commands.
    fn executes(&self, bus: &Bus<'_>) -> bool {
        !self.csts.cfs()
            && self.resetting.is_none()
            && self.phase.is_running()
            && self.csts.shst() == Csts::SHST_NORMAL
            && bus.master()
    }

    /// Does whatever can be done for the admin queue: runs commands, reports events. One interrupt
    /// for all of it.
    fn run(&mut self, bus: &mut Bus<'_>) {
        if self.executes(bus) {
            let result = self.run_admin(bus);
            self.check(result);
        }
        self.post(bus);
    }

    /// A failed access to a queue is fatal.
    fn check<T: Default>(&mut self, result: Result<T, DmaError>) -> T {
        result.unwrap_or_else(|error| {
            if self.warnings.ready() {
                tracing::warn!("queue memory: {error}: fatal status");
            }
            self.csts = self.csts.with_cfs(true);
            T::default()
        })
    }
}

/// A reset that waits for the kernel.
#[derive(Clone, Copy)]
struct Resetting {
    since: Instant,
    /// The requests were cancelled.
    cancelled: bool,
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
        bus.call_poller();
    }

    fn reset(&mut self) {
        self.controller_reset();
        // The function waits for requests in the kernel itself.
        self.resetting = None;
        self.csts = Csts::default();
        self.aqa = Aqa::default();
        self.asq = 0;
        self.acq = 0;
    }

    fn poll(&mut self, bus: &mut Bus<'_>, io: &mut Io<'_>) -> Progress {
        let mut worked = false;
        if !self.staged.is_empty() && bus.master() {
            worked |= self.unstage(bus, io);
        }
        let mut deadline = self.staged.deadline().filter(|_| bus.master());
        deadline = deadline.into_iter().chain(self.press_reset(bus, io)).min();
        if self.flushing.is_some() && self.phase.quiet().is_none() {
            self.flush_all(bus, io);
        }
        let executes = self.executes(bus) && self.queues.is_some();
        if executes {
            let admin = self.run_admin(bus);
            worked |= self.check(admin);
            let fetched = self.fetch(bus, io);
            worked |= self.check(fetched);
            worked |= self.finish_late(bus) | self.report();
            let limited = self.limited_until(io.now());
            deadline = deadline.into_iter().chain(limited).min();
        }
        worked |= self.post(bus);
        worked |= self.settle(bus);
        if worked {
            bus.counters().io.polls.count();
        }
        Progress {
            worked,
            // What does not fit one pass is left for the next.
            watch: worked || executes && self.shadow.is_some(),
            deadline,
        }
    }

    fn finish(&mut self, slot: u32, result: i32, bus: &mut Bus<'_>, io: &mut Io<'_>) {
        let Some(request) = self.requests.left_kernel(slot) else {
            return;
        };
        // Also when the request failed: a part of the data may be there.
        request.mark(bus);
        if std::mem::take(&mut request.orphan) {
            self.requests.give_back(slot);
        } else {
            let around = Surroundings {
                namespaces: self.admin.personality().namespaces(),
                page_size: self.page_size,
                durable: !self.admin.write_cache(),
                bus,
            };
            match io::finish(request, slot, result, &around, io) {
                Step::InFlight => self.requests.entered_kernel(slot),
                Step::Done(status) => self.conclude(slot, status, io.now(), bus),
            }
        }
        self.advance_reset();
        self.advance_shutdown();
    }

    fn arm(&mut self, bus: &mut Bus<'_>) -> bool {
        if !self.executes(bus) {
            return false;
        }
        let (Some(shadow), Some(queues)) = (&mut self.shadow, &mut self.queues) else {
            return false;
        };
        let result = shadow.arm(queues, bus);
        self.check(result)
    }

    fn busy(&self) -> bool {
        self.requests.matter()
    }

    fn uses(&self, first: u64, last: u64) -> bool {
        self.requests.uses(first, last)
    }

    fn cancel(&mut self, io: &mut Io<'_>) {
        for slot in self.requests.slots_in_kernel() {
            io.cancel(slot);
        }
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn migratable(&mut self) -> Option<&mut dyn Migratable> {
        Some(self)
    }

    fn fail(&mut self) {
        self.csts = self.csts.with_cfs(true);
    }

    fn status(&self) -> Condition {
        Condition {
            ready: self.csts.rdy(),
            suspended: !self.phase.is_running(),
            stalled: self.staged.stalled(),
            rate: self.limiter.rate(),
        }
    }

    fn release(&mut self) -> u64 {
        self.staged.release(Instant::now())
    }

    fn set_rate(&mut self, rate: Rate) {
        self.limiter = Limiter::new(rate);
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
