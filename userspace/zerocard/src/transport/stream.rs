// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A connection: whole messages with their descriptors in, whole replies out.
//!
//! Owned by the session. The socket is non-blocking, every wait also watches the stop descriptor, and
//! so does the start of every message: a client that stops halfway through a message, never reads
//! its replies or never pauses cannot keep the process from ending. Descriptors are owned from the moment they arrive.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};

use super::wire::{Header, HEADER, MAX_FDS, MAX_MESSAGE};

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Closed {
    /// The process is to end.
    Stop,
    /// The client closed it, in the middle of a message or between two.
    Peer {
        /// Whether a message was cut off.
        truncated: bool,
    },
    /// The header says something that leaves no way to find the next message.
    Unframed(Header),
    /// The socket failed.
    Failed(io::Error),
}

impl From<Errno> for Closed {
    fn from(error: Errno) -> Self {
        match error {
            Errno::CONNRESET | Errno::PIPE => Self::Peer { truncated: true },
            error => Self::Failed(error.into()),
        }
    }
}

/// A message as it arrived.
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// More descriptors came than a message may carry; the surplus is closed already.
    pub(super) too_many_fds: bool,
}

/// Waits until `fd` is ready for `events`, or until the process is to end (`false`).
pub(super) fn wait(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    stop: BorrowedFd<'_>,
) -> Result<bool, Errno> {
    loop {
        let mut fds = [PollFd::new(&stop, PollFlags::IN), PollFd::new(&fd, events)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) if !fds[0].revents().is_empty() => return Ok(false),
            Ok(_) if !fds[1].revents().is_empty() => return Ok(true),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The server's end of a connection.
pub(super) struct Stream<'a> {
    socket: OwnedFd,
    stop: BorrowedFd<'a>,
}

impl<'a> Stream<'a> {
    /// Takes over a connected, non-blocking socket.
    pub(super) fn new(socket: OwnedFd, stop: BorrowedFd<'a>) -> Self {
        Self { socket, stop }
    }

    /// The next message.
    pub(super) fn receive(&self) -> Result<Message, Closed> {
        if !wait(self.socket.as_fd(), PollFlags::IN, self.stop)? {
            return Err(Closed::Stop);
        }
        let mut fds = Vec::new();
        let mut too_many_fds = false;
        let mut head = [0; HEADER];
        self.fill(&mut head, true, &mut fds, &mut too_many_fds)?;
        let header = Header::parse(&head);
        let size = header.size as usize;
        if !(HEADER..=MAX_MESSAGE).contains(&size) {
            return Err(Closed::Unframed(header));
        }
        let mut body = vec![0; size - HEADER];
        self.fill(&mut body, false, &mut fds, &mut too_many_fds)?;
        Ok(Message {
            header,
            body,
            fds,
            too_many_fds,
        })
    }

    /// Reads exactly as many bytes as `buffer` has, so descriptors of the next message stay where
    /// they are.
    fn fill(
        &self,
        buffer: &mut [u8],
        first: bool,
        fds: &mut Vec<OwnedFd>,
        too_many_fds: &mut bool,
    ) -> Result<(), Closed> {
        let mut done = 0;
        while done < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut vector = [IoSliceMut::new(&mut buffer[done..])];
            let result = rustix::net::recvmsg(&self.socket, &mut vector, &mut control, flags);
            let received = match result {
                Ok(received) => received,
                Err(Errno::AGAIN) => {
                    if !wait(self.socket.as_fd(), PollFlags::IN, self.stop)? {
                        return Err(Closed::Stop);
                    }
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
                *too_many_fds = true;
                fds.truncate(MAX_FDS);
            }
            if received.bytes == 0 {
                return Err(Closed::Peer {
                    truncated: !first || done > 0,
                });
            }
            done += received.bytes;
        }
        Ok(())
    }

    /// Sends a whole reply.
    pub(super) fn send(&self, mut message: &[u8]) -> Result<(), Closed> {
        while !message.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, message, flags) {
                Ok(sent) => message = &message[sent..],
                Err(Errno::AGAIN) => {
                    if !wait(self.socket.as_fd(), PollFlags::OUT, self.stop)? {
                        return Err(Closed::Stop);
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::EventfdFlags;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    #[test]
    fn the_end_comes_before_a_message_that_is_there_already() {
        let (client, server) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let stream = Stream::new(server, stop.as_fd());
        let message = [7, 0, 4, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for _ in 0..2 {
            assert_eq!(rustix::io::write(&client, &message), Ok(16));
        }
        assert!(matches!(stream.receive(), Ok(message) if message.header.id == 7));
        rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
        assert!(matches!(stream.receive(), Err(Closed::Stop)));
    }
}
