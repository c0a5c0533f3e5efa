// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is left of a command in the build root when the process that started it is killed: nothing.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{anyhow, ensure, Context as _, Result};

use super::Results;
use crate::command;
use crate::session::Session;

/// Starts a command as apt-get is one (it changes its user, and so loses its parent-death signal), kills the
/// starter, and waits for the end of the pipe that only the command still holds.
pub(super) fn scenario(session: &Session, results: &mut Results) -> Result<()> {
    let mut inside = session.root()?.command("setpriv");
    inside.args(["--reuid", "65534", "--clear-groups", "--", "sh", "-c"]);
    inside.arg("echo up; exec sleep 100000");
    let mut starter = Command::new("sh");
    starter
        .args(["-c", r#""$@" & wait"#, "starter"])
        .arg(inside.get_program())
        .args(inside.get_args());
    let mut starter = starter
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pipe = BufReader::new(starter.stdout.take().context("no pipe")?);
    let mut line = String::new();
    pipe.read_line(&mut line)?;
    ensure!(line == "up\n", "the command did not start: {line:?}");
    starter.kill()?;
    starter.wait()?;
    let ended = command::wait_readable(pipe.get_ref(), Duration::from_secs(60))?;
    let gone = ended && pipe.read(&mut [0])? == 0;
    let outcome = if gone {
        Ok(())
    } else {
        Err(anyhow!("it is still running"))
    };
    results.check("a command in the build root dies with its starter", outcome);
    Ok(())
}
