// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A holder from the outside: finding the one that is meant, one question, one answer.

use super::explain;
use super::options::OneOptions;
use super::protocol::{receive_answer, send, Answer, Question};
use super::runtime::{Holder, Runtime};
use crate::progress;
use anyhow::{anyhow, bail, Result};
use rustix::fd::BorrowedFd;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take. The kernel answers at once but for a flush of all processors.
const PATIENCE: Duration = Duration::from_secs(60);

/// The holder that is meant.
pub(super) fn find(options: &OneOptions) -> Result<Holder> {
    let runtime = Runtime::new(&options.places)?;
    let found = runtime.look()?;
    let of = |pid: i32, vm: i32| {
        options.pid.is_none_or(|wanted| wanted == pid)
            && options.vm.is_none_or(|wanted| wanted == vm)
    };
    let others = found.died.iter().filter(|(pid, vm)| !of(*pid, *vm));
    others.for_each(explain::died);
    let mut holders: Vec<Holder> = found.holders;
    holders.retain(|holder| of(holder.pid, holder.vm));
    let proc = Path::new("/proc");
    let name = |holder: &Holder| explain::vm(proc, holder.pid, holder.vm);
    if holders.len() > 1 {
        let list: Vec<String> = holders.iter().map(name).collect();
        let which = if options.pid.is_none() {
            "--pid"
        } else {
            "--vm"
        };
        bail!(
            "several VMs are attached: say which, with {which}: {}",
            list.join("; ")
        );
    }
    if let Some(holder) = holders.pop() {
        return Ok(holder);
    }
    if let Some(&(pid, vm)) = found.died.iter().find(|(pid, vm)| of(*pid, *vm)) {
        bail!(
            "{} is not attached any more: its holder was killed, and that closed its windows; \
             'zeroshift view attach --pid {pid}' attaches again",
            explain::vm(proc, pid, vm)
        );
    }
    match (options.pid, options.vm) {
        (None, _) => bail!("no VM is attached; 'zeroshift view attach --pid PID' attaches one"),
        (Some(pid), None) => bail!(
            "no VM of process {pid} is attached; 'zeroshift view list' shows those that are, \
             'zeroshift view attach --pid {pid}' attaches it"
        ),
        (Some(pid), Some(vm)) => bail!(
            "VM {vm} of process {pid} is not attached; 'zeroshift view list' shows those that are"
        ),
    }
}

/// Asks it. `None` when it has ended instead of answering.
pub(super) fn ask<T: DeserializeOwned>(
    holder: &Holder,
    question: &Question,
    file: Option<BorrowedFd<'_>>,
) -> Result<Option<T>> {
    let (stream, socket) = (&holder.stream, holder.socket.display());
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // What it says before it closes the connection says more than a failed write.
    let sent = send(stream, question, file.as_slice());
    let waiting = format!("waiting for the holder behind {socket}");
    let answer = match progress::during(&waiting, || receive_answer(stream)) {
        Ok(None) => return Ok(None),
        Ok(Some(answer)) => answer,
        Err(error) => {
            return match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(anyhow!(
                    "{socket}: no answer in {} seconds; 'dmesg' may say what the kernel waits for",
                    PATIENCE.as_secs()
                )),
                ErrorKind::ConnectionReset => Ok(None),
                _ => Err(sent.err().unwrap_or(anyhow!("{socket}: {error}"))),
            }
        }
    };
    match answer {
        Answer::Ok(value) => match serde_json::from_value(value) {
            Ok(value) => Ok(Some(value)),
            Err(error) => bail!(
                "{socket}: the answer lacks something ({error}); the holder is of another version: \
                 detach and attach again"
            ),
        },
        Answer::Error(error) => bail!("{error}"),
    }
}

/// The same; it has to answer.
pub(super) fn must<T: DeserializeOwned>(
    holder: &Holder,
    question: &Question,
    file: Option<BorrowedFd<'_>>,
) -> Result<T> {
    ask(holder, question, file)?.ok_or_else(|| {
        anyhow!(
            "{} has just ended, or its holder has; 'zeroshift view list' shows what is left",
            explain::vm(Path::new("/proc"), holder.pid, holder.vm)
        )
    })
}
