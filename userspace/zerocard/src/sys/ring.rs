// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An io_uring whose requests transfer between files and [`Mapping`]s, as a safe interface.
//!
//! Owned by a poller's thread. A request in flight holds its buffers, the list of their addresses
//! and its file in a slot of the ring until the kernel is done with them, whatever the caller does:
//! the kernel must never have an address whose memory may become something else.
//!
//! Registered buffers are not used: they pin pages, and [`Mapping::revoke`] could not take them
//! away from the kernel.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{cqueue, opcode, squeue, EnterFlags, IoUring};
use rustix::event::PollFlags;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use super::{Mapping, Waker};

/// Buffers of one request, after contiguous ones were joined (UIO_MAXIOV).
pub(crate) const MAX_VECTORS: usize = 1024;
/// Bytes of one request (the kernel's MAX_RW_COUNT); it would cut longer ones short.
pub(crate) const MAX_BYTES: usize = 0x7fff_f000;

/// Submission entries beyond one for each slot: cancellations and the poll of the eventfd.
const SPARE: u32 = 64;
/// `user_data` of the poll of the eventfd and of cancellations; a slot's has a token in the low
/// half, which is never all ones.
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - (1 << 32);
/// How long a ring that is dropped waits for requests that cannot be cancelled.
const DRAIN: Duration = Duration::from_secs(30);

/// A part of a mapping. Whether it is inside is checked when it is used.
pub(crate) struct Buffer {
    /// Where the bytes are.
    pub(crate) mapping: Arc<Mapping>,
    /// First byte in `mapping`.
    pub(crate) offset: usize,
    /// Bytes.
    pub(crate) len: usize,
}

/// What a request does. Offsets and lengths are in bytes.
#[derive(Clone, Copy)]
pub(crate) enum Operation<'a> {
    /// Reads from the file into the buffers.
    Read {
        /// Source.
        file: &'a Arc<OwnedFd>,
        /// First byte in the file.
        offset: u64,
    },
    /// Writes the buffers to the file.
    Write {
        /// Target.
        file: &'a Arc<OwnedFd>,
        /// First byte in the file.
        offset: u64,
        /// Completes only when the data is on stable storage (RWF_DSYNC).
        durable: bool,
    },
    /// Brings all data that was written to stable storage (fdatasync).
    Sync {
        /// What was written to.
        file: &'a Arc<OwnedFd>,
    },
    /// Gives the storage back; it reads as zeroes after (FALLOC_FL_PUNCH_HOLE).
    Deallocate {
        /// Target.
        file: &'a Arc<OwnedFd>,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Makes it read as zeroes and keeps the storage (FALLOC_FL_ZERO_RANGE).
    Zero {
        /// Target.
        file: &'a Arc<OwnedFd>,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// The token is in use or not below the number of slots, or the kernel takes no requests just now.
/// The buffers were not touched: try again after [`Ring::reap`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// `struct iovec` of the kernel's ABI.
#[repr(C)]
struct Vector {
    base: *mut u8,
    len: usize,
}

/// Invariant: while `busy`, nothing here changes but `cancelled`.
#[derive(Default)]
struct Slot {
    busy: bool,
    cancelled: bool,
    /// Counts the requests of this slot, so that a late cancellation cannot meet the next one.
    generation: u32,
    file: Option<Arc<OwnedFd>>,
    buffers: Vec<Buffer>,
    vectors: Vec<Vector>,
}

/// See the module. It stays on the thread that made it: the kernel takes requests from and gives
/// completions to that thread only (IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN).
pub(crate) struct Ring {
    uring: IoUring,
    slots: Vec<Slot>,
    /// Requests that ended without the kernel, with their results.
    refused: Vec<(u32, i32)>,
    /// Slots that are busy: requests pushed and not reaped yet.
    in_flight: u32,
    waker: Arc<Waker>,
    /// The kernel polls the waker's eventfd, or will at the next submission.
    polling: bool,
    /// Not `Send`.
    thread: PhantomData<*const ()>,
}

impl Ring {
    /// A ring for `slots` requests at once, to be used by the calling thread.
    ///
    /// The error names the cause when the host does not let us have one.
    pub(crate) fn new(slots: u32) -> io::Result<Self> {
        let entries = slots
            .checked_add(SPARE)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut ring = Self {
            uring: build(entries).map_err(|error| explain(&error))?,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            refused: Vec::with_capacity(slots as usize),
            in_flight: 0,
            waker: Arc::new(Waker::new()?),
            polling: false,
            thread: PhantomData,
        };
        ring.poll_waker();
        ring.submit()?;
        // A kernel without multishot polls says so at once.
        if let Some(refused) = ring.uring.completion().next() {
            return Err(explain(&io::Error::from_raw_os_error(
                refused.result().saturating_neg(),
            )));
        }
        Ok(ring)
    }

    /// Queues a request. `token` is below the number of slots and not in flight; it comes back from
    /// [`Ring::reap`] with the result.
    ///
    /// The buffers become the slot's, `buffers` is empty after; operations without data have none. A
    /// request that cannot be right is not an error here: it completes with EFAULT (a buffer outside
    /// its mapping, or read-only and to be read into) or EINVAL (more than [`MAX_VECTORS`] or
    /// [`MAX_BYTES`], an offset above `i64::MAX`).
    pub(crate) fn push(
        &mut self,
        token: u32,
        operation: Operation<'_>,
        buffers: &mut Vec<Buffer>,
    ) -> Result<(), Full> {
        match self.slots.get(token as usize) {
            Some(slot) if !slot.busy => {}
            _ => return Err(Full),
        }
        if !self.make_room() {
            return Err(Full);
        }
        let slot = self.slots.get_mut(token as usize).ok_or(Full)?;
        slot.busy = true;
        slot.cancelled = false;
        slot.generation = slot.generation.wrapping_add(1);
        // The slot's own list is empty: the caller gets its storage for the next request.
        std::mem::swap(&mut slot.buffers, buffers);
        self.in_flight += 1;
        match slot.prepare(operation) {
            Ok(Some(entry)) => {
                let entry = entry.user_data(slot.user_data(token));
                // SAFETY: the slot holds the file, the buffers and the vectors that the entry points
                // to until reap() sees the completion; drop() waits for that, or leaks them. Memory
                // of a Mapping may be changed by the kernel at any time.
                let pushed = unsafe { self.uring.submission().push(&entry) };
                debug_assert!(pushed.is_ok(), "make_room() found room");
            }
            Ok(None) => self.refused.push((token, 0)),
            Err(error) => self
                .refused
                .push((token, error.raw_os_error().saturating_neg())),
        }
        Ok(())
    }

    /// Asks the kernel to end a request early; it completes with ECANCELED when that worked, else as
    /// if nobody had asked. Without effect on a token that is not in flight.
    pub(crate) fn cancel(&mut self, token: u32) {
        let Some(slot) = self.slots.get(token as usize) else {
            return;
        };
        if !slot.busy || slot.cancelled || !self.make_room() {
            return;
        }
        let slot = &mut self.slots[token as usize];
        slot.cancelled = true;
        let entry = opcode::AsyncCancel::new(slot.user_data(token)).build();
        // SAFETY: the entry has no pointers.
        let _ = unsafe { self.uring.submission().push(&entry.user_data(CANCEL)) };
    }

    /// Gives the queued requests to the kernel: one system call when there are any, else none. What
    /// it does not take for now stays queued.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        loop {
            let queued = self.uring.submission().len();
            if queued == 0 {
                return Ok(());
            }
            match self.uring.submit() {
                Ok(taken) if taken > 0 && taken < queued => {}
                Ok(_) => return Ok(()),
                Err(error) if transient(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends what has completed, as token and result: bytes (also fewer than asked for) or 0, or a
    /// negated error number: EFAULT also when a mapping was revoked before this call. The slots are
    /// free after, their buffers and files released.
    ///
    /// No system call, except when the kernel says that it keeps completions back.
    pub(crate) fn reap(&mut self, completed: &mut Vec<(u32, i32)>) {
        let queue = self.uring.submission();
        if queue.taskrun() || queue.cq_overflow() {
            drop(queue);
            // SAFETY: no argument is passed. An error leaves the flags set: the next call tries again.
            let _ = unsafe {
                let flags = EnterFlags::GETEVENTS.bits();
                self.uring.submitter().enter::<()>(0, 0, flags, None)
            };
        } else {
            drop(queue);
        }
        for (token, result) in self.refused.drain(..) {
            if let Some(slot) = self.slots.get_mut(token as usize) {
                slot.release();
                self.in_flight -= 1;
            }
            completed.push((token, result));
        }
        for entry in self.uring.completion() {
            match entry.user_data() {
                WAKE => self.polling = cqueue::more(entry.flags()),
                CANCEL => {}
                // CAST: the low half.
                data => {
                    let token = data as u32;
                    let slot = self.slots.get_mut(token as usize);
                    if let Some(slot) = slot.filter(|slot| slot.user_data(token) == data) {
                        let result = slot.judge(entry.result());
                        slot.release();
                        self.in_flight -= 1;
                        completed.push((token, result));
                    }
                }
            }
        }
    }

    /// Submits what is queued and sleeps until a completion, a [`Waker::wake`] or the end of
    /// `timeout`. It may also return early; a wake since the last sleep makes it return at once.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if !self.polling {
            self.poll_waker();
        }
        // begin_sleep() last: when it says no, the wake was taken account of.
        if !self.refused.is_empty()
            || !self.uring.completion().is_empty()
            || !self.waker.begin_sleep()
        {
            return self.submit();
        }
        let result = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let time = Timespec::from(timeout);
                let arguments = SubmitArgs::new().timespec(&time);
                self.uring.submitter().submit_with_args(1, &arguments)
            }
        };
        self.waker.end_sleep();
        match result {
            Err(error) if error.raw_os_error() != Some(Errno::TIME.raw_os_error()) => {
                if transient(&error) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            _ => Ok(()),
        }
    }

    /// What wakes [`Ring::wait`] from another thread.
    pub(crate) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Requests pushed and not reaped yet.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Makes the kernel watch the waker's eventfd. Each signal of it completes once, read or not.
    fn poll_waker(&mut self) {
        if !self.make_room() {
            return;
        }
        let fd = Fd(self.waker.event());
        let entry = opcode::PollAdd::new(fd, u32::from(PollFlags::IN.bits()))
            .multi(true)
            .build();
        // SAFETY: the entry has no pointers. The file is the waker's, which lives as long as self.
        self.polling = unsafe { self.uring.submission().push(&entry.user_data(WAKE)) }.is_ok();
    }

    /// Whether another entry can be queued; gives the queue to the kernel when it is full.
    fn make_room(&mut self) -> bool {
        if self.uring.submission().is_full() {
            let _ = self.submit();
        }
        !self.uring.submission().is_full()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let end = Instant::now() + DRAIN;
        let mut completed = Vec::new();
        while self.in_flight > 0 {
            for token in 0..self.slots.len() {
                // CAST: new() made them from a u32.
                self.cancel(token as u32);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wait(Some(left)).is_err() {
                break;
            }
            self.reap(&mut completed);
        }
        if self.in_flight > 0 {
            tracing::error!(
                "{} storage requests do not end; the memory that they use is never freed",
                self.in_flight
            );
            // The kernel may still write to the buffers, so they have to stay.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

impl Slot {
    fn user_data(&self, token: u32) -> u64 {
        (u64::from(self.generation) << 32) | u64::from(token)
    }

    /// The kernel's result, or EFAULT when memory was lost meanwhile: after a SIGBUS, the kernel may
    /// have taken zeroes for the data.
    fn judge(&self, result: i32) -> i32 {
        if result > 0 && self.buffers.iter().any(|buffer| buffer.mapping.revoked()) {
            return Errno::FAULT.raw_os_error().saturating_neg();
        }
        result
    }

    fn release(&mut self) {
        self.busy = false;
        self.file = None;
        self.buffers.clear();
    }

    /// The kernel's form of a request; `None` when there is nothing to do.
    fn prepare(&mut self, operation: Operation<'_>) -> Result<Option<squeue::Entry>, Errno> {
        let (file, entry) = match operation {
            Operation::Read { file, offset } => {
                let fd = Fd(file.as_raw_fd());
                let entry = match self.gather(offset, true)? {
                    [] => return Ok(None),
                    [one] => opcode::Read::new(fd, one.base, length(one)?)
                        .offset(offset)
                        .build(),
                    // CAST: at most MAX_VECTORS.
                    many => opcode::Readv::new(fd, many.as_ptr().cast(), many.len() as u32)
                        .offset(offset)
                        .build(),
                };
                (file, entry)
            }
            Operation::Write {
                file,
                offset,
                durable,
            } => {
                let fd = Fd(file.as_raw_fd());
                let mut flags = ReadWriteFlags::empty();
                flags.set(ReadWriteFlags::DSYNC, durable);
                // CAST: the field is signed, the flags are small.
                let flags = flags.bits() as i32;
                let entry = match self.gather(offset, false)? {
                    [] => return Ok(None),
                    [one] => opcode::Write::new(fd, one.base, length(one)?)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    // CAST: as above.
                    many => opcode::Writev::new(fd, many.as_ptr().cast(), many.len() as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                };
                (file, entry)
            }
            Operation::Sync { file } => {
                let entry = opcode::Fsync::new(Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC);
                (file, entry.build())
            }
            Operation::Deallocate { file, offset, len } => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                (file, allocate(file, offset, len, mode))
            }
            Operation::Zero { file, offset, len } => {
                let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                (file, allocate(file, offset, len, mode))
            }
        };
        // The number in the entry means this file until the entry is submitted.
        self.file = Some(Arc::clone(file));
        Ok(Some(entry))
    }

    /// The addresses of the buffers, contiguous ones joined, empty ones left out.
    fn gather(&mut self, offset: u64, to_memory: bool) -> Result<&[Vector], Errno> {
        // Also because -1 would mean "where the last one ended".
        i64::try_from(offset).map_err(|_| Errno::INVAL)?;
        self.vectors.clear();
        let mut total = 0_usize;
        for buffer in &self.buffers {
            let mapping = &buffer.mapping;
            if to_memory && !mapping.writable() {
                return Err(Errno::FAULT);
            }
            let base = mapping
                .address(buffer.offset, buffer.len)
                .ok_or(Errno::FAULT)?;
            total = total.saturating_add(buffer.len);
            let full = self.vectors.len() == MAX_VECTORS;
            match self.vectors.last_mut() {
                _ if buffer.len == 0 => {}
                // Also across mappings that happen to be neighbours: the kernel sees addresses only.
                Some(last) if last.base.wrapping_add(last.len) == base => last.len += buffer.len,
                _ if full => return Err(Errno::INVAL),
                _ => self.vectors.push(Vector {
                    base,
                    len: buffer.len,
                }),
            }
        }
        if total > MAX_BYTES {
            return Err(Errno::INVAL);
        }
        Ok(&self.vectors)
    }
}

fn length(vector: &Vector) -> Result<u32, Errno> {
    u32::try_from(vector.len).map_err(|_| Errno::INVAL)
}

fn allocate(file: &Arc<OwnedFd>, offset: u64, len: u64, mode: FallocateFlags) -> squeue::Entry {
    opcode::Fallocate::new(Fd(file.as_raw_fd()), len)
        .offset(offset)
        // CAST: the field is signed, the flags are small.
        .mode(mode.bits() as i32)
        .build()
}

/// Errors after which the same call may succeed, once completions were reaped.
fn transient(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(number, Some(Errno::INTR | Errno::AGAIN | Errno::BUSY))
}

/// The best ring that the kernel knows.
fn build(entries: u32) -> io::Result<IoUring> {
    let invalid = Some(Errno::INVAL.raw_os_error());
    // Linux 6.1: completions are made on our thread, when it asks for them.
    let mut best = IoUring::builder();
    best.setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    match best.build(entries) {
        Err(error) if error.raw_os_error() == invalid => {}
        result => return result,
    }
    // Linux 5.19: on our thread, at its next system call.
    let mut good = IoUring::builder();
    good.setup_submit_all()
        .setup_coop_taskrun()
        .setup_taskrun_flag();
    match good.build(entries) {
        Err(error) if error.raw_os_error() == invalid => IoUring::new(entries),
        result => result,
    }
}

/// Says why there is no ring, and what to do.
fn explain(error: &io::Error) -> io::Error {
    let text = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "this process may not use io_uring: set the sysctl kernel.io_uring_disabled to 0 (with \
             1, only the group in kernel.io_uring_group may), and in a container, allow the \
             io_uring system calls in its seccomp profile"
        }
        Some(Errno::NOSYS) => {
            "io_uring is blocked or not in this kernel: it needs CONFIG_IO_URING and Linux 5.15, \
             and in a container, a seccomp profile that allows it; see also the sysctl \
             kernel.io_uring_disabled"
        }
        Some(Errno::INVAL) => {
            "io_uring of this kernel lacks what is needed (Linux 5.15), or there are too many slots"
        }
        Some(Errno::NOMEM) => {
            "no memory for io_uring: on kernels before 5.12, raise the limit of locked memory \
             (ulimit -l)"
        }
        _ => "io_uring",
    };
    io::Error::new(error.kind(), format!("{text} ({error})"))
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
