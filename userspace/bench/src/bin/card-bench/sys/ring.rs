// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The yardstick: an io_uring as a program would use it that does nothing but transfer blocks.
//!
//! Set up as zerocard's own ring is (`zerocard/src/sys/ring.rs`): no registered files or buffers, and
//! completions on the thread that asks for them.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::Fd;
use io_uring::{opcode, IoUring};
use rustix::io::Errno;

use super::Ram;

/// Which way blocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// File to RAM.
    Read,
    /// RAM to file.
    Write,
}

/// See the module. The kernel may access `ram` as long as transfers are outstanding; drop() waits.
pub(crate) struct Ring<'a> {
    uring: IoUring,
    file: BorrowedFd<'a>,
    ram: &'a Ram,
    outstanding: u32,
    /// Not `Send`: the kernel serves the thread that made it only.
    thread: PhantomData<*const ()>,
}

impl<'a> Ring<'a> {
    /// A ring for up to `depth` transfers at once between `file` and `ram`.
    pub(crate) fn new(depth: u32, file: BorrowedFd<'a>, ram: &'a Ram) -> io::Result<Self> {
        let mut best = IoUring::builder();
        best.setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag();
        let mut good = IoUring::builder();
        good.setup_submit_all()
            .setup_coop_taskrun()
            .setup_taskrun_flag();
        let invalid = Some(Errno::INVAL.raw_os_error());
        let uring = match best.build(depth) {
            Err(error) if error.raw_os_error() == invalid => good.build(depth),
            result => result,
        }?;
        Ok(Self {
            uring,
            file,
            ram,
            outstanding: 0,
            thread: PhantomData,
        })
    }

    /// Queues a transfer of `len` bytes between `offset` of the file and `address` of the RAM. At
    /// most `depth` are outstanding.
    pub(crate) fn push(
        &mut self,
        direction: Direction,
        tag: u64,
        offset: u64,
        address: u64,
        len: u32,
    ) -> io::Result<()> {
        let fd = Fd(self.file.as_raw_fd());
        let buffer = self.ram.at(address, len as usize, 1);
        let entry = match direction {
            Direction::Read => opcode::Read::new(fd, buffer, len).offset(offset).build(),
            Direction::Write => opcode::Write::new(fd, buffer, len).offset(offset).build(),
        };
        // SAFETY: the file and the buffer outlive the transfer: self borrows both, and drop() waits
        // for all transfers. The RAM is accessed without references, so the kernel may change it.
        unsafe { self.uring.submission().push(&entry.user_data(tag)) }
            .map_err(|_| io::ErrorKind::WouldBlock)?;
        self.outstanding += 1;
        Ok(())
    }

    /// Submits what is queued and waits for at least one completion.
    pub(crate) fn submit_and_wait(&mut self) -> io::Result<()> {
        match self.uring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            result => result.map(drop),
        }
    }

    /// Takes back a transfer that has ended: tag and result.
    pub(crate) fn reap(&mut self) -> Option<(u64, i32)> {
        let entry = self.uring.completion().next()?;
        self.outstanding -= 1;
        Some((entry.user_data(), entry.result()))
    }
}

impl Drop for Ring<'_> {
    fn drop(&mut self) {
        while self.outstanding > 0 {
            if self.submit_and_wait().is_err() {
                // The kernel may still write to the RAM, so the process must not go on without it.
                std::process::abort();
            }
            while self.reap().is_some() {}
        }
    }
}
