// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Admin commands (NVMe Base 2.1, section 5).
//!
//! Owned by the controller, which feeds commands in and posts the completions that come out. One
//! file per family; this one decides which command goes where and answers what exists for nobody.
//! What the controller advertises (Identify, supported log pages, effects) has to match what is
//! dispatched here. Never touches registers.

mod events;
mod features;
mod identify;
mod io_queues;
mod log_page;

use std::sync::Arc;

use zeroshift_nvme::command::{admin, feature, Command};
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::status::Status;

use super::controller::completion_for;
use super::data_pointer::{self, Rules};
use super::migration::{self, state, Fleet, Late, Migration};
use super::namespace::Namespace;
use super::queues::Queues;
use super::shadow::Shadow;
use super::staged::Staged;
use crate::faults::Fault;
use crate::pci::{Bus, Refused};
use events::{Event, Events};
use features::Features;
use log_page::ErrorLog;

pub(crate) use identify::{Identity, COMPLETION_ENTRY_SIZES, MODEL, SUBMISSION_ENTRY_SIZES};

/// Opcodes that every controller has.
const COMMON: [u8; 6] = [
    admin::GET_LOG_PAGE,
    admin::IDENTIFY,
    admin::ABORT,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT_REQUEST,
];

/// Opcodes that an I/O controller has besides.
const IO: [u8; 5] = [
    admin::DELETE_IO_SQ,
    admin::CREATE_IO_SQ,
    admin::DELETE_IO_CQ,
    admin::CREATE_IO_CQ,
    admin::DOORBELL_BUFFER_CONFIG,
];

pub(super) use super::io::{MAX_TRANSFER, MDTS};

/// What a controller is, for its life.
pub(crate) struct Personality {
    /// What it says about itself.
    pub(crate) identity: Identity,
    /// What it is for.
    pub(crate) role: Role,
}

/// The two types of controllers.
pub(crate) enum Role {
    /// Manages the card and does no I/O.
    Administrative {
        /// The functions that it manages.
        fleet: Arc<Fleet>,
    },
    /// Does I/O.
    Io {
        /// Attached namespaces, in ascending order of their identifiers.
        namespaces: Vec<Arc<Namespace>>,
        /// I/O queue pairs that it offers.
        queues: u16,
    },
}

impl Personality {
    /// Whether this is the administrative controller.
    pub(crate) fn is_administrative(&self) -> bool {
        matches!(self.role, Role::Administrative { .. })
    }

    /// Attached namespaces.
    pub(crate) fn namespaces(&self) -> &[Arc<Namespace>] {
        match &self.role {
            Role::Administrative { .. } => &[],
            Role::Io { namespaces, .. } => namespaces,
        }
    }

    /// I/O queue pairs that the controller offers.
    pub(crate) fn io_queues(&self) -> u16 {
        match self.role {
            Role::Administrative { .. } => 0,
            Role::Io { queues, .. } => queues,
        }
    }

    /// Opcodes of the admin commands that exist.
    fn commands(&self) -> impl Iterator<Item = u8> {
        let more: &[u8] = if self.is_administrative() {
            &migration::COMMANDS
        } else {
            &IO
        };
        COMMON.iter().chain(more).copied()
    }
}

/// What a command has at hand while it runs.
pub(super) struct Context<'a, 'b> {
    /// The way to guest memory.
    pub(super) bus: &'a Bus<'b>,
    /// Memory page size in bytes, from CC.MPS.
    pub(super) page_size: u64,
    /// The controller's queues.
    pub(super) queues: &'a mut Queues,
    /// Its shadow doorbells.
    pub(super) shadow: &'a mut Option<Shadow>,
    /// Commands that faults hold.
    pub(super) staged: &'a mut Staged,
    /// The fault that waits for the end of the command.
    pub(super) after: Option<Fault>,
}

impl Context<'_, '_> {
    fn rules(&self, to_host: bool) -> Rules {
        // SGLs are for I/O commands.
        Rules {
            page: self.page_size,
            sgl: false,
            to_host,
        }
    }

    /// Sends data to where the command wants it.
    pub(super) fn send(&self, command: &Command, data: &[u8]) -> Result<(), Status> {
        self.send_start(command, data.len() as u64, data)
    }

    /// Sends the start of the `len` bytes that the command asks for, and leaves the rest alone.
    pub(super) fn send_start(
        &self,
        command: &Command,
        len: u64,
        data: &[u8],
    ) -> Result<(), Status> {
        data_pointer::write(command, self.rules(true), len, data, self.bus)
    }

    /// Fills `data` from where the command has it.
    pub(super) fn receive(&self, command: &Command, data: &mut [u8]) -> Result<(), Status> {
        data_pointer::read(command, self.rules(false), data, self.bus)
    }
}

/// What became of a command.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is kept until something happens that may never happen.
    Held,
    /// It is under way and completes later; its completion keeps its place.
    Later,
    /// It is complete.
    Done(Completion),
}

/// What became of a command.
pub(super) enum Answer {
    /// Complete, with dword 0 of the completion.
    Now(u32),
    /// To be completed later.
    Later,
    /// An error that says more than its status.
    Refused { status: Status, dw0: u32, dw1: u32 },
}

/// State behind the admin commands.
pub(super) struct Admin {
    personality: Personality,
    features: Features,
    events: Events,
    errors: ErrorLog,
    /// Only on the administrative controller.
    migration: Option<Migration>,
    /// Delete I/O Submission Queue commands that wait for the queue's last command.
    deletions: Vec<Command>,
}

/// What [`Admin`] takes over from a controller state.
pub(super) struct Prepared {
    features: Features,
    events: Events,
    errors: ErrorLog,
}

impl Admin {
    pub(super) fn new(personality: Personality) -> Self {
        let migration = match &personality.role {
            Role::Administrative { fleet } => Some(Migration::new(Arc::clone(fleet))),
            Role::Io { .. } => None,
        };
        Self {
            personality,
            features: Features::default(),
            events: Events::default(),
            errors: ErrorLog::default(),
            migration,
            deletions: Vec::new(),
        }
    }

    /// What the controller is.
    pub(super) fn personality(&self) -> &Personality {
        &self.personality
    }

    /// Whether written data may stay in a volatile cache until it is flushed.
    pub(super) fn write_cache(&self) -> bool {
        self.features.write_cache()
    }

    /// A Controller Level Reset: features fall back to their defaults, held commands vanish, and the
    /// error log is emptied but for its count, as section 5.1.12.1.2 wants it. The next driver may
    /// be in another virtual machine.
    pub(super) fn reset(&mut self) {
        self.features = Features::default();
        self.events = Events::default();
        self.errors.clear();
        self.deletions.clear();
        if let Some(migration) = &mut self.migration {
            migration.reset();
        }
    }

    /// Whether nothing is under way that [`Admin::next_late`] would complete.
    pub(super) fn is_settled(&self) -> bool {
        self.deletions.is_empty()
    }

    /// What goes into a controller state.
    pub(super) fn save(&self) -> (state::Features, state::Events, state::ErrorLog) {
        let (features, events) = (self.features.save(), self.events.save());
        (features, events, self.errors.save())
    }

    /// Checks what a controller state has, and gives what takes it over.
    pub(super) fn prepare(
        features: &state::Features,
        events: &state::Events,
        errors: &state::ErrorLog,
    ) -> Result<Prepared, Refused> {
        Ok(Prepared {
            features: Features::restore(features)?,
            events: Events::restore(events)?,
            errors: ErrorLog::restore(errors)?,
        })
    }

    /// Takes over what was checked.
    pub(super) fn restore(&mut self, prepared: Prepared) {
        self.features = prepared.features;
        self.events = prepared.events;
        self.errors = prepared.errors;
    }

    /// The next command that was under way and is over.
    pub(super) fn next_late(&mut self, queues: &mut Queues) -> Option<Late> {
        let suspended = self.migration.as_mut().and_then(Migration::next_suspend);
        suspended.or_else(|| self.next_deletion(queues))
    }

    /// The completion of a request that was held for an event.
    pub(super) fn next_event(&mut self) -> Option<Completion> {
        self.events.report()
    }

    /// A completion on its way to the host: notes it when it is an error.
    pub(super) fn conclude(
        &mut self,
        queue: u16,
        command: &Command,
        mut completion: Completion,
    ) -> Completion {
        if !completion.status.is_success() {
            tracing::debug!(
                "queue {queue}, command {:#06x} (opcode {:#04x}): {}",
                command.cid,
                command.opcode,
                completion.status
            );
            completion.status = completion.status.with_more();
            self.errors.record(queue, command, completion.status);
        }
        completion
    }

    /// A doorbell of a queue that does not exist was written.
    pub(super) fn doorbell_of_no_queue(&mut self) {
        self.errors.record_event();
        self.events.raise(Event::INVALID_DOORBELL_REGISTER);
    }

    /// A doorbell was written with a value that is not allowed.
    pub(super) fn invalid_doorbell_value(&mut self) {
        self.errors.record_event();
        self.events.raise(Event::INVALID_DOORBELL_VALUE);
    }

    /// Runs one command.
    pub(super) fn execute(&mut self, command: &Command, context: &mut Context<'_, '_>) -> Outcome {
        if command.opcode == admin::ASYNC_EVENT_REQUEST {
            return match check_common(command).and_then(|()| self.events.hold(command.cid)) {
                Ok(()) => Outcome::Held,
                Err(status) => done(command, status, 0),
            };
        }
        match self.dispatch(command, context) {
            Ok(Answer::Now(dw0)) => done(command, Status::SUCCESS, dw0),
            Ok(Answer::Later) => Outcome::Later,
            Ok(Answer::Refused { status, dw0, dw1 }) => Outcome::Done(Completion {
                dw0,
                dw1,
                status: final_status(status),
                ..completion_for(command)
            }),
            Err(status) => done(command, status, 0),
        }
    }

    fn dispatch(
        &mut self,
        command: &Command,
        context: &mut Context<'_, '_>,
    ) -> Result<Answer, Status> {
        // An unknown opcode is reported before anything else about the command.
        if !self
            .personality
            .commands()
            .any(|known| known == command.opcode)
        {
            return Err(Status::INVALID_COMMAND_OPCODE);
        }
        check_common(command)?;
        let migration = self.migration.as_ref();
        let kept = migration.is_some_and(|migration| migration.holds(command.cid));
        if kept || self.events.holds(command.cid) {
            return Err(Status::COMMAND_ID_CONFLICT);
        }
        let dw0 = match command.opcode {
            admin::IDENTIFY => identify::run(&self.personality, command, context).map(|()| 0),
            admin::GET_LOG_PAGE => self.get_log_page(command, context).map(|()| 0),
            admin::ABORT => self.abort(command, context),
            admin::GET_FEATURES => self.get_features(command, context),
            admin::SET_FEATURES => self.set_features(command, context),
            admin::CREATE_IO_CQ => self.create_completion_queue(command, context).map(|()| 0),
            admin::CREATE_IO_SQ => self.create_submission_queue(command, context).map(|()| 0),
            admin::DELETE_IO_CQ => Self::delete_completion_queue(command, context).map(|()| 0),
            admin::DELETE_IO_SQ => return self.delete_submission_queue(command, context),
            admin::DOORBELL_BUFFER_CONFIG => {
                Self::doorbell_buffer_config(command, context).map(|()| 0)
            }
            _ => {
                return match &mut self.migration {
                    Some(migration) => migration.run(command, context),
                    None => Err(Status::INVALID_COMMAND_OPCODE),
                }
            }
        };
        dw0.map(Answer::Now)
    }

    fn get_features(
        &mut self,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<u32, Status> {
        let dw0 = self.features.get(&self.personality, command)?;
        if command.cdw10 as u8 == feature::HOST_IDENTIFIER {
            context.send(command, self.features.host_identifier(command))?;
        }
        Ok(dw0)
    }

    fn set_features(
        &mut self,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<u32, Status> {
        let has_io_queues = context.queues.highest() > 0;
        let dw0 = self
            .features
            .set(&self.personality, command, has_io_queues)?;
        if command.cdw10 as u8 == feature::HOST_IDENTIFIER {
            let mut identifier = [0; 16];
            let len = features::host_identifier_len(command);
            context.receive(command, &mut identifier[..len])?;
            self.features.set_host_identifier(identifier);
        }
        // Only these two can make it due; after any other it would be reported twice.
        let thermal = matches!(
            command.cdw10 as u8,
            feature::TEMPERATURE_THRESHOLD | feature::ASYNC_EVENT_CONFIGURATION
        );
        if thermal && self.features.temperature_event() {
            self.events.raise(Event::TEMPERATURE_THRESHOLD);
        }
        Ok(dw0)
    }

    /// Abort. What can be aborted is an Asynchronous Event Request, a Suspend whose target is not quiet
    /// yet, and a command that a fault holds; all others are complete, or in the kernel's hands and left alone. Bit 0 of the answer says
    /// "not aborted".
    fn abort(&mut self, command: &Command, context: &mut Context<'_, '_>) -> Result<u32, Status> {
        let queue = command.cdw10 as u16;
        let cid = (command.cdw10 >> 16) as u16;
        if queue > self.personality.io_queues() {
            return Err(Status::INVALID_FIELD);
        }
        // The aborted command completes before the Abort that ended it.
        let aborted = Completion {
            cid,
            status: Status::ABORT_REQUESTED,
            ..Completion::default()
        };
        if let Some(held) = context.staged.abort(queue, cid) {
            let completion = self.conclude(queue, &held.command, aborted);
            context.queues.complete(queue, completion, None);
            return Ok(0);
        }
        if queue != 0 {
            return Ok(1);
        }
        let migration = self.migration.as_mut();
        if let Some(suspend) = migration.and_then(|migration| migration.abort(cid)) {
            let completion = self.conclude(queue, &suspend, aborted);
            context.queues.complete(queue, completion, None);
        } else if self.events.release(cid) {
            context.queues.complete_held(queue, aborted);
        } else {
            return Ok(1);
        }
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
    Outcome::Done(Completion {
        dw0,
        status: final_status(status),
        ..completion_for(command)
    })
}

/// A status as it goes out: with Do Not Retry where the same command would fail again.
pub(super) fn final_status(status: Status) -> Status {
    const PASSING: [Status; 10] = [
        Status::DATA_TRANSFER_ERROR,
        Status::INTERNAL_ERROR,
        Status::ABORT_REQUESTED,
        Status::ASYNC_EVENT_LIMIT_EXCEEDED,
        Status::COMMAND_INTERRUPTED,
        Status::UNRECOVERED_READ_ERROR,
        Status::WRITE_FAULT,
        Status::CONTROLLER_SUSPENDED,
        Status::CONTROLLER_NOT_SUSPENDED,
        Status::NOT_ENOUGH_RESOURCES,
    ];
    if status.is_success() || PASSING.iter().any(|passing| status.is(*passing)) {
        status
    } else {
        status.with_do_not_retry()
    }
}
