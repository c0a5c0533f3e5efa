// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift view`: windows for the guests of running VMMs.
//!
//! The kernel ties everything to an open `/dev/vmfunc`. So `attach` leaves a process that holds it
//! (`holder.rs`), with a socket (`runtime.rs`) on which the other subcommands ask it (`client.rs`).

mod attach;
mod client;
mod explain;
mod holder;
mod kernel;
mod kmsg;
mod options;
mod place;
mod protocol;
mod runtime;
mod service;
mod show;
mod vm;

pub(crate) use options::ViewCommand;

use crate::WRITING;
use anyhow::{bail, ensure, Context as _, Result};
use options::{AddOptions, ListOptions, OneOptions, RemoveOptions};
use protocol::{Add, Added, Attachment, File, Question, Vcpu};
use runtime::{Holder, Runtime};
use rustix::fd::AsFd as _;
use rustix::fs::OFlags;
use serde_json::{json, Value};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use vmfunc_uapi::{MAX_WINDOW, SLOT_SIZE};

/// Runs the subcommand.
pub(crate) fn run(command: &ViewCommand, output: &mut impl Write) -> Result<()> {
    match command {
        ViewCommand::Attach(options) => attach::run(options, output),
        ViewCommand::List(options) => list(options, output),
        ViewCommand::Add(options) => add(options, output),
        ViewCommand::Remove(options) => remove(options, output),
        ViewCommand::Stat(options) => stat(options, output),
        ViewCommand::Detach(options) => detach(options, output),
        ViewCommand::Hold(options) => holder::run(options),
    }
}

fn list(options: &ListOptions, output: &mut impl Write) -> Result<()> {
    let runtime = Runtime::new(&options.places)?;
    let found = runtime.look()?;
    let of = |pid: i32| options.pid.is_none_or(|wanted| wanted == pid);
    // Connected to one by one: who waits for one does not keep the others' clients waiting.
    let holders: Vec<_> = found
        .holders
        .into_iter()
        .map(|holder| (holder.pid, holder.vm, holder.socket))
        .collect();
    let mut attachments: Vec<Attachment> = Vec::new();
    let mut silent = 0;
    for (pid, vm, socket) in holders.into_iter().filter(|(pid, ..)| of(*pid)) {
        // One that ends meanwhile is left out.
        let Ok(stream) = UnixStream::connect(&socket) else {
            continue;
        };
        let holder = Holder {
            pid,
            vm,
            socket,
            stream,
        };
        match client::ask(&holder, &Question::List, None) {
            Ok(attachment) => attachments.extend(attachment),
            Err(error) => {
                eprintln!("zeroshift: {error:#}");
                silent += 1;
            }
        }
    }
    found.died.iter().for_each(explain::died);
    let loaded = options.places.device.exists();
    if !attachments.is_empty() || options.json || silent > 0 {
        show::list(&attachments, loaded, options.json, output)?;
        ensure!(silent == 0, "{silent} of the holders did not answer");
        return Ok(());
    }
    let which = match options.pid {
        Some(pid) => format!("no VM of process {pid} is attached"),
        None => "no VM is attached".to_owned(),
    };
    let why = match (loaded, options.pid) {
        (false, _) => format!(": {}", kernel::not_loaded(&options.places.device)),
        (true, Some(pid)) => format!("; 'zeroshift view attach --pid {pid}' attaches it"),
        (true, None) => "; 'zeroshift view attach --pid PID' attaches one".to_owned(),
    };
    writeln!(output, "{which}{why}").context(WRITING)
}

fn add(options: &AddOptions, output: &mut impl Write) -> Result<()> {
    let holder = client::find(&options.one)?;
    let (mut length, mut file, mut opened) = (options.length, None, None);
    if let Some(part) = &options.file {
        let (path, offset) = (part.path.display().to_string(), part.offset);
        let handle = std::fs::File::options()
            .read(true)
            // A pipe without a writer would wait for one.
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(&part.path)
            .with_context(|| format!("cannot open {path} for reading"))?;
        if length.is_none() {
            length = Some(rest(&path, handle.metadata()?.len(), offset)?);
        }
        file = Some(File { path, offset });
        opened = Some(handle);
    }
    let length = length.context("--length says how long it is")?;
    if let Some(at) = options.at {
        ensure!(
            at.checked_add(length).is_some_and(|end| end <= SLOT_SIZE),
            "a window of {length} bytes at {at:#x} ends beyond the slot, which has {SLOT_SIZE:#x} bytes"
        );
    }
    let question = Question::Add(Add {
        view: options.view,
        at: options.at,
        length,
        write: options.write,
        file,
    });
    let opened = opened.as_ref().map(|file| file.as_fd());
    let added: Added = client::must(&holder, &question, opened)?;
    show::added(&holder, &added, &options.one, output)
}

/// How long a window onto the rest of a file is.
fn rest(path: &str, size: u64, offset: u64) -> Result<u64> {
    let rest = size.checked_sub(offset).filter(|rest| *rest != 0);
    let Some(rest) = rest else {
        bail!("{path} has {size} bytes, so there is nothing from {offset} on");
    };
    if rest % 4096 != 0 || rest > MAX_WINDOW {
        bail!(
            "{path} has {rest} bytes from {offset} on: a window has a multiple of 4096, at most 64M; \
             say how many, with --length"
        );
    }
    Ok(rest)
}

fn remove(options: &RemoveOptions, output: &mut impl Write) -> Result<()> {
    let holder = client::find(&options.one)?;
    let (view, at) = (options.view, options.at);
    let answer: Value = client::must(&holder, &Question::Remove { view, at }, None)?;
    if options.one.json {
        return show::write_json(&holder, answer, output);
    }
    match at {
        Some(at) => writeln!(output, "closed the window at {at:#x} in view {view}"),
        None => writeln!(output, "ended view {view}"),
    }
    .context(WRITING)
}

fn stat(options: &OneOptions, output: &mut impl Write) -> Result<()> {
    let holder = client::find(options)?;
    let vcpus: Vec<Vcpu> = client::must(&holder, &Question::Stat, None)?;
    show::stat(&holder, &vcpus, options, output)
}

fn detach(options: &OneOptions, output: &mut impl Write) -> Result<()> {
    let holder = client::find(options)?;
    // One that ends meanwhile has done the same.
    let _: Option<Value> = client::ask(&holder, &Question::Detach, None)?;
    if options.json {
        return show::write_json(&holder, json!({}), output);
    }
    let vm = explain::vm(Path::new("/proc"), holder.pid, holder.vm);
    writeln!(output, "detached from {vm}").context(WRITING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use options::Places;
    use protocol::{receive, send, Answer};
    use std::thread;

    #[test]
    fn a_holder_that_does_not_answer_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let places = || Places {
            runtime: Some(dir.path().join("zeroshift")),
            device: "/dev/null".into(),
        };
        let runtime = Runtime::new(&places()).unwrap();
        let good = json!({
            "pid": 9, "command": "qemu", "vm": 4, "slot": "0x8000000000", "vcpus": 1, "holder": 1, "views": [],
        });
        let answers = [Answer::Error("out of order".into()), Answer::Ok(good)];
        // 7 is asked first.
        for ((pid, vm), answer) in [(7, 3), (9, 4)].into_iter().zip(answers) {
            let listener = runtime.bind(pid, vm).unwrap();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let stream = stream.unwrap();
                    // Some only look whether we are there.
                    if receive(&stream).unwrap().is_some() {
                        send(&stream, &answer, &[]).unwrap();
                    }
                }
            });
        }
        let options = ListOptions {
            pid: None,
            json: true,
            places: places(),
        };
        let mut output = Vec::new();
        let error = list(&options, &mut output).unwrap_err().to_string();
        assert!(error.contains("1 of the holders"), "{error}");
        let said: Value = serde_json::from_slice(&output).unwrap();
        assert!(said.to_string().contains("\"pid\":9"), "{said}");
    }
}
