// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An attached VM, and what the tests ask it.

use anyhow::{bail, ensure, Context as _, Result};
use rustix::io::Errno;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use vmfunc_uapi::FIRST_WINDOW;
use zeroshift_tests::ktap::Stop as Why;
use zeroshift_tests::module;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::{Vmfunc, MODULE};
use zeroshift_tests::vmm::{Count, End, Program, Running, Vcpu, Vm, ABORTED, GATE, GATE_COPY};

pub(crate) const PAGE: usize = 4096;

/// Where most tests have their window: offset in the slot, and guest address.
pub(crate) const OFFSET: u64 = FIRST_WINDOW;
pub(crate) const WINDOW: u64 = GATE + OFFSET;

/// Sizes of copies where it matters how much of its time a guest is in its view. For most of it with
/// the first one, where a copy takes its time; with several processors in Bochs it takes none, and the
/// second one is better.
pub(crate) const SIZES: [usize; 2] = [PAGE, 8];

/// How long a guest may take to do something: only one that hangs comes near.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Whether guests of KVM may have guests.
pub(crate) fn is_nested() -> bool {
    let value = fs::read_to_string("/sys/module/kvm_intel/parameters/nested");
    value.is_ok_and(|v| v.trim() == "1" || v.trim() == "Y")
}

/// A VM with views.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) vm: Vm,
    pub(crate) vmfunc: Vmfunc,
}

impl Rig {
    /// Attaches to a new VM with `count` vCPUs.
    pub(crate) fn new(count: u64) -> Result<(Self, Vec<Vcpu>), Why> {
        let (vm, vcpus) = Vm::new(count)?;
        Ok((Self::of(vm)?, vcpus))
    }

    /// Attaches to a VM.
    pub(crate) fn of(vm: Vm) -> Result<Self, Why> {
        let vmfunc = Vmfunc::open()?;
        match vmfunc.attach(vm.raw_fd(), GATE) {
            Err(Errno::OPNOTSUPP) => {
                return Err(Why::Skip(
                    "the module cannot attach here: see its log".into(),
                ))
            }
            other => other?,
        };
        vm.set_gate(&Arc::new(vmfunc.gate()?))?;
        Ok(Self { vm, vmfunc })
    }

    /// One with one vCPU and one view, which is number 1.
    pub(crate) fn small() -> Result<(Self, Vcpu), Why> {
        let (rig, mut vcpus) = Self::new(1)?;
        let view = rig.vmfunc.create_view()?;
        if view != 1 {
            return Err(Why::Fail(format!("the first view is {view}")));
        }
        let vcpu = vcpus.pop().ok_or("no vCPU")?;
        Ok((rig, vcpu))
    }

    /// Times that a vCPU was brought back to the default view.
    pub(crate) fn bounces(&self, vcpu: u32) -> Result<u64> {
        Ok(self.vmfunc.counters(vcpu)?.bounces)
    }

    /// Waits until a count of a vCPU's report is at least `least`.
    pub(crate) fn wait_for(&self, vcpu: u64, count: Count, least: u64) -> Result<()> {
        wait_for(&self.vm, vcpu, count, least)
    }
}

/// Waits until a count of a vCPU's report is at least `least`.
pub(crate) fn wait_for(vm: &Vm, vcpu: u64, count: Count, least: u64) -> Result<()> {
    let enough = || Ok((vm.count(vcpu, count) >= least).then_some(()));
    repeat(enough)?.with_context(|| {
        let now = vm.count(vcpu, count);
        format!("vCPU {vcpu}: {count:?} stays at {now}, {least} expected")
    })
}

/// Waits until each of the first vCPUs has gone through a round that began after the call.
pub(crate) fn some_rounds(vm: &Vm, vcpus: u64) -> Result<()> {
    (0..vcpus).try_for_each(|i| wait_for(vm, i, Count::Rounds, vm.count(i, Count::Rounds) + 2))
}

/// Unloads the module. What was attached may take a moment to go.
pub(crate) fn unload() -> Result<()> {
    let unload = || match module::unload(MODULE) {
        Err(Errno::WOULDBLOCK) => Ok(None),
        other => Ok(Some(other.context("cannot unload the module")?)),
    };
    repeat(unload)?.context("the module stays in use")
}

/// Attaches to a VM that was attached, and tells how many vCPUs are prepared. The old attachment may
/// take a moment to go.
pub(crate) fn attach_again(vmfunc: &Vmfunc, vm: &Vm) -> Result<u32> {
    let attach = || match vmfunc.attach(vm.raw_fd(), GATE) {
        Err(Errno::BUSY) => Ok(None),
        other => Ok(Some(other.context("cannot attach again")?)),
    };
    repeat(attach)?.context("the old attachment stays")
}

/// Does something until it gives a value. `None` when it did not in a time that only what hangs
/// takes.
pub(crate) fn repeat<T>(mut action: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        // Tried once more behind the limit.
        let late = start.elapsed() > LIMIT;
        let value = action()?;
        if value.is_some() || late {
            return Ok(value);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// One copy by the gate, and what it returned.
pub(crate) fn call(vcpu: Vcpu, view: u32, to: u64, from: u64, bytes: usize) -> Result<(Vcpu, u8)> {
    let running = vcpu.start(Program::Gate, |r| {
        (r.rbx, r.rcx) = (GATE_COPY, view.into());
        (r.rdi, r.rsi, r.rdx) = (to, from, bytes as u64);
    })?;
    let (vcpu, end) = running.wait_for_halt()?;
    // CAST: AL.
    Ok((vcpu, end.registers.rax as u8))
}

/// A copy by the gate, again as long as it is aborted, and what it returned.
pub(crate) fn copy(
    mut vcpu: Vcpu,
    view: u32,
    to: u64,
    from: u64,
    bytes: usize,
) -> Result<(Vcpu, u8)> {
    const TIMES: usize = 1000;
    for _ in 0..TIMES {
        let result;
        (vcpu, result) = call(vcpu, view, to, from, bytes)?;
        if result != ABORTED {
            return Ok((vcpu, result));
        }
    }
    bail!("a copy from {from:#x} to {to:#x} was aborted {TIMES} times");
}

/// What a vCPU does round by round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    pub(crate) view: u32,
    pub(crate) window: u64,
    pub(crate) bytes: usize,
    /// Writes to the window first. Else what is expected is in the first page of its buffer.
    pub(crate) write: bool,
    /// 0: until it is asked to stop.
    pub(crate) count: u64,
}

impl Rounds {
    /// With the usual window of a view, by whole pages, written first.
    pub(crate) fn new(view: u32, count: u64) -> Self {
        Self {
            view,
            window: WINDOW,
            bytes: PAGE,
            write: true,
            count,
        }
    }

    pub(crate) fn start(self, index: u64, vcpu: Vcpu) -> Result<Running> {
        vcpu.start(Program::Rounds, |r| {
            r.rbx = Vm::buffer(index);
            r.r12 = self.view.into();
            r.r13 = self.window;
            r.r14 = self.bytes as u64;
            // Odd, and another one for each vCPU.
            r.r15 = 0x9e37_79b9_7f4a_7c15 ^ (index + 1) << 8;
            r.rdx = self.write.into();
            r.rbp = self.count;
        })
    }
}

/// Two vCPUs in round trips until they are asked to stop, each in its own view and with another one of
/// [`SIZES`].
pub(crate) fn start_both(vcpus: Vec<Vcpu>) -> Result<Vec<Running>> {
    start_all(vcpus, |vcpu| Rounds {
        // CAST: 0 and 1.
        bytes: SIZES[vcpu as usize],
        ..Rounds::new(vcpu as u32 + 1, 0)
    })
}

/// Starts each vCPU with what it is to do.
pub(crate) fn start_all(vcpus: Vec<Vcpu>, what: impl Fn(u64) -> Rounds) -> Result<Vec<Running>> {
    let start = |(i, vcpu)| what(i).start(i, vcpu);
    (0..).zip(vcpus).map(start).collect()
}

/// Asks all to stop, and waits for them.
pub(crate) fn stop_all(vm: &Vm, running: Vec<Running>) -> Result<Vec<(Vcpu, End)>> {
    for (i, _) in (0..).zip(&running) {
        vm.ask_to_stop(i);
    }
    running.into_iter().map(Running::wait_for_halt).collect()
}

/// A vCPU's rounds went as they should.
pub(crate) fn check_rounds(vm: &Vm, vcpu: u64, rounds: u64) -> Result<()> {
    let count = |count| vm.count(vcpu, count);
    let (done, errors) = (count(Count::Rounds), count(Count::Errors));
    ensure!(
        errors == 0,
        "vCPU {vcpu}: wrong data after {errors} of {done} rounds"
    );
    let (refusals, faults) = (count(Count::Refusals), count(Count::Faults));
    ensure!(
        refusals == 0,
        "vCPU {vcpu}: the gate refused {refusals} times"
    );
    ensure!(faults == 0, "vCPU {vcpu}: {faults} invalid opcodes");
    ensure!(
        done >= rounds,
        "vCPU {vcpu}: {done} rounds, {rounds} expected"
    );
    Ok(())
}

/// What a vCPU of [`Program::Sample`] looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Samples {
    pub(crate) view: u32,
    /// Guest-virtual.
    pub(crate) from: u64,
    pub(crate) bytes: usize,
}

impl Samples {
    /// The usual window of a view, a whole page.
    pub(crate) fn new(view: u32) -> Self {
        Self {
            view,
            from: WINDOW,
            bytes: PAGE,
        }
    }

    pub(crate) fn start(self, index: u64, vcpu: Vcpu) -> Result<Running> {
        vcpu.start(Program::Sample, |r| {
            r.rbx = Vm::buffer(index);
            r.r12 = self.view.into();
            r.r13 = self.from;
            r.r14 = self.bytes as u64;
        })
    }

    /// Two vCPUs, each with another one of [`SIZES`].
    pub(crate) fn start_both(self, vcpus: Vec<Vcpu>) -> Result<Vec<Running>> {
        let start = |((i, vcpu), bytes)| Self { bytes, ..self }.start(i, vcpu);
        (0..).zip(vcpus).zip(SIZES).map(start).collect()
    }
}

/// Fills memory with a generation, from 1 to 127.
pub(crate) fn fill(memory: &Memory, generation: u8) {
    memory.write(0, &vec![generation; memory.length()]);
}

/// Fills memory that no guest has any more with what no guest may see.
pub(crate) fn poison(memory: &Memory) {
    memory.write(0, &vec![0xbd; memory.length()]);
}

/// A vCPU's samples were all right.
pub(crate) fn check_samples(vm: &Vm, vcpu: u64) -> Result<()> {
    let count = |count| vm.count(vcpu, count);
    let (rounds, errors, wrong) = (
        count(Count::Rounds),
        count(Count::Errors),
        count(Count::Wrong),
    );
    ensure!(
        errors == 0,
        "vCPU {vcpu}: {errors} wrong words in {rounds} rounds, one is {wrong:#x}"
    );
    let refusals = count(Count::Refusals);
    ensure!(
        refusals == 0,
        "vCPU {vcpu}: the gate refused {refusals} times"
    );
    Ok(())
}

/// Lets a vCPU copy a page by view 1, as far as into it.
pub(crate) fn begin(vcpu: Vcpu, to: u64, from: u64) -> Result<Vcpu> {
    vcpu.step_to(
        Program::Gate,
        |r| (r.rbx, r.rcx, r.rdi, r.rsi, r.rdx) = (GATE_COPY, 1, to, from, PAGE as u64),
        |r| r.rdi > to && r.rdi < to + PAGE as u64,
    )
}

/// Lets it go on, and tells what the gate returned.
pub(crate) fn end(vcpu: Vcpu) -> Result<(Vcpu, u8)> {
    let (vcpu, end) = vcpu.go_on()?.wait_for_halt()?;
    // CAST: AL.
    Ok((vcpu, end.registers.rax as u8))
}

/// A page that shows where each of its bytes belongs.
pub(crate) fn pattern(seed: u64) -> Vec<u8> {
    let word = |i: u64| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
    (0..PAGE as u64 / 8)
        .flat_map(|i| word(i).to_le_bytes())
        .collect()
}

/// A page of some memory.
pub(crate) fn page_of(memory: &Memory, page: usize) -> Vec<u8> {
    let mut data = vec![0; PAGE];
    memory.read(page * PAGE, &mut data);
    data
}

/// A page of guest memory.
pub(crate) fn guest_page(vm: &Vm, address: u64) -> Vec<u8> {
    let mut data = vec![0; PAGE];
    vm.read(address, &mut data);
    data
}
