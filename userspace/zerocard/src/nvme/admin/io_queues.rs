// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Creating and deleting I/O queues, and their shadow doorbells (NVMe over PCIe transport 1.1,
//! section 4.1 and 4.2; Base 2.1, section 5.2.5).
//!
//! Owned by the admin command set. A submission queue is gone when its last command has completed;
//! until then its Delete command is held.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::completion::Completion;
use zeroshift_nvme::status::Status;

use super::{Admin, Answer, Context, Late};
use crate::nvme::controller::{completion_for, MAX_QUEUE_ENTRIES};
use crate::nvme::queues::{CompletionQueue, Queues, SubmissionQueue};
use crate::nvme::shadow::Shadow;

/// CDW11 bit 0: Physically Contiguous (PC).
const CONTIGUOUS: u32 = 1 << 0;
/// CDW11 bit 1 of Create I/O Completion Queue: Interrupts Enabled (IEN).
const INTERRUPTS: u32 = 1 << 1;

/// Identifier and 0's based size of a queue to be made.
fn identifier_and_size(command: &Command) -> (u16, u16) {
    (command.cdw10 as u16, (command.cdw10 >> 16) as u16)
}

impl Admin {
    /// What both kinds of queues have to fulfil: a free identifier, a size, and an address.
    fn check_new(&self, command: &Command, taken: bool, page_size: u64) -> Result<(), Status> {
        let (id, size) = identifier_and_size(command);
        if id == 0 || id > self.personality.io_queues() || taken {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        if size == 0 || u32::from(size) >= MAX_QUEUE_ENTRIES {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        // CAP.CQR: queues have to be contiguous.
        if command.cdw11 & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        if command.prp1 % page_size != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        Ok(())
    }

    /// Create I/O Completion Queue.
    pub(super) fn create_completion_queue(
        &self,
        command: &Command,
        context: &mut Context<'_, '_>,
    ) -> Result<(), Status> {
        let (id, size) = identifier_and_size(command);
        let taken = context.queues.completion(id).is_some();
        self.check_new(command, taken, context.page_size)?;
        let vector = (command.cdw11 >> 16) as u16;
        let interrupts = command.cdw11 & INTERRUPTS != 0;
        if interrupts && vector >= context.bus.vectors() {
            return Err(Status::INVALID_INTERRUPT_VECTOR);
        }
        let queue = CompletionQueue::new(command.prp1, size, vector, interrupts);
        context.queues.completion[usize::from(id)] = Some(queue);
        Ok(())
    }

    /// Create I/O Submission Queue.
    pub(super) fn create_submission_queue(
        &self,
        command: &Command,
        context: &mut Context<'_, '_>,
    ) -> Result<(), Status> {
        let (id, size) = identifier_and_size(command);
        let taken = context.queues.submission(id).is_some();
        self.check_new(command, taken, context.page_size)?;
        let completion = (command.cdw11 >> 16) as u16;
        if completion == 0 || completion > self.personality.io_queues() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        if context.queues.completion(completion).is_none() {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        let queue = SubmissionQueue::new(command.prp1, size, completion);
        context.queues.submission[usize::from(id)] = Some(queue);
        Ok(())
    }

    /// Delete I/O Completion Queue.
    pub(super) fn delete_completion_queue(
        command: &Command,
        context: &mut Context<'_, '_>,
    ) -> Result<(), Status> {
        let id = command.cdw10 as u16;
        if id == 0 || context.queues.completion(id).is_none() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        let mut submission = context.queues.submission.iter().flatten();
        if submission.any(|queue| queue.completion == id) {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        context.queues.completion[usize::from(id)] = None;
        Ok(())
    }

    /// Delete I/O Submission Queue.
    pub(super) fn delete_submission_queue(
        &mut self,
        command: &Command,
        context: &mut Context<'_, '_>,
    ) -> Result<Answer, Status> {
        let id = command.cdw10 as u16;
        match context.queues.submission(id) {
            Some(queue) if id != 0 && !queue.deleted => queue.deleted = true,
            _ => return Err(Status::INVALID_QUEUE_IDENTIFIER),
        }
        // What a fault holds ends with its queue; what the kernel has is waited for.
        while let Some(held) = context.staged.take(id) {
            let ended = Completion {
                status: Status::ABORTED_SQ_DELETION,
                ..completion_for(&held.command)
            };
            let ended = self.conclude(id, &held.command, ended);
            context.queues.complete(id, ended, None);
        }
        self.deletions.push(*command);
        Ok(Answer::Later)
    }

    /// The completion of a deletion whose queue has completed its last command.
    pub(super) fn next_deletion(&mut self, queues: &mut Queues) -> Option<Late> {
        let at = self.deletions.iter().position(|command| {
            let queue = queues.submission(command.cdw10 as u16);
            queue.is_none_or(|queue| queue.outstanding == 0)
        })?;
        let command = self.deletions.remove(at);
        queues.submission[usize::from(command.cdw10 as u16)] = None;
        Some(Late {
            command,
            completion: completion_for(&command),
            after: None,
        })
    }

    /// Doorbell Buffer Config.
    pub(super) fn doorbell_buffer_config(
        command: &Command,
        context: &mut Context<'_, '_>,
    ) -> Result<(), Status> {
        let (doorbells, event_indices) = (command.prp1, command.prp2);
        if doorbells % context.page_size != 0 || event_indices % context.page_size != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        *context.shadow = Some(Shadow {
            doorbells,
            event_indices,
        });
        Ok(())
    }
}
