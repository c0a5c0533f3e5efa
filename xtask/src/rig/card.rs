// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A zerocard beside a rig: started before the machine, ended after it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use serde::Deserialize;

use super::console::Running;
use crate::cache::Cache;
use crate::command;

/// A running software card.
pub(crate) struct Card {
    running: Running,
    /// Its serial number, as guests shall see it.
    pub(crate) serial: String,
    functions: Vec<Function>,
    dir: PathBuf,
    log: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Ready {
    functions: Vec<Function>,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    socket: PathBuf,
}

impl Card {
    /// Starts `program` with its sockets in `dir` and waits until they listen. `options` are more arguments of
    /// `zerocard serve`: its namespaces and functions.
    pub(crate) fn start(
        cache: &Cache,
        program: &Path,
        dir: &Path,
        serial: &str,
        options: &[String],
    ) -> Result<Self> {
        let dir = dir.join(serial);
        // sun_path holds 108 bytes with the final zero.
        if dir.as_os_str().len() + "/control.sock".len() >= 108 {
            bail!(
                "{} is too long a path for unix sockets\n=> set ZEROSHIFT_CACHE to a shorter one",
                dir.display()
            );
        }
        std::fs::create_dir_all(&dir)?;
        let log = cache.log(&format!("zerocard-{serial}"));
        let mut cmd = command::command(program);
        cmd.args(["serve", "--json", "--serial", serial, "--dir"])
            .arg(&dir)
            .args(options);
        let log_file = std::fs::File::create(&log)?;
        cmd.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file);
        let mut running = Running::start(&mut cmd)?;
        let stdout = running
            .child()
            .stdout
            .take()
            .context("the card has no output")?;
        let said = |what: String| {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            format!(
                "{what}\n{}\n(all of it: {})",
                command::tail(&text, 15),
                log.display()
            )
        };
        if !command::wait_readable(&stdout, LIMIT)? {
            bail!(
                "{}",
                said(format!(
                    "zerocard {serial} was not ready in {} s",
                    LIMIT.as_secs()
                ))
            );
        }
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready: Ready = serde_json::from_str(&line)
            .with_context(|| said(format!("zerocard {serial} did not start: it said {line:?}")))?;
        Ok(Self {
            running,
            serial: serial.to_owned(),
            functions: ready.functions,
            dir,
            log,
        })
    }

    /// The socket of the function `name`.
    pub(crate) fn socket(&self, name: &str) -> Result<&Path> {
        match self.functions.iter().find(|f| f.name == name) {
            Some(f) => Ok(&f.socket),
            None => bail!("card {} has no function {name}", self.serial),
        }
    }

    /// The sockets of all functions, in the order in which the card names them.
    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        self.functions.iter().map(|f| f.socket.clone()).collect()
    }

    /// Asks the card by the `zeroshift` tool at `program` what its fault rules did.
    pub(crate) fn faults(&self, program: &Path) -> Result<Vec<Fired>> {
        #[derive(Deserialize)]
        struct List {
            faults: Vec<Fired>,
        }
        let mut cmd = command::command(program);
        cmd.args(["card", "--json", "--dir"])
            .arg(&self.dir)
            .args(["fault", "list"]);
        let answer = cmd.output().context("ask the card for its fault rules")?;
        let list: List = serde_json::from_slice(&answer.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&answer.stderr);
            format!("zeroshift card fault list: {}: {said}", answer.status)
        })?;
        Ok(list.faults)
    }

    /// Ends the card as an operator would, and checks that it goes in peace.
    pub(crate) fn stop(mut self) -> Result<()> {
        let child = self.running.child();
        let pid = rustix::process::Pid::from_child(child);
        let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let ended = command::wait_readable(&handle, LIMIT)?;
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let log = format!(
            "{}\n(all of it: {})",
            command::tail(&text, 15),
            self.log.display()
        );
        if !ended {
            bail!(
                "zerocard {} does not end when it is asked to\n{log}",
                self.serial
            );
        }
        let status = child.wait()?;
        if !status.success() {
            bail!(
                "zerocard {} ended with {status} when it was asked to stop\n{log}",
                self.serial
            );
        }
        Ok(())
    }
}

/// What a fault rule came to.
#[derive(Debug, Deserialize)]
pub(crate) struct Fired {
    /// The rule, as it was given.
    pub(crate) rule: String,
    /// How often it decided.
    pub(crate) fired: u64,
}

/// How long a card may take to start or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// QEMU's arguments for card functions, each behind its own root port.
pub(crate) fn function_arguments(sockets: &[PathBuf]) -> Vec<String> {
    let mut args = Vec::new();
    for (i, socket) in sockets.iter().enumerate() {
        let n = i + 1;
        args.extend([
            "-device".to_owned(),
            // As fast as the functions are. At ports above 5 GT/s Linux waits after a reset of the link for a bit that
            // QEMU does not set, and gives the function up.
            format!("pcie-root-port,id=zs{i},chassis={n},slot={n},x-speed=2_5"),
        ]);
        let device = serde_json::json!({
            "driver": "vfio-user-pci", "id": format!("card{i}"), "bus": format!("zs{i}"),
            "socket": {"type": "unix", "path": socket},
            // A card that this machine does not get to run is no broken card.
            "x-msg-timeout": 60_000,
        });
        args.extend(["-device".to_owned(), device.to_string()]);
    }
    args
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_function_gets_its_own_port() {
        let args = super::function_arguments(&["/a".into(), "/b".into()]);
        assert_eq!(args.len(), 8);
        assert!(
            args[3].contains("\"bus\":\"zs0\"") && args[7].contains("\"path\":\"/b\""),
            "{args:?}"
        );
    }
}
