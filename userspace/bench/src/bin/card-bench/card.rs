// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A zerocard process: started, pinned to a core, asked for its counters, ended.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{ensure, Context as _, Result};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::cores;
use crate::sys::CpuClock;

/// How long the card may take to answer on its control socket.
const LIMIT: Duration = Duration::from_secs(30);

/// See the module.
pub(crate) struct Card {
    child: Child,
    dir: PathBuf,
}

impl Card {
    /// Starts a card with one function and one namespace in `file`, and waits until it is ready.
    pub(crate) fn start(program: &Path, dir: &Path, file: &Path) -> Result<Self> {
        let namespace = format!("file={}", file.display());
        // It ends with this process, however that ends.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg("serve")
            .arg("--dir")
            .arg(dir)
            .args(["--namespace", &namespace, "--functions", "1", "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {} with setpriv", program.display()))?;
        let stdout = child.stdout.take();
        // Owned from here on: it is ended whatever happens.
        let card = Self {
            child,
            dir: dir.to_owned(),
        };
        let mut ready = String::new();
        BufReader::new(stdout.context("standard output")?).read_line(&mut ready)?;
        let ready: Value = serde_json::from_str(&ready).context("zerocard did not become ready")?;
        ensure!(ready["event"] == "ready", "not a ready line: {ready}");
        Ok(card)
    }

    /// Puts every thread on one core.
    pub(crate) fn pin(&self, core: usize) -> Result<()> {
        cores::pin_process(self.child.id(), core).context("pin zerocard")
    }

    /// CPU time of the process.
    pub(crate) fn clock(&self) -> Result<CpuClock> {
        CpuClock::of(self.child.id()).context("CPU clock of zerocard")
    }

    /// Socket of a function.
    pub(crate) fn socket(&self, function: &str) -> PathBuf {
        self.dir.join(format!("{function}.sock"))
    }

    /// A counter of a function (`docs/interfaces.md`, section 8).
    pub(crate) fn counter(&self, function: &str, name: &str) -> Result<u64> {
        let path = self.socket("control");
        let mut stream = UnixStream::connect(&path)
            .with_context(|| format!("the control socket {}", path.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        writeln!(
            stream,
            "{{\"op\":\"counters\",\"function\":\"{function}\"}}"
        )?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("answer of the control socket")?;
        answer["ok"]["functions"][0][name]
            .as_u64()
            .with_context(|| format!("counter {name}: {}", line.trim_end()))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // Both fail when the process has ended already.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
