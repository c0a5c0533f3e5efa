// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sockets of the functions: made, served, and removed.
//!
//! Each function's thread runs [`Listener::serve`]. A socket is made with mode 0600 and never
//! replaces one that somebody serves; it is removed at the end only while it is still the same
//! file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, CWD};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::device::{Closer, Device};
use super::session;
use super::stream::{wait, Closed, Stream};

/// Permission bits that a socket must not have.
const NOT_FOR_OTHERS: Mode = Mode::XUSR.union(Mode::RWXG).union(Mode::RWXO);

/// A lock on the directory of the sockets while they are made: two cards that start at once must
/// not both take the same stale socket for theirs.
pub(crate) struct DirectoryLock(#[allow(dead_code)] OwnedFd);

impl DirectoryLock {
    /// Waits for the lock. It ends with the value. Called while signals still kill: anybody who may
    /// read the directory can hold the lock, and no handler could interrupt the wait.
    pub(crate) fn acquire(directory: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = directory.display();
        let fd = rustix::fs::open(directory, flags, Mode::empty())
            .with_context(|| format!("directory {name} (it has to exist)"))?;
        let locked = match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => {
                tracing::info!(
                    "waiting for the lock on directory {name}, which another process holds"
                );
                rustix::fs::flock(&fd, FlockOperation::LockExclusive)
            }
            result => result,
        };
        locked.with_context(|| format!("lock on directory {name}"))?;
        Ok(Self(fd))
    }
}

/// A listening socket and its file.
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl Listener {
    /// Makes a socket and listens. Called while the process has one thread: the file mode comes
    /// from the process-wide umask.
    pub(crate) fn bind(path: &Path, _lock: &DirectoryLock) -> Result<Self> {
        let name = path.display();
        let address = SocketAddrUnix::new(path).with_context(|| {
            format!("socket path {name} (at most 107 bytes; use a directory with a shorter name)")
        })?;
        let socket = new_socket()?;
        let before = rustix::process::umask(NOT_FOR_OTHERS);
        let bound = bind_replacing_stale(&socket, path, &address);
        rustix::process::umask(before);
        bound?;
        let status = rustix::fs::lstat(path).with_context(|| format!("socket {name}"))?;
        let listener = Self {
            socket,
            path: path.to_owned(),
            file: (status.st_dev, status.st_ino),
        };
        rustix::net::listen(&listener.socket, 4).with_context(|| format!("socket {name}"))?;
        Ok(listener)
    }

    /// The socket, to be served by somebody else than [`Listener::serve`].
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Serves one client after another until `stop` becomes readable.
    pub(crate) fn serve(&self, device: &dyn Device, stop: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            if !wait(self.socket.as_fd(), PollFlags::IN, stop)? {
                return Ok(());
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match rustix::net::accept_with(&self.socket, flags) {
                Ok(socket) => socket,
                // The client gave up before it was its turn.
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => continue,
                // Others hold what the process may have; what they give back, the next try gets.
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    tracing::error!("no connection can be taken: {error}");
                    if pause(stop)? {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            tracing::info!("client connected");
            let closer = match socket.try_clone() {
                Ok(closer) => Closer(closer),
                Err(error) => {
                    tracing::error!("client dropped: {error}");
                    continue;
                }
            };
            device.connect(closer);
            let closed = session::run(&Stream::new(socket, stop), device);
            device.disconnect();
            match closed {
                Closed::Stop => return Ok(()),
                Closed::Peer { truncated: false } => tracing::info!("client disconnected"),
                Closed::Peer { truncated: true } => {
                    tracing::warn!("client disconnected in the middle of a message");
                }
                Closed::Unframed(header) => tracing::warn!(
                    "client dropped: it sent a message of {} bytes (command {})",
                    header.size,
                    header.command
                ),
                Closed::Failed(error) => tracing::warn!("client dropped: {error}"),
            }
        }
    }
}

/// Waits a second, or until the process is to end (`true`).
fn pause(stop: BorrowedFd<'_>) -> io::Result<bool> {
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut [PollFd::new(&stop, PollFlags::IN)], Some(&second)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let same = rustix::fs::lstat(&self.path)
            .is_ok_and(|status| (status.st_dev, status.st_ino) == self.file);
        if same {
            if let Err(error) = rustix::fs::unlinkat(CWD, &self.path, rustix::fs::AtFlags::empty())
            {
                tracing::warn!("socket {} stays behind: {error}", self.path.display());
            }
        }
    }
}

fn new_socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .context("unix socket")
}

fn bind_replacing_stale(socket: &OwnedFd, path: &Path, address: &SocketAddrUnix) -> Result<()> {
    match rustix::net::bind(socket, address) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, address)?;
            rustix::net::bind(socket, address)
        }
        result => result,
    }
    .with_context(|| format!("socket {}", path.display()))
}

/// Removes a socket file that a dead process left; anything else is an error.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<()> {
    let name = path.display();
    let status = rustix::fs::lstat(path).with_context(|| format!("socket {name}"))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Socket {
        bail!("{name} exists and is no socket; remove it or use another directory");
    }
    match rustix::net::connect(&new_socket()?, address) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!("replacing {name}, which a dead process left");
            rustix::fs::unlink(path).with_context(|| format!("stale socket {name}"))
        }
        // AGAIN is a full backlog: somebody listens.
        Ok(()) | Err(Errno::AGAIN) => {
            bail!("{name} is being served by another process; end it or use another directory")
        }
        Err(error) => Err(error).with_context(|| format!("socket {name}")),
    }
}
