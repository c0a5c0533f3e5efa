// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control socket of a card, from the outside: one question, one answer.
//!
//! Errors name the socket, the cause and what to do.

use anyhow::{anyhow, bail, Context as _, Result};
use serde_json::{Map, Value};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take. The card answers at once unless something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than any answer has: 64 functions with full histograms.
const MAX_ANSWER: u64 = 16 << 20;

/// A connection to a card.
pub(super) struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
    /// Id of the last question.
    id: u64,
}

impl Client {
    /// Connects to the card that is served in `dir`.
    pub(super) fn connect(dir: &Path) -> Result<Self> {
        let socket = dir.join("control.sock");
        let stream = UnixStream::connect(&socket).map_err(|error| explain(error, dir, &socket))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket,
            stream: BufReader::new(stream),
            id: 0,
        })
    }

    /// The socket, for messages.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks the card, and returns what it answered.
    pub(super) fn ask(&mut self, operation: &str, arguments: Map<String, Value>) -> Result<Value> {
        let socket = self.socket.display().to_string();
        self.id += 1;
        let mut request = arguments;
        request.insert("id".into(), self.id.into());
        request.insert("op".into(), operation.into());
        let mut line = Value::Object(request).to_string();
        line.push('\n');
        // What the card says before it closes the connection says more than a failed write.
        let written = self.stream.get_mut().write_all(line.as_bytes());
        let mut answer = String::new();
        let read = (&mut self.stream).take(MAX_ANSWER).read_line(&mut answer);
        match read.and_then(|count| written.map(|()| count)) {
            Err(error) if is_timeout(&error) => bail!(
                "{socket}: no answer in {} seconds; see what zerocard says on its standard error",
                PATIENCE.as_secs()
            ),
            Err(error) if answer.is_empty() => {
                return Err(ended(&socket).context(error));
            }
            Ok(0) => return Err(ended(&socket)),
            _ => {}
        }
        let nonsense = || {
            format!("{socket}: the answer makes no sense; zeroshift and zerocard have to be of one version")
        };
        let mut answer: Map<String, Value> =
            serde_json::from_str(&answer).with_context(nonsense)?;
        if let Some(error) = answer.get("error").and_then(Value::as_str) {
            bail!("{socket}: the card refuses '{operation}': {error}");
        }
        if answer.get("id").and_then(Value::as_u64) != Some(self.id) {
            bail!(nonsense());
        }
        answer.remove("ok").with_context(nonsense)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut)
}

fn ended(socket: &str) -> anyhow::Error {
    anyhow!("{socket}: the card closed the connection; see whether zerocard still runs")
}

fn explain(error: io::Error, dir: &Path, socket: &Path) -> anyhow::Error {
    let (dir, socket) = (dir.display(), socket.display());
    let what = match error.kind() {
        io::ErrorKind::NotFound => format!(
            "{socket}: no card is served there; 'zerocard serve --dir {dir}' serves one, or give \
             --dir the directory of the one that runs"
        ),
        io::ErrorKind::ConnectionRefused => format!(
            "{socket}: nobody listens, the card ended and left it behind; 'zerocard serve --dir \
             {dir}' replaces it"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{socket}: only the user who runs the card may ask it; run this as that user")
        }
        io::ErrorKind::InvalidInput => {
            format!("{socket}: a socket's path has at most 107 bytes; use a shorter --dir")
        }
        _ => format!("{socket}: cannot connect"),
    };
    anyhow::Error::new(error).context(what)
}
