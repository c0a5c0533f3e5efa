// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's log from a chosen moment on, message by message.

use anyhow::{bail, Context as _, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

const PATH: &str = "/dev/kmsg";

/// How long a message may take from the event to the log.
const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// The messages since it was made.
#[derive(Debug)]
pub struct Log {
    file: File,
    messages: Vec<String>,
}

impl Log {
    /// Everything that is logged from now on.
    pub fn from_now() -> Result<Self> {
        // CAST: the flag fits.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut options = File::options();
        let mut file = options
            .read(true)
            .custom_flags(flags)
            .open(PATH)
            .with_context(|| format!("cannot open {PATH}"))?;
        file.seek(SeekFrom::End(0))
            .with_context(|| format!("cannot seek in {PATH}"))?;
        Ok(Self {
            file,
            messages: Vec::new(),
        })
    }

    /// Messages so far that begin with `prefix`, without it.
    pub fn of(&mut self, prefix: &str) -> Result<Vec<&str>> {
        self.take()?;
        let messages = self.messages.iter();
        Ok(messages.filter_map(|m| m.strip_prefix(prefix)).collect())
    }

    /// Waits until a message that begins with `prefix` contains `text`. An error when none comes.
    pub fn wait_for(&mut self, prefix: &str, text: &str) -> Result<()> {
        loop {
            if self.of(prefix)?.iter().any(|m| m.contains(text)) {
                return Ok(());
            }
            let mut events = [PollFd::new(&self.file, PollFlags::IN)];
            if poll(&mut events, Some(&LIMIT))? == 0 {
                bail!(
                    "the kernel does not say {text:?}, but {:?}",
                    self.of(prefix)?
                );
            }
        }
    }

    /// Reads what is new. A read gives one record: `numbers;text`, then lines that begin with a
    /// space (`Documentation/ABI/testing/dev-kmsg`).
    fn take(&mut self) -> Result<()> {
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    let line = text.lines().next().unwrap_or_default();
                    if let Some((_, message)) = line.split_once(';') {
                        self.messages.push(message.to_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot read {PATH} (EPIPE: messages were lost)"))
                }
            }
        }
    }
}
