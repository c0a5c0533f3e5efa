// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The poller: the thread that does the I/O of its functions.
//!
//! One for all functions by default. It looks at a function while that has work and for a moment
//! longer, then asks its driver for doorbells and leaves it until one comes. With nothing to look at
//! it sleeps until the kernel has finished something, somebody calls, or a deadline comes. It owns the io_uring; functions are reached under their locks, one at a time,
//! once per pass.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::pci::{Function, Progress};
use crate::sys::{Buffer, Full, Operation, Ring, Waker};

/// Commands that one function works on at once, so requests that it may have in the kernel: tokens of the ring are function * SLOTS + slot.
pub(crate) const SLOTS: u32 = 256;

/// A kind's way to the kernel for the length of a call.
pub(crate) struct Io<'a> {
    ring: &'a mut Ring,
    first_token: u32,
    now: Instant,
}

impl<'a> Io<'a> {
    /// The requests of the function with this index.
    pub(crate) fn new(ring: &'a mut Ring, function: u32, now: Instant) -> Self {
        Self {
            ring,
            first_token: function * SLOTS,
            now,
        }
    }

    /// Hands a request to the kernel; it starts at the end of the pass. `slot` is below [`SLOTS`].
    pub(crate) fn push(
        &mut self,
        slot: u32,
        operation: Operation<'_>,
        buffers: &mut Vec<Buffer>,
    ) -> Result<(), Full> {
        self.ring.push(self.first_token + slot, operation, buffers)
    }

    /// Asks the kernel to give a request up.
    pub(crate) fn cancel(&mut self, slot: u32) {
        self.ring.cancel(self.first_token + slot);
    }

    /// When the pass began.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }
}

/// A running poller.
pub(crate) struct Poller {
    thread: JoinHandle<Result<()>>,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Poller {
    /// Starts a thread that serves `functions`. `spin` is how long it goes on looking for work before
    /// it sleeps. `ended` is signalled when the thread ends, however it does.
    pub(crate) fn start(
        name: &str,
        functions: Vec<Arc<Function>>,
        spin: Duration,
        ended: Arc<OwnedFd>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = mpsc::sync_channel(1);
        let thread = {
            let stop = Arc::clone(&stop);
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    let _notify = crate::Notify(&ended);
                    // The ring belongs to the thread that made it.
                    let ring = Ring::new(SLOTS * functions.len() as u32);
                    let ring = match ring {
                        Ok(ring) => ring,
                        Err(error) => {
                            // The starter waits for it.
                            let _ = ready.send(Err(error));
                            return Ok(());
                        }
                    };
                    for function in &functions {
                        function.attention.connect(ring.waker());
                    }
                    let _ = ready.send(Ok(ring.waker()));
                    Pass::new(ring, functions, spin).run(&stop)
                })
                .context("thread")?
        };
        let waker = started
            .recv()
            .context("the poller ended at its start")?
            .context("io_uring")?;
        Ok(Self {
            thread,
            stop,
            waker,
        })
    }

    /// Ends the thread.
    pub(crate) fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        match self.thread.join() {
            Ok(result) => result,
            // The panic message is on standard error already.
            Err(_) => Err(anyhow::anyhow!("the poller failed")),
        }
    }
}

/// What the poller knows of a function.
struct Served {
    function: Arc<Function>,
    /// Look at it in every pass.
    watch: bool,
    /// It was looked at in this pass already.
    polled: bool,
    last_work: Instant,
    deadline: Option<Instant>,
}

impl Served {
    fn took(&mut self, progress: Progress, worked: bool, now: Instant) {
        self.deadline = progress.deadline;
        if worked {
            self.last_work = now;
        }
        // A function that asked for real doorbells stays out of the passes until one comes.
        self.watch = progress.watch;
        self.polled = true;
    }
}

struct Pass {
    ring: Ring,
    served: Vec<Served>,
    completed: Vec<(u32, i32)>,
    spin: Duration,
}

impl Pass {
    fn new(ring: Ring, functions: Vec<Arc<Function>>, spin: Duration) -> Self {
        let now = Instant::now();
        let served = functions.into_iter().map(|function| Served {
            function,
            watch: false,
            polled: false,
            last_work: now,
            deadline: None,
        });
        Self {
            ring,
            served: served.collect(),
            completed: Vec::new(),
            spin,
        }
    }

    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let worked = self.pass(now)?;
            if worked {
                continue;
            }
            if self.served.iter().any(|served| served.watch) {
                std::hint::spin_loop();
                continue;
            }
            let deadlines = self.served.iter().filter_map(|served| served.deadline);
            let timeout = deadlines
                .min()
                .map(|next| next.saturating_duration_since(now));
            self.ring.wait(timeout).context("io_uring")?;
        }
        Ok(())
    }

    /// One look at everything. Says whether there was something to do.
    fn pass(&mut self, now: Instant) -> Result<bool> {
        let mut worked = self.finish(now);
        for (served, index) in self.served.iter_mut().zip(0u32..) {
            let due = served.deadline.is_some_and(|deadline| deadline <= now);
            // Taken in any case: what it stands for is done in this pass.
            let called = served.function.attention.take();
            let look = called || due || served.watch && !served.polled;
            served.polled = false;
            if !look {
                continue;
            }
            let mut io = Io::new(&mut self.ring, index, now);
            let progress = served.function.poll(&mut io);
            let busy = progress.worked || called;
            served.took(progress, busy, now);
            served.polled = false;
            worked |= busy;
            // One that has been idle for a while is watched no longer, unless something came in
            // while it was asked for doorbells.
            let idle = now.saturating_duration_since(served.last_work) >= self.spin;
            if served.watch && !busy && idle {
                if served.function.arm() {
                    served.last_work = now;
                } else {
                    served.watch = false;
                }
            }
        }
        self.ring.submit().context("io_uring")?;
        Ok(worked)
    }

    /// Takes back what the kernel has finished, under one lock for neighbours of one function.
    fn finish(&mut self, now: Instant) -> bool {
        self.ring.reap(&mut self.completed);
        if self.completed.is_empty() {
            return false;
        }
        let mut rest = &self.completed[..];
        while let Some(&(token, _)) = rest.first() {
            let index = token / SLOTS;
            let same = rest.iter().take_while(|(token, _)| token / SLOTS == index);
            let (now_done, later) = rest.split_at(same.count());
            rest = later;
            if let Some(served) = self.served.get_mut(index as usize) {
                let mut io = Io::new(&mut self.ring, index, now);
                let progress = served.function.finish(now_done, &mut io);
                served.took(progress, true, now);
            }
        }
        self.completed.clear();
        true
    }
}
