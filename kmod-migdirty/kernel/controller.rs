// SPDX-License-Identifier: GPL-2.0-only

//! The registers of an NVMe controller: what it is capable of, reset, start, stop.
//!
//! Used by probe, unbind and shutdown, one at a time under the device lock, and by waiters for a
//! look at the status. Knows no command. Must never enable a controller whose queue addresses are
//! not ours, and never believe a register that reads all-ones.

use crate::{
    logic::startup::{Action, Failure, Goal, Sequence, Status},
    nvme::registers::{self, Aqa, Cap, Cc, Csts, Version},
};
use kernel::{
    io::{Io, Mmio},
    prelude::*,
    time::{delay::fsleep, Delta, Instant, Monotonic},
};

/// Registers and the start of the doorbells: what is checked at build time.
pub(crate) const REGISTERS: usize = registers::DOORBELLS;

/// BAR0 of a controller.
pub(crate) type Registers = Mmio<REGISTERS>;

/// What a controller says of itself before it is enabled.
#[derive(Clone, Copy)]
pub(crate) struct Capabilities {
    pub(crate) version: Version,
    /// CAP.DSTRD.
    pub(crate) doorbell_stride: u8,
    /// The longest time that CSTS.RDY takes to follow CC.EN, in milliseconds.
    pub(crate) ready_limit_ms: u64,
    /// CC.CSS to ask for.
    command_set: u8,
}

/// Why a controller is refused before anything is tried.
pub(crate) enum Refusal {
    /// The registers read all-ones.
    Gone,
    /// Its smallest memory page is larger than ours, 2^(12 + n) bytes.
    PageTooLarge(u8),
    /// BAR0, of so many bytes, ends before the admin queue's doorbells.
    BarTooSmall(usize),
}

impl Capabilities {
    /// Reads CAP, VS and CRTO.
    pub(crate) fn read(bar: &Registers) -> Result<Self, Refusal> {
        let cap = Cap(read64(
            bar.read32(registers::CAP),
            bar.read32(registers::CAP + 4),
        ));
        if cap.0 == u64::MAX || status(bar).is_gone() {
            return Err(Refusal::Gone);
        }
        if cap.mpsmin() != 0 {
            return Err(Refusal::PageTooLarge(cap.mpsmin()));
        }
        // The completion doorbell is the second of the pair.
        let end = registers::completion_head_doorbell(0, cap.dstrd())
            .saturating_add(core::mem::size_of::<u32>());
        if bar.maxsize() < end {
            return Err(Refusal::BarTooSmall(bar.maxsize()));
        }
        // CAP.TO holds 127.5 s at most; what takes longer stands in CRTO (Base 2.1, 3.1.4.21), up to
        // nine hours. Nobody waits that long with the device lock held: `LONGEST_UNITS` is the end.
        // The unit of all is 500 ms.
        let mut units = u64::from(cap.to());
        if cap.crms() != 0 {
            let crto = bar.read32(registers::CRTO);
            units = units
                .max(u64::from(crto & 0xffff))
                .max(u64::from(crto >> 16));
        }
        let command_set = if cap.css() & Cap::CSS_NOIOCSS != 0 {
            Cc::CSS_ADMIN
        } else if cap.css() & Cap::CSS_IOCSS != 0 {
            Cc::CSS_ALL
        } else {
            Cc::CSS_NVM
        };
        Ok(Self {
            version: Version(bar.read32(registers::VS)),
            doorbell_stride: cap.dstrd(),
            // One more, because the register rounds down for a card that needs part of a unit.
            ready_limit_ms: units
                .min(LONGEST_UNITS)
                .saturating_add(1)
                .saturating_mul(500),
            command_set,
        })
    }
}

/// The longest time to become ready that a controller is given, in units of 500 ms: ten minutes.
const LONGEST_UNITS: u64 = 1200;

/// Where the admin queue is.
#[derive(Clone, Copy)]
pub(crate) struct QueueAddresses {
    /// DMA address of the submission queue.
    pub(crate) submission: u64,
    /// DMA address of the completion queue.
    pub(crate) completion: u64,
    /// Entries of each.
    pub(crate) depth: u16,
}

/// Resets the controller: afterwards it owns no queue.
pub(crate) fn disable(bar: &Registers, capabilities: &Capabilities) -> Result<(), Failure> {
    run(bar, capabilities, Goal::Disabled, || ())
}

/// Resets the controller, gives it its admin queue, and enables it.
pub(crate) fn enable(
    bar: &Registers,
    capabilities: &Capabilities,
    queue: QueueAddresses,
) -> Result<(), Failure> {
    run(bar, capabilities, Goal::Ready, || {
        let last = queue.depth.wrapping_sub(1);
        bar.write32(
            Aqa::default().with_asqs(last).with_acqs(last).0,
            registers::AQA,
        );
        // CAST: the two halves of an address.
        bar.write32(queue.submission as u32, registers::ASQ);
        bar.write32((queue.submission >> 32) as u32, registers::ASQ + 4);
        bar.write32(queue.completion as u32, registers::ACQ);
        bar.write32((queue.completion >> 32) as u32, registers::ACQ + 4);
        // Pages of 4 KiB, round robin, no shutdown notice. Without I/O queues the entry sizes
        // stay 0.
        let cc = Cc::default().with_css(capabilities.command_set);
        bar.write32(cc.0, registers::CC);
        bar.write32(cc.with_en(true).0, registers::CC);
    })
}

/// What the controller says of itself now.
pub(crate) fn status(bar: &Registers) -> Csts {
    Csts(bar.read32(registers::CSTS))
}

fn run(
    bar: &Registers,
    capabilities: &Capabilities,
    goal: Goal,
    enable: impl Fn(),
) -> Result<(), Failure> {
    /// Between two looks at CSTS.
    const PAUSE: Delta = Delta::from_millis(2);

    let mut sequence = Sequence::new(goal, capabilities.ready_limit_ms);
    let start = Instant::<Monotonic>::now();
    loop {
        // The clock first: a thread that was held up between the two must not take an old status
        // for a late one.
        // CAST: the clock does not go backwards.
        let now_ms = start.elapsed().as_millis() as u64;
        let csts = status(bar);
        let cc = Cc(bar.read32(registers::CC));
        let status = Status {
            gone: csts.is_gone(),
            fatal: csts.cfs(),
            ready: csts.rdy(),
            enabled: cc.en(),
        };
        match sequence.next(status, now_ms) {
            Action::Disable => bar.write32(cc.with_en(false).0, registers::CC),
            Action::Enable => enable(),
            Action::Wait => fsleep(PAUSE),
            Action::Done => return Ok(()),
            Action::Fail(failure) => return Err(failure),
        }
    }
}

fn read64(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
