// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One client of the control socket: bytes in, lines out of them, replies back.
//!
//! Owned by the server, which says when the socket is ready. Never blocks. At most one line and
//! one reply are kept: while a reply is not sent, nothing more is read, so a client that does not
//! read fills its own socket and not our memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// Longest line, without its end.
pub(super) const MAX_LINE: usize = 64 * 1024;
/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// The client is gone or was given up; the reason is for the log.
#[derive(Debug)]
pub(super) enum Gone {
    /// It closed the connection, or stopped sending and has every reply.
    Left,
    /// It did not read its reply.
    Stuck,
    /// The socket failed.
    Failed(Errno),
}

impl From<Errno> for Gone {
    fn from(error: Errno) -> Self {
        match error {
            Errno::CONNRESET | Errno::PIPE => Self::Left,
            error => Self::Failed(error),
        }
    }
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A line without its end, perhaps empty.
    Line(Vec<u8>),
    /// A line longer than [`MAX_LINE`]; it is being skipped.
    TooLong,
}

/// A connected client.
pub(super) struct Client {
    socket: OwnedFd,
    input: Vec<u8>,
    /// Bytes of `input` that lines used up.
    used: usize,
    /// Bytes of `input` in which no end of a line is.
    scanned: usize,
    /// The end of a line that is too long has not come yet.
    skipping: bool,
    /// The client sends nothing more.
    ended: bool,
    output: Vec<u8>,
    /// Bytes of `output` that are sent.
    sent: usize,
    /// When sending last made progress.
    progress: Instant,
}

impl Client {
    /// Takes over a connected, non-blocking socket.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            input: Vec::new(),
            used: 0,
            scanned: 0,
            skipping: false,
            ended: false,
            output: Vec::new(),
            sent: 0,
            progress: Instant::now(),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.sending() {
            PollFlags::OUT
        } else if self.ended {
            PollFlags::empty()
        } else {
            PollFlags::IN
        }
    }

    /// Whether a reply is on its way.
    pub(super) fn sending(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Time left until a client that does not read is given up; `None` when nothing is to be sent.
    pub(super) fn deadline(&self, patience: Duration, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.progress);
        self.sending().then(|| patience.saturating_sub(waited))
    }

    /// Reads what is there, up to a bound.
    pub(super) fn receive(&mut self) -> Result<(), Gone> {
        if self.ended || self.sending() || self.input.len() - self.used > MAX_LINE {
            return Ok(());
        }
        self.input.drain(..self.used);
        self.scanned -= self.used;
        self.used = 0;
        let mut chunk = [0; CHUNK];
        let flags = RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.socket, &mut chunk, flags) {
            Ok((0, _)) => self.ended = true,
            Ok((count, _)) => self.input.extend_from_slice(&chunk[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The next line that is there. The last one needs no end: JSON shows whether it is whole.
    pub(super) fn next(&mut self) -> Option<Incoming> {
        loop {
            let rest = self.input.get(self.scanned..)?;
            let end = rest.iter().position(|byte| *byte == b'\n');
            let Some(end) = end else {
                self.scanned = self.input.len();
                return self.without_end();
            };
            let end = self.scanned + end;
            let line = self.input.get(self.used..end)?;
            let too_long = line.len() > MAX_LINE;
            let line = if too_long { Vec::new() } else { line.to_vec() };
            self.used = end + 1;
            self.scanned = self.used;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            return Some(if too_long {
                Incoming::TooLong
            } else {
                Incoming::Line(line)
            });
        }
    }

    /// The rest of the input has no end of a line.
    fn without_end(&mut self) -> Option<Incoming> {
        let len = self.input.len() - self.used;
        if self.skipping {
            self.used = self.input.len();
            return None;
        }
        if len > MAX_LINE {
            self.used = self.input.len();
            self.skipping = true;
            return Some(Incoming::TooLong);
        }
        if !self.ended || len == 0 {
            return None;
        }
        let line = self.input.split_off(self.used);
        self.scanned = self.used;
        Some(Incoming::Line(line))
    }

    /// Sends a reply, as much as goes at once.
    pub(super) fn reply(&mut self, line: Vec<u8>) -> Result<(), Gone> {
        self.output = line;
        self.sent = 0;
        self.progress = Instant::now();
        self.send()
    }

    /// Goes on sending.
    pub(super) fn send(&mut self) -> Result<(), Gone> {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, rest, flags) {
                Ok(count) => {
                    self.sent += count;
                    self.progress = Instant::now();
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // A large reply must not stay with every client for ever.
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Whether nothing more can come or go.
    pub(super) fn finished(&self) -> bool {
        self.ended && !self.sending() && self.used == self.input.len()
    }
}
