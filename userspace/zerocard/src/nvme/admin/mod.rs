// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Admin commands of an administrative controller (NVMe Base 2.1, section 5).
//!
//! Owned by the controller, which feeds commands in and posts the completions that come out. One
//! file per family; this one decides which command goes where and answers what exists for nobody.
//! What the controller advertises (Identify, supported log pages, effects) has to match what is
//! dispatched here. Never touches registers or queues.

mod events;
mod features;
mod identify;
mod log_page;

use std::collections::VecDeque;

use zeroshift_nvme::command::{admin, feature, Command};
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::status::Status;

use super::controller::completion_for;
use super::prp;
use crate::pci::Bus;
use events::{Event, Events};
use features::Features;
use log_page::ErrorLog;

pub(crate) use identify::Identity;

/// Opcodes that [`Admin::execute`] dispatches, for the Commands Supported and Effects log page.
const SUPPORTED: [u8; 6] = [
    admin::GET_LOG_PAGE,
    admin::IDENTIFY,
    admin::ABORT,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT_REQUEST,
];

/// Maximum Data Transfer Size: 2^5 pages of 4 KiB.
const MDTS: u8 = 5;
const MAX_TRANSFER: u64 = 0x1000 << MDTS;

/// What a command has at hand while it runs.
pub(super) struct Context<'a, 'b> {
    /// The way to guest memory.
    pub(super) bus: &'a Bus<'b>,
    /// Memory page size in bytes, from CC.MPS.
    pub(super) page_size: u64,
}

impl Context<'_, '_> {
    /// Sends data to where the command wants it.
    fn send(&self, command: &Command, data: &[u8]) -> Result<(), Status> {
        prp::write(command, self.page_size, data, self.bus)
    }
}

/// What became of a command.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is kept and completes later.
    Held,
    /// It is complete.
    Done(Completion),
}

/// State behind the admin commands.
pub(super) struct Admin {
    identity: Identity,
    features: Features,
    events: Events,
    errors: ErrorLog,
    ready: VecDeque<Completion>,
}

impl Admin {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            features: Features::default(),
            events: Events::default(),
            errors: ErrorLog::default(),
            ready: VecDeque::new(),
        }
    }

    /// A Controller Level Reset: features fall back to their defaults, held commands vanish, and the
    /// error log is emptied but for its count, as section 5.1.12.1.2 wants it. The next driver may
    /// be in another virtual machine.
    pub(super) fn reset(&mut self) {
        self.features = Features::default();
        self.events = Events::default();
        self.errors.clear();
        self.ready.clear();
    }

    /// The next completion to post.
    pub(super) fn next_completion(&mut self) -> Option<Completion> {
        self.ready.pop_front().or_else(|| self.events.report())
    }

    /// Queues the completion of a command, and logs it when it is an error.
    pub(super) fn complete(&mut self, command: &Command, mut completion: Completion) {
        if !completion.status.is_success() {
            tracing::debug!(
                "command {:#06x} (opcode {:#04x}): {}",
                command.cid,
                command.opcode,
                completion.status
            );
            completion.status = completion.status.with_more();
            self.errors
                .record(0, command.cid, completion.status, command.nsid);
        }
        self.ready.push_back(completion);
    }

    /// A doorbell of a queue that does not exist was written.
    pub(super) fn doorbell_of_no_queue(&mut self) {
        self.errors.record(u16::MAX, u16::MAX, Status::SUCCESS, 0);
        self.events.raise(Event::INVALID_DOORBELL_REGISTER);
    }

    /// A doorbell was written with a value that is not allowed.
    pub(super) fn invalid_doorbell_value(&mut self) {
        self.errors.record(u16::MAX, u16::MAX, Status::SUCCESS, 0);
        self.events.raise(Event::INVALID_DOORBELL_VALUE);
    }

    /// Runs one command.
    pub(super) fn execute(&mut self, command: &Command, context: &Context<'_, '_>) -> Outcome {
        if command.opcode == admin::ASYNC_EVENT_REQUEST {
            return match check_common(command).and_then(|()| self.events.hold(command.cid)) {
                Ok(()) => Outcome::Held,
                Err(status) => done(command, status, 0),
            };
        }
        match self.dispatch(command, context) {
            Ok(dw0) => done(command, Status::SUCCESS, dw0),
            Err(status) => done(command, status, 0),
        }
    }

    /// Runs a command that completes at once and gives dword 0 of its completion.
    fn dispatch(&mut self, command: &Command, context: &Context<'_, '_>) -> Result<u32, Status> {
        // An unknown opcode is reported before anything else about the command.
        if !SUPPORTED.contains(&command.opcode) {
            return Err(Status::INVALID_COMMAND_OPCODE);
        }
        check_common(command)?;
        if self.events.holds(command.cid) {
            return Err(Status::COMMAND_ID_CONFLICT);
        }
        match command.opcode {
            admin::IDENTIFY => identify::run(&self.identity, command, context).map(|()| 0),
            admin::GET_LOG_PAGE => self.get_log_page(command, context).map(|()| 0),
            admin::ABORT => self.abort(command),
            admin::GET_FEATURES => self.features.get(command),
            admin::SET_FEATURES => {
                self.features.set(command)?;
                // Only these two can make it due; after any other it would be reported twice.
                let thermal = matches!(
                    command.cdw10 as u8,
                    feature::TEMPERATURE_THRESHOLD | feature::ASYNC_EVENT_CONFIGURATION
                );
                if thermal && self.features.temperature_event() {
                    self.events.raise(Event::TEMPERATURE_THRESHOLD);
                }
                Ok(0)
            }
            _ => Err(Status::INVALID_COMMAND_OPCODE),
        }
    }

    /// Abort: only Asynchronous Event Requests are ever outstanding, all else is complete before
    /// the next command is fetched. Bit 0 of the answer says "not aborted".
    fn abort(&mut self, command: &Command) -> Result<u32, Status> {
        let queue = command.cdw10 as u16;
        let cid = (command.cdw10 >> 16) as u16;
        if queue != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if !self.events.release(cid) {
            return Ok(1);
        }
        // The aborted command completes before the Abort that ended it.
        let aborted = Completion {
            cid,
            status: Status::ABORT_REQUESTED,
            ..Completion::default()
        };
        self.ready.push_back(aborted);
        Ok(0)
    }
}

/// What holds for every admin command: not fused, and PRP entries rather than SGLs.
fn check_common(command: &Command) -> Result<(), Status> {
    if command.fuse() != 0 || command.psdt() != 0 {
        return Err(Status::INVALID_FIELD);
    }
    Ok(())
}

fn done(command: &Command, status: Status, dw0: u32) -> Outcome {
    let retry_is_pointless = !status.is_success()
        && !status.is(Status::DATA_TRANSFER_ERROR)
        && !status.is(Status::ASYNC_EVENT_LIMIT_EXCEEDED);
    let status = if retry_is_pointless {
        status.with_do_not_retry()
    } else {
        status
    };
    Outcome::Done(Completion {
        dw0,
        status,
        ..completion_for(command)
    })
}
