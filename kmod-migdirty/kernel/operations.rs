// SPDX-License-Identifier: GPL-2.0-only

//! What is done with a function: suspend, resume, start and stop its log.
//!
//! One operation of a function at a time, under `Function::protocol`, which is held while the card
//! works; those of several functions go on side by side. What a log needs next is decided by
//! `logic/log.rs`, here the commands are sent. `harvest.rs` and `state.rs` have the rest.
//!
//! A command that was abandoned may be carried out at any moment, and NVMe knows no order between
//! admin commands. So none is sent for a function of which the card still has one: an old Resume must
//! not start what a new Suspend has stopped, nor an old Track Receive take what a new log has seen.
//! But a Resume waits only for a Migration Send: nothing else changes what it does, and a function
//! that is never resumed costs a guest its disk.

use crate::{
    admin_queue::{Answer, Data, Unanswered},
    card::{command_timeout_ms, Card},
    common::pci_config,
    errno::{already, not_recoverable},
    function::Function,
    logic::{
        log::{Log, Sent, Step},
        ranges::{self, Capability, Limits, Plan},
        slots::CommandId,
        span::{Span, PAGE},
    },
    nvme::{
        command::{admin, Command},
        hmlm::{
            migration::{MigrationSend, SuspendType},
            track_send::{self, TrackSend},
            MemoryRange,
        },
        status::Status,
    },
};
use kernel::{
    alloc::AllocError,
    bindings,
    prelude::*,
    time::{delay::fsleep, Delta, Instant, Monotonic},
};

/// What the log calls the start of a log.
const START: &str = "Track Send (start)";

/// The most ranges of a log.
pub(crate) const MAX_RANGES: usize = 256;

/// Between two attempts to suspend: the first pause, and the longest one.
const FIRST_PAUSE_MS: u32 = 10;
const LONGEST_PAUSE_MS: u32 = 200;

/// What a function's card was told.
pub(crate) struct Protocol {
    pub(crate) log: Log,
    /// Finest granularity that the owner of the log wants: granules of 2^n x 4 KiB.
    wish: u8,
    /// What the card tracks, if it does: as planned.
    plan: Option<Plan>,
    /// Bytes that it tracks.
    pub(crate) tracked: u64,
    /// For reports.
    pub(crate) buffer: KVVec<u8>,
    /// A Migration Send that was abandoned, and that the card had when it was asked last.
    ghost: Option<CommandId>,
    /// The same for any other command.
    idle_ghost: Option<CommandId>,
    /// The function is to be resumed, and the card told what it missed, as soon as it takes commands.
    pub(crate) mend: bool,
    /// The log of the kernel says so.
    mend_said: bool,
}

impl Protocol {
    /// Of a function that runs and is not tracked.
    pub(crate) fn new() -> Self {
        Self {
            log: Log::new(),
            wish: 0,
            plan: None,
            tracked: 0,
            buffer: KVVec::new(),
            ghost: None,
            idle_ghost: None,
            mend: false,
            mend_said: false,
        }
    }
}

/// How a command for a function failed.
pub(crate) enum Failure {
    /// The card refused it.
    Refused(Status),
    /// It did not complete it: `EIO`, `ENODEV`, `ETIMEDOUT`.
    Lost(Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if status.is(Status::ABORT_REQUESTED) {
            // Its time was over.
            Self::Lost(ETIMEDOUT)
        } else {
            Self::Refused(status)
        }
    }
}

impl Failure {
    /// Whether the card has certainly done nothing.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(status) => is_final(*status) || status.is(Status::CONTROLLER_SUSPENDED),
            Self::Lost(_) => false,
        }
    }
}

impl Function {
    /// Suspends the function; it is quiet when this returns. `ETIMEDOUT` when it did not become
    /// quiet in time: then it runs. `ENOTRECOVERABLE` when nobody knows: then it will run.
    pub(crate) fn suspend(&self) -> Result {
        let mut protocol = self.protocol.lock();
        if !self.is_free(&mut protocol) {
            return Err(match protocol.log.may_be_suspended() {
                true => not_recoverable(),
                false => ETIMEDOUT,
            });
        }
        protocol.mend = false;
        // One that is gone has none; what that means is the card's to say.
        let _ = self.push_writes();
        let result = self.try_suspend(&mut protocol);
        if protocol.log.is_promised() && self.dirty.lock().mark_all().is_err() {
            // It may have run since the log was promised, and nobody was told.
            self.lose_log(&mut protocol, "no memory");
        }
        let result = match result {
            Ok(()) => {
                protocol.log.suspend();
                self.note(|status| status.suspends = status.suspends.wrapping_add(1));
                Ok(())
            }
            // It was suspended before, which this has not changed.
            Err(Unsuspended { error, .. }) if protocol.log.is_suspended() => Err(error),
            Err(Unsuspended { error, .. }) if !self.card().is_live() => Err(error),
            // It runs as before.
            Err(Unsuspended {
                error,
                untouched: true,
            }) if !protocol.log.may_be_suspended() => Err(error),
            Err(Unsuspended { error, .. }) => {
                // Nobody knows how far the card came, so it must not be left half suspended.
                protocol.log.doubt();
                match self.resume_with(&mut protocol) {
                    Ok(()) => Err(error),
                    Err(_) if self.card().is_live() => Err(not_recoverable()),
                    Err(error) => Err(error),
                }
            }
        };
        self.show(&protocol);
        result
    }

    /// What anybody has written to the function's registers is there when this returns. `ENODEV`: the
    /// function does not answer.
    ///
    /// Such writes are posted, and commands go another way, to another function: a command sent now
    /// could be carried out before a doorbell that was rung long ago, and a state without that doorbell
    /// would lose what it told of. A read request passes no posted write (PCIe Base 2.4.1), so the
    /// answer to one proves that they have arrived. It goes to configuration space because that is
    /// there whoever has the function, and to the class code because no function has all-ones there,
    /// as virtual functions have in the Vendor ID.
    pub(crate) fn push_writes(&self) -> Result {
        let pdev = pci_config::function_at(self.address()).ok_or(ENODEV)?;
        // CAST: the constant is 8.
        let class = pci_config::read32(&*pdev, bindings::PCI_CLASS_REVISION as u16);
        class.map(drop).ok_or(ENODEV)
    }

    fn try_suspend(&self, protocol: &mut Protocol) -> Result<(), Unsuspended> {
        let failed = |error, untouched| Err(Unsuspended { error, untouched });
        let mut first = true;
        let limit_ms = command_timeout_ms();
        let start = Instant::<Monotonic>::now();
        let mut pause_ms = FIRST_PAUSE_MS;
        loop {
            // CAST: the clock does not go backwards, and saturates far above.
            let passed = u32::try_from(start.elapsed().as_millis()).unwrap_or(u32::MAX);
            let left_ms = limit_ms.saturating_sub(passed).max(1);
            let command = MigrationSend::Suspend {
                controller: self.controller(),
                kind: SuspendType::Suspend,
                delete_queue: false,
            };
            let command = command.to_command(0, 0);
            match self.send(protocol, command, Data::Nothing, left_ms) {
                Ok(()) => return Ok(()),
                Err(Failure::Lost(error)) => return failed(error, false),
                Err(Failure::Refused(status)) if !is_transient(status) => {
                    self.card().report("Suspend", status);
                    return failed(EIO, first && is_final(status));
                }
                // Not confirmed: the function was resumed or reset meanwhile, or the card could
                // not. A guest that cannot be stopped is worse than one that is stopped late.
                Err(Failure::Refused(status)) => {
                    if left_ms <= pause_ms {
                        self.card().report("Suspend", status);
                        return failed(ETIMEDOUT, false);
                    }
                    first = false;
                    fsleep(Delta::from_millis(i64::from(pause_ms)));
                    pause_ms = pause_ms.saturating_mul(2).min(LONGEST_PAUSE_MS);
                }
            }
        }
    }

    /// Lets the function run. A log that waited for it starts. `EIO` when the card refuses: it is
    /// suspended as before. `ENOTRECOVERABLE` when nobody knows: it will run.
    pub(crate) fn resume(&self) -> Result {
        let mut protocol = self.protocol.lock();
        let result = self.resume_with(&mut protocol);
        self.show(&protocol);
        result?;
        self.note(|status| status.resumes = status.resumes.wrapping_add(1));
        Ok(())
    }

    fn resume_with(&self, protocol: &mut Protocol) -> Result {
        protocol.mend = false;
        let command = MigrationSend::Resume {
            controller: self.controller(),
        };
        let command = command.to_command(0, 0);
        let answer = match self.takes_resume(protocol) {
            true => self.transmit(protocol, command, Data::Nothing, command_timeout_ms()),
            false => Err(ETIMEDOUT),
        };
        let result = answer
            .map_err(Failure::Lost)
            .and_then(|answer| answer.result().map_err(Failure::from));
        match result {
            Ok(()) => {}
            Err(Failure::Refused(status)) if status.is(Status::CONTROLLER_NOT_SUSPENDED) => {}
            // It is known to run, and no Resume stops a function, whatever becomes of it.
            Err(failure) if !protocol.log.may_be_suspended() && self.card().is_live() => {
                if let Failure::Refused(status) = failure {
                    self.card().report("Resume", status);
                }
            }
            Err(Failure::Refused(status)) if is_final(status) && protocol.log.is_suspended() => {
                self.card().report("Resume", status);
                if status.is(Status::COMMAND_SEQUENCE_ERROR) {
                    self.card().warn(fmt!(
                        "function {} has a part of a controller state and does not resume: reset it",
                        self.address(),
                    ));
                }
                return Err(EIO);
            }
            Err(failure) if self.card().is_live() => {
                if let Failure::Refused(status) = failure {
                    self.card().report("Resume", status);
                }
                protocol.log.doubt();
                if !protocol.mend_said {
                    protocol.mend_said = true;
                    self.card().warn(fmt!(
                        "function {} may be suspended; it is resumed when the card does what it is \
                         told",
                        self.address(),
                    ));
                }
                protocol.mend = true;
                return Err(not_recoverable());
            }
            Err(Failure::Refused(_)) => return Err(EIO),
            Err(Failure::Lost(error)) => return Err(error),
        }
        protocol.mend_said = false;
        self.runs(protocol);
        Ok(())
    }

    /// The function was reset: it runs, and a log that waited for that starts. Errors as for
    /// [`Self::resume`].
    ///
    /// The card is told to let it run, because a reset can fail, and a Suspend that was under way
    /// when it came may have been sent again after it.
    pub(crate) fn was_reset(&self) -> Result {
        let mut protocol = self.protocol.lock();
        let result = self.resume_with(&mut protocol);
        self.show(&protocol);
        result
    }

    /// The function runs: the card is told what had to wait. A log that cannot start then is lost,
    /// which is nobody's failure but its own.
    pub(crate) fn runs(&self, protocol: &mut Protocol) {
        protocol.log.run();
        if self.catch_up(protocol).is_err() {
            if protocol.log.is_promised() {
                self.lose_log(protocol, "it could not start when the function ran again");
            }
            // What nobody wants now has to stop.
            if self.catch_up(protocol).is_err() && self.card().is_live() {
                protocol.mend = true;
            }
        }
        self.show(protocol);
    }

    /// A log that waits starts if the function runs, and is lost when it cannot.
    pub(crate) fn start_late(&self, protocol: &mut Protocol) -> Result {
        let result = self.catch_up(protocol);
        if result.is_err() && protocol.log.is_promised() {
            self.lose_log(protocol, "it could not start");
        }
        self.show(protocol);
        result
    }

    /// Does what had to wait for the card to take commands. Whether the card is to be watched: the
    /// function relies on its suspension, or something still waits.
    pub(crate) fn mend(&self) -> bool {
        // An operation that is under way comes first.
        let Some(mut protocol) = self.protocol.try_lock() else {
            return true;
        };
        if protocol.mend && protocol.log.may_be_suspended() {
            if self.takes_resume(&mut protocol) {
                // It says what goes wrong.
                let _ = self.resume_with(&mut protocol);
            }
        } else if protocol.mend && self.is_free(&mut protocol) {
            protocol.mend = false;
            self.runs(&mut protocol);
        }
        self.show(&protocol);
        let watch = protocol.mend || protocol.log.may_be_suspended();
        drop(protocol);
        self.settle_tools();
        watch
    }

    /// Starts a log of `wanted`, which are whole pages and apart from each other. `wish` is the
    /// granule in bytes, 0 for any. Returns the granule in use. `EALREADY` when there is a log,
    /// `ENOSPC` when the card cannot track that.
    pub(crate) fn log_start(&self, wanted: KVVec<Span>, wish: u64) -> Result<u64> {
        let wanted = check_ranges(wanted)?;
        let wish = granularity_of(wish)?;
        let mut protocol = self.protocol.lock();
        if !self.card().is_live() {
            return Err(EIO);
        }
        if !protocol.log.start() {
            return Err(already());
        }
        protocol.wish = wish;
        if protocol.log.is_suspended() {
            // Somebody else may have reset it since; the card knows.
            protocol.log.doubt();
        }
        // On its own, because what follows takes the lock again.
        let begun = self.dirty.lock().begin(wanted);
        let result = begun
            .and_then(|()| self.catch_up(&mut protocol))
            .and_then(|()| {
                // A log that waits has no granule yet; this is the one that it will have if nothing
                // changes.
                let granularity = match protocol.plan {
                    Some(plan) if protocol.log.is_tracked() => plan.granularity,
                    _ => self.foresee(&protocol)?,
                };
                Ok(PAGE << granularity)
            });
        if result.is_err() {
            // No log; a lost one was stopped by this.
            protocol.log.stop();
            let _ = self.catch_up(&mut protocol);
            self.dirty.lock().end();
        }
        self.show(&protocol);
        result
    }

    /// Ends the log; does nothing without one.
    pub(crate) fn log_stop(&self) -> Result {
        let mut protocol = self.protocol.lock();
        protocol.log.stop();
        self.dirty.lock().end();
        // On a card that is lost nothing is tracked, and nothing is left to do.
        let result = match self.card().is_live() {
            true => self.catch_up(&mut protocol),
            false => Ok(()),
        };
        self.show(&protocol);
        result
    }

    /// Gives the function back as it was: without a log, and running. What the card does not do now
    /// it is told again later.
    pub(crate) fn end_everything(&self) {
        let mut protocol = self.protocol.lock();
        protocol.log.stop();
        self.dirty.lock().end();
        if self.card().is_live() {
            if protocol.log.may_be_suspended() {
                let _ = self.resume_with(&mut protocol);
            } else {
                self.runs(&mut protocol);
            }
        }
        protocol.buffer = KVVec::new();
        self.show(&protocol);
    }

    /// The card is lost, and with it every suspension and every log.
    pub(crate) fn forget_card(&self) {
        let mut protocol = self.protocol.lock();
        self.release_plan(&mut protocol);
        protocol.ghost = None;
        protocol.idle_ghost = None;
        protocol.mend = false;
        protocol.log.card_lost();
        self.dirty.lock().lose();
        self.show(&protocol);
    }

    /// What was written is not known any more: says why, once.
    pub(crate) fn lose_log(&self, protocol: &mut Protocol, why: &str) {
        protocol.log.lose();
        if self.dirty.lock().lose() {
            self.card().warn(fmt!(
                "the log of function {} is lost: {}",
                self.address(),
                why,
            ));
        }
        self.show(protocol);
    }

    /// Tells the card what the log needs, until it needs nothing. An error when a log that was asked
    /// for cannot start, or one that is not wanted cannot stop.
    fn catch_up(&self, protocol: &mut Protocol) -> Result {
        loop {
            match protocol.log.next() {
                Step::Nothing => return Ok(()),
                Step::Stop => self.send_stop(protocol)?,
                Step::Start => self.send_start(protocol)?,
            }
        }
    }

    fn send_stop(&self, protocol: &mut Protocol) -> Result {
        let command = TrackSend::TrackMemory {
            controller: self.controller(),
            start: false,
        };
        let command = command.to_command(0, 0);
        let result = self.send(protocol, command, Data::Nothing, command_timeout_ms());
        let (sent, error) = match result {
            Ok(()) => (Sent::Done, EIO),
            Err(failure) => self.judge("Track Send (stop)", failure),
        };
        if !protocol.log.stopped(sent) {
            return Err(error);
        }
        if !protocol.log.holds_descriptors() {
            self.release_plan(protocol);
        }
        Ok(())
    }

    fn send_start(&self, protocol: &mut Protocol) -> Result {
        let waited = protocol.log.has_waited();
        let (sent, error) = match self.try_start(protocol) {
            Ok(()) => (Sent::Done, EIO),
            Err(Start::Failure(failure)) => self.judge(START, failure),
            // What is left of the card's offers is nothing.
            Err(Start::Impossible | Start::NotEnough(_)) => (Sent::Failed, ENOSPC),
            Err(Start::Error(error)) => (Sent::Failed, error),
        };
        match protocol.log.started(sent) {
            Some(true) if self.dirty.lock().mark_all().is_ok() => Ok(()),
            Some(true) => {
                self.lose_log(protocol, "no memory");
                Err(ENOMEM)
            }
            Some(false) => Ok(()),
            None => {
                if sent == Sent::WrongTarget {
                    self.card()
                        .report(START, Status::INVALID_CONTROLLER_IDENTIFIER);
                }
                if waited {
                    self.lose_log(protocol, "it could not start when the function ran again");
                } else {
                    self.dirty.lock().end();
                }
                Err(error)
            }
        }
    }

    /// Sends starts, each asking for less than the one before, until the card accepts one.
    fn try_start(&self, protocol: &mut Protocol) -> Result<(), Start> {
        let card = self.card();
        let wanted = self.wanted()?;
        let mut spans = KVVec::new();
        spans.extend_from_slice(&wanted, GFP_KERNEL)?;
        let mut list = KVVec::new();
        let told = card.tracking_limits()?;
        let mut limits = Limits {
            descriptors: told.descriptors,
            finest: protocol
                .wish
                .clamp(told.finest, told.coarsest.max(told.finest)),
            coarsest: told.coarsest,
            powers_of_two: told.powers_of_two,
        };
        loop {
            let plan = card.reserve_descriptors(told.descriptors, |left| {
                let limits = Limits {
                    descriptors: limits.descriptors.min(left),
                    ..limits
                };
                let plan = ranges::plan(&wanted, &mut spans, &limits).ok_or(ENOSPC)?;
                Ok((plan.descriptors, plan))
            });
            let plan = match plan {
                Ok(plan) => plan,
                Err(error) if error == ENOSPC => return Err(Start::Impossible),
                Err(error) => return Err(error.into()),
            };
            let spans = spans.get(..plan.spans).unwrap_or(&[]);
            let result = encode(&mut list, &plan, spans, limits.powers_of_two)
                .map_err(Start::Error)
                .and_then(|()| self.send_list(protocol, &list));
            match result {
                Ok(()) => {
                    protocol.tracked = spans
                        .iter()
                        .fold(0, |sum: u64, span| sum.saturating_add(span.bytes()));
                    protocol.plan = Some(plan);
                    return Ok(());
                }
                Err(Start::NotEnough(offer)) => {
                    card.release_descriptors(plan.descriptors);
                    if !ranges::fall_back(&mut limits, &plan, offer) {
                        return Err(Start::Impossible);
                    }
                }
                // What the card may track keeps its descriptors until it was stopped.
                Err(Start::Failure(failure)) if !failure.is_refusal() => {
                    protocol.plan = Some(plan);
                    return Err(Start::Failure(failure));
                }
                Err(error) => {
                    card.release_descriptors(plan.descriptors);
                    return Err(error);
                }
            }
        }
    }

    fn send_list(&self, protocol: &mut Protocol, list: &[u8]) -> Result<(), Start> {
        let command = TrackSend::TrackMemory {
            controller: self.controller(),
            start: true,
        };
        let command = command.to_command(0, 0);
        let data = Data::Send(list);
        let answer = self.command(protocol, command, data, command_timeout_ms());
        let reply = answer.map_err(|error| Start::Failure(Failure::Lost(error)))?;
        let reply = reply.reply();
        match reply.status.result() {
            Ok(()) => Ok(()),
            Err(status) if status.is(Status::NOT_ENOUGH_RESOURCES) => {
                Err(Start::NotEnough(Capability {
                    // CAST: the field has 16 bits.
                    granularity: reply.dw0 as u16,
                    descriptors: reply.dw1,
                }))
            }
            Err(status) => Err(Start::Failure(status.into())),
        }
    }

    /// The granularity that a log which waits will have.
    fn foresee(&self, protocol: &Protocol) -> Result<u8> {
        let told = self.card().tracking_limits()?;
        let wanted = self.wanted()?;
        let mut spans = KVVec::new();
        spans.extend_from_slice(&wanted, GFP_KERNEL)?;
        let limits = Limits {
            descriptors: told.descriptors,
            finest: protocol
                .wish
                .clamp(told.finest, told.coarsest.max(told.finest)),
            coarsest: told.coarsest,
            powers_of_two: told.powers_of_two,
        };
        let plan = ranges::plan(&wanted, &mut spans, &limits).ok_or(ENOSPC)?;
        Ok(plan.granularity)
    }

    fn wanted(&self) -> Result<KVVec<Span>> {
        let mut wanted = KVVec::new();
        wanted.extend_from_slice(self.dirty.lock().wanted(), GFP_KERNEL)?;
        Ok(wanted)
    }

    fn release_plan(&self, protocol: &mut Protocol) {
        if let Some(plan) = protocol.plan.take() {
            self.card().release_descriptors(plan.descriptors);
        }
        protocol.tracked = 0;
    }

    /// Sends a command for the function, and waits for its answer. `ETIMEDOUT` when there is none in
    /// time, and without sending anything while the card still has a command that was abandoned.
    pub(crate) fn command(
        &self,
        protocol: &mut Protocol,
        command: Command,
        data: Data<'_>,
        limit_ms: u32,
    ) -> Result<Answer<'_>> {
        if !self.is_free(protocol) {
            return Err(ETIMEDOUT);
        }
        self.transmit(protocol, command, data, limit_ms)
    }

    /// As [`Self::command`], for which the function is free, or [`Self::takes_resume`].
    fn transmit(
        &self,
        protocol: &mut Protocol,
        command: Command,
        data: Data<'_>,
        limit_ms: u32,
    ) -> Result<Answer<'_>> {
        let opcode = command.opcode;
        self.card()
            .operate(command, data, limit_ms)
            .map_err(|unanswered| {
                if let Unanswered::Abandoned(id) = unanswered {
                    match opcode {
                        admin::MIGRATION_SEND => protocol.ghost = Some(id),
                        _ => protocol.idle_ghost = Some(id),
                    }
                    self.card().warn(fmt!(
                        "function {} gets no orders until the card has completed the last one",
                        self.address(),
                    ));
                }
                unanswered.into()
            })
    }

    /// Whether the card has no command for the function that was abandoned.
    pub(crate) fn is_free(&self, protocol: &mut Protocol) -> bool {
        let has = |id: &CommandId| self.card().is_abandoned(*id);
        protocol.idle_ghost = protocol.idle_ghost.filter(has);
        protocol.idle_ghost.is_none() && self.takes_resume(protocol)
    }

    /// Whether the card has no command for the function that was abandoned and that a Resume could
    /// get in the way of.
    fn takes_resume(&self, protocol: &mut Protocol) -> bool {
        protocol.ghost = protocol.ghost.filter(|id| self.card().is_abandoned(*id));
        protocol.ghost.is_none()
    }

    /// Sends a command whose answer is its status.
    pub(crate) fn send(
        &self,
        protocol: &mut Protocol,
        command: Command,
        data: Data<'_>,
        limit_ms: u32,
    ) -> Result<(), Failure> {
        let answer = self.command(protocol, command, data, limit_ms);
        let answer = answer.map_err(Failure::Lost)?;
        answer.result().map_err(Failure::from)
    }

    /// What a failed Track Send means for the log, and for its owner.
    fn judge(&self, what: &'static str, failure: Failure) -> (Sent, Error) {
        match failure {
            Failure::Lost(error) => (Sent::Unknown, error),
            Failure::Refused(status) if status.is(Status::CONTROLLER_SUSPENDED) => {
                (Sent::Suspended, EIO)
            }
            Failure::Refused(status) if status.is(Status::INVALID_CONTROLLER_IDENTIFIER) => {
                (Sent::WrongTarget, EIO)
            }
            Failure::Refused(status) => {
                self.card().report(what, status);
                match is_final(status) {
                    true => (Sent::Failed, EIO),
                    false => (Sent::Unknown, EIO),
                }
            }
        }
    }

    /// Makes what is known of the function visible.
    pub(crate) fn show(&self, protocol: &Protocol) {
        self.note(|status| {
            status.suspended = protocol.log.may_be_suspended();
            status.logging = protocol.log.is_wanted();
            status.lost = protocol.log.is_lost();
            (status.ranges, status.granule) = match protocol.plan {
                Some(plan) if status.logging => (plan.descriptors, PAGE << plan.granularity),
                _ => (0, 0),
            };
        });
        if (protocol.log.may_be_suspended() || protocol.mend) && self.card().is_live() {
            Card::watch(self.card());
        }
    }
}

/// Why a function was not suspended.
struct Unsuspended {
    error: Error,
    /// The card has certainly done nothing.
    untouched: bool,
}

/// Why a log did not start.
enum Start {
    /// The card has not enough resources, but some.
    NotEnough(Capability),
    /// No granule and no number of ranges fits.
    Impossible,
    Failure(Failure),
    Error(Error),
}

impl From<Error> for Start {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<AllocError> for Start {
    fn from(error: AllocError) -> Self {
        Self::Error(error.into())
    }
}

/// Writes the data of a start.
fn encode(list: &mut KVVec<u8>, plan: &Plan, spans: &[Span], powers_of_two: bool) -> Result {
    // CAST: widens.
    let size = track_send::encoded_size(plan.descriptors as usize).ok_or(ENOSPC)?;
    list.resize(size, 0, GFP_KERNEL)?;
    let descriptors = ranges::descriptors(spans, plan.granularity, powers_of_two);
    let descriptors = descriptors.map(|(address, granules)| MemoryRange { address, granules });
    track_send::encode(list, plan.granularity, descriptors)
        .map(|_| ())
        .ok_or(EINVAL)
}

/// Sorts ranges, and refuses those that are no whole pages or overlap.
fn check_ranges(mut wanted: KVVec<Span>) -> Result<KVVec<Span>> {
    if wanted.is_empty() || wanted.len() > MAX_RANGES {
        return Err(EINVAL);
    }
    ranges::sort(&mut wanted);
    let whole = |span: &Span| span.round_out(crate::logic::span::PAGE_SHIFT) == *span;
    let apart = |pair: &[Span]| matches!(pair, [a, b] if a.last() < b.first());
    if !wanted.iter().all(whole) || !wanted.windows(2).all(apart) {
        return Err(EINVAL);
    }
    Ok(wanted)
}

/// The granularity of a granule in bytes, 0 for any; `EINVAL` for none.
fn granularity_of(granule: u64) -> Result<u8> {
    match granule {
        0 => Ok(0),
        granule if granule < PAGE || !granule.is_power_of_two() => Err(EINVAL),
        // CAST: below 64.
        granule => Ok((granule / PAGE).trailing_zeros() as u8),
    }
}

/// Whether it is worth to try again.
fn is_transient(status: Status) -> bool {
    !status.do_not_retry() && !is_final(status)
}

/// Whether the card has done nothing, and would do nothing another time.
fn is_final(status: Status) -> bool {
    const FINAL: [Status; 4] = [
        Status::INVALID_COMMAND_OPCODE,
        Status::INVALID_FIELD,
        Status::INVALID_CONTROLLER_IDENTIFIER,
        Status::COMMAND_SEQUENCE_ERROR,
    ];
    FINAL.iter().any(|no| status.is(*no))
}
