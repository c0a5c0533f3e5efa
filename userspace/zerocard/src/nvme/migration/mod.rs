// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Host Managed Live Migration: Track Send and Receive, Migration Send and Receive (NVMe Base 2.1,
//! sections 5.1.16, 5.1.17, 5.1.26, 5.1.27 and 8.1.12).
//!
//! Owned by the admin command set of the administrative controller. It reaches the other functions
//! of the card through their locks, one at a time, while its own function is locked; what they are
//! is their business ([`crate::pci::Migratable`]). What it remembers of a target is tied to the
//! number of a suspension, so a target that is reset meanwhile takes nothing over from before.
//!
//! Controller Data Queues do not exist (TRATTR.TUDCS is 0), and are refused.

mod limits;
pub(super) mod state;
mod suspend;
#[cfg(test)]
mod tests;
mod track;
mod transfer;

use std::sync::Arc;

use zeroshift_nvme::command::{admin, Command};
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::hmlm::formats;
use zeroshift_nvme::hmlm::migration::{GetState, MigrationSend, SuspendType};
use zeroshift_nvme::hmlm::track_receive::TrackReceive;
use zeroshift_nvme::hmlm::track_send::TrackSend;
use zeroshift_nvme::identify::SIZE;
use zeroshift_nvme::status::Status;

use super::admin::{Answer, Context};
use super::namespace::Namespace;
use crate::faults::Fault;
use crate::pci::Function;
pub(crate) use limits::{Granules, Limits, DEFAULT_RANGES};
use suspend::Pending;
use transfer::Session;

/// Opcodes that the administrative controller has for migration.
pub(super) const COMMANDS: [u8; 4] = [
    admin::TRACK_SEND,
    admin::TRACK_RECEIVE,
    admin::MIGRATION_SEND,
    admin::MIGRATION_RECEIVE,
];

/// Versions of the NVMe Controller State, in the order of CSVI.
const VERSIONS: [u16; 1] = [0];

/// The functions that the administrative controller manages.
#[derive(Default)]
pub(crate) struct Fleet {
    /// Controller identifiers and functions, without the administrative controller itself.
    pub(crate) functions: Vec<(u16, Arc<Function>)>,
    /// All namespaces of the card, by ascending identifiers.
    pub(crate) namespaces: Vec<Allocated>,
    /// What tracking may cost.
    pub(crate) limits: Arc<Limits>,
}

/// A namespace of the card, attached or not.
pub(crate) struct Allocated {
    pub(crate) namespace: Arc<Namespace>,
    /// Controllers that it is attached to, in ascending order.
    pub(crate) controllers: Vec<u16>,
}

/// A command that completes by itself, later.
pub(crate) struct Late {
    pub(crate) command: Command,
    pub(crate) completion: Completion,
    /// The fault that waits for its completion.
    pub(crate) after: Option<Fault>,
}

/// Writes the Supported Controller State Formats (Identify CNS 20h).
pub(super) fn describe_formats(page: &mut [u8; SIZE]) {
    // One of each fits.
    let _ = formats::encode(page, &VERSIONS, &[state::FORMAT_UUID]);
}

/// State behind the migration commands.
pub(crate) struct Migration {
    fleet: Arc<Fleet>,
    /// One for each function of the fleet.
    sessions: Vec<Session>,
    /// Suspends whose target is not quiet yet.
    suspends: Vec<Pending>,
}

impl Migration {
    pub(super) fn new(fleet: Arc<Fleet>) -> Self {
        let mut sessions = Vec::new();
        sessions.resize_with(fleet.functions.len(), Session::default);
        Self {
            fleet,
            sessions,
            suspends: Vec::new(),
        }
    }

    /// Runs a command, whose opcode is one of [`COMMANDS`].
    pub(super) fn run(
        &mut self,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<Answer, Status> {
        match command.opcode {
            admin::TRACK_SEND => match TrackSend::from_command(command)? {
                // There are no such queues.
                TrackSend::LogUserData { .. } => Err(Status::INVALID_CONTROLLER_DATA_QUEUE),
                TrackSend::TrackMemory { controller, start } if start => {
                    self.start_tracking(self.target(controller)?, command, context)
                }
                TrackSend::TrackMemory { controller, .. } => {
                    self.stop_tracking(self.target(controller)?)
                }
            },
            admin::TRACK_RECEIVE => {
                let receive = TrackReceive::from_command(command)?;
                self.report_tracked(self.target(receive.controller)?, receive, command, context)
            }
            admin::MIGRATION_SEND => match MigrationSend::from_command(command)? {
                MigrationSend::Suspend {
                    controller, kind, ..
                } => {
                    let target = self.target(controller)?;
                    match kind {
                        // Nothing has to be prepared.
                        SuspendType::Notification => Ok(Answer::Now(0)),
                        SuspendType::Suspend => self.suspend(target, command, context),
                    }
                }
                MigrationSend::Resume { controller } => self.resume(self.target(controller)?),
                MigrationSend::SetState(set) => {
                    self.set_state(self.target(set.controller)?, set, command, context)
                }
            },
            admin::MIGRATION_RECEIVE => {
                let get = GetState::from_command(command)?;
                self.get_state(self.target(get.controller)?, get, command, context)
            }
            _ => Err(Status::INVALID_COMMAND_OPCODE),
        }
    }

    /// The index of a function that is managed, and does not manage.
    fn target(&self, controller: u16) -> Result<usize, Status> {
        let mut functions = self.fleet.functions.iter();
        functions
            .position(|(id, _)| *id == controller)
            .ok_or(Status::INVALID_CONTROLLER_IDENTIFIER)
    }

    /// A Controller Level Reset of the administrative controller: it ends every suspension and every
    /// log.
    pub(super) fn reset(&mut self) {
        self.suspends.clear();
        self.sessions.fill_with(Session::default);
        for (id, function) in &self.fleet.functions {
            let mut state = function.lock();
            if state.memory.log().is_some() {
                tracing::debug!("controller {id}: its log ends with a reset of its manager");
                state.memory.set_log(None);
            }
            function.with_kind(&mut state, |kind, bus| {
                if let Some(kind) = kind.migratable() {
                    kind.go_on(bus);
                }
            });
        }
    }
}
