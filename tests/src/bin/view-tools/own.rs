// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests with VMs of this process.

use crate::bench::{ended, Bench};
use anyhow::{bail, Context as _, Result};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};
use serde_json::Value;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::GATE_SIZE;
use zeroshift_tests::vmm::{Program, Vm, ABORTED, GATE, GATE_COPY};
use zeroshift_tests::{check, check_eq};

/// How often a copy is tried again.
const TIMES: usize = 1000;

pub(crate) fn several_vms(bench: &Bench) -> Outcome {
    bench.ready()?;
    let (first, second) = (Vm::new(0)?.0, Vm::new(0)?.0);
    let vms = [first.raw_fd().to_string(), second.raw_fd().to_string()];
    let pid = std::process::id().to_string();
    let which = format!("one of {}", vms.join(", "));
    bench.refused(&["attach", "--pid", &pid], &["several VMs", "--vm", &which])?;
    bench.refused(
        &["attach", "--pid", &pid, "--vm", "0"],
        &["file descriptor 0 of process", "no VM of KVM"],
    )?;
    for vm in &vms {
        let attached = bench.json(&["attach", "--pid", &pid, "--vm", vm])?;
        check_eq!(attached["vm"].to_string(), *vm, "VM");
        check_eq!(attached["vcpus"], 0, "vCPUs");
    }
    check_eq!(bench.attachments()?.len(), 2, "attachments");
    bench.refused(&["stat"], &["several VMs are attached", "--pid"])?;
    bench.refused(
        &["stat", "--pid", &pid],
        &["several VMs are attached", "--vm"],
    )?;
    for vm in &vms {
        bench.view(&["detach", "--pid", &pid, "--vm", vm])?;
    }
    check_eq!(bench.attachments()?.len(), 0, "attachments");
    Ok(())
}

/// A VM ends in a process that goes on, as a VMM may that boots its guest again: its holder does, too, and
/// the next VM, which has the same file descriptor, can be attached.
pub(crate) fn vm_closed(bench: &Bench) -> Outcome {
    bench.ready()?;
    let pid = std::process::id().to_string();
    let mut number = None;
    for _ in 0..2 {
        let vm = Vm::new(1)?;
        let attached = bench.json(&["attach", "--pid", &pid])?;
        let same = *number.get_or_insert(vm.0.raw_fd()) == vm.0.raw_fd();
        check!(same, "another file descriptor");
        bench.view(&["add", "--length", "4K"])?;
        drop(vm);
        let holder = &attached["holder"];
        ended(holder)?;
        check_eq!(bench.attachments()?.len(), 0, "attachments");
    }
    Ok(())
}

/// A guest reads a file by a window that the program has opened, through the gate.
pub(crate) fn window_shows_file(bench: &Bench) -> Outcome {
    bench.ready()?;
    let file = File::from(memfd_create("peer", MemfdFlags::CLOEXEC)?);
    let data: Vec<u8> = (0..8192_u32).map(|i| (i * 7 + i / 256) as u8).collect();
    file.write_all_at(&data, 0)?;
    let (vm, mut vcpus) = Vm::new(1)?;
    let mut vcpu = vcpus.pop().context("no vCPU")?;
    let pid = std::process::id().to_string();
    let attached = bench.json(&["attach", "--pid", &pid])?;
    let path = format!("/proc/{pid}/fd/{}:4K", file.as_raw_fd());
    let added = bench.json(&["add", "--file", &path, "--at", "16M"])?;
    check_eq!(added["length"], 4096, "the rest of the file");
    {
        // What a VMM would do that is attached itself.
        let device = device_of(&attached["holder"])?;
        let gate = Arc::new(Memory::of_file(device.as_fd(), 0, GATE_SIZE, false)?);
        vm.set_gate(&gate)?;
    }
    let buffer = Vm::buffer(0);
    let mut tries = 0;
    loop {
        let running = vcpu.start(Program::Gate, |r| {
            (r.rbx, r.rcx) = (GATE_COPY, 1);
            (r.rdi, r.rsi, r.rdx) = (buffer, GATE + (16 << 20), 4096);
        })?;
        let (stopped, end) = running.wait_for_halt()?;
        vcpu = stopped;
        // CAST: AL.
        match end.registers.rax as u8 {
            0 => break,
            ABORTED if tries < TIMES => tries += 1,
            other => return Err(format!("the gate returns {other} after {tries} tries").into()),
        }
    }
    let mut read = vec![0; 4096];
    vm.read(buffer, &mut read);
    check!(read == data[4096..], "the guest reads something else");
    vm.clear_gate()?;
    bench.view(&["detach"])?;
    drop(vcpu);
    Ok(())
}

/// The open `/dev/vmfunc` of a holder.
fn device_of(holder: &Value) -> Result<OwnedFd> {
    let files = Path::new("/proc").join(holder.to_string()).join("fd");
    for file in fs::read_dir(&files)? {
        let file = file?;
        let target = fs::read_link(file.path()).unwrap_or_default();
        if target != Path::new("/dev/vmfunc") {
            continue;
        }
        let number = file.file_name().to_string_lossy().parse()?;
        let pid = holder.as_i64().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.and_then(Pid::from_raw).context("no process id")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        return Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?);
    }
    bail!("the holder has no /dev/vmfunc")
}
