// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a holder is asked and answers: `docs/interfaces.md`, section 17. One connection is one
//! question, a line of JSON, perhaps with a file, and one answer, another line.

use anyhow::{bail, Context as _, Result};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

/// Most bytes of a question: a path is the longest part of it.
pub(super) const MAX_QUESTION: usize = 16 << 10;
/// Most bytes of an answer: more than 63 views with 1024 windows each, onto files with long names,
/// take.
const MAX_ANSWER: u64 = 64 << 20;
/// Most files that come with a message.
const MAX_FILES: usize = 3;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Question {
    List,
    Add(Add),
    Remove { view: u32, at: Option<u64> },
    Stat,
    Detach,
}

/// A window to open. A file that it leads to comes with the question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Add {
    pub(super) view: Option<u32>,
    pub(super) at: Option<u64>,
    pub(super) length: u64,
    pub(super) write: bool,
    pub(super) file: Option<File>,
}

/// A file, from an offset on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    /// As the caller named it: for people.
    pub(super) path: String,
    pub(super) offset: u64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    Ok(serde_json::Value),
    Error(String),
}

/// An attached VM, its views and windows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attachment {
    /// Process of the VMM.
    pub(super) pid: i32,
    /// What it is called.
    pub(super) command: String,
    /// File descriptor of the VM in it.
    pub(super) vm: i32,
    /// Guest-physical address, in hexadecimal.
    pub(super) slot: String,
    /// vCPUs that can have views.
    pub(super) vcpus: u32,
    /// Process of the holder.
    pub(super) holder: u32,
    pub(super) views: Vec<View>,
}

/// A view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct View {
    pub(super) view: u32,
    pub(super) windows: Vec<Window>,
}

/// A window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    /// Bytes from the base of the slot, in hexadecimal.
    pub(super) offset: String,
    /// Guest-physical, in hexadecimal.
    pub(super) address: String,
    /// Bytes.
    pub(super) length: u64,
    /// Whether the guest may write.
    pub(super) write: bool,
    /// None for memory of the module.
    pub(super) file: Option<File>,
}

/// A window that was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Added {
    pub(super) view: u32,
    #[serde(flatten)]
    pub(super) window: Window,
}

/// What happened to a vCPU since the VM was attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vcpu {
    pub(super) vcpu: u32,
    pub(super) armed: bool,
    pub(super) unable: bool,
    pub(super) arms: u64,
    pub(super) loads: u64,
    pub(super) resyncs: u64,
    pub(super) bounces: u64,
    pub(super) invepts: u64,
}

/// Sends a line, perhaps with files.
pub(super) fn send(
    stream: &UnixStream,
    line: &impl Serialize,
    files: &[BorrowedFd<'_>],
) -> Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    let mut bytes = text.as_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut files = Some(files).filter(|files| !files.is_empty());
    while !bytes.is_empty() {
        let mut extra = SendAncillaryBuffer::new(&mut space);
        if let Some(files) = files {
            if !extra.push(SendAncillaryMessage::ScmRights(files)) {
                bail!("too many files for one message");
            }
        }
        let sent = retry(|| {
            sendmsg(
                stream,
                &[IoSlice::new(bytes)],
                &mut extra,
                SendFlags::NOSIGNAL,
            )
        })?;
        // They have gone with the first byte.
        files = None;
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Reads a line of at most [`MAX_QUESTION`] bytes, and the files that come with it. None when the other
/// side says nothing.
pub(super) fn receive(stream: &UnixStream) -> Result<Option<(String, Vec<OwnedFd>)>> {
    let (mut line, mut files) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut extra = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = retry(|| {
            recvmsg(
                stream,
                &mut [IoSliceMut::new(&mut buffer)],
                &mut extra,
                flags,
            )
        })?;
        for extra in extra.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = extra {
                files.extend(rights);
            }
        }
        if files.len() > MAX_FILES {
            bail!("more than {MAX_FILES} files");
        }
        let got = buffer.get(..message.bytes).unwrap_or_default();
        line.extend_from_slice(got);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            let line = String::from_utf8(line).context("not UTF-8")?;
            return Ok(Some((line, files)));
        }
        if got.is_empty() && line.is_empty() {
            return Ok(None);
        }
        if got.is_empty() {
            bail!("the line does not end");
        }
        if line.len() > MAX_QUESTION {
            bail!("more than {MAX_QUESTION} bytes");
        }
    }
}

/// Reads the answer. None when the other side says nothing.
pub(super) fn receive_answer(stream: &UnixStream) -> io::Result<Option<Answer>> {
    let mut line = String::new();
    BufReader::new(stream)
        .take(MAX_ANSWER)
        .read_line(&mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&line)
        .map(Some)
        .map_err(io::Error::from)
}

/// Whether the other side of a connection is this user, or root.
pub(super) fn is_trusted(stream: impl AsFd) -> Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    rustix::io::retry_on_intr(&mut call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;
    use std::thread;

    #[test]
    fn a_line_arrives_with_its_files_however_it_is_cut() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"x", 0).unwrap();
        let question = Question::Add(Add {
            view: None,
            at: Some(1 << 40),
            length: 4096,
            write: false,
            file: Some(File {
                path: "y".repeat(9000),
                offset: 8192,
            }),
        });
        send(&here, &question, &[file.as_fd()]).unwrap();
        let (line, files) = receive(&there).unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Question>(&line).unwrap(), question);
        let [other] = <[OwnedFd; 1]>::try_from(files).unwrap();
        let mut byte = [0];
        std::fs::File::from(other)
            .read_exact_at(&mut byte, 0)
            .unwrap();
        assert_eq!(byte, *b"x");
        // Byte for byte.
        for byte in b"{\"op\":\"list\"}\n" {
            (&here).write_all(&[*byte]).unwrap();
        }
        let (line, files) = receive(&there).unwrap().unwrap();
        assert_eq!(
            serde_json::from_str::<Question>(&line).unwrap(),
            Question::List
        );
        assert!(files.is_empty());
    }

    #[test]
    fn what_is_too_long_or_cut_off_is_refused() {
        let (here, there) = UnixStream::pair().unwrap();
        let long = thread::spawn(move || {
            let _ = (&here).write_all(&[b'x'; 2 * MAX_QUESTION]);
        });
        let error = receive(&there).unwrap_err().to_string();
        assert!(error.contains("bytes"), "{error}");
        drop(there);
        long.join().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        (&here).write_all(b"{\"op\"").unwrap();
        drop(here);
        let error = receive(&there).unwrap_err().to_string();
        assert!(error.contains("does not end"), "{error}");
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(receive(&there).unwrap().is_none());
    }

    #[test]
    fn questions_are_the_contract() {
        let text = |question: &Question| serde_json::to_string(question).unwrap();
        assert_eq!(text(&Question::Detach), r#"{"op":"detach"}"#);
        let remove = Question::Remove {
            view: 2,
            at: Some(2 << 20),
        };
        assert_eq!(text(&remove), r#"{"op":"remove","view":2,"at":2097152}"#);
        let answer = serde_json::to_string(&Answer::Error("no".into())).unwrap();
        assert_eq!(answer, r#"{"error":"no"}"#);
        assert!(serde_json::from_str::<Question>(r#"{"op":"fly"}"#).is_err());
    }
}
