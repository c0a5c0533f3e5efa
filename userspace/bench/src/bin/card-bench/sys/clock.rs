// SPDX-License-Identifier: Apache-2.0 OR MIT

//! CPU time of a process: user and system time of all its threads, those that ended and io_uring's
//! workers included, in nanoseconds.

use std::io;
use std::time::Duration;

/// The CPU clock of a process that is alive.
#[derive(Clone, Copy)]
pub(crate) struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The clock of process `pid`; 0 is the calling one.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut id = 0;
        // SAFETY: the call writes one clockid_t to `id`, which lives.
        match unsafe { libc::clock_getcpuclockid(pid, &mut id) } {
            0 => Ok(Self(id)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// CPU time so far. Fails when the process is gone.
    pub(crate) fn now(self) -> io::Result<Duration> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the call writes one timespec to `time`, which lives.
        if unsafe { libc::clock_gettime(self.0, &mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // CAST: a CPU clock is not negative, and nanoseconds are below a second.
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_while_the_process_works() {
        let clock = CpuClock::of(0).unwrap();
        let start = clock.now().unwrap();
        while clock.now().unwrap() == start {
            std::hint::spin_loop();
        }
    }
}
