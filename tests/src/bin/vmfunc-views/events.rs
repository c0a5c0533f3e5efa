// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The eventfd that tells of changes.

use crate::killed::{start, Step};
use crate::rig::{Rig, LIMIT, OFFSET, PAGE};
use anyhow::{ensure, Context as _, Result};
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use vmfunc_uapi::{VMFUNC_QUERY_ENDED, VMFUNC_SET_EVENTFD};
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::Vmfunc;
use zeroshift_tests::vmm::{Program, GATE};
use zeroshift_tests::{check, check_eq};

/// An eventfd.
struct Event(OwnedFd);

impl Event {
    fn new() -> Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::NONBLOCK)?))
    }

    fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// What was added since the last time.
    fn take(&self) -> Result<u64> {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Err(Errno::AGAIN) => Ok(0),
            other => {
                ensure!(other? == 8, "a short read");
                Ok(u64::from_ne_bytes(count))
            }
        }
    }

    /// Waits until something is added.
    fn wait(&self) -> Result<()> {
        let limit = Timespec::try_from(LIMIT)?;
        let mut files = [PollFd::new(&self.0, PollFlags::IN)];
        ensure!(poll(&mut files, Some(&limit))? == 1, "no signal comes");
        self.take().map(drop)
    }
}

/// 1 for each change, and nothing for what changes nothing.
pub(crate) fn changes() -> Outcome {
    let (rig, _vcpus) = Rig::new(1)?;
    let file = &rig.vmfunc;
    check_eq!(file.create_view(), Ok(1), "before there is an eventfd");
    let event = Event::new()?;
    file.set_eventfd(event.number())?;
    check_eq!(event.take()?, 0, "at first");
    check_eq!(file.create_view(), Ok(2), "a view");
    check_eq!(event.take()?, 1, "a view");
    file.add_owned(1, OFFSET, PAGE)?;
    check_eq!(event.take()?, 1, "a window");
    file.add_owned(2, OFFSET, PAGE)?;
    file.add_owned(2, OFFSET + 4096, PAGE)?;
    check_eq!(event.take()?, 2, "two windows");
    file.remove_window(2, OFFSET)?;
    check_eq!(event.take()?, 1, "a window less");
    file.destroy_view(2)?;
    check_eq!(event.take()?, 1, "a view less, with a window");

    check!(file.destroy_view(2).is_err(), "no view");
    check!(file.add_owned(1, OFFSET, PAGE).is_err(), "no room");
    check!(file.remove_window(1, OFFSET + 4096).is_err(), "no window");
    check_eq!(file.query()?.windows, 1, "windows");
    check_eq!(event.take()?, 0, "what was refused, and a question");

    // Another one, then none.
    let other = Event::new()?;
    file.set_eventfd(other.number())?;
    file.remove_window(1, OFFSET)?;
    check_eq!([event.take()?, other.take()?], [0, 1], "another eventfd");
    file.set_eventfd(-1)?;
    file.destroy_view(1)?;
    check_eq!([event.take()?, other.take()?], [0, 0], "none");

    let null = File::open("/dev/null")?;
    for (fd, error) in [
        (-2, Errno::BADF),
        (100_000, Errno::BADF),
        (null.as_raw_fd(), Errno::INVAL),
        (file.file().as_raw_fd(), Errno::INVAL),
    ] {
        check_eq!(file.set_eventfd(fd), Err(error), "file {fd}");
    }
    let mut bad = zeroshift_tests::vmfunc::eventfd(other.number());
    bad.reserved = 1;
    let result = file.call(VMFUNC_SET_EVENTFD, &mut bad);
    check_eq!(result, Err(Errno::INVAL), "reserved");
    file.create_view()?;
    check_eq!(other.take()?, 0, "refused eventfds");

    // Closed, it is still there for the module.
    file.set_eventfd(other.number())?;
    drop(other);
    check_eq!(file.create_view(), Ok(2), "a view without a listener");
    Ok(())
}

/// A vCPU that is made later is prepared.
pub(crate) fn late_vcpu() -> Outcome {
    let (mut rig, _vcpus) = Rig::new(1)?;
    let event = Event::new()?;
    rig.vmfunc.set_eventfd(event.number())?;
    let vcpu = rig.vm.add_vcpu()?;
    check_eq!(event.take()?, 0, "a vCPU that does not run");
    vcpu.start(Program::Add, |_| {})?.wait_for_halt()?;
    event.wait()?;
    check_eq!(rig.vmfunc.query()?.vcpus, 2, "vCPUs");
    Ok(())
}

/// The VM of another process, which is killed.
pub(crate) fn end() -> Outcome {
    let mut child = start(Step::Vm)?;
    // CAST: a process id.
    let pid = child.id() as i32;
    let vmfunc = Vmfunc::open()?;
    let vm = vm_of(pid)?;
    check_eq!(vmfunc.attach(vm.as_raw_fd(), GATE), Ok(1), "attach");
    drop(vm);
    check_eq!(vmfunc.create_view(), Ok(1), "a view");
    vmfunc.add_owned(1, OFFSET, PAGE)?;
    let event = Event::new()?;
    vmfunc.set_eventfd(event.number())?;
    check_eq!(vmfunc.query()?.flags, 0, "flags before");
    check_eq!(event.take()?, 0, "signals before");
    child.kill()?;
    child.wait()?;
    event.wait()?;
    let now = vmfunc.query()?;
    check_eq!(now.flags, VMFUNC_QUERY_ENDED, "flags afterwards");
    check_eq!((now.views, now.windows), (2, 1), "what is left");
    let memory = Memory::new(PAGE)?;
    let result = vmfunc.add_window(1, OFFSET + 4096, &memory);
    check_eq!(result, Err(Errno::NOTCONN), "a window for nobody");
    vmfunc.remove_window(1, OFFSET)?;
    check_eq!(event.take()?, 1, "a removal");
    Ok(())
}

/// The only VM of a process.
fn vm_of(pid: i32) -> Result<OwnedFd> {
    let process = Pid::from_raw(pid).context("no process id")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path)?.as_os_str() == "anon_inode:kvm-vm" {
            let name = path.file_name().and_then(|n| n.to_str());
            let number = name.context("a name")?.parse()?;
            return Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?);
        }
    }
    anyhow::bail!("process {pid} has no VM")
}
