// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A QEMU: stock, with the guest's two serial ports and its monitor on sockets that are made here and handed over,
//! so that there is nothing to find and nothing to wait for. It ends with this value.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::FdFlags;
use rustix::process::{pidfd_open, Pid, PidfdFlags};
use serde_json::Value;

use crate::qmp::Qmp;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Where the guest starts.
    Source,
    /// Where it goes.
    Destination,
}

impl Side {
    /// For people and events.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// The guest's serial ports: of its kernel, and of its jobs.
pub(crate) const PORTS: usize = 2;

/// How long one that has closed its monitor may take to end.
const EPITAPH: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// What comes from a QEMU and its guest.
#[derive(Debug)]
pub(crate) enum News {
    /// The guest said something on a port.
    Said(usize, Vec<u8>),
    /// QEMU has an event.
    Event(Side, Value),
    /// QEMU ended.
    Ended(Side),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Qemu {
    /// Which one.
    pub(crate) side: Side,
    /// Its monitor.
    pub(crate) qmp: Qmp,
    child: Child,
    ports: [UnixStream; PORTS],
    listeners: Vec<JoinHandle<()>>,
    news: Sender<News>,
    stderr: Arc<Mutex<Vec<String>>>,
    /// Reads it to its end.
    stderr_reader: Option<JoinHandle<()>>,
}

impl Qemu {
    /// Starts one with `arguments` beside monitor and serial ports.
    pub(crate) fn start(side: Side, arguments: &[String], news: &Sender<News>) -> Result<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(arguments);
        let (monitor, theirs) = pair()?;
        let mut handed_over = vec![theirs];
        command.args(["-qmp", "chardev:monitor", "-chardev"]);
        command.arg(chardev("monitor", handed_over.last()));
        let mut ports = Vec::new();
        for port in 0..PORTS {
            let (ours, theirs) = pair()?;
            ports.push(ours);
            handed_over.push(theirs);
            let id = format!("port{port}");
            command.args(["-serial", &format!("chardev:{id}"), "-chardev"]);
            command.arg(chardev(&id, handed_over.last()));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("start the {} QEMU", side.name()))?;
        // Its ends have to be its own, or there is no end of file when it is gone.
        drop(handed_over);
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let stderr_reader = child.stderr.take().map(|stream| {
            let lines = Arc::clone(&stderr);
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                    lines.push(line);
                }
            })
        });
        let (answer, answers) = channel();
        let events = news.clone();
        let stream = monitor.try_clone()?;
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let Ok(said) = serde_json::from_str::<Value>(&line) else {
                    continue;
                };
                // Whoever does not listen any more does not want it.
                match said.get("event").is_some() {
                    true => events.send(News::Event(side, said)).ok(),
                    false => answer.send(said).ok(),
                };
            }
            events.send(News::Ended(side)).ok();
        });
        let ports = ports.try_into().ok().context("not as many ports as made")?;
        let qmp = Qmp::open(monitor, answers).map_err(|e| {
            child.kill().ok();
            let status = child.wait().ok();
            let said = stderr.lock().unwrap_or_else(PoisonError::into_inner);
            e.context(describe(side, status, &said))
        })?;
        let mut qemu = Self {
            side,
            qmp,
            child,
            ports,
            listeners: Vec::new(),
            news: news.clone(),
            stderr,
            stderr_reader,
        };
        if side == Side::Source {
            qemu.listen()?;
        }
        Ok(qemu)
    }

    /// Hears the guest from now on. The socket keeps what was said before.
    pub(crate) fn listen(&mut self) -> Result<()> {
        for (port, stream) in self.ports.iter().enumerate() {
            let (mut stream, news) = (stream.try_clone()?, self.news.clone());
            self.listeners.push(thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(n) = stream.read(&mut bytes) {
                    let Some(bytes) = bytes.get(..n).filter(|b| !b.is_empty()) else {
                        break;
                    };
                    news.send(News::Said(port, bytes.to_vec())).ok();
                }
            }));
        }
        Ok(())
    }

    /// Where the guest's jobs read from.
    pub(crate) fn jobs(&mut self) -> &mut UnixStream {
        let [_, jobs] = &mut self.ports;
        jobs
    }

    /// Ends it, and hears all that the guest said before.
    pub(crate) fn end(mut self) {
        self.kill();
        for listener in self.listeners.drain(..) {
            listener.join().ok();
        }
    }

    /// The same when its monitor is closed: waits for its end, and brings it about when it does not come.
    pub(crate) fn epitaph(&mut self) -> String {
        if !self.ends_by_itself() {
            self.kill();
        }
        self.child.wait().ok();
        if let Some(reader) = self.stderr_reader.take() {
            reader.join().ok();
        }
        self.describe()
    }

    /// What it said last, and how it ended if it did.
    pub(crate) fn describe(&mut self) -> String {
        let status = self.child.try_wait().ok().flatten();
        let said = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        describe(self.side, status, &said)
    }

    /// The line with `text` that it wrote to its standard error.
    pub(crate) fn said(&self, text: &str) -> Option<String> {
        let said = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().find(|line| line.contains(text)).cloned()
    }

    /// Whether it ends within `EPITAPH` without being killed. It may hang while it closes its function.
    fn ends_by_itself(&self) -> bool {
        let pid = Pid::from_child(&self.child);
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        let mut ended = [PollFd::new(&handle, PollFlags::IN)];
        poll(&mut ended, Some(&EPITAPH)).is_ok_and(|n| n > 0)
    }

    fn kill(&mut self) {
        // By handle: it cannot be another process as long as we have not waited for it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pair() -> Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair().context("make a socket")?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).context("hand over a socket")?;
    Ok((ours, theirs))
}

fn chardev(id: &str, stream: Option<&UnixStream>) -> String {
    let fd = stream.map_or(-1, AsRawFd::as_raw_fd);
    format!("socket,id={id},fd={fd}")
}

fn describe(side: Side, status: Option<ExitStatus>, said: &[String]) -> String {
    let ended = match status {
        None => "runs".to_owned(),
        Some(s) => match (s.code(), s.signal()) {
            (Some(code), _) => format!("ended with {code}"),
            (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
        },
    };
    let from = said.len().saturating_sub(10);
    let last = said.get(from..).unwrap_or_default();
    let last = match last {
        [] => "it said nothing".to_owned(),
        lines => format!("it said: {}", lines.join(" / ")),
    };
    format!("the {} QEMU {ended}; {last}", side.name())
}
