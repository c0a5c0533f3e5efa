// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Suspending a controller, and its state as values: what is saved, and what is taken over.
//!
//! A part of the controller: it reads and writes its fields. A state comes from another card over a
//! network, so everything in it is checked against this controller before the first field changes;
//! after that nothing can fail.

use zeroshift_nvme::hmlm::state::{CONTIGUOUS, INTERRUPTS, SLOT_0_PHASE};
use zeroshift_nvme::registers::{Aqa, Cc, Csts};

use super::{Controller, ADMIN_VECTOR, MAX_QUEUE_ENTRIES};
use crate::nvme::admin::{self, Admin, Prepared};
use crate::nvme::migration::state::{
    self, AdminQueues, CompletionQueue as CompletionImage, Contents, DoorbellBuffers, Identity,
    Image, IoQueues, Namespace, Registers, SubmissionQueue as SubmissionImage,
};
use crate::nvme::queues::{self, CompletionQueue, Queues, SubmissionQueue};
use crate::nvme::shadow::Shadow;
use crate::pci::{Bus, Migratable, Parts, Phase, Refused};

/// Completions without a place that a state may have: one for each command that can be under way.
const MAX_COMPLETIONS: usize = 512;
/// Smallest memory page, as a power of two.
const MIN_PAGE_SHIFT: u8 = 12;

impl Migratable for Controller {
    fn suspend(&mut self, bus: &mut Bus<'_>) {
        if self.phase.is_running() {
            self.suspensions += 1;
            self.phase = Phase::Suspending(self.suspensions);
            self.settle(bus);
            bus.call_poller();
        }
    }

    fn go_on(&mut self, bus: &mut Bus<'_>) {
        if self.phase.is_running() {
            return;
        }
        self.phase = Phase::Running;
        let mut vectors = std::mem::take(&mut self.interrupts);
        let queues = self.queues.iter();
        let queues = queues.flat_map(|queues| queues.completion.iter().flatten());
        let unread = queues.filter(|queue| queue.interrupts && !queue.ring.is_empty());
        vectors.extend(unread.map(|queue| queue.vector));
        vectors.sort_unstable();
        vectors.dedup();
        for vector in vectors {
            bus.interrupt(vector);
        }
        self.run(bus);
        bus.call_poller();
    }

    fn save(&self, parts: Parts, bus: &Bus<'_>) -> Vec<u8> {
        let contents = Contents {
            queues: parts.standard.then(|| self.save_queues()),
            image: parts.vendor.then(|| self.save_image(bus)),
        };
        contents.encode(self.phase.quiet().is_some())
    }

    fn load(&mut self, parts: Parts, state: &[u8], bus: &Bus<'_>) -> Result<(), Refused> {
        let contents = Contents::decode(state, parts)?;
        match contents.image {
            Some(image) => self.load_all(&image, &contents.queues.unwrap_or_default(), bus),
            None => self.load_queues(&contents.queues.unwrap_or_default(), bus),
        }
    }
}

/// What is left to do when everything was checked.
struct Restored {
    queues: Option<Queues>,
    admin: Prepared,
    interrupts: Vec<u16>,
}

impl Controller {
    fn save_queues(&self) -> IoQueues {
        let mut list = IoQueues::default();
        let Some(queues) = &self.queues else {
            return list;
        };
        for (queue, id) in queues.submission.iter().zip(0u16..).skip(1) {
            let Some(queue) = queue else { continue };
            list.submission.push(SubmissionImage {
                prp1: queue.ring.base(),
                size: queue.ring.size(),
                id,
                completion_queue: queue.completion,
                attributes: CONTIGUOUS,
                head: queue.ring.head(),
                tail: queue.ring.tail(),
            });
        }
        for (queue, id) in queues.completion.iter().zip(0u16..).skip(1) {
            let Some(queue) = queue else { continue };
            let mut attributes = u32::from(CONTIGUOUS) | u32::from(queue.vector) << 16;
            if queue.interrupts {
                attributes |= INTERRUPTS;
            }
            if queue.slot_0_phase() {
                attributes |= SLOT_0_PHASE;
            }
            list.completion.push(CompletionImage {
                prp1: queue.ring.base(),
                size: queue.ring.size(),
                id,
                head: queue.ring.head(),
                tail: queue.ring.tail(),
                attributes,
            });
        }
        list
    }

    fn save_image(&self, bus: &Bus<'_>) -> Image {
        let (features, events, errors) = self.admin.save();
        let queues = self.queues.as_ref();
        let admin = queues.and_then(|queues| {
            let (submission, completion) = (queues.submission.first(), queues.completion.first());
            Some((submission?.as_ref()?, completion?.as_ref()?))
        });
        let completions = queues.map(|queues| {
            // Of a queue that was deleted meanwhile, nobody waits for them.
            let there = |completion: &zeroshift_nvme::completion::Completion| {
                let queue = queues.submission.get(usize::from(completion.sqid));
                queue.is_some_and(Option::is_some)
            };
            let all = queues.completion.iter().flatten();
            all.flat_map(CompletionQueue::ready).filter(there).collect()
        });
        let mut interrupts = [0; 32];
        for vector in 0..bus.vectors().min(256) {
            if bus.is_pending(vector) || self.interrupts.contains(&vector) {
                interrupts[usize::from(vector / 8)] |= 1 << (vector % 8);
            }
        }
        Image {
            identity: self.identity(bus),
            namespaces: self.namespaces(),
            registers: Registers {
                cc: self.cc.0,
                csts: self.csts.0,
                aqa: self.aqa.0,
                asq: self.asq,
                acq: self.acq,
            },
            admin_queues: admin.map(|(submission, completion)| AdminQueues {
                submission: save_ring(&submission.ring),
                completion: save_ring(&completion.ring),
                slot_0_phase: completion.slot_0_phase(),
                // A power of two from 4 KiB on.
                page_shift: self.page_size.trailing_zeros() as u8,
            }),
            features,
            events,
            completions: completions.unwrap_or_default(),
            doorbell_buffers: self.shadow.map(|shadow| DoorbellBuffers {
                doorbells: shadow.doorbells,
                event_indices: shadow.event_indices,
            }),
            interrupts,
            errors,
        }
    }

    fn identity(&self, bus: &Bus<'_>) -> Identity {
        let identity = &self.admin.personality().identity;
        Identity {
            serial: padded(b' ', &identity.serial),
            model: padded(b' ', admin::MODEL),
            subnqn: padded(0, &identity.subnqn),
            mdts: admin::MDTS,
            doorbell_stride: self.cap.dstrd(),
            submission_entry: admin::SUBMISSION_ENTRY_SIZES,
            completion_entry: admin::COMPLETION_ENTRY_SIZES,
            max_queue: self.cap.mqes(),
            io_queues: self.admin.personality().io_queues(),
            vectors: bus.vectors(),
        }
    }

    fn namespaces(&self) -> Vec<Namespace> {
        let namespaces = self.admin.personality().namespaces().iter();
        namespaces
            .map(|namespace| Namespace {
                id: namespace.id,
                block_shift: namespace.block_shift,
                blocks: namespace.blocks,
                nguid: namespace.nguid,
            })
            .collect()
    }

    /// The standard part alone: I/O queues for a controller that its host has enabled.
    fn load_queues(&mut self, list: &IoQueues, bus: &Bus<'_>) -> Result<(), Refused> {
        if self.queues.as_ref().is_some_and(|q| q.highest() > 0) {
            return Err(Refused::new("the controller has I/O queues"));
        }
        let made = self.make_queues(list, self.page_size, bus)?;
        match &mut self.queues {
            Some(queues) => {
                for (place, queue) in queues.submission.iter_mut().zip(made.submission).skip(1) {
                    *place = queue;
                }
                for (place, queue) in queues.completion.iter_mut().zip(made.completion).skip(1) {
                    *place = queue;
                }
                Ok(())
            }
            None if list.completion.is_empty() => Ok(()),
            None => Err(Refused::new(
                "the standard part alone needs a controller that is enabled",
            )),
        }
    }

    /// Everything: the controller becomes what the other one was.
    fn load_all(&mut self, image: &Image, list: &IoQueues, bus: &Bus<'_>) -> Result<(), Refused> {
        if self.cc.en() || self.queues.is_some() || self.resetting.is_some() || self.csts.cfs() {
            return Err(Refused::new("the controller is enabled: reset it first"));
        }
        if let Some(what) = image.identity.difference(&self.identity(bus)) {
            return Err(Refused(format!("the {what} is another one here")));
        }
        if image.namespaces != self.namespaces() {
            return Err(Refused::new("other namespaces are attached here"));
        }
        self.check_registers(image)?;
        let restored = self.restore(image, list, bus)?;

        let Registers {
            cc,
            csts,
            aqa,
            asq,
            acq,
        } = image.registers;
        (self.cc, self.csts, self.aqa) = (Cc(cc), Csts(csts), Aqa(aqa));
        (self.asq, self.acq) = (asq, acq);
        // A shutdown that had begun is done here.
        self.flushing = (self.csts.shst() == Csts::SHST_OCCURRING).then_some(0);
        if let Some(queues) = &image.admin_queues {
            self.page_size = 1 << queues.page_shift;
        }
        self.queues = restored.queues;
        self.shadow = image.doorbell_buffers.map(|buffers| Shadow {
            doorbells: buffers.doorbells,
            event_indices: buffers.event_indices,
        });
        self.admin.restore(restored.admin);
        self.interrupts = restored.interrupts;
        Ok(())
    }

    fn check_registers(&self, image: &Image) -> Result<(), Refused> {
        let Registers {
            cc,
            csts,
            aqa,
            asq,
            acq,
        } = image.registers;
        let known = Csts(0)
            .with_rdy(true)
            .with_cfs(true)
            .with_shst(Csts::SHST_COMPLETE | Csts::SHST_OCCURRING);
        let (control, status) = (Cc(cc), Csts(csts));
        if cc & !Cc::DEFINED != 0 || aqa & !Aqa::DEFINED != 0 || csts & !known.0 != 0 {
            return Err(Refused::new("a register has a bit that does not exist"));
        }
        if status.shst() > Csts::SHST_COMPLETE {
            return Err(Refused::new("a state of shutdown that does not exist"));
        }
        if asq % 0x1000 != 0 || acq % 0x1000 != 0 {
            return Err(Refused::new("an admin queue that does not start a page"));
        }
        if status.rdy() != image.admin_queues.is_some() {
            return Err(Refused::new(
                "ready without admin queues, or the other way round",
            ));
        }
        // A controller that failed while it was enabled is not ready.
        if status.rdy() && !control.en() || control.en() && !status.rdy() && !status.cfs() {
            return Err(Refused::new("CC and CSTS do not fit each other"));
        }
        let ready = status.rdy();
        if !ready && (image.doorbell_buffers.is_some() || !image.completions.is_empty()) {
            return Err(Refused::new("it does more than a disabled controller can"));
        }
        if ready && (control.css() != Cc::CSS_NVM || control.ams() != 0) {
            return Err(Refused::new(
                "a command set or arbitration that is not there",
            ));
        }
        Ok(())
    }

    fn restore(&self, image: &Image, list: &IoQueues, bus: &Bus<'_>) -> Result<Restored, Refused> {
        let mut interrupts = Vec::new();
        for vector in 0..256u16 {
            if image.interrupts[usize::from(vector / 8)] >> (vector % 8) & 1 != 0 {
                interrupts.push(vector);
            }
        }
        if interrupts.iter().any(|vector| *vector >= bus.vectors()) {
            return Err(Refused::new("an interrupt without a vector"));
        }
        let admin = Admin::prepare(&image.features, &image.events, &image.errors)?;
        let Some(admin_queues) = &image.admin_queues else {
            if !list.completion.is_empty() {
                return Err(Refused::new("I/O queues of a disabled controller"));
            }
            return Ok(Restored {
                queues: None,
                admin,
                interrupts,
            });
        };
        let shifts = MIN_PAGE_SHIFT..=MIN_PAGE_SHIFT + self.cap.mpsmax();
        if !shifts.contains(&admin_queues.page_shift) {
            return Err(Refused::new("a page size that is not there"));
        }
        let page_size = 1 << admin_queues.page_shift;
        let mut queues = self.make_queues(list, page_size, bus)?;
        let (submission, completion) = make_admin_queues(admin_queues, page_size)?;
        queues.submission[0] = Some(submission);
        queues.completion[0] = Some(completion);
        if let Some(buffers) = image.doorbell_buffers {
            if buffers.doorbells % page_size != 0 || buffers.event_indices % page_size != 0 {
                return Err(Refused::new("doorbell buffers that do not start a page"));
            }
        }
        if image.completions.len() > MAX_COMPLETIONS {
            return Err(Refused::new("more completions than commands can be"));
        }
        for completion in &image.completions {
            if queues.submission(completion.sqid).is_none() {
                return Err(Refused::new("a completion for a queue that is not there"));
            }
            queues.complete_held(completion.sqid, *completion);
        }
        Ok(Restored {
            queues: Some(queues),
            admin,
            interrupts,
        })
    }

    /// I/O queues, and no admin queue.
    fn make_queues(
        &self,
        list: &IoQueues,
        page_size: u64,
        bus: &Bus<'_>,
    ) -> Result<Queues, Refused> {
        let most = self.admin.personality().io_queues();
        let mut queues = Queues::without_admin(most);
        for image in &list.completion {
            let id = image.id;
            check_queue(id, most, image.size, image.prp1, page_size)?;
            // PC is in the same place for both kinds of queues.
            let (interrupts, vector) = (image.attributes & INTERRUPTS != 0, image.vector());
            if image.attributes & u32::from(CONTIGUOUS) == 0 {
                return Err(Refused(format!("completion queue {id} is not contiguous")));
            }
            if interrupts && vector >= bus.vectors() {
                return Err(Refused(format!("completion queue {id} has no such vector")));
            }
            let queue = CompletionQueue::new(image.prp1, image.size, vector, interrupts);
            let slot_0_phase = image.attributes & SLOT_0_PHASE != 0;
            let queue = queue.restore(image.head, image.tail, slot_0_phase);
            queues.completion[usize::from(id)] =
                Some(queue.ok_or_else(|| outside("completion", id))?);
        }
        for image in &list.submission {
            let id = image.id;
            check_queue(id, most, image.size, image.prp1, page_size)?;
            if image.attributes & CONTIGUOUS == 0 {
                return Err(Refused(format!("submission queue {id} is not contiguous")));
            }
            if queues.completion(image.completion_queue).is_none() {
                return Err(Refused(format!(
                    "submission queue {id} has no completion queue"
                )));
            }
            let queue = SubmissionQueue::restore(
                image.prp1,
                image.size,
                image.completion_queue,
                image.head,
                image.tail,
            );
            queues.submission[usize::from(id)] =
                Some(queue.ok_or_else(|| outside("submission", id))?);
        }
        Ok(queues)
    }
}

fn outside(kind: &str, id: u16) -> Refused {
    Refused(format!("{kind} queue {id} has a pointer outside"))
}

/// What the Create commands ask of a queue.
fn check_queue(id: u16, most: u16, size: u16, base: u64, page_size: u64) -> Result<(), Refused> {
    if id == 0 || id > most {
        return Err(Refused(format!("there is no queue {id}")));
    }
    check_ring(size, base, page_size).map_err(|why| Refused(format!("queue {id} {why}")))
}

fn check_ring(size: u16, base: u64, page_size: u64) -> Result<(), &'static str> {
    if size == 0 || u32::from(size) >= MAX_QUEUE_ENTRIES {
        return Err("has a size that is not there");
    }
    if base % page_size != 0 {
        return Err("does not start a page");
    }
    Ok(())
}

fn make_admin_queues(
    image: &AdminQueues,
    page_size: u64,
) -> Result<(SubmissionQueue, CompletionQueue), Refused> {
    let state::Ring {
        base,
        size,
        head,
        tail,
    } = image.submission;
    let wrong = |why| Refused(format!("the admin queue {why}"));
    check_ring(size, base, page_size).map_err(wrong)?;
    let submission = SubmissionQueue::restore(base, size, 0, head, tail);
    let state::Ring {
        base,
        size,
        head,
        tail,
    } = image.completion;
    check_ring(size, base, page_size).map_err(wrong)?;
    let completion = CompletionQueue::new(base, size, ADMIN_VECTOR, true);
    let completion = completion.restore(head, tail, image.slot_0_phase);
    submission
        .zip(completion)
        .ok_or_else(|| outside("admin", 0))
}

fn save_ring(ring: &queues::Ring) -> state::Ring {
    state::Ring {
        base: ring.base(),
        size: ring.size(),
        head: ring.head(),
        tail: ring.tail(),
    }
}

/// Text in a field of Identify Controller.
fn padded<const N: usize>(padding: u8, text: &str) -> [u8; N] {
    let mut field = [padding; N];
    for (place, byte) in field.iter_mut().zip(text.bytes()) {
        *place = byte;
    }
    field
}
