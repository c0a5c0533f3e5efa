// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands that a fault holds back: before they are executed, or before their completion shows.
//!
//! Owned by the controller; empty unless a rule says otherwise. A held command counts as outstanding
//! on its queue, so it has its place in the completion queue, keeps its queue from being deleted and
//! its controller from becoming quiet.

use std::time::Instant;

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::Completion;

use crate::faults::Fault;

/// What is to happen when the time has come.
#[derive(Debug)]
pub(super) enum Then {
    /// The command is executed.
    Execute,
    /// Its completion is handed on.
    Complete(Completion),
}

#[derive(Debug)]
pub(super) struct Held {
    /// `None`: when somebody releases it.
    due: Option<Instant>,
    /// The submission queue.
    pub(super) queue: u16,
    pub(super) command: Command,
    pub(super) then: Then,
}

/// The commands that are held.
#[derive(Default)]
pub(super) struct Staged(Vec<Held>);

impl Staged {
    /// Holds a command as a fault says, from `now` on. Other faults hold nothing: the command is
    /// given back.
    pub(super) fn hold(
        &mut self,
        fault: Fault,
        queue: u16,
        command: Command,
        then: Then,
        now: Instant,
    ) -> bool {
        let due = match fault {
            Fault::Delay(time) => Some(now + time),
            Fault::Stall => None,
            _ => return false,
        };
        self.0.push(Held {
            due,
            queue,
            command,
            then,
        });
        true
    }

    /// Takes out a command whose time has come.
    pub(super) fn next(&mut self, now: Instant) -> Option<Held> {
        let due = |held: &Held| held.due.is_some_and(|due| due <= now);
        let at = self.0.iter().position(due)?;
        Some(self.0.remove(at))
    }

    /// Takes out a command by its queue and identifier.
    pub(super) fn abort(&mut self, queue: u16, cid: u16) -> Option<Held> {
        let is = |held: &Held| held.queue == queue && held.command.cid == cid;
        let at = self.0.iter().position(is)?;
        Some(self.0.remove(at))
    }

    /// Takes out a command of a queue.
    pub(super) fn take(&mut self, queue: u16) -> Option<Held> {
        let at = self.0.iter().position(|held| held.queue == queue)?;
        Some(self.0.remove(at))
    }

    /// Lets stalled commands go on now. Says how many there were.
    pub(super) fn release(&mut self, now: Instant) -> u64 {
        let stalled = self.0.iter_mut().filter(|held| held.due.is_none());
        stalled.map(|held| held.due = Some(now)).count() as u64
    }

    /// Commands that wait for a release.
    pub(super) fn stalled(&self) -> u64 {
        self.0.iter().filter(|held| held.due.is_none()).count() as u64
    }

    /// When the next command is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.iter().filter_map(|held| held.due).min()
    }

    /// Nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
