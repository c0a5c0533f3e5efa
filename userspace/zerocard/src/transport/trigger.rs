// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which descriptors a client may hand in as triggers of interrupts.
//!
//! The poller writes to them under the lock of a function, and it serves other functions too, so a
//! write must not wait for anybody: only eventfds that do not block are taken. What cannot be found
//! out about a descriptor speaks against it.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::OFlags;

/// The name that the kernel gives to eventfds, and that no file has: it does not start with a slash.
const EVENTFD: &[u8] = b"anon_inode:[eventfd]";

/// Whether the descriptor is an eventfd, writes to which do not block.
pub(super) fn is_trigger(descriptor: &OwnedFd) -> bool {
    let flags = rustix::fs::fcntl_getfl(descriptor);
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    flags.is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
        && rustix::fs::readlink(link, Vec::new()).is_ok_and(|name| name.as_bytes() == EVENTFD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::EventfdFlags;
    use rustix::pipe::PipeFlags;

    #[test]
    fn only_an_eventfd_that_does_not_block() {
        let eventfd = |flags| rustix::event::eventfd(0, flags).unwrap();
        assert!(is_trigger(&eventfd(EventfdFlags::NONBLOCK)));
        assert!(is_trigger(&eventfd(
            EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE
        )));
        assert!(!is_trigger(&eventfd(EventfdFlags::empty())));
        let (_reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        assert!(!is_trigger(&writer));
        let directory = tempfile::tempdir().unwrap();
        // A file of that name, with the flag.
        let path = directory.path().join("anon_inode:[eventfd]");
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, rustix::fs::Mode::RUSR).unwrap();
        assert!(!is_trigger(&file));
    }
}
