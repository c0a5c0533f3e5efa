// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guests to measure with, and the clock.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context as _, Result};
use rustix::io::Errno;
use vmfunc_uapi::FIRST_WINDOW;
use zeroshift_tests::module;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::{Vmfunc, MODULE};
use zeroshift_tests::vmm::{Program, Vcpu, Vm, Work, AROUND, GATE};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Guest address of the window.
pub(crate) const WINDOW: u64 = GATE + FIRST_WINDOW;
/// The view with the window.
pub(crate) const VIEW: u32 = 1;

/// What is in the window.
const CONTENT: u8 = 0xa5;

/// How long the module may stay in use: only one that hangs comes near.
const LIMIT: Duration = Duration::from_secs(20);

/// The module, loaded.
#[derive(Debug)]
pub(crate) struct Loaded;

impl Loaded {
    /// Loads it, anew.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        unload()?;
        module::load(path, "").with_context(|| format!("cannot load {}", path.display()))?;
        Ok(Self)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // Who comes next does it again, and says when it cannot.
        let _ = unload();
    }
}

/// Unloads the module when it is there. What was attached may take a moment to go.
pub(crate) fn unload() -> Result<()> {
    let start = Instant::now();
    while module::is_loaded(MODULE) {
        match module::unload(MODULE) {
            Err(Errno::WOULDBLOCK) if start.elapsed() < LIMIT => {
                thread::sleep(Duration::from_millis(1));
            }
            other => other.context("cannot unload the module")?,
        }
    }
    Ok(())
}

/// A VM that is attached, with one vCPU, and a window in the view [`VIEW`]. KVM's VM goes before the
/// attachment, which so ends at once.
pub(crate) struct Attached {
    vcpu: Option<Vcpu>,
    pub(crate) vm: Vm,
    _window: Memory,
    pub(crate) file: Vmfunc,
    _module: Loaded,
}

impl Attached {
    /// With the module in this file.
    pub(crate) fn new(module: &Path) -> Result<Self> {
        let module = Loaded::new(module)?;
        let (vm, mut vcpus) = Vm::new(1)?;
        let file = Vmfunc::open()?;
        file.attach(vm.raw_fd(), GATE)
            .context("cannot attach (the kernel log says why)")?;
        vm.set_gate(&Arc::new(file.gate()?))?;
        let view = file.create_view()?;
        ensure!(view == VIEW, "the first view is {view}");
        let window = file.add_owned(VIEW, FIRST_WINDOW, PAGE)?;
        window.write(0, &[CONTENT; PAGE]);
        Ok(Self {
            vcpu: vcpus.pop(),
            vm,
            _window: window,
            file,
            _module: module,
        })
    }

    /// [`run`] on its vCPU.
    pub(crate) fn run(&mut self, work: Work, bytes: usize, times: u64) -> Result<u64> {
        self.copies(work, bytes, |vcpu| run(vcpu, work, bytes, times))
    }

    /// [`ticks`] of its vCPU.
    pub(crate) fn ticks(&mut self, work: Work, bytes: usize) -> Result<u64> {
        self.copies(work, bytes, |vcpu| ticks(vcpu, work, bytes))
    }

    /// Has the vCPU do the work, and sees that the gate copied.
    fn copies(
        &mut self,
        work: Work,
        bytes: usize,
        all: impl FnOnce(Vcpu) -> Result<(Vcpu, u64)>,
    ) -> Result<u64> {
        let vcpu = self.vcpu.take().context("a run before this one failed")?;
        self.vm.write(Vm::buffer(0), &[0; PAGE]);
        let (vcpu, ticks) = all(vcpu)?;
        self.vcpu = Some(vcpu);
        if work == Work::Gate {
            let mut copied = [0; PAGE];
            self.vm.read(Vm::buffer(0), &mut copied);
            let right = copied.iter().take_while(|byte| **byte == CONTENT).count();
            ensure!(
                right == bytes,
                "the gate copied {right} bytes instead of {bytes}"
            );
        }
        Ok(ticks)
    }

    /// The default face of the gate.
    pub(crate) fn default_face(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE];
        self.file.gate()?.read(0, &mut bytes);
        Ok(bytes)
    }

    /// Its vCPU, while it does not run.
    pub(crate) fn vcpu(&mut self) -> Result<&mut Vcpu> {
        self.vcpu.as_mut().context("a run before this one failed")
    }
}

/// How often the work is done that is measured. So few that most runs see no interrupt of the host.
const TIMES: u64 = 20;
/// Runs, of which the shortest counts.
const RUNS: u32 = 60;

/// What [`TIMES`] times the work takes in ticks of the time stamp counter: a run with twice as many
/// against one, so that nothing counts of what is around them.
pub(crate) fn ticks(mut vcpu: Vcpu, work: Work, bytes: usize) -> Result<(Vcpu, u64)> {
    let mut best = [u64::MAX; 2];
    for _ in 0..RUNS {
        for (best, times) in best.iter_mut().zip([TIMES, 2 * TIMES]) {
            let ticks;
            (vcpu, ticks) = run(vcpu, work, bytes, times)?;
            *best = ticks.min(*best);
        }
    }
    let [once, twice] = best;
    let ticks = twice.checked_sub(once);
    Ok((vcpu, ticks.context("twice the work took less time")?))
}

/// Lets the guest do the work some times, and tells in how many ticks.
fn run(vcpu: Vcpu, work: Work, bytes: usize, times: u64) -> Result<(Vcpu, u64)> {
    let running = vcpu.start(Program::Time(work), |r| {
        (r.r13, r.r15, r.r14) = (Vm::buffer(0), source(work), bytes as u64);
        (r.r12, r.rbp) = (VIEW.into(), times);
    })?;
    let (vcpu, end) = running.wait_for_halt()?;
    Ok((vcpu, end.registers.rax))
}

/// Only the gate reaches the window; plain copies are from memory.
fn source(work: Work) -> u64 {
    match work {
        Work::Gate => WINDOW,
        _ => Vm::buffer(0) + PAGE as u64,
    }
}

/// A difference of two runs, for each time that the work is done.
pub(crate) fn each(more: u64, less: u64) -> f64 {
    (more as f64 - less as f64) / TIMES as f64
}

/// Whether the time stamp counter counts the guest's instructions. [`Work::Nothing`] is the proof:
/// its instructions are known.
pub(crate) fn counts_instructions(nothing: u64) -> Result<()> {
    ensure!(
        nothing == TIMES * AROUND,
        "the time stamp counter of this machine does not count instructions: {nothing} ticks for {} of them",
        TIMES * AROUND
    );
    Ok(())
}
