// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Running commands: fetched from the queues, through the fault stage, and posted when they are over.
//!
//! A part of the controller: it reads and writes its fields. Queues take turns within a budget, so
//! that neither a queue nor a function keeps the poller to itself. Whether anything is fetched at
//! all is decided in `controller.rs`.

use std::time::{Duration, Instant};

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::nvm::{io as opcode, BlockCommand};
use zeroshift_nvme::status::Status;

use super::{completion_for, Controller};
use crate::faults::{Decision, Fault, Point};
use crate::memory::DmaError;
use crate::nvme::admin::{final_status, Context, Outcome};
use crate::nvme::io::{self, Step, Surroundings};
use crate::nvme::queues::{InvalidDoorbell, BATCH};
use crate::nvme::staged::Then;
use crate::pci::{Bus, Phase};
use crate::poller::Io;

impl Controller {
    pub(super) fn run_admin(&mut self, bus: &mut Bus<'_>) -> Result<bool, DmaError> {
        let mut worked = false;
        let mut entries = [[0; Command::SIZE]];
        while let Some(queues) = &mut self.queues {
            let (Some(Some(submission)), Some(Some(completion))) =
                (queues.submission.first(), queues.completion.first())
            else {
                break;
            };
            // One at a time: a command may change what the next one may do.
            if completion.room() == 0 || submission.peek(1, bus, &mut entries)? == 0 {
                break;
            }
            queues.fetched(0);
            worked = true;
            let command = Command::from_bytes(&entries[0]);
            match decide(true, &command, bus) {
                Decision::Proceed => self.execute_admin(&command, None, bus),
                Decision::After(fault) => self.execute_admin(&command, Some(fault), bus),
                Decision::Before(fault) => self.divert(fault, 0, &command, bus),
            }
        }
        Ok(worked | self.finish_late(bus) | self.report())
    }

    fn execute_admin(&mut self, command: &Command, after: Option<Fault>, bus: &mut Bus<'_>) {
        let Some(queues) = &mut self.queues else {
            return;
        };
        bus.counters().io.admin.count();
        let mut context = Context {
            bus,
            page_size: self.page_size,
            queues,
            shadow: &mut self.shadow,
            staged: &mut self.staged,
            after,
        };
        match self.admin.execute(command, &mut context) {
            Outcome::Held => queues.held(0),
            Outcome::Later => {}
            Outcome::Done(completion) => {
                let completion = self.admin.conclude(0, command, completion);
                if !completion.status.is_success() {
                    bus.counters().io.errors.count();
                }
                self.deliver(0, command, completion, after, bus);
            }
        }
    }

    /// A fault that comes before a command is executed.
    fn divert(&mut self, fault: Fault, queue: u16, command: &Command, bus: &mut Bus<'_>) {
        let now = Instant::now();
        if self.staged.hold(fault, queue, *command, Then::Execute, now) {
            // It needs the poller to go on.
            return bus.call_poller();
        }
        match fault {
            Fault::Status(status) => {
                let completion = Completion {
                    status,
                    ..completion_for(command)
                };
                let completion = self.admin.conclude(queue, command, completion);
                bus.counters().io.errors.count();
                self.deliver(queue, command, completion, None, bus);
            }
            // Never heard of again: nobody waits for it, not even a deletion of its queue.
            Fault::Drop => self.forget(queue),
            Fault::Disconnect => bus.disconnect(),
            Fault::Die(death) => bus.die(death),
            // The others come after a command.
            _ => {}
        }
    }

    fn forget(&mut self, queue: u16) {
        if let Some(queues) = &mut self.queues {
            queues.held(queue);
        }
    }

    /// A command is over: its completion goes to its queue, unless a fault has other plans for it.
    fn deliver(
        &mut self,
        queue: u16,
        command: &Command,
        mut completion: Completion,
        after: Option<Fault>,
        bus: &mut Bus<'_>,
    ) {
        let mut broken = None;
        if let Some(fault) = after {
            let (then, now) = (Then::Complete(completion), Instant::now());
            if self.staged.hold(fault, queue, *command, then, now) {
                return bus.call_poller();
            }
            match fault {
                Fault::Status(status) => completion.status = status,
                Fault::Drop => return self.forget(queue),
                Fault::Disconnect => bus.disconnect(),
                Fault::Die(death) => bus.die(death),
                Fault::CorruptCompletion(field) => broken = Some(field),
                _ => {}
            }
        }
        if let Some(queues) = &mut self.queues {
            queues.complete(queue, completion, broken);
        }
    }

    /// Commands whose time has come go on. What was fetched is finished also by a controller that
    /// fetches nothing any more.
    pub(super) fn unstage(&mut self, bus: &mut Bus<'_>, io: &mut Io<'_>) -> bool {
        let mut worked = false;
        while let Some(held) = self.staged.next(io.now()) {
            worked = true;
            match held.then {
                Then::Execute if held.queue == 0 => self.execute_admin(&held.command, None, bus),
                Then::Execute => self.execute_io(held.queue, &held.command, None, bus, io),
                Then::Complete(completion) => {
                    if let Some(queues) = &mut self.queues {
                        queues.complete(held.queue, completion, None);
                    }
                }
            }
        }
        worked
    }

    /// Hands on the completions of admin commands that were under way and are over.
    pub(super) fn finish_late(&mut self, bus: &mut Bus<'_>) -> bool {
        let mut any = false;
        while let Some(queues) = &mut self.queues {
            let Some(late) = self.admin.next_late(queues) else {
                break;
            };
            let completion = self.admin.conclude(0, &late.command, late.completion);
            self.deliver(0, &late.command, completion, late.after, bus);
            any = true;
        }
        any
    }

    /// Hands on events, as far as they have a place.
    pub(super) fn report(&mut self) -> bool {
        let mut any = false;
        while let Some(queues) = &mut self.queues {
            if queues.completion(0).is_none_or(|queue| queue.room() == 0) {
                break;
            }
            let Some(completion) = self.admin.next_event() else {
                break;
            };
            queues.complete_held(0, completion);
            any = true;
        }
        any
    }

    /// Completes a suspension when everything that was fetched has completed. What has no place in
    /// its completion queue stays with the controller, and travels with its state.
    pub(super) fn settle(&mut self, bus: &mut Bus<'_>) -> bool {
        let Phase::Suspending(number) = self.phase else {
            return false;
        };
        let mut worked = self.finish_late(bus);
        worked |= self.post(bus);
        let over = self.staged.is_empty() && self.requests.are_over();
        if over && self.flushing.is_none() && self.admin.is_settled() {
            self.phase = Phase::Suspended(number);
        }
        worked
    }

    /// Posts all completions that have a place, and interrupts once for each queue.
    pub(super) fn post(&mut self, bus: &mut Bus<'_>) -> bool {
        // What was fetched before a suspend still completes; a dead controller says nothing.
        if self.csts.cfs() || !bus.master() || self.phase.quiet().is_some() {
            return false;
        }
        let mut any = false;
        let mut result = Ok(());
        let queues = self.queues.iter_mut();
        // The admin queue last: what it says of I/O queues is true when it is read.
        for queue in queues.flat_map(|queues| queues.completion.iter_mut().rev().flatten()) {
            if !queue.has_ready() {
                continue;
            }
            match queue.post(bus) {
                Ok(0) => {}
                Ok(_) => {
                    any = true;
                    if queue.interrupts {
                        bus.interrupt(queue.vector);
                    }
                }
                Err(error) => result = Err(error),
            }
        }
        self.check(result);
        any
    }

    /// Fetches and starts I/O commands of every queue, a batch of each.
    pub(super) fn fetch(&mut self, bus: &mut Bus<'_>, io: &mut Io<'_>) -> Result<bool, DmaError> {
        let mut worked = false;
        let Some(queues) = &mut self.queues else {
            return Ok(false);
        };
        if let Some(shadow) = &self.shadow {
            match shadow.read(queues, bus)? {
                Ok(false) => {}
                Ok(true) => shadow.hush(queues, bus)?,
                Err(InvalidDoorbell) => {
                    self.admin.invalid_doorbell_value();
                    worked = true;
                }
            }
        }
        // At most 256.
        let count = queues.submission.len() as u16 - 1;
        let first = self.next_queue;
        let mut budget = Budget::default();
        for id in (first..=count).chain(1..first.min(count + 1)) {
            let Some(queues) = &mut self.queues else {
                break;
            };
            let Some(submission) = queues.submission[usize::from(id)].as_ref() else {
                continue;
            };
            if submission.waiting() == 0 {
                continue;
            }
            // Before the next turn is given away: who gets nothing now is the first in the next pass.
            if budget.is_spent() || self.requests.room() == 0 {
                break;
            }
            let completion = queues.completion.get(usize::from(submission.completion));
            let room = completion
                .and_then(Option::as_ref)
                .map_or(0, |queue| queue.room());
            let max = room.min(self.requests.room()).min(budget.commands);
            let mut entries = [[0; Command::SIZE]; BATCH];
            let count = submission.peek(max, bus, &mut entries)?;
            for entry in &entries[..count as usize] {
                if budget.is_spent() || self.limiter.wait(io.now()).is_some() {
                    return Ok(worked);
                }
                if let Some(queues) = &mut self.queues {
                    queues.fetched(id);
                }
                worked = true;
                // The queue behind this one has the next turn.
                self.next_queue = id % self.queue_count() + 1;
                let command = Command::from_bytes(entry);
                budget.spend(&command);
                match decide(false, &command, bus) {
                    Decision::Proceed => self.execute_io(id, &command, None, bus, io),
                    Decision::After(fault) => self.execute_io(id, &command, Some(fault), bus, io),
                    Decision::Before(fault) => self.divert(fault, id, &command, bus),
                }
            }
        }
        Ok(worked)
    }

    /// I/O queue pairs that may exist, at least one.
    fn queue_count(&self) -> u16 {
        self.admin.personality().io_queues().max(1)
    }

    /// When commands that the rate limit keeps back may be fetched.
    pub(super) fn limited_until(&self, now: Instant) -> Option<Instant> {
        let mut submission = self.queues.as_ref()?.submission.iter().skip(1).flatten();
        let waiting = submission.any(|queue| queue.waiting() > 0);
        waiting.then(|| self.limiter.wait(now)).flatten()
    }

    pub(super) fn execute_io(
        &mut self,
        queue: u16,
        command: &Command,
        after: Option<Fault>,
        bus: &mut Bus<'_>,
        io: &mut Io<'_>,
    ) {
        let Some(slot) = self.requests.take() else {
            // Only a command that was held back meets this: there are as many slots as commands
            // are fetched for.
            let soon = Fault::Delay(Duration::from_micros(100));
            self.staged
                .hold(soon, queue, *command, Then::Execute, io.now());
            return;
        };
        let Some(request) = self.requests.get(slot) else {
            return;
        };
        request.begin(queue, *command, after, io.now());
        let around = Surroundings {
            namespaces: self.admin.personality().namespaces(),
            page_size: self.page_size,
            durable: !self.admin.write_cache(),
            bus,
        };
        let step = io::start(request, slot, &around, io);
        self.limiter.charge(request.transfer_bytes(), io.now());
        match step {
            Step::InFlight => self.requests.entered_kernel(slot),
            // Fetched in this pass: its own time would make every latency zero.
            Step::Done(status) => self.conclude(slot, status, Instant::now(), bus),
        }
    }

    /// An I/O command is over.
    pub(super) fn conclude(&mut self, slot: u32, status: Status, now: Instant, bus: &mut Bus<'_>) {
        let Some(request) = self.requests.get(slot) else {
            return;
        };
        let counters = &bus.counters().io;
        let (command, queue, after) = (request.command, request.queue, request.after);
        let mut completion = completion_for(&command);
        match command.opcode {
            opcode::READ => counters.reads.count(),
            opcode::WRITE => counters.writes.count(),
            _ => counters.others.count(),
        }
        if status.is_success() {
            match command.opcode {
                opcode::READ => counters.bytes_read.add(request.transfer_bytes()),
                opcode::WRITE => counters.bytes_written.add(request.transfer_bytes()),
                _ => {}
            }
        } else {
            counters.errors.count();
            completion.status = final_status(status);
            completion = self.admin.conclude(queue, &command, completion);
        }
        let latency = now.saturating_duration_since(request.fetched);
        counters.latency.record(latency);
        self.requests.give_back(slot);
        self.deliver(queue, &command, completion, after, bus);
    }
}

/// What one pass may start, so that no function and no queue keeps the poller to itself.
struct Budget {
    commands: u32,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            commands: 64,
            bytes: 2 << 20,
        }
    }
}

impl Budget {
    fn spend(&mut self, command: &Command) {
        self.commands = self.commands.saturating_sub(1);
        // The largest block; what matters is the order of magnitude.
        let blocks = BlockCommand::from_command(command).blocks;
        self.bytes = self.bytes.saturating_sub(u64::from(blocks) << 12);
    }

    fn is_spent(&self) -> bool {
        self.commands == 0 || self.bytes == 0
    }
}

/// What the fault stage says about a command.
fn decide(admin: bool, command: &Command, bus: &Bus<'_>) -> Decision {
    if bus.stage().is_idle() {
        return Decision::Proceed;
    }
    bus.stage().decide(&Point {
        admin,
        opcode: command.opcode,
        cdw10: command.cdw10,
    })
}
