// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The process that holds an attachment: it answers one question after the other, until it is told to
//! detach, the VM ends, or a signal ends it. Whatever way it ends, the kernel closes the windows.

use super::kernel::{Device, Views};
use super::options::HoldOptions;
use super::protocol::{is_trusted, receive, send, Answer, Question};
use super::runtime::Runtime;
use super::service::{understand, Service};
use anyhow::{anyhow, Context as _, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd as _, OwnedFd};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a client may take to say what it wants, and to hear the answer: the others wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it looks whether the VM has ended in a process that goes on: nobody tells.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What a holder holds.
pub(super) struct Held<V> {
    pub(super) service: Service<V>,
    pub(super) listener: UnixListener,
    pub(super) socket: PathBuf,
    /// Signalled by the kernel when something has changed.
    pub(super) event: OwnedFd,
}

/// Runs `hold`: gets the files over standard input, says that it is ready, and serves.
pub(super) fn run(options: &HoldOptions) -> Result<()> {
    let parent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // The signals of a terminal are for others.
    rustix::process::setsid().context("cannot begin a session")?;
    let message = receive(&parent).context("only 'zeroshift view attach' starts this")?;
    let (_, files) = message.context("'zeroshift view attach' has ended")?;
    let [device, listener, event]: [OwnedFd; 3] =
        files.try_into().map_err(|_| anyhow!("not three files"))?;
    let held = Held {
        service: Service::new(Device::from_fd(device), options.pid, options.vm),
        listener: listener.into(),
        socket: options.socket.clone(),
        event,
    };
    let stop = signals()?;
    send(&parent, &Answer::Ok(std::process::id().into()), &[])?;
    drop(parent);
    serve(held, &stop)
}

/// Becomes readable when SIGTERM or SIGINT comes.
pub(super) fn signals() -> Result<UnixStream> {
    let (stop, sender) = UnixStream::pair()?;
    for number in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(number, sender.try_clone()?)?;
    }
    Ok(stop)
}

/// Serves until the end; `stop` becomes readable when that is wished.
pub(super) fn serve<V: Views>(held: Held<V>, stop: &UnixStream) -> Result<()> {
    let Held {
        mut service,
        listener,
        socket,
        event,
    } = held;
    // Somebody who is gone before it is his turn must not stop the others.
    listener.set_nonblocking(true)?;
    let asked = loop {
        // Before the first event, or without one.
        if service.has_ended() {
            break None;
        }
        let mut ready = [
            PollFd::new(&listener, PollFlags::IN),
            PollFd::new(&event, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut ready, Some(&LOOK)))?;
        let [client, changed, stopped] = ready.map(|fd| !fd.revents().is_empty());
        if stopped {
            break None;
        }
        if changed {
            // The eight bytes of its counter.
            rustix::io::read(&event, &mut [0; 8])?;
        }
        if client {
            // What a client does wrong is the client's trouble.
            if let Ok((stream, _)) = listener.accept() {
                if let Ok(Turn::Detach) = turn(&mut service, &stream) {
                    break Some(stream);
                }
            }
        }
    };
    // The name first: as long as the VM is attached nobody else can have it. Then all windows.
    Runtime::unlink(&socket);
    drop(service);
    if let Some(stream) = asked {
        // Done, whether anybody hears it or not.
        let _ = send(&stream, &Answer::Ok(serde_json::Value::Null), &[]);
    }
    Ok(())
}

/// What came of a client's turn.
enum Turn {
    Done,
    Detach,
}

fn turn<V: Views>(service: &mut Service<V>, stream: &UnixStream) -> Result<Turn> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if !is_trusted(stream)? {
        return Ok(Turn::Done);
    }
    let answer = match receive(stream) {
        // Only looked whether we are there.
        Ok(None) => return Ok(Turn::Done),
        Ok(Some((line, files))) => match understand(&line) {
            Ok(Question::Detach) => return Ok(Turn::Detach),
            Ok(question) => service.answer(&question, &files),
            Err(error) => Err(error),
        },
        Err(error) => Err(error.context("bad question")),
    };
    let answer = match answer {
        Ok(value) => Answer::Ok(value),
        Err(error) => Answer::Error(format!("{error:#}")),
    };
    send(stream, &answer, &[])?;
    Ok(Turn::Done)
}

/// Starts a holder of its own with the files of `device`, and waits until it serves; its process id.
pub(super) fn start(device: &Device, held: &super::attach::Socket, event: &OwnedFd) -> Result<u32> {
    let (here, there) = UnixStream::pair()?;
    let mut command = std::process::Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut command, "zeroshift");
    command
        .args(["view", "hold", "--pid", &held.pid.to_string()])
        .args(["--vm", &held.vm.to_string(), "--socket"])
        .arg(&held.path)
        .current_dir(Path::new("/"))
        .stdin(OwnedFd::from(there))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    command
        .spawn()
        .context("cannot start the process that holds the VM")?;
    // It has the other end of the connection, which nobody else shall have: its end is to be seen.
    drop(command);
    let files = [device.file(), held.listener.as_fd(), event.as_fd()];
    send(&here, &"hold", &files).context("the process that was to hold the VM has ended")?;
    let ready = receive(&here)?.context("the process that was to hold the VM has ended")?;
    match serde_json::from_str(&ready.0)? {
        Answer::Ok(value) => serde_json::from_value(value).map_err(Into::into),
        Answer::Error(error) => Err(anyhow!(error)),
    }
}

#[cfg(test)]
mod tests;
