// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A zerocard process of a test's own, in a directory of its own.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// Generous: it is only ever waited for in full when something is broken.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn zerocard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zerocard"));
    command.env_remove("ZEROCARD_LOG").stdin(Stdio::null());
    command
}

pub(crate) struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub(crate) ready: String,
    directory: Option<tempfile::TempDir>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self::start_in(directory.path(), &["--json"]);
        server.directory = Some(directory);
        server
    }

    /// With options that may name files in its own directory.
    pub(crate) fn with(options: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let mut server = Self::start_in(directory.path(), &options);
        server.directory = Some(directory);
        server
    }

    pub(crate) fn start_in(directory: &Path, options: &[&str]) -> Self {
        Self::start_with(zerocard(), directory, options)
    }

    pub(crate) fn start_with(mut command: Command, directory: &Path, options: &[&str]) -> Self {
        let mut child = command
            .args(["serve", "--dir"])
            .arg(directory)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        // Owned from here on, so that a failing test leaves no process behind.
        let ready = String::new();
        let mut server = Self {
            child,
            stdout,
            ready,
            directory: None,
        };
        assert!(readable(server.stdout.get_ref()), "no ready line");
        server.stdout.read_line(&mut server.ready).unwrap();
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket_of("admin")
    }

    pub(crate) fn socket_of(&self, function: &str) -> PathBuf {
        self.path(&format!("{function}.sock"))
    }

    /// A file in the card's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.as_ref().unwrap().path().join(name)
    }

    /// Bytes of the process that are in memory, without what it shares with others.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
        kilobytes.parse::<u64>().unwrap() << 10
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal and gives the exit status and what else came on standard output.
    pub(crate) fn end(&mut self, signal: Signal) -> (ExitStatus, String) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
        let status = wait(&mut self.child);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (status, rest)
    }

    pub(crate) fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Open descriptors of the process.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// Whether the process has a file of this name mapped.
    pub(crate) fn maps(&self, name: &str) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        maps.lines().filter(|line| line.contains(name)).count()
    }
}

/// Waits for a process to end; kills one that does not.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let process = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let ended = readable(&process);
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert!(ended, "the process did not end");
    status
}

/// Waits until there is something to read, or the end of it.
pub(crate) fn readable(fd: &impl AsFd) -> bool {
    let limit = Timespec {
        tv_sec: LIMIT.as_secs() as i64,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit)) == Ok(1)
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when the process has ended already, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
