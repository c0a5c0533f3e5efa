// SPDX-License-Identifier: GPL-2.0-only

//! What is done with a function: suspend, resume, start and stop its log.
//!
//! One operation of a function at a time, under `Function::protocol`, which is held while the card
//! works; those of several functions go on side by side. What a log needs next is decided by
//! `logic/log.rs`, here the commands are sent. `harvest.rs` and `state.rs` have the rest.

use crate::{
    admin_queue::Data,
    card::command_timeout_ms,
    errno::already,
    function::Function,
    logic::{
        log::{Log, Sent, Step},
        ranges::{self, Capability, Limits, Plan},
        span::{Span, PAGE},
    },
    nvme::{
        command::Command,
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
    prelude::*,
    time::{delay::fsleep, Delta, Instant, Monotonic},
};

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

impl Function {
    /// Suspends the function; it is quiet when this returns. `ETIMEDOUT` when it did not become
    /// quiet in time: then it runs.
    pub(crate) fn suspend(&self) -> Result {
        let mut protocol = self.protocol.lock();
        let limit_ms = command_timeout_ms();
        let start = Instant::<Monotonic>::now();
        let mut pause_ms = FIRST_PAUSE_MS;
        let error = loop {
            // CAST: the clock does not go backwards, and saturates far above.
            let passed = u32::try_from(start.elapsed().as_millis()).unwrap_or(u32::MAX);
            let left_ms = limit_ms.saturating_sub(passed).max(1);
            let command = MigrationSend::Suspend {
                controller: self.controller(),
                kind: SuspendType::Suspend,
                delete_queue: false,
            };
            match self.send(command.to_command(0, 0), Data::Nothing, left_ms) {
                Ok(()) => {
                    protocol.log.suspend();
                    self.show(&protocol);
                    self.note(|status| status.suspends = status.suspends.wrapping_add(1));
                    return Ok(());
                }
                Err(Failure::Lost(error)) => break error,
                Err(Failure::Refused(status)) if !is_transient(status) => {
                    self.card().report("Suspend", status);
                    break EIO;
                }
                // Not confirmed: the function was resumed or reset meanwhile, or the card could
                // not. A guest that cannot be stopped is worse than one that is stopped late.
                Err(Failure::Refused(status)) => {
                    if left_ms <= pause_ms {
                        self.card().report("Suspend", status);
                        break ETIMEDOUT;
                    }
                    fsleep(Delta::from_millis(i64::from(pause_ms)));
                    pause_ms = pause_ms.saturating_mul(2).min(LONGEST_PAUSE_MS);
                }
            }
        };
        // Nobody knows how far the card came, so it must not be left half suspended; unless it was
        // suspended before, which the refusal has not changed.
        if !protocol.log.is_suspended() && self.card().is_live() {
            // When this fails too, the card says so at the next operation; resume mends it.
            if self.resume_with(&mut protocol).is_err() {
                self.card().warn(fmt!(
                    "function {} may be suspended: the card ended neither Suspend nor Resume well",
                    self.address(),
                ));
            }
        }
        Err(error)
    }

    /// Lets the function run. A log that waited for it starts.
    pub(crate) fn resume(&self) -> Result {
        let mut protocol = self.protocol.lock();
        self.resume_with(&mut protocol)?;
        self.note(|status| status.resumes = status.resumes.wrapping_add(1));
        Ok(())
    }

    fn resume_with(&self, protocol: &mut Protocol) -> Result {
        let command = MigrationSend::Resume {
            controller: self.controller(),
        };
        let command = command.to_command(0, 0);
        match self.send(command, Data::Nothing, command_timeout_ms()) {
            Ok(()) => {}
            Err(Failure::Refused(status)) if status.is(Status::CONTROLLER_NOT_SUSPENDED) => {}
            Err(Failure::Refused(status)) => {
                self.card().report("Resume", status);
                return Err(EIO);
            }
            Err(Failure::Lost(error)) => return Err(error),
        }
        self.runs(protocol);
        Ok(())
    }

    /// The function was reset: it runs, and a log that waited for that starts.
    ///
    /// The card is told to let it run, because a reset can fail, and a Suspend that was under way
    /// when it came may have been sent again after it.
    pub(crate) fn was_reset(&self) -> Result {
        self.resume_with(&mut self.protocol.lock())
    }

    /// The function runs: the card is told what had to wait. A log that cannot start then is lost,
    /// which is nobody's failure but its own.
    pub(crate) fn runs(&self, protocol: &mut Protocol) {
        protocol.log.run();
        let _ = self.catch_up(protocol);
        self.show(protocol);
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

    /// Gives the function back as it was: without a log, and running.
    pub(crate) fn end_everything(&self) {
        let mut protocol = self.protocol.lock();
        protocol.log.stop();
        self.dirty.lock().end();
        if self.card().is_live() {
            if protocol.log.is_suspended() {
                let _ = self.resume_with(&mut protocol);
            } else {
                let _ = self.catch_up(&mut protocol);
            }
        }
        protocol.buffer = KVVec::new();
        self.show(&protocol);
    }

    /// The card is lost, and with it every suspension and every log.
    pub(crate) fn forget_card(&self) {
        let mut protocol = self.protocol.lock();
        self.release_plan(&mut protocol);
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
        let (sent, error) = match self.send(command, Data::Nothing, command_timeout_ms()) {
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
            Err(Start::Failure(failure)) => self.judge("Track Send (start)", failure),
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
                .and_then(|()| self.send_list(&list));
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
                Err(error) => {
                    card.release_descriptors(plan.descriptors);
                    return Err(error);
                }
            }
        }
    }

    fn send_list(&self, list: &[u8]) -> Result<(), Start> {
        let command = TrackSend::TrackMemory {
            controller: self.controller(),
            start: true,
        };
        let command = command.to_command(0, 0);
        let data = Data::Send(list);
        let answer = self.card().operate(command, data, command_timeout_ms());
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
            Err(status) => Err(Start::Failure(Failure::Refused(status))),
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

    /// Sends a command without or with data to the card.
    pub(crate) fn send(
        &self,
        command: Command,
        data: Data<'_>,
        limit_ms: u32,
    ) -> Result<(), Failure> {
        let answer = self.card().operate(command, data, limit_ms);
        let answer = answer.map_err(Failure::Lost)?;
        answer.result().map_err(|status| {
            if status.is(Status::ABORT_REQUESTED) {
                // Its time was over.
                Failure::Lost(ETIMEDOUT)
            } else {
                Failure::Refused(status)
            }
        })
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
                (Sent::Failed, EIO)
            }
        }
    }

    /// Makes what is known of the function visible.
    pub(crate) fn show(&self, protocol: &Protocol) {
        self.note(|status| {
            status.suspended = protocol.log.is_suspended();
            status.logging = protocol.log.is_wanted();
            status.lost = protocol.log.is_lost();
            (status.ranges, status.granule) = match protocol.plan {
                Some(plan) if status.logging => (plan.descriptors, PAGE << plan.granularity),
                _ => (0, 0),
            };
        });
    }
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
    const FINAL: [Status; 4] = [
        Status::INVALID_COMMAND_OPCODE,
        Status::INVALID_FIELD,
        Status::INVALID_CONTROLLER_IDENTIFIER,
        Status::COMMAND_SEQUENCE_ERROR,
    ];
    !status.do_not_retry() && !FINAL.iter().any(|no| status.is(*no))
}
