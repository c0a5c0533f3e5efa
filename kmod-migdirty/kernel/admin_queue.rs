// SPDX-License-Identifier: GPL-2.0-only

//! The admin queue of one controller: many commands in flight, each with a waiter and a deadline.
//!
//! A waiter takes a slot, which brings a buffer of DMA memory and a completion, both of which belong
//! to the queue and not to the waiter: whatever a card does and however late, it can only ever
//! reach memory that stays until unbind. The interrupt handler takes completions in, checks each
//! against what is in flight, and wakes.
//!
//! A command for a function that misses its deadline is aborted, because one function that hangs is
//! no reason to give up the others: as long as the card answers the Abort it lives. When the command
//! does not end even then, its slot is given up until the card completes it. What it does until then
//! nobody knows, so its sender learns which one it is ([`Unanswered::Abandoned`]) and can ask whether
//! the card still has it.
//!
//! A card that does not answer a question or an Abort in time, keeps too many slots, answers nonsense
//! or lost its queue is dead: its bus master is cleared, every waiter gets an error, later commands
//! are refused at once, the log says so once, and whoever relies on it is told (`Obituary`). It is
//! not reset then: a reset of an administrative controller ends the suspension of every function
//! that it manages, which is for unbind to do when nobody relies on them.
//!
//! # Locks
//!
//! `state` and `aborting` (see `module.rs`). Slots change hands under `state`; the buffer and the
//! completion of a slot belong to whoever has the slot. Waiters for a free slot sleep on
//! `slot_freed`. One command is aborted at a time: a card may allow no more (ACL).

use crate::{
    card::command_timeout_ms,
    cause::Cause,
    common::{
        irq_lock::{new_irq_spinlock, IrqSpinLock, IrqSpinLockBackend},
        pci_driver::clear_master,
        wait::Completion as Waiter,
    },
    controller::{self, Capabilities, QueueAddresses, REGISTERS},
    logic::{
        ring::{CompletionRing, SubmissionRing},
        slots::{CommandId, SlotTable},
        startup::Failure,
    },
    nvme::{
        command::Command,
        completion::Completion,
        registers::{self, Csts, Version},
        status::Status,
    },
    obituary::Obituary,
    queue_memory::Memory,
};
use kernel::{
    device::{self, Bound},
    devres::Devres,
    fmt,
    io::Io,
    irq::IrqReturn,
    pci,
    prelude::*,
    sync::{aref::ARef, lock::Guard, new_condvar, new_mutex, Arc, CondVar, Mutex},
    time::msecs_to_jiffies,
};

/// Commands that can be in flight: 32, and an Abort.
const SLOTS: usize = 33;

/// Slots that only an Abort may take: when all others hang, it has to get through.
const RESERVED: usize = 1;

/// How many commands may be with the card that nobody waits for any more.
const MAX_ABANDONED: usize = 8;

/// How long a command may take to end after it was aborted, in milliseconds.
const GRACE_MS: u32 = 1000;

/// Entries of each queue. More than `SLOTS`, so that neither queue can fill up; the submission
/// queue is just a page then.
const DEPTH: u16 = 64;

/// How often a waiter looks whether there still is a card, in milliseconds.
const CHECK_MS: u32 = 1000;

/// How a command ended that the card completed.
#[derive(Clone, Copy)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    /// Command specific.
    pub(crate) dw0: u32,
    /// Command specific.
    pub(crate) dw1: u32,
}

/// What a command transfers, at most [`crate::queue_memory::BUFFER`] bytes.
#[derive(Clone, Copy)]
pub(crate) enum Data<'a> {
    Nothing,
    /// To the card.
    Send(&'a [u8]),
    /// From the card, so many bytes.
    Receive(usize),
}

/// How a command is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// A question about the card: a signal may come before it has a slot, and a card that does not
    /// answer in time is dead.
    Ask,
    /// Something for a function: no signal, and it is aborted when its time is over.
    Operate,
    /// An Abort.
    Abort,
}

/// Why a command ended that the card did not complete.
#[derive(Clone, Copy)]
enum Lost {
    /// The card died.
    Dead,
    /// The card was unbound.
    Stopped,
}

/// Why there is no answer to a command.
#[derive(Clone, Copy)]
pub(crate) enum Unanswered {
    /// The card is or was declared dead, was unbound, or a signal came.
    Error(Error),
    /// It missed its deadline, its Abort did not end it either, and the card still has it.
    Abandoned(CommandId),
}

impl From<Error> for Unanswered {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Lost> for Unanswered {
    fn from(lost: Lost) -> Self {
        Self::Error(lost.into())
    }
}

impl From<Unanswered> for Error {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Error(error) => error,
            Unanswered::Abandoned(_) => ETIMEDOUT,
        }
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Dead => EIO,
            Lost::Stopped => ENODEV,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Live,
    Dead,
    Stopped,
}

struct State {
    life: Life,
    slots: SlotTable<Result<Reply, Lost>, SLOTS>,
    submission: SubmissionRing,
    completion: CompletionRing,
    counters: Counters,
    /// The command and the error status that the log said last.
    reported: Option<(&'static str, Status)>,
}

type StateGuard<'a> = Guard<'a, State, IrqSpinLockBackend>;

/// Since probe; they wrap.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    /// Commands that the card completed.
    pub(crate) commands: u64,
    /// Of these, with an error status, plus those that timed out.
    pub(crate) failures: u64,
    /// Interrupts taken.
    pub(crate) interrupts: u64,
}

/// The admin queue of a controller.
#[pin_data]
pub(crate) struct AdminQueue {
    /// For messages, and to clear bus master; bound as long as `state.life` is `Live`.
    pdev: ARef<pci::Device>,
    capabilities: Capabilities,
    submission_doorbell: usize,
    completion_doorbell: usize,
    bar: Devres<pci::Bar<'static, REGISTERS>>,
    memory: Devres<Memory>,
    obituary: Arc<Obituary>,
    #[pin]
    aborting: Mutex<()>,
    #[pin]
    state: IrqSpinLock<State>,
    #[pin]
    slot_freed: CondVar,
    /// One per slot.
    #[pin]
    waiters: [Waiter; SLOTS],
}

impl AdminQueue {
    /// Allocates the queue of a controller that is disabled.
    pub(crate) fn new(
        pdev: &pci::Device<Bound>,
        bar: pci::Bar<'_, REGISTERS>,
        capabilities: Capabilities,
        obituary: Arc<Obituary>,
    ) -> Result<Arc<Self>> {
        let stride = capabilities.doorbell_stride;
        let normal: &pci::Device = pdev;
        // The memory first: what is registered later is released earlier.
        let memory = Devres::new(pdev.as_ref(), Memory::new(pdev.as_ref(), SLOTS, DEPTH)?)?;
        let bar = bar.into_devres()?;
        Arc::pin_init(
            pin_init!(Self {
                pdev: normal.into(),
                capabilities,
                submission_doorbell: registers::submission_tail_doorbell(0, stride),
                completion_doorbell: registers::completion_head_doorbell(0, stride),
                bar,
                memory,
                obituary,
                aborting <- new_mutex!((), "AdminQueue::aborting"),
                state <- new_irq_spinlock!(
                    State {
                        life: Life::Live,
                        slots: SlotTable::new(),
                        submission: SubmissionRing::new(DEPTH),
                        completion: CompletionRing::new(DEPTH),
                        counters: Counters::default(),
                        reported: None,
                    },
                    "AdminQueue::state"
                ),
                slot_freed <- new_condvar!("AdminQueue::slot_freed"),
                waiters <- pin_init::pin_init_array_from_fn(|_| Waiter::new()),
            }),
            GFP_KERNEL,
        )
    }

    /// Resets the controller and starts it with this queue. Only by probe, once.
    pub(crate) fn start(&self, pdev: &pci::Device<Bound>) -> Result<(), Failure> {
        let (Ok(bar), Ok(memory)) = (
            self.bar.access(pdev.as_ref()),
            self.memory.access(pdev.as_ref()),
        ) else {
            return Err(Failure::Gone);
        };
        controller::enable(
            bar,
            &self.capabilities,
            QueueAddresses {
                submission: memory.submission_address(),
                completion: memory.completion_address(),
                depth: DEPTH,
            },
        )
    }

    /// Refuses commands from now on, and ends those under way with `ENODEV`. Once; later calls do
    /// nothing and return `false`. The controller goes on; [`Self::halt`] is next.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.state.lock();
        if state.life == Life::Stopped {
            return false;
        }
        state.life = Life::Stopped;
        self.end_all(&mut state, Lost::Stopped);
        drop(state);
        self.slot_freed.notify_all();
        true
    }

    /// Disables the controller and clears bus master, so that nothing touches the DMA memory any
    /// more. After [`Self::close`], and after those who rely on the card were told: this ends every
    /// suspension.
    pub(crate) fn halt(&self, pdev: &pci::Device<Bound>) {
        if let Ok(bar) = self.bar.access(pdev.as_ref()) {
            match controller::disable(bar, &self.capabilities) {
                // A card that is gone has nothing that could be left running.
                Ok(()) | Err(Failure::Gone) => {}
                Err(_) => dev_warn!(
                    pdev,
                    "controller did not stop in {} ms; its access to memory is cut off, reset it \
                     before it is used again\n",
                    self.capabilities.ready_limit_ms,
                ),
            }
        }
        clear_master(pdev);
    }

    /// Whether commands can be sent, as far as is known.
    pub(crate) fn is_live(&self) -> bool {
        self.state.lock().life == Life::Live
    }

    /// The kernel says that there is no use for the controller any more: it is dead from now on.
    pub(crate) fn give_up(&self, cause: Cause) {
        self.die(self.state.lock(), cause);
    }

    /// Sends `command` and waits for its end; its command identifier and data pointer are filled
    /// in here.
    ///
    /// An error status is an answer like any other. `EIO` when the card is or is declared dead,
    /// `ENODEV` when it was unbound, `ERESTARTSYS` when a signal came before a slot was free. Sleeps.
    pub(crate) fn execute(
        &self,
        command: Command,
        data: Data<'_>,
        manner: Manner,
        limit_ms: u32,
    ) -> Result<Answer<'_>, Unanswered> {
        let claim = self.claim(manner)?;
        self.submit(claim.id, command, data)?;
        let opcode = command.opcode;
        let reply = match self.wait(&claim, opcode, limit_ms, manner)? {
            Some(reply) => reply,
            None => self.abort(&claim, opcode, limit_ms)?,
        };
        Ok(Answer { claim, reply })
    }

    /// Waits for a free slot and takes it.
    fn claim(&self, manner: Manner) -> Result<Claim<'_>> {
        let reserved = match manner {
            Manner::Ask | Manner::Operate => RESERVED,
            Manner::Abort => 0,
        };
        let mut state = self.state.lock();
        loop {
            match state.life {
                Life::Live => {}
                Life::Dead => return Err(Lost::Dead.into()),
                Life::Stopped => return Err(Lost::Stopped.into()),
            }
            if let Some(id) = state.slots.claim(reserved) {
                let waiter = self.waiters.get(id.index()).ok_or(EIO)?;
                // Under the lock: from here on the command may be ended, which must not be undone.
                waiter.reinit();
                return Ok(Claim {
                    queue: self,
                    id,
                    waiter,
                });
            }
            if manner != Manner::Ask {
                self.slot_freed.wait(&mut state);
            } else if self.slot_freed.wait_interruptible(&mut state) {
                return Err(ERESTARTSYS);
            }
        }
    }

    /// Gives the command of a claimed slot to the card. When the slot was ended meanwhile it does
    /// not go, and the waiter will see how it ended.
    fn submit(&self, id: CommandId, mut command: Command, data: Data<'_>) -> Result {
        let memory = self.memory.try_access().ok_or(ENODEV)?;
        let bar = self.bar.try_access().ok_or(ENODEV)?;
        command.cid = id.raw();
        (command.prp1, command.prp2) = match data {
            Data::Nothing => (0, 0),
            Data::Send(bytes) => memory.prepare(id.index(), bytes, bytes.len())?,
            // The card need not write all of it, and what it held before is not for this waiter to
            // see.
            Data::Receive(length) => memory.prepare(id.index(), &[], length)?,
        };
        let entry = command.to_bytes();

        let mut state = self.state.lock();
        if !state.slots.launch(id) {
            return Ok(());
        }
        let Some(index) = state.submission.push() else {
            self.die(state, Cause::QueueFull);
            return Ok(());
        };
        let tail = u32::from(state.submission.tail());
        let write = || -> Result {
            memory.write_submission(index, entry)?;
            // The doorbell is ordered behind the entry.
            bar.try_write32(tail, self.submission_doorbell)
        };
        if write().is_err() {
            self.die(state, Cause::Unreachable);
        }
        Ok(())
    }

    /// Waits until the command in the slot has ended, one way or the other. `None` when the time of
    /// one that may be aborted is over.
    fn wait(
        &self,
        claim: &Claim<'_>,
        opcode: u8,
        limit_ms: u32,
        manner: Manner,
    ) -> Result<Option<Reply>> {
        let mut left_ms = limit_ms;
        loop {
            let part_ms = left_ms.min(CHECK_MS);
            let woken = claim.waiter.wait_timeout(msecs_to_jiffies(part_ms));
            let mut state = self.state.lock();
            if let Some(outcome) = state.slots.outcome(claim.id) {
                return Ok(Some(outcome?));
            }
            if woken {
                // Whoever wakes has recorded an outcome under the lock before.
                return Err(EIO);
            }
            drop(state);
            left_ms = left_ms.saturating_sub(part_ms);
            let late = left_ms == 0;
            self.check(
                claim.id,
                opcode,
                limit_ms,
                late && manner != Manner::Operate,
            );
            if late && manner == Manner::Operate {
                // What the check may have found wrong has ended it.
                let mut state = self.state.lock();
                return Ok(match state.slots.outcome(claim.id) {
                    Some(outcome) => Some(outcome?),
                    None => None,
                });
            }
        }
    }

    /// Aborts a command whose time is over, and gives it up when it does not end even so.
    fn abort(&self, claim: &Claim<'_>, opcode: u8, limit_ms: u32) -> Result<Reply, Unanswered> {
        let one_at_a_time = self.aborting.lock();
        {
            let mut state = self.state.lock();
            state.counters.failures = state.counters.failures.wrapping_add(1);
        }
        dev_warn!(
            self.pdev,
            "no answer to admin command {:#04x} in {} ms: aborting it\n",
            opcode,
            limit_ms,
        );
        // Its status, and whether it says that the command was aborted, do not matter: what became
        // of the command its own completion tells.
        let command = Command::abort(0, claim.id.raw());
        // Who had little time left does not make the card hurry: it dies when this is late.
        let patience_ms = limit_ms.max(command_timeout_ms());
        drop(self.execute(command, Data::Nothing, Manner::Abort, patience_ms)?);
        drop(one_at_a_time);

        let grace_ms = patience_ms.min(GRACE_MS);
        if let Some(reply) = self.wait(claim, opcode, grace_ms, Manner::Operate)? {
            return Ok(reply);
        }
        let mut state = self.state.lock();
        if !state.slots.abandon(claim.id) {
            let outcome = state.slots.outcome(claim.id).ok_or(EIO)?;
            return Ok(outcome?);
        }
        if state.slots.abandoned() > MAX_ABANDONED {
            self.die(
                state,
                Cause::Deadline {
                    opcode,
                    limit_ms,
                    posted: false,
                },
            );
        }
        Err(Unanswered::Abandoned(claim.id))
    }

    /// Whether the card still has a command that was abandoned.
    pub(crate) fn is_abandoned(&self, id: CommandId) -> bool {
        self.state.lock().slots.is_abandoned(id)
    }

    /// Looks whether the card is still there, and declares it dead if not.
    pub(crate) fn look(&self) {
        // No access means that unbind is under way.
        let Some(bar) = self.bar.try_access() else {
            return;
        };
        if let Some(cause) = judge(controller::status(&bar)) {
            // Does nothing to one that is not live.
            self.die(self.state.lock(), cause);
        }
    }

    /// Looks whether the card is still there and in time, and declares it dead if not. Afterwards
    /// the command has ended if `late`.
    fn check(&self, id: CommandId, opcode: u8, limit_ms: u32, late: bool) {
        // No access means that unbind is under way, which has ended the command.
        let (Some(bar), Some(memory)) = (self.bar.try_access(), self.memory.try_access()) else {
            return;
        };
        let found = judge(controller::status(&bar));
        if found.is_none() && !late {
            return;
        }
        let mut state = self.state.lock();
        if state.life != Life::Live || state.slots.outcome(id).is_some() {
            return;
        }
        let cause = found.unwrap_or_else(|| {
            state.counters.failures = state.counters.failures.wrapping_add(1);
            Cause::Deadline {
                opcode,
                limit_ms,
                posted: matches!(Self::peek(&memory, &state.completion), Ok(Some(_))),
            }
        });
        self.die(state, cause);
    }

    /// Takes completions in. In interrupt context, so short: at most one turn per command in
    /// flight, since a completion that belongs to none ends it.
    pub(crate) fn interrupt(&self, dev: &device::Device<Bound>) -> IrqReturn {
        let (Ok(bar), Ok(memory)) = (self.bar.access(dev), self.memory.access(dev)) else {
            return IrqReturn::None;
        };
        let mut state = self.state.lock();
        state.counters.interrupts = state.counters.interrupts.wrapping_add(1);
        if state.life != Life::Live {
            // Sent before bus master was cleared.
            return IrqReturn::Handled;
        }
        let mut taken = false;
        let trouble = loop {
            match self.take_one(memory, &mut state) {
                Ok(true) => taken = true,
                Ok(false) => break None,
                Err(cause) => break Some(cause),
            }
        };
        let head = u32::from(state.completion.head());
        let told = !taken || bar.try_write32(head, self.completion_doorbell).is_ok();
        match trouble.or((!told).then_some(Cause::Unreachable)) {
            Some(cause) => {
                self.die(state, cause);
                IrqReturn::Handled
            }
            None if taken => IrqReturn::Handled,
            None => IrqReturn::None,
        }
    }

    /// Takes the completion at the head in, if there is a new one.
    fn take_one(&self, memory: &Memory, state: &mut State) -> Result<bool, Cause> {
        let Some(entry) = Self::peek(memory, &state.completion)? else {
            return Ok(false);
        };
        state.completion.advance();
        if entry.sqid != 0 {
            return Err(Cause::WrongQueue(entry.sqid));
        }
        // Before the waiter is woken: who errs here is not to be believed about the rest.
        state.submission.report_head(entry.sqhd)?;
        let reply = Reply {
            status: entry.status,
            dw0: entry.dw0,
            dw1: entry.dw1,
        };
        let index = state.slots.complete(entry.cid, Ok(reply))?;
        state.counters.commands = state.counters.commands.wrapping_add(1);
        if !entry.status.is_success() {
            state.counters.failures = state.counters.failures.wrapping_add(1);
        }
        match index {
            Some(index) => self.wake(index),
            None => self.slot_freed.notify_all(),
        }
        Ok(true)
    }

    /// The completion at the head, if it is a new one.
    fn peek(memory: &Memory, ring: &CompletionRing) -> Result<Option<Completion>> {
        memory.completion(ring.head(), |phase| ring.is_new(phase))
    }

    /// Declares a live card dead, and lets go of the lock.
    fn die(&self, mut state: StateGuard<'_>, cause: Cause) {
        if state.life != Life::Live {
            return;
        }
        state.life = Life::Dead;
        self.end_all(&mut state, Lost::Dead);
        // The card was live and unbind takes this lock first, so it is still bound to us.
        clear_master(&self.pdev);
        drop(state);
        self.slot_freed.notify_all();
        self.obituary.send();
        dev_err!(
            self.pdev,
            "card is dead: {}; its access to memory is cut off and commands to it fail. Unbind \
             it from migdirty, reset or replace it, bind it again\n",
            cause,
        );
    }

    /// Ends every command that has not ended.
    fn end_all(&self, state: &mut State, lost: Lost) {
        state.slots.end_all(Err(lost), |index| self.wake(index));
    }

    fn wake(&self, index: usize) {
        if let Some(waiter) = self.waiters.get(index) {
            waiter.complete();
        }
    }

    /// Says in the log that the card refused a command. Not again until it is something else: who
    /// watches a card asks it every second.
    pub(crate) fn report_status(&self, command: &'static str, status: Status) {
        let this = (command, status.without_flags());
        if self.state.lock().reported.replace(this) == Some(this) {
            return;
        }
        dev_warn!(
            self.pdev,
            "card refuses {}: status {:#05x} ({})\n",
            command,
            status.without_flags().bits(),
            status.text().unwrap_or("unknown"),
        );
    }

    /// Says something in the log, under the card's name.
    pub(crate) fn warn(&self, message: fmt::Arguments<'_>) {
        dev_warn!(self.pdev, "{}\n", message);
    }

    pub(crate) fn counters(&self) -> Counters {
        self.state.lock().counters
    }

    pub(crate) fn version(&self) -> Version {
        self.capabilities.version
    }
}

/// What is wrong with a controller that is enabled and shows this status.
fn judge(csts: Csts) -> Option<Cause> {
    if csts.is_gone() {
        Some(Cause::Gone)
    } else if csts.cfs() {
        Some(Cause::Fatal)
    } else if !csts.rdy() {
        // Nobody but `halt` disables it, and nothing is live any more then.
        Some(Cause::Reset)
    } else {
        None
    }
}

/// How a command ended, and what it transferred. The slot stays taken as long as this lives.
pub(crate) struct Answer<'a> {
    claim: Claim<'a>,
    reply: Reply,
}

impl Answer<'_> {
    /// How it ended.
    pub(crate) fn reply(&self) -> Reply {
        self.reply
    }

    /// Whether it succeeded, and with which status else.
    pub(crate) fn result(&self) -> Result<(), Status> {
        self.reply.status.result()
    }

    /// Copies what the card wrote, from `offset` on, a multiple of 8. `ENODEV` when it was unbound.
    ///
    /// The slot is still ours, so nobody else has its buffer; the card may still be writing to it,
    /// then its answer is nonsense and nothing worse.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> Result {
        let memory = self.claim.queue.memory.try_access().ok_or(ENODEV)?;
        memory.read(self.claim.id.index(), offset, to)
    }
}

/// A slot that somebody has.
///
/// # Invariants
///
/// `id` is a claimed slot of `queue`, and nobody else releases it.
struct Claim<'a> {
    queue: &'a AdminQueue,
    id: CommandId,
    /// The slot's.
    waiter: &'a Waiter,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Refused for a command that was abandoned: the card's completion makes it free.
        let released = self.queue.state.lock().slots.release(self.id);
        if released {
            // All, because those who wait are not served alike: an Abort may take what is reserved.
            self.queue.slot_freed.notify_all();
        }
    }
}
