// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which thread runs on which core.

use anyhow::{bail, Context as _, Result};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::CpuSet;

/// The two cores of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Where the client polls.
    pub(crate) client: usize,
    /// Where zerocard runs, and raw io_uring when it is its turn.
    pub(crate) card: usize,
}

impl Cores {
    /// The first two cores that this process may use.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = rustix::thread::sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        match (cores.next(), cores.next()) {
            (Some(client), Some(card)) => Ok(Self { client, card }),
            _ => bail!("two cores are needed: one polls, one is measured"),
        }
    }
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

/// Puts the calling thread on a core.
pub(crate) fn pin_self(core: usize) -> Result<()> {
    rustix::thread::sched_setaffinity(None, &only(core)).context("choose a core")
}

/// Puts every thread of a process on a core. Workers of io_uring that come later go where the
/// kernel likes.
pub(crate) fn pin_process(pid: u32, core: usize) -> Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        let thread = id.and_then(Pid::from_raw).context("a thread's number")?;
        match rustix::thread::sched_setaffinity(Some(thread), &only(core)) {
            // It has ended, or it is a worker that the kernel keeps to itself.
            Ok(()) | Err(Errno::SRCH | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
