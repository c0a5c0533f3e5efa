// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is left of a command in the build root when the process that started it is killed: nothing.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{anyhow, ensure, Context as _, Result};

use super::Results;
use crate::command;
use crate::rig::console::Running;
use crate::session::Session;

/// How long each step may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a command as apt-get is one (it changes its user, and so loses its parent-death signal), kills the
/// starter, and waits for the end of the pipe that only the command still holds.
pub(super) fn scenario(session: &Session, results: &mut Results) -> Result<()> {
    let mut inside = session.root()?.command("setpriv");
    inside.args(["--reuid", "65534", "--clear-groups", "--", "sh", "-c"]);
    inside.arg("echo up; exec sleep 100000");
    let mut starter = command::lasting("sh");
    starter.args(["-c", r#""$@" & wait"#, "starter"]);
    starter.arg(inside.get_program()).args(inside.get_args());
    let mut starter = Running::start(starter.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let stdout = starter.child().stdout.take().context("no pipe")?;
    ensure!(
        command::wait_readable(&stdout, LIMIT)?,
        "the command did not start"
    );
    let mut pipe = BufReader::new(stdout);
    let mut line = String::new();
    pipe.read_line(&mut line)?;
    ensure!(line == "up\n", "the command did not start: {line:?}");
    drop(starter);
    let ended = command::wait_readable(pipe.get_ref(), LIMIT)?;
    let gone = ended && pipe.read(&mut [0])? == 0;
    let outcome = if gone {
        Ok(())
    } else {
        Err(anyhow!("it is still running"))
    };
    results.check("a command in the build root dies with its starter", outcome);
    Ok(())
}
