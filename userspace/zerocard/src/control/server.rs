// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control thread: accepts clients, reads lines, answers them.
//!
//! Runs on a thread of its own until the stop descriptor is readable. Each turn every client gets
//! one line answered, so none can starve another or the end of the process.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::client::{Client, Gone, Incoming, MAX_LINE};
use super::dispatch;
use super::target::ControlTarget;
use crate::throttle::Throttle;

/// Most clients at a time.
pub(super) const MAX_CLIENTS: usize = 16;
/// How long a reply may wait for a client that does not read.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long no client is accepted after the process ran out of something.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves the control socket of a card.
pub(crate) struct Server {
    target: Arc<dyn ControlTarget>,
    patience: Duration,
    /// Origin of the clock in replies.
    start: Instant,
    clients: Vec<Client>,
    /// No client is accepted before this.
    accept_after: Option<Instant>,
    throttle: Throttle,
}

impl Server {
    /// A server for a card.
    pub(crate) fn new(target: Arc<dyn ControlTarget>) -> Self {
        Self::with_patience(target, PATIENCE)
    }

    pub(super) fn with_patience(target: Arc<dyn ControlTarget>, patience: Duration) -> Self {
        Self {
            target,
            patience,
            start: Instant::now(),
            clients: Vec::new(),
            accept_after: None,
            throttle: Throttle::default(),
        }
    }

    /// Serves a listening, non-blocking socket until `stop` becomes readable. Clients that are
    /// connected then are cut off.
    pub(crate) fn run(mut self, listener: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let mut busy = false;
            self.clients.retain_mut(|client| {
                let served = serve(client, &*self.target, self.start, self.patience);
                busy |= matches!(served, Ok(true));
                match served {
                    Ok(_) | Err(Gone::Left) => {}
                    Err(Gone::Stuck) if self.throttle.ready() => {
                        tracing::warn!("control client dropped: it does not read its reply");
                    }
                    Err(Gone::Failed(error)) if self.throttle.ready() => {
                        tracing::warn!("control client dropped: {error}");
                    }
                    Err(_) => {}
                }
                served.is_ok()
            });
            let timeout = if busy {
                Some(Duration::ZERO)
            } else {
                self.timeout()
            };
            let waiting = self.accept_after.is_some();
            let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
            fds.extend(
                self.clients
                    .iter()
                    .map(|client| PollFd::from_borrowed_fd(client.fd(), client.interest())),
            );
            if !waiting {
                fds.push(PollFd::from_borrowed_fd(listener, PollFlags::IN));
            }
            let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            if fds.first().is_some_and(ready) {
                return Ok(());
            }
            let events: Vec<PollFlags> = fds.iter().skip(1).map(PollFd::revents).collect();
            let accept = !waiting && fds.last().is_some_and(ready);
            drop(fds);
            let mut events = events.into_iter();
            self.clients.retain_mut(|client| {
                let events = events.next().unwrap_or(PollFlags::empty());
                transfer(client, events).is_ok()
            });
            if accept {
                self.accept(listener)?;
            }
        }
    }

    /// Until when nothing has to be done.
    fn timeout(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.accept_after = self.accept_after.filter(|after| *after > now);
        let pause = self.accept_after.map(|after| after - now);
        let deadlines = self
            .clients
            .iter()
            .filter_map(|c| c.deadline(self.patience, now));
        // A millisecond more, so that the time is over when poll() ends.
        let soonest = deadlines.chain(pause).min();
        soonest.map(|time| time + Duration::from_millis(1))
    }

    fn accept(&mut self, listener: BorrowedFd<'_>) -> io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = match rustix::net::accept_with(listener, flags) {
            Ok(socket) => socket,
            // The client gave up before it was its turn.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                if self.throttle.ready() {
                    tracing::warn!("control client not accepted: {error}");
                }
                self.accept_after = Some(Instant::now() + PAUSE);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let mut client = Client::new(socket);
        if self.clients.len() >= MAX_CLIENTS {
            // It fits into the empty buffer of a new socket; if not, the client sees the end only.
            let full = format!("{MAX_CLIENTS} clients are connected already; end one of them");
            let _ = client.reply(dispatch::complaint(&full));
            return Ok(());
        }
        self.clients.push(client);
        Ok(())
    }
}

/// Answers one line of a client; whether there may be another.
fn serve(
    client: &mut Client,
    target: &dyn ControlTarget,
    start: Instant,
    patience: Duration,
) -> Result<bool, Gone> {
    if let Some(left) = client.deadline(patience, Instant::now()) {
        return if left.is_zero() {
            Err(Gone::Stuck)
        } else {
            Ok(false)
        };
    }
    match client.next() {
        None if client.finished() => return Err(Gone::Left),
        None => return Ok(false),
        Some(Incoming::Line(line)) if line.trim_ascii().is_empty() => {}
        Some(Incoming::Line(line)) => {
            let clock = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            client.reply(dispatch::answer(&line, clock, target))?;
        }
        Some(Incoming::TooLong) => {
            let error = format!("the line is longer than {MAX_LINE} bytes");
            client.reply(dispatch::complaint(&error))?;
        }
    }
    Ok(true)
}

/// Moves bytes as poll() says.
fn transfer(client: &mut Client, events: PollFlags) -> Result<(), Gone> {
    if events.is_empty() {
        return Ok(());
    }
    if client.sending() {
        client.send()
    } else if events.contains(PollFlags::IN) || client.interest() == PollFlags::IN {
        client.receive()
    } else {
        Ok(())
    }
}
