// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Slots for commands that are under way.
//!
//! Owned by the controller. A slot is taken when a command is fetched and given back when its
//! completion is handed on; while the kernel works on it, the slot stays taken whatever happens to
//! the controller, so a late result finds it and leads nowhere (`orphan`).

use std::sync::Arc;
use std::time::Instant;

use zeroshift_nvme::command::Command;

use super::work::{Piece, Work};
use crate::faults::Fault;
use crate::nvme::data_pointer::Segments;
use crate::pci::Bus;
use crate::sys::{Buffer, Mapping};

/// A command under way.
pub(crate) struct Request {
    /// The submission queue that it came from.
    pub(crate) queue: u16,
    pub(crate) command: Command,
    /// The fault that waits for its completion.
    pub(crate) after: Option<Fault>,
    /// When it was fetched.
    pub(crate) fetched: Instant,
    /// Index in the controller's namespaces.
    pub(super) namespace: usize,
    /// Where its data is in guest memory.
    pub(super) segments: Segments,
    /// Byte offset on the medium, bytes in all, bytes done.
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) done: u64,
    /// Byte offsets and lengths that are still to be deallocated.
    pub(super) ranges: Vec<(u64, u64)>,
    pub(super) work: Work,
    /// The data has to be on the medium before it completes.
    pub(super) durable: bool,
    /// The medium was told to bring everything to safety.
    pub(super) synced: bool,
    /// What the medium works on.
    pub(super) piece: Option<Piece>,
    /// Host memory of the piece; empty while the kernel has it.
    pub(super) buffers: Vec<Buffer>,
    /// Memory for commands that need some of their own. Kept for the next one.
    pub(super) own: Option<Arc<Mapping>>,
    /// The kernel works on it.
    pub(super) in_kernel: bool,
    /// Nobody waits for it any more.
    pub(crate) orphan: bool,
}

impl Request {
    fn new(now: Instant) -> Self {
        Self {
            queue: 0,
            command: Command::default(),
            after: None,
            fetched: now,
            namespace: 0,
            segments: Segments::default(),
            offset: 0,
            len: 0,
            done: 0,
            ranges: Vec::new(),
            work: Work::default(),
            durable: false,
            synced: false,
            piece: None,
            buffers: Vec::new(),
            own: None,
            in_kernel: false,
            orphan: false,
        }
    }

    /// A command was fetched into the slot. Forgets what an earlier one left.
    pub(crate) fn begin(
        &mut self,
        queue: u16,
        command: Command,
        after: Option<Fault>,
        now: Instant,
    ) {
        (self.queue, self.command) = (queue, command);
        (self.after, self.fetched) = (after, now);
        self.work = Work::default();
        self.ranges.clear();
        self.buffers.clear();
        (self.offset, self.len, self.done) = (0, 0, 0);
        (self.durable, self.synced) = (false, false);
        self.piece = None;
    }

    /// Bytes that it transfers between host and medium.
    pub(crate) fn transfer_bytes(&self) -> u64 {
        match self.work {
            Work::Read | Work::Write | Work::Compare => self.len,
            _ => 0,
        }
    }

    /// Whether it may touch guest memory or change the medium, so that nothing may come after it
    /// before it is over.
    fn matters(&self) -> bool {
        !matches!(self.work, Work::Flush | Work::Compare)
    }

    /// What a read wrote to guest memory is dirty.
    pub(crate) fn mark(&self, bus: &Bus<'_>) {
        if self.work == Work::Read {
            for segment in self.segments.iter() {
                if let Some(iova) = segment.iova {
                    bus.wrote(iova, segment.len.into());
                }
            }
        }
    }

    /// Whether the kernel may write to, or read from, guest memory in the range for this request.
    fn uses(&self, first: u64, last: u64) -> bool {
        let guest = matches!(self.work, Work::Read | Work::Write);
        self.in_kernel
            && guest
            && self.segments.iter().any(|segment| {
                // A segment is not empty and lies in maps, so it does not wrap.
                segment
                    .iova
                    .is_some_and(|iova| iova <= last && iova + u64::from(segment.len - 1) >= first)
            })
    }
}

/// All slots of a controller.
pub(crate) struct Requests {
    slots: Vec<Request>,
    free: Vec<u32>,
    in_kernel: u32,
}

impl Requests {
    /// `count` free slots.
    pub(crate) fn new(count: u32) -> Self {
        let now = Instant::now();
        Self {
            slots: (0..count).map(|_| Request::new(now)).collect(),
            free: (0..count).rev().collect(),
            in_kernel: 0,
        }
    }

    /// Slots that are free.
    pub(crate) fn room(&self) -> u32 {
        // At most SLOTS.
        self.free.len() as u32
    }

    /// Takes a free slot.
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Gives a slot back.
    pub(crate) fn give_back(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// The request in a slot.
    pub(crate) fn get(&mut self, slot: u32) -> Option<&mut Request> {
        self.slots.get_mut(slot as usize)
    }

    /// The kernel works on the request from now on.
    pub(crate) fn entered_kernel(&mut self, slot: u32) {
        if let Some(request) = self.slots.get_mut(slot as usize) {
            request.in_kernel = true;
            self.in_kernel += 1;
        }
    }

    /// The kernel has handed the request back. `None` when it never had it.
    pub(crate) fn left_kernel(&mut self, slot: u32) -> Option<&mut Request> {
        let request = self.slots.get_mut(slot as usize)?;
        if !std::mem::take(&mut request.in_kernel) {
            return None;
        }
        self.in_kernel -= 1;
        Some(request)
    }

    /// Requests that the kernel works on.
    pub(crate) fn in_kernel(&self) -> u32 {
        self.in_kernel
    }

    /// Whether the kernel works on requests that touch guest memory or change a medium.
    pub(crate) fn matter(&self) -> bool {
        let mut slots = self.slots.iter();
        self.in_kernel > 0 && slots.any(|request| request.in_kernel && request.matters())
    }

    /// Whether nothing is under way that somebody waits for, or that may still touch guest memory or a
    /// medium.
    pub(crate) fn are_over(&self) -> bool {
        let mut slots = self.slots.iter();
        let under_way =
            |request: &Request| request.in_kernel && (!request.orphan || request.matters());
        self.in_kernel == 0 || !slots.any(under_way)
    }

    /// Slots that the kernel works on.
    pub(crate) fn slots_in_kernel(&self) -> impl Iterator<Item = u32> + '_ {
        let slots = self.slots.iter().zip(0u32..);
        slots.filter_map(|(request, slot)| request.in_kernel.then_some(slot))
    }

    /// Whether the kernel works on guest memory in the range.
    pub(crate) fn uses(&self, first: u64, last: u64) -> bool {
        self.in_kernel > 0 && self.slots.iter().any(|request| request.uses(first, last))
    }

    /// Nobody waits for any request any more: those in the kernel become orphans, all others are
    /// gone.
    pub(crate) fn abandon(&mut self) {
        self.free.clear();
        for (request, slot) in self.slots.iter_mut().zip(0u32..) {
            request.orphan = request.in_kernel;
            if !request.in_kernel {
                request.own = None;
                self.free.push(slot);
            }
        }
    }
}
