// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Suspend and Resume of another controller (NVMe Base 2.1, section 5.1.17.1).
//!
//! A Suspend completes when its target is quiet: what was fetched has completed and nothing touches
//! guest memory any more. Until then it is kept here, as are Suspends of other targets; the target's
//! function calls this one when its phase changes. Resume marks nothing in a dirty log.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::status::Status;

use super::{Late, Migration};
use crate::faults::Fault;
use crate::nvme::admin::{Answer, Context};
use crate::pci::Phase;

/// A Suspend that waits for its target.
pub(super) struct Pending {
    command: Command,
    target: usize,
    /// The suspension that it began, or found under way.
    number: u64,
    after: Option<Fault>,
}

impl Migration {
    /// Suspend.
    pub(super) fn suspend(
        &mut self,
        target: usize,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<Answer, Status> {
        let (id, function) = &self.fleet.functions[target];
        let mut state = function.lock();
        let phase = function.with_kind(&mut state, |kind, bus| {
            kind.migratable()?.suspend(bus);
            Some(kind.phase())
        });
        drop(state);
        match phase {
            Some(Phase::Suspended(_)) => Ok(Answer::Now(0)),
            Some(Phase::Suspending(number)) => {
                tracing::debug!("controller {id}: suspended when it has finished its commands");
                self.suspends.push(Pending {
                    command: *command,
                    target,
                    number,
                    after: context.after,
                });
                Ok(Answer::Later)
            }
            // Not a kind that can be suspended.
            _ => Err(Status::INVALID_CONTROLLER_IDENTIFIER),
        }
    }

    /// Resume.
    pub(super) fn resume(&mut self, target: usize) -> Result<Answer, Status> {
        let function = &self.fleet.functions[target].1;
        let mut state = function.lock();
        let phase = state.kind.phase();
        if phase.is_running() {
            return Err(Status::CONTROLLER_NOT_SUSPENDED);
        }
        if self.sessions[target].receiving(phase) {
            return Err(Status::COMMAND_SEQUENCE_ERROR);
        }
        function.with_kind(&mut state, |kind, bus| {
            if let Some(kind) = kind.migratable() {
                kind.go_on(bus);
            }
        });
        self.sessions[target] = Default::default();
        Ok(Answer::Now(0))
    }

    /// The next Suspend that is over: its target is quiet, or the suspension was ended by a reset of
    /// the target or by Resume, which the host learns as an interrupted command.
    pub(crate) fn next_suspend(&mut self) -> Option<Late> {
        let functions = &self.fleet.functions;
        let phase = |pending: &Pending| functions[pending.target].1.lock().kind.phase();
        let over = |pending: &Pending| phase(pending) != Phase::Suspending(pending.number);
        let at = self.suspends.iter().position(over)?;
        let pending = self.suspends.remove(at);
        let status = if phase(&pending) == Phase::Suspended(pending.number) {
            Status::SUCCESS
        } else {
            Status::COMMAND_INTERRUPTED
        };
        Some(Late {
            command: pending.command,
            completion: Completion {
                cid: pending.command.cid,
                status,
                ..Completion::default()
            },
            after: pending.after,
        })
    }

    /// Whether a command with this identifier is kept.
    pub(crate) fn holds(&self, cid: u16) -> bool {
        self.suspends
            .iter()
            .any(|pending| pending.command.cid == cid)
    }

    /// Takes back a Suspend that is kept. Its target goes on, unless another one waits for it too: a
    /// host that aborts cannot know how far it came, so it must not be left half suspended.
    pub(crate) fn abort(&mut self, cid: u16) -> Option<Command> {
        let is = |pending: &Pending| pending.command.cid == cid;
        let at = self.suspends.iter().position(is)?;
        let Pending {
            command,
            target,
            number,
            ..
        } = self.suspends.remove(at);
        let others = self.suspends.iter();
        if others.filter(|pending| pending.target == target).count() == 0 {
            let function = &self.fleet.functions[target].1;
            let mut state = function.lock();
            function.with_kind(&mut state, |kind, bus| {
                let same = matches!(
                    kind.phase(),
                    Phase::Suspending(now) | Phase::Suspended(now) if now == number
                );
                if let Some(kind) = kind.migratable().filter(|_| same) {
                    kind.go_on(bus);
                }
            });
        }
        Some(command)
    }
}
