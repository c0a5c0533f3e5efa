// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Running an emulator and reading its console (docs/interfaces.md, section 6).
//!
//! The console is followed line by line until the end marker, the end of the emulator, or a time limit; then
//! the emulator is ended by its pid. Whatever a kernel reports on the way is found here.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use crate::command::tail;
use crate::ui::{say, Step};

/// What a kernel prints when something is wrong. Each must never appear in a run that passes.
const TROUBLE: [&str; 34] = [
    "Kernel panic",
    "BUG: ",
    "Oops: ",
    "WARNING: ",
    "[ cut here ]",
    "Call Trace:",
    "KASAN: ",
    "UBSAN: ",
    "INFO: task ",
    "rcu: INFO: ",
    "possible circular locking",
    "possible recursive locking",
    "possible irq lock inversion",
    "inconsistent lock state",
    "suspicious RCU usage",
    "Invalid wait context",
    "DEBUG_LOCKS_WARN_ON",
    "unreferenced object",
    "new suspected memory leaks",
    "general protection fault",
    "Unable to handle kernel",
    "sleeping function called from invalid context",
    "scheduling while atomic",
    "refcount_t: ",
    "list_add corruption",
    "list_del corruption",
    "ODEBUG: ",
    "soft lockup",
    "rust_kernel: panicked",
    "segfault at ",
    "traps: ",
    "printk messages dropped",
    "DMAR: DRHD: handling fault",
    "AMD-Vi: Event logged",
];

/// For how long a kernel says nothing before its first program only if it hangs. QEMU's translator may lose a kernel
/// while it boots two processors, before any code of ours is there: `docs/rigs.md`, limits.
pub(crate) const SILENCE: Duration = Duration::from_secs(180);

/// What one job printed and how it ended.
#[derive(Debug, Default, Clone)]
pub(crate) struct Job {
    /// Its name.
    pub(crate) name: String,
    /// Its exit code; none when it never ended.
    pub(crate) exit: Option<i32>,
    /// Its lines, kernel messages of that time among them.
    pub(crate) lines: Vec<String>,
}

/// Everything a console said.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    /// Lines in order, without control characters.
    pub(crate) lines: Vec<String>,
    /// Jobs in the order they began.
    pub(crate) jobs: Vec<Job>,
    /// Its first program ran.
    pub(crate) booted: bool,
    /// The end marker came.
    pub(crate) halted: bool,
    /// Kernel reports.
    pub(crate) trouble: Vec<String>,
    /// Where the whole console is kept.
    pub(crate) log: PathBuf,
    /// Why reading stopped early, if it did.
    pub(crate) stopped: Option<String>,
}

impl Transcript {
    /// Takes one line.
    fn take(&mut self, raw: &str) {
        let line: String = raw
            .chars()
            .filter(|c| !c.is_control() || *c == '\t')
            .collect();
        let running = self.jobs.last_mut().filter(|j| j.exit.is_none());
        if let Some(name) = line.strip_prefix("ZS-BEGIN ") {
            self.jobs.push(Job {
                name: name.trim().to_owned(),
                ..Job::default()
            });
        } else if let Some((name, code)) = line
            .strip_prefix("ZS-END ")
            .and_then(|l| l.rsplit_once(' '))
        {
            if let Some(job) = running.filter(|j| j.name == name) {
                job.exit = code.trim().parse().ok();
            }
        } else if line.trim_end() == "ZS-HALT" {
            self.halted = true;
        } else if line.starts_with("ZS-BOOT") {
            self.booted = true;
        } else {
            if let Some(job) = running {
                job.lines.push(line.clone());
            }
            if is_trouble(&line) {
                self.trouble.push(line.clone());
            }
        }
        self.lines.push(line);
    }

    /// Takes one line and keeps it in the log.
    fn record(&mut self, log: &mut File, line: &str) -> Result<()> {
        writeln!(log, "{line}").with_context(|| format!("write {}", self.log.display()))?;
        self.take(line);
        Ok(())
    }

    /// The job `name`.
    pub(crate) fn job(&self, name: &str) -> Result<&Job> {
        self.jobs
            .iter()
            .find(|j| j.name == name)
            .with_context(|| format!("the job {name} never began\n{}", self.ending()))
    }

    /// Fails when the run as a whole did: no end marker, or a kernel report.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(first) = self.trouble.first() {
            bail!(
                "the kernel reported trouble: {first}\n{}",
                self.around(first)
            );
        }
        if !self.halted {
            bail!(
                "the machine did not reach its end ({})\n{}",
                self.stopped.as_deref().unwrap_or("the emulator ended"),
                self.ending()
            );
        }
        Ok(())
    }

    /// Fails when the kernel did not report `expected`.
    pub(crate) fn check_planted(&self, expected: &str) -> Result<()> {
        if !self.trouble.iter().any(|t| t.contains(expected)) {
            bail!(
                "the kernel did not report the planted {expected}\n{}",
                self.ending()
            );
        }
        Ok(())
    }

    fn around(&self, line: &str) -> String {
        let at = self.lines.iter().position(|l| l == line).unwrap_or(0);
        let part = self
            .lines
            .iter()
            .skip(at.saturating_sub(5))
            .take(40)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n");
        format!("{}\n(all of it: {})", tail(&part, 45), self.log.display())
    }

    /// The end of the console, for messages.
    pub(crate) fn ending(&self) -> String {
        format!(
            "{}\n(all of it: {})",
            tail(&self.lines.join("\n"), 30),
            self.log.display()
        )
    }
}

/// Whether a console line is a kernel's report of trouble. KTAP lines are a program's words, not a kernel's.
fn is_trouble(line: &str) -> bool {
    let text = line.trim_start();
    !(text.starts_with("ok ") || text.starts_with("not ok ") || text.starts_with('#'))
        && TROUBLE.iter().any(|t| text.contains(t))
}

/// A process that ends with this value.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts `cmd`.
    pub(crate) fn start(cmd: &mut Command) -> Result<Self> {
        Ok(Self {
            child: cmd.spawn().with_context(|| format!("start {cmd:?}"))?,
        })
    }

    /// The process.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // By pid, through the handle: it cannot be another process as long as we have not waited for it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One of the two streams of an emulator, cut into lines.
struct Lines {
    stream: File,
    pending: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// A pipe: our end, and the emulator's.
    fn pipe() -> Result<(Self, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let stream = File::from(read);
        Ok((
            Self {
                stream,
                pending: Vec::new(),
                ended: false,
            },
            write,
        ))
    }

    /// Reads once, which does not wait when the stream is ready, and gives whole lines to `take`.
    fn read(&mut self, mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let mut buffer = [0u8; 16 * 1024];
        let n = self.stream.read(&mut buffer).context("read the console")?;
        self.pending
            .extend_from_slice(buffer.get(..n).unwrap_or_default());
        if n == 0 {
            self.ended = true;
            self.pending.push(b'\n');
        }
        while let Some(at) = self.pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=at).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if !(self.ended && line.is_empty()) {
                take(line)?;
            }
        }
        Ok(())
    }
}

/// Runs an emulator to the end marker or `limit`. Its standard output is one console, its standard
/// error another: a kernel and programs that shared one would cut each other's lines in two. When its kernel says nothing for
/// `silence` before its first program, once, it is ended and started again.
pub(crate) fn run(
    step: &Step,
    cmd: Command,
    log: &Path,
    limit: Duration,
    silence: Option<Duration>,
) -> Result<Transcript> {
    watched(cmd, log, limit, silence, &mut |line| step.detail(line))
}

/// The same; `watch` gets every line as it comes.
pub(crate) fn watched(
    mut cmd: Command,
    log: &Path,
    limit: Duration,
    silence: Option<Duration>,
    watch: &mut dyn FnMut(&str),
) -> Result<Transcript> {
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    if let Some(transcript) = once(&mut cmd, log, &mut file, limit, silence, watch)? {
        return Ok(transcript);
    }
    let what = "the kernel hung while it booted; it is started once more";
    say(format!("    {what} ({})", log.display()));
    writeln!(file, "--- {what}")?;
    let second = once(&mut cmd, log, &mut file, limit, None, watch)?;
    second.context("a kernel may hang as long as it likes")
}

/// Runs it once. None when the kernel hung while it booted.
fn once(
    cmd: &mut Command,
    log: &Path,
    file: &mut File,
    limit: Duration,
    silence: Option<Duration>,
    watch: &mut dyn FnMut(&str),
) -> Result<Option<Transcript>> {
    let mut transcript = Transcript {
        log: log.to_owned(),
        ..Transcript::default()
    };
    let ((out, out_write), (err, err_write)) = (Lines::pipe()?, Lines::pipe()?);
    let running = Running::start(cmd.stdin(Stdio::null()).stdout(out_write).stderr(err_write))?;
    // The command holds the write ends: without this there is no end of file.
    cmd.stdout(Stdio::null()).stderr(Stdio::null());
    let mut streams = [out, err];
    let mut record = |transcript: &mut Transcript, line: &str| {
        watch(line);
        transcript.record(file, line)
    };
    let end = Instant::now() + limit;
    let mut hung = false;
    while !transcript.halted && streams.iter().any(|s| !s.ended) {
        let silence = silence.filter(|_| !transcript.booted);
        let until = silence.map_or(end, |silence| end.min(Instant::now() + silence));
        let ready = ready(&streams, until)?;
        if ready.is_empty() {
            hung = until < end && transcript.trouble.is_empty();
            transcript.stopped = Some(format!("no end within {}", crate::ui::human(limit)));
            break;
        }
        for i in ready {
            streams[i].read(|line| record(&mut transcript, line))?;
        }
    }
    // What was on its way when the end marker came counts too. With the emulator gone, both end.
    drop(running);
    for stream in &mut streams {
        while !stream.ended {
            stream.read(|line| record(&mut transcript, line))?;
        }
    }
    Ok((!hung).then_some(transcript))
}

/// Which of the streams can be read; none when `end` comes first.
fn ready(streams: &[Lines], end: Instant) -> Result<Vec<usize>> {
    let open: Vec<usize> = (0..streams.len()).filter(|i| !streams[*i].ended).collect();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // A machine that never stops talking is always ready.
        if left.is_zero() {
            return Ok(Vec::new());
        }
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into()?,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds: Vec<PollFd<'_>> = open
            .iter()
            .map(|i| PollFd::new(&streams[*i].stream, PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => {
                let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
                return Ok(open
                    .iter()
                    .zip(&fds)
                    .filter(|(_, fd)| is_ready(fd))
                    .map(|(i, _)| *i)
                    .collect());
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("poll the console"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(text: &str) -> Transcript {
        let mut t = Transcript::default();
        text.lines().for_each(|l| t.take(l));
        t
    }

    /// A shell that hangs when it is started for the first time, before it says that it has booted or behind that.
    fn hanging(dir: &Path, first: &str, limit: Duration) -> Result<Transcript> {
        // Only a hang is as long, also on a busy machine.
        let silence = Some(Duration::from_secs(10));
        let mut shell = Command::new("sh");
        let script = format!(
            "if mkdir {dir}/once; then {first}; exec sleep 1000; fi; echo ZS-BOOT 7.2; echo ZS-BEGIN a; echo ZS-END a 0; echo ZS-HALT",
            dir = dir.display()
        );
        shell.args(["-c", &script]);
        watched(shell, &dir.join("log"), limit, silence, &mut |_| {})
    }

    #[test]
    fn a_kernel_that_hangs_while_it_boots_is_started_once_more() {
        let dir = std::env::temp_dir().join(format!("zs-console-{}", std::process::id()));
        let run = |first: &str, limit: u64| {
            // What a run that was killed has left.
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            let transcript = hanging(&dir, first, Duration::from_secs(limit)).unwrap();
            let log = std::fs::read_to_string(dir.join("log")).unwrap();
            std::fs::remove_dir_all(&dir).unwrap();
            (transcript, log)
        };
        let (again, log) = run("echo x", 60);
        again.check().unwrap();
        assert!(
            log.contains("x\n--- the kernel hung while it booted"),
            "{log}"
        );
        let (once, log) = run("echo ZS-BOOT 7.2", 15);
        assert!(once.check().is_err() && once.jobs.is_empty());
        assert_eq!(log, "ZS-BOOT 7.2\n");
        let (trouble, log) = run("echo BUG: x", 60);
        assert!(trouble.check().is_err());
        assert_eq!(log, "BUG: x\n");
    }

    #[test]
    fn jobs_are_told_apart() {
        let t =
            transcript("ZS-BOOT 7.2\nZS-BEGIN a\nok 1 x\nZS-END a 0\nnoise\nZS-BEGIN b\nZS-END b 4\nZS-HALT\nlate\n");
        t.check().unwrap();
        assert_eq!(t.job("a").unwrap().lines, ["ok 1 x"]);
        assert_eq!(t.job("a").unwrap().exit, Some(0));
        assert_eq!(t.job("b").unwrap().exit, Some(4));
        assert!(t.job("c").is_err());
    }

    #[test]
    fn a_run_without_its_end_marker_fails() {
        assert!(transcript("ZS-BOOT 7.2\nZS-BEGIN a\nZS-END a 0\n")
            .check()
            .is_err());
    }

    #[test]
    fn kernel_reports_fail_a_run_wherever_they_stand() {
        let reports = [
            "[    3.1] WARNING: drivers/x.c:12 at probe+0x1/0x2, CPU#0: insmod/77",
            "BUG: KASAN: slab-use-after-free in x",
            "WARNING: possible circular locking dependency detected",
            "kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "rust_kernel: panicked at a.rs:1:1:",
            "Kernel panic - not syncing: Fatal exception",
        ];
        for line in reports {
            let t = transcript(&format!("ZS-BOOT x\n{line}\nZS-HALT\n"));
            assert!(t.check().is_err(), "{line}");
        }
        transcript("ok 3 no WARNING: in the log\n# BUG: none\nZS-HALT\n")
            .check()
            .unwrap();
    }

    #[test]
    fn a_planted_report_is_demanded() {
        let t = transcript("WARNING: drivers/misc/lkdtm/bugs.c:1 at x\nZS-HALT\n");
        t.check_planted("lkdtm").unwrap();
        assert!(t.check_planted("KASAN").is_err());
    }

    #[test]
    fn control_characters_do_not_hide_a_marker() {
        assert!(
            transcript("\u{1b}\r\u{0}ZS-HALT").halted || !transcript("ZS-HALT\r").lines.is_empty()
        );
        assert!(transcript("ZS-HALT\r").halted);
    }

    #[test]
    fn two_streams_do_not_cut_each_others_lines() {
        let log = std::env::temp_dir().join(format!("xtask-streams-{}", std::process::id()));
        let mut cmd = Command::new("sh");
        cmd.args(["-c", "printf 'ZS-BEG' >&2; echo 'a kernel line'; echo 'IN a' >&2; echo 'ZS-END a 0' >&2; printf ZS-HALT >&2"]);
        let t = run(
            &Step::start("two streams"),
            cmd,
            &log,
            Duration::from_secs(60),
            None,
        )
        .unwrap();
        std::fs::remove_file(&log).unwrap();
        t.check().unwrap();
        assert_eq!(t.job("a").unwrap().exit, Some(0));
        assert!(t.lines.iter().any(|l| l == "a kernel line"));
    }

    #[test]
    fn a_machine_that_never_stops_talking_is_ended() {
        let log = std::env::temp_dir().join(format!("xtask-talk-{}", std::process::id()));
        let limit = Duration::from_millis(200);
        let t = run(
            &Step::start("a talker"),
            Command::new("yes"),
            &log,
            limit,
            None,
        )
        .unwrap();
        std::fs::remove_file(&log).unwrap();
        assert!(t.stopped.is_some());
    }

    #[test]
    fn a_report_behind_the_end_marker_counts() {
        let log = std::env::temp_dir().join(format!("xtask-behind-{}", std::process::id()));
        let mut cmd = Command::new("sh");
        // Both are in the pipes before the first is read.
        cmd.args(["-c", "echo 'BUG: late'; echo ZS-HALT >&2; exec sleep 1000"]);
        let t = run(
            &Step::start("a late report"),
            cmd,
            &log,
            Duration::from_secs(60),
            None,
        )
        .unwrap();
        std::fs::remove_file(&log).unwrap();
        assert!(t.halted && t.check().is_err());
    }

    #[test]
    fn the_time_limit_ends_a_silent_machine_and_its_process() {
        let log = std::env::temp_dir().join(format!("xtask-console-{}", std::process::id()));
        let mut cmd = Command::new("sh");
        cmd.args(["-c", "echo ZS-BOOT x; exec sleep 1000"]);
        let t = run(
            &Step::start("a silent machine"),
            cmd,
            &log,
            Duration::from_secs(5),
            None,
        )
        .unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(t.lines, ["ZS-BOOT x"]);
        assert!(t.check().unwrap_err().to_string().contains("no end within"));
    }
}
