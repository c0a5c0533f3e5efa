// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A client of QEMU's monitor. Plain JSON lines: typed bindings know the schema of one version, and fail on a state
//! or an event that a newer QEMU has.

use std::fmt;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use serde_json::{json, Value};

/// How long QEMU may take to answer: while it saves its devices it answers nobody.
const LIMIT: Duration = Duration::from_secs(120);

/// A connection, after the greeting.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    /// Answers; events go elsewhere.
    answers: Receiver<Value>,
}

/// What QEMU said to a command that it refused.
#[derive(Debug)]
pub(crate) struct Refused {
    command: String,
    /// Its words.
    pub(crate) description: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QEMU refused {}: {}", self.command, self.description)
    }
}

impl std::error::Error for Refused {}

impl Qmp {
    /// `answers` gets every line of `stream` that is not an event, the greeting first.
    pub(crate) fn open(stream: UnixStream, answers: Receiver<Value>) -> Result<Self> {
        let mut qmp = Self { stream, answers };
        let greeting = qmp.answer("the greeting")?;
        if greeting.get("QMP").is_none() {
            bail!("the monitor began with {greeting}");
        }
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Carries out `command`. A refusal is an error of type [`Refused`].
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({"execute": command});
        if let (Value::Object(request), false) = (&mut request, arguments.is_null()) {
            request.insert("arguments".into(), arguments);
        }
        writeln!(self.stream, "{request}").with_context(|| format!("send {command} to QEMU"))?;
        let mut answer = self.answer(command)?;
        if let Some(error) = answer.get("error") {
            let text = error.get("desc").and_then(Value::as_str);
            return Err(Refused {
                command: command.to_owned(),
                description: text.map_or_else(|| error.to_string(), str::to_owned),
            }
            .into());
        }
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => bail!("QEMU answered {command} with {answer}"),
        }
    }

    fn answer(&mut self, to: &str) -> Result<Value> {
        match self.answers.recv_timeout(LIMIT) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => {
                bail!("QEMU did not answer {to} in {} s", LIMIT.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("QEMU ended before it answered {to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_refusal_keeps_qemus_words() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (send, answers) = channel();
        send.send(json!({"QMP": {}})).unwrap();
        send.send(json!({"return": {}})).unwrap();
        let mut qmp = Qmp::open(ours, answers).unwrap();
        send.send(json!({"return": {"status": "a state of tomorrow"}}))
            .unwrap();
        let state = qmp.execute("query-status", Value::Null).unwrap();
        assert_eq!(state["status"], "a state of tomorrow");
        send.send(json!({"error": {"class": "GenericError", "desc": "no"}}))
            .unwrap();
        let error = qmp.execute("migrate", json!({"uri": "x"})).unwrap_err();
        assert_eq!(error.downcast_ref::<Refused>().unwrap().description, "no");
        drop(send);
        let gone = qmp.execute("migrate", Value::Null).unwrap_err();
        assert!(gone.to_string().contains("ended"), "{gone}");
    }
}
