// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A virtual processor, and a thread that runs it.

use super::code::PORT;
use super::sys::{stats, Machine};
use super::{tables, Program, Vm};
use crate::vfio::memory::Memory;
use anyhow::{bail, ensure, Context as _, Result};
use kvm_bindings::{
    kvm_guest_debug, kvm_regs, kvm_sregs, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vmm_sys_util::signal::{Killable as _, SIGRTMIN};

/// How long a guest may run: only one that hangs comes near.
const LIMIT: Duration = Duration::from_secs(20);

/// How often a request is repeated until the thread has seen it: a signal that comes just before
/// KVM_RUN has no effect.
const AGAIN: Duration = Duration::from_millis(1);

/// Instructions of a trace: no program that is traced has as many.
const MOST: usize = 10_000;

/// Interrupts on, of which there are none. (Entered with IF = 0, a guest in Bochs holds off the
/// interrupts of the host until it changes IF, although they are to exit.)
const RFLAGS: u64 = 0x202;

/// What the guest reads where nothing is.
pub const NOTHING: u8 = 0x5a;

const NO_REQUEST: u32 = 0;
const REQUEST_STOP: u32 = 1;
const REQUEST_NMI: u32 = 2;
const REQUEST_SMI: u32 = 3;

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// HLT.
    Halt,
    /// It read at a guest-physical address where nothing is.
    Read(u64),
    /// It wrote there.
    Write(u64),
    /// OUT to a port.
    Port(u16),
    /// It was stopped from outside.
    Stopped,
    /// What no program here does.
    Other(String),
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct End {
    /// Why.
    pub stop: Stop,
    /// Registers at the end.
    pub registers: kvm_regs,
    /// How often KVM_RUN returned.
    pub runs: u64,
}

/// A vCPU that does not run.
#[derive(Debug)]
pub struct Vcpu {
    pub(super) index: u64,
    pub(super) file: VcpuFd,
    /// Registers that KVM began with.
    pub(super) reset: kvm_sregs,
    ram: Arc<Memory>,
    // Last: the memory goes after the file.
    _machine: Arc<Machine>,
}

impl Vcpu {
    pub(super) fn new(vm: &mut Vm, index: u64) -> Result<Self> {
        let (file, machine) = vm.machine.create_vcpu(index)?;
        // Before the registers: it tells KVM that there is a 64-bit mode.
        file.set_cpuid2(&vm.cpuid).context("cannot set CPUID")?;
        let reset = file.get_sregs()?;
        let registers = tables::registers(index, reset);
        file.set_sregs(&registers)
            .context("cannot set special registers")?;
        vm.stats.push(stats(&file)?);
        Ok(Self {
            index,
            file,
            reset,
            ram: Arc::clone(&vm.ram),
            _machine: machine,
        })
    }

    /// Lets it run a program, after `set` had its registers.
    pub fn start(self, program: Program, set: impl FnOnce(&mut kvm_regs)) -> Result<Running> {
        self.prepare(program, set)?;
        self.go_on()
    }

    fn prepare(&self, program: Program, set: impl FnOnce(&mut kvm_regs)) -> Result<()> {
        // CAST: an address in 2 MiB.
        self.ram
            .write(tables::report(self.index) as usize, &[0; 4096]);
        let mut registers = kvm_regs {
            rip: tables::CODE + program.offset(),
            rsp: tables::stack(self.index),
            rflags: RFLAGS,
            ..Default::default()
        };
        set(&mut registers);
        Ok(self.file.set_regs(&registers)?)
    }

    /// Runs a program instruction by instruction until HLT. The addresses of all of them, and the
    /// registers at the end.
    pub fn trace(
        &mut self,
        program: Program,
        set: impl FnOnce(&mut kvm_regs),
    ) -> Result<(Vec<u64>, kvm_regs)> {
        self.prepare(program, set)?;
        let mut addresses = vec![self.file.get_regs()?.rip];
        self.step(true)?;
        loop {
            match self.file.run().context("KVM_RUN")? {
                VcpuExit::Debug(debug) => addresses.push(debug.pc),
                VcpuExit::Hlt => break,
                other => bail!("{other:?} in a trace"),
            }
            ensure!(addresses.len() < MOST, "a program without an end");
        }
        self.step(false)?;
        Ok((addresses, self.file.get_regs()?))
    }

    /// Whether KVM_RUN ends after each instruction.
    fn step(&self, on: bool) -> Result<()> {
        let control = match on {
            true => KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
            false => 0,
        };
        let debug = kvm_guest_debug {
            control,
            ..Default::default()
        };
        self.file
            .set_guest_debug(&debug)
            .context("KVM_SET_GUEST_DEBUG")
    }

    /// Lets it run a program instruction by instruction, a string instruction by its steps, until
    /// `there` says so of its registers. It can go on from there.
    pub fn step_to(
        mut self,
        program: Program,
        set: impl FnOnce(&mut kvm_regs),
        there: impl Fn(&kvm_regs) -> bool,
    ) -> Result<Self> {
        self.prepare(program, set)?;
        self.step(true)?;
        for _ in 0..MOST {
            match self.file.run().context("KVM_RUN")? {
                VcpuExit::Debug(_) => {}
                other => bail!("{other:?} instead of a step"),
            }
            if there(&self.file.get_regs()?) {
                self.step(false)?;
                return Ok(self);
            }
        }
        let registers = self.file.get_regs()?;
        bail!("it did not get there in {MOST} steps: {registers:x?}");
    }

    /// Lets it run from where it is.
    pub fn go_on(mut self) -> Result<Running> {
        take_signals()?;
        let index = self.index;
        let request = Arc::new(AtomicU32::new(NO_REQUEST));
        let seen = Arc::clone(&request);
        let (to, end) = channel();
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                let end = self.run(&seen);
                // Nobody waits any more: then nobody wants it.
                let _ = to.send((self, end));
            })?;
        Ok(Running {
            index,
            request,
            end,
            thread: Some(thread),
        })
    }

    fn run(&mut self, request: &AtomicU32) -> Result<End> {
        let mut runs = 0;
        let stop = loop {
            match request.swap(NO_REQUEST, Ordering::SeqCst) {
                REQUEST_STOP => break Stop::Stopped,
                REQUEST_NMI => self.file.nmi().context("cannot send an NMI")?,
                REQUEST_SMI => self.file.smi().context("cannot send an SMI")?,
                _ => {}
            }
            let exit = self.file.run();
            runs += 1;
            break match exit {
                Err(error) if error.errno() == Errno::INTR.raw_os_error() => continue,
                Err(error) => bail!("KVM_RUN: {error}"),
                Ok(VcpuExit::Hlt) => Stop::Halt,
                Ok(VcpuExit::MmioRead(address, data)) => {
                    data.fill(NOTHING);
                    Stop::Read(address)
                }
                Ok(VcpuExit::MmioWrite(address, _)) => Stop::Write(address),
                Ok(VcpuExit::IoOut(port, _)) => Stop::Port(port),
                Ok(other) => Stop::Other(format!("{other:?}")),
            };
        };
        let registers = self.file.get_regs()?;
        Ok(End {
            stop,
            registers,
            runs,
        })
    }
}

/// A vCPU that runs. Stopped when it is dropped.
#[derive(Debug)]
pub struct Running {
    index: u64,
    request: Arc<AtomicU32>,
    end: Receiver<(Vcpu, Result<End>)>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Waits until it ends.
    pub fn wait(mut self) -> Result<(Vcpu, End)> {
        let (vcpu, end) = match self.end.recv_timeout(LIMIT) {
            Ok(ended) => ended,
            Err(RecvTimeoutError::Timeout) => {
                self.ask(REQUEST_STOP);
                let (_, end) = self.end.recv()?;
                bail!("vCPU {} does not end: {:x?}", self.index, end?);
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the thread of vCPU {} died", self.index),
        };
        self.join();
        Ok((vcpu, end?))
    }

    /// Waits until it halts.
    pub fn wait_for_halt(self) -> Result<(Vcpu, End)> {
        self.wait_for(&Stop::Halt)
    }

    /// Waits until its program says by OUT that it has come to something.
    pub fn wait_for_out(self) -> Result<(Vcpu, End)> {
        self.wait_for(&Stop::Port(PORT))
    }

    fn wait_for(self, stop: &Stop) -> Result<(Vcpu, End)> {
        let index = self.index;
        let (vcpu, end) = self.wait()?;
        ensure!(end.stop == *stop, "vCPU {index}: {end:x?}, not {stop:x?}");
        Ok((vcpu, end))
    }

    /// Stops it wherever it is.
    pub fn stop(self) -> Result<(Vcpu, End)> {
        self.ask(REQUEST_STOP);
        self.wait()
    }

    /// Sends a non-maskable interrupt. It is delivered when the guest runs again.
    pub fn send_nmi(&self) {
        self.ask(REQUEST_NMI);
    }

    /// Sends a system-management interrupt, likewise.
    pub fn send_smi(&self) {
        self.ask(REQUEST_SMI);
    }

    fn ask(&self, request: u32) {
        let Some(thread) = &self.thread else { return };
        self.request.store(request, Ordering::SeqCst);
        while self.request.load(Ordering::SeqCst) != NO_REQUEST && !thread.is_finished() {
            // A thread that has just ended needs no signal.
            let _ = thread.kill(SIGRTMIN());
            thread::sleep(AGAIN);
        }
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // What a panic would say is in the channel: nothing came.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ask(REQUEST_STOP);
        self.join();
    }
}

/// Takes the signal that ends KVM_RUN; all that it has to do is to arrive.
fn take_signals() -> Result<()> {
    static TAKEN: OnceLock<Option<i32>> = OnceLock::new();
    let error = TAKEN.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        let id = signal_hook::flag::register(SIGRTMIN(), flag);
        id.err().map(|e| e.raw_os_error().unwrap_or(0))
    });
    match error {
        None => Ok(()),
        Some(number) => bail!("cannot take a signal: error {number}"),
    }
}
