// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift view attach`: takes the VM's file from the VMM, attaches, and hands everything to a holder
//! that stays.
//!
//! It attaches in this process, so its errors are this command's, and the kernel decides between two
//! that do so at once.

use super::explain::{self, Request};
use super::holder::{self, Held};
use super::kernel::Device;
use super::kmsg::Log;
use super::options::AttachOptions;
use super::protocol::{Attachment, Question};
use super::runtime::Runtime;
use super::service::Service;
use super::{client, show, vm};
use crate::doctor;
use crate::progress;
use crate::sysfs::Sysfs;
use crate::usage::{self, System};
use anyhow::{anyhow, Context as _, Error, Result};
use rustix::event::{eventfd, EventfdFlags};
use rustix::fd::AsFd as _;
use rustix::io::Errno;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The socket of a holder that is about to be.
pub(super) struct Socket {
    pub(super) pid: i32,
    pub(super) vm: i32,
    pub(super) path: PathBuf,
    pub(super) listener: UnixListener,
}

/// Runs the subcommand.
pub(super) fn run(options: &AttachOptions, output: &mut impl Write) -> Result<()> {
    let proc = Path::new("/proc");
    let runtime = Runtime::new(&options.places)?;
    let pid = options.pid;
    let process = vm::open(pid);
    let number = vm::find(proc, pid, options.vm)?;
    let device = Device::open_loaded(&options.places.device)?;
    let file = vm::take(proc, pid, process, number)?;
    let log = Log::from_now(Path::new("/dev/kmsg"));
    let waiting = format!("attaching to {}", explain::vm(proc, pid, number));
    let attached = progress::during(&waiting, || device.attach(file.as_fd(), options.slot));
    attached.map_err(|errno| why(errno, log, &runtime, options, number))?;
    // With it, the VM would live on when its VMM has ended.
    drop(file);
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    device.set_event(event.as_fd()).map_err(|errno| {
        let vm = explain::vm(proc, pid, number);
        explain::explain(&vm, Request::Watch, errno)
    })?;
    let socket = Socket {
        pid,
        vm: number,
        path: runtime.socket(pid, number),
        listener: runtime.bind(pid, number)?,
    };
    if options.foreground {
        let service = Service::new(device, pid, number);
        let mut begin = || {
            let stop = holder::signals()?;
            let attachment = service.attachment()?;
            // It is attached, whether anybody hears of it or not.
            let shown = show::attached(&attachment, options.json, output);
            let _ = shown.and_then(|()| Ok(output.flush()?));
            Ok(stop)
        };
        let stop = begin().inspect_err(|_: &Error| Runtime::unlink(&socket.path))?;
        return holder::serve(
            Held {
                service,
                listener: socket.listener,
                socket: socket.path,
                event,
            },
            &stop,
        );
    }
    let started = holder::start(&device, &socket, &event);
    if let Err(error) = started {
        Runtime::unlink(&socket.path);
        return Err(error);
    }
    // From here on it is the holder's alone.
    drop((device, event));
    let stream = UnixStream::connect(&socket.path).context("the holder has ended")?;
    let holder = super::runtime::Holder {
        pid,
        vm: number,
        socket: socket.path,
        stream,
    };
    drop(socket.listener);
    let attachment: Attachment = client::must(&holder, &Question::List, None)?;
    show::attached(&attachment, options.json, output)
}

/// Why the kernel refuses to attach, and what to do about it.
fn why(
    errno: Errno,
    log: Option<Log>,
    runtime: &Runtime,
    options: &AttachOptions,
    number: i32,
) -> Error {
    let proc = Path::new("/proc");
    let vm = explain::vm(proc, options.pid, number);
    let why = match errno {
        Errno::BUSY => busy(proc, runtime, options.pid),
        Errno::OPNOTSUPP => {
            let lacks = doctor::views::lacks(
                &Sysfs::new(Path::new("/sys")),
                &System::default(),
                &options.places.device,
            );
            match (lacks.as_slice(), log.and_then(Log::reason)) {
                ([], Some(reason)) => reason,
                ([], None) => "this VM cannot have views, or not there; 'dmesg' says why".into(),
                (lacks, _) => format!("{}; 'zeroshift doctor views' shows all", lacks.join("; ")),
            }
        }
        Errno::SRCH => "its process is ending".into(),
        Errno::INVAL => "it is no VM of KVM any more, or the slot is not one that there is".into(),
        Errno::NOMEM => "there is not enough memory".into(),
        Errno::NOTTY | Errno::TOOBIG => format!(
            "the module vmfunc_view does not know the request of zeroshift {}; load the module of \
             the same version",
            env!("CARGO_PKG_VERSION")
        ),
        errno => format!("{errno}; 'dmesg' may say more"),
    };
    anyhow!("cannot attach to {vm}: {why}")
}

/// Who has the VM.
fn busy(proc: &Path, runtime: &Runtime, pid: i32) -> String {
    let holders = runtime
        .look()
        .map(|found| found.holders)
        .unwrap_or_default();
    let ours = holders.iter().find(|holder| holder.pid == pid);
    let asked = ours.and_then(|holder| {
        client::ask::<Attachment>(holder, &Question::List, None)
            .ok()
            .flatten()
    });
    if let Some(attachment) = asked {
        return format!(
            "it is attached already, and {} holds it; 'zeroshift view list' shows it, 'zeroshift \
             view detach --pid {pid}' ends that",
            // CAST: process ids are below 2^22.
            vm::process(proc, attachment.holder as i32)
        );
    }
    let others = usage::processes(&System::default(), &["vmfunc".into()]);
    // This process has it open, too.
    let own = format!(" process {} ", std::process::id());
    let others: Vec<String> = others
        .into_iter()
        .filter(|user| !user.contains(&own))
        .collect();
    match others.as_slice() {
        [] => {
            "its last attachment is still ending: that takes until each of its vCPUs has entered \
             the guest once more; let the guest run (QEMU: 'cont'), then try again"
                .into()
        }
        others => format!("something else has attached to it; {}", others.join("; ")),
    }
}
