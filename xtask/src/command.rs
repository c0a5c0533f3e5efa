// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Running other programs: output goes to a log file and, line by line, to the step's spinner; a failure
//! shows the end of the log, its path, and, for causes we know, what to do.
//!
//! Every child dies with us, however we die: `setpriv --pdeathsig KILL` asks the kernel for it.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use crate::ui::Step;

/// A command that may outlive us: the machine's own package manager, which must not be cut off.
pub(crate) fn lasting(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut c = Command::new(program);
    // A user's PATH, which sudo -E hands over, has no sbin; chroot and dpkg's helpers live there.
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    c.env("PATH", path);
    c
}

/// A command that the kernel kills when the thread that starts it is gone.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut c = lasting("setpriv");
    c.args(["--pdeathsig", "KILL", "--"]).arg(program);
    c
}

/// Runs `cmd` to its end as one step; all of its output goes to `log`.
pub(crate) fn run(title: &str, log: &Path, cmd: Command) -> Result<()> {
    run_and_read(title, log, cmd).map(drop)
}

/// The same, and gives back the output.
pub(crate) fn run_and_read(title: &str, log: &Path, mut cmd: Command) -> Result<String> {
    let step = Step::start(title);
    let (status, text) = capture(&step, log, &mut cmd)?;
    if status.success() {
        step.done();
        return Ok(text);
    }
    drop(step);
    Err(Failed {
        title: title.to_owned(),
        status,
        text,
        log: log.to_owned(),
    }
    .into())
}

/// A step whose program failed.
#[derive(Debug)]
pub(crate) struct Failed {
    title: String,
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// All of its output.
    pub(crate) text: String,
    log: PathBuf,
}

impl std::error::Error for Failed {}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            title,
            status,
            text,
            log,
        } = self;
        write!(
            f,
            "{title}: {status}\n{}\n(all of it: {})",
            tail(text, 25),
            log.display()
        )?;
        advice(text).map_or(Ok(()), |a| write!(f, "\n=> {a}"))
    }
}

/// Runs `cmd` and gives back what it wrote to standard output.
pub(crate) fn output(mut cmd: Command) -> Result<String> {
    let out = cmd
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {cmd:?}"))?;
    if !out.status.success() {
        let err = String::from_utf8_lossy(&out.stderr);
        bail!("{cmd:?}: {}\n{}", out.status, tail(&err, 15));
    }
    String::from_utf8(out.stdout).with_context(|| format!("output of {cmd:?}"))
}

fn capture(step: &Step, log: &Path, cmd: &mut Command) -> Result<(ExitStatus, String)> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    // One pipe for both streams keeps their order.
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut child = cmd
        .stdin(Stdio::null())
        .stdout(write.try_clone()?)
        .stderr(write)
        .spawn()
        .with_context(|| format!("start {cmd:?}"))?;
    // `cmd` keeps its copies of the write end until they are replaced: without this there is no end of file.
    cmd.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(File::from(read));
    let mut line = Vec::new();
    let mut text = String::new();
    loop {
        line.clear();
        if reader
            .by_ref()
            .take(64 * 1024)
            .read_until(b'\n', &mut line)?
            == 0
        {
            break;
        }
        file.write_all(&line)
            .with_context(|| format!("write {}", log.display()))?;
        let line = String::from_utf8_lossy(&line);
        step.detail(&line);
        text += &line;
    }
    Ok((child.wait()?, text))
}

/// Waits until `fd` can be read, or has ended; false when that takes longer than `limit`.
pub(crate) fn wait_readable(fd: &impl AsFd, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into()?,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(n) => return Ok(n > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
    }
}

/// The last `n` lines of `text`, indented.
pub(crate) fn tail(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(n);
    lines[from..]
        .iter()
        .map(|l| format!("    {l}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// What to do about a failure that others have had before.
pub(crate) fn advice(log: &str) -> Option<&'static str> {
    const FULL: &str = "the disk is full: free some space, or point ZEROSHIFT_CACHE at a larger disk, and run the same command again";
    const KNOWN: [(&str, &str); 9] = [
        ("No space left on device", FULL),
        ("enough free space", FULL),
        ("Temporary failure resolving", "no network (names do not resolve): connect the machine, or set a proxy in apt's configuration, and run the same command again"),
        ("Could not resolve", "no network (names do not resolve): connect the machine, or set a proxy in apt's configuration, and run the same command again"),
        ("Could not connect", "the package mirror does not answer: check the network, or name another with --mirror"),
        ("Network is unreachable", "no network: connect the machine and run the same command again"),
        ("NO_PUBKEY", "the archive's key is unknown here: install the package debian-archive-keyring"),
        ("Operation not permitted", "this needs real root with the right to mount and chroot: in a container, run it privileged"),
        ("Cannot allocate memory", "out of memory: close something, or give the machine more, and run the same command again"),
    ];
    KNOWN
        .iter()
        .find(|(sign, _)| log.contains(sign))
        .map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_shows_the_end_of_the_log_and_the_remedy() {
        let dir = std::env::temp_dir().join(format!("xtask-command-{}", std::process::id()));
        let mut cmd = Command::new("sh");
        cmd.args([
            "-c",
            "echo first; echo cc: No space left on device >&2; exit 3",
        ]);
        let err = run("a step", &dir.join("log"), cmd)
            .unwrap_err()
            .to_string();
        fs::remove_dir_all(&dir).unwrap();
        assert!(
            err.contains("exit status: 3") && err.contains("first"),
            "{err}"
        );
        assert!(err.contains("the disk is full"), "{err}");
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc", 2), "    b\n    c");
        assert_eq!(tail("", 2), "");
    }
}
