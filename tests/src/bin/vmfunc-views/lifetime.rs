// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What comes and goes around an attached VM: its memory, the file, the module.

use crate::faults::reads_nothing;
use crate::rig::{
    attach_again, begin, check_rounds, end, pattern, some_rounds, start_both, stop_all, unload,
    Rig, Rounds, OFFSET, PAGE, WINDOW,
};
use rustix::io::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroshift_tests::ktap::{skip, Outcome};
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::{exists, MODULE};
use zeroshift_tests::vmm::{Count, Program, Vm, ABORTED, SPARE};
use zeroshift_tests::{check, check_eq, module};

/// KVM makes a new root whenever memory of a guest goes: the views are of the new one then.
pub(crate) fn memslots() -> Outcome {
    const TIMES: u64 = 10;
    const ELSEWHERE: u64 = SPARE + (2 << 20);
    let (rig, vcpus) = Rig::new(2)?;
    let mut memories = Vec::new();
    for view in 1..=2 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
        memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
    }
    let running = start_both(vcpus)?;
    some_rounds(&rig.vm, 2)?;
    let before = loads(&rig)?;
    let spare = Arc::new(Memory::new(PAGE)?);
    for _ in 0..TIMES {
        rig.vm.set_spare(&spare)?;
        some_rounds(&rig.vm, 2)?;
        rig.vm.move_spare(ELSEWHERE)?;
        some_rounds(&rig.vm, 2)?;
        rig.vm.clear_spare()?;
        some_rounds(&rig.vm, 2)?;
    }
    let after = loads(&rig)?;
    let ends = stop_all(&rig.vm, running)?;
    for i in 0..2 {
        check_rounds(&rig.vm, i, 3 * TIMES)?;
        let aborts = rig.vm.count(i, Count::Aborts);
        let counters = rig.vmfunc.counters(i as u32)?;
        println!("# vCPU {i}: {counters:?}, {aborts} aborts");
        // The default view and a view.
        check!(
            counters.invepts >= 2 * counters.loads,
            "vCPU {i}: {} flushes for {} roots",
            counters.invepts,
            counters.loads
        );
    }
    for (i, (before, after)) in before.into_iter().zip(after).enumerate() {
        let loads = after - before;
        check!(
            loads >= 2 * TIMES,
            "vCPU {i}: {loads} roots for {TIMES} moves and removals"
        );
    }
    // In the middle of a copy. What was moved is in the guest where it is now.
    let (vcpu, _) = ends.into_iter().next().ok_or("no vCPU")?;
    rig.vm.set_spare(&spare)?;
    spare.write(0, &pattern(1));
    let vcpu = begin(vcpu, Vm::buffer(0), WINDOW)?;
    rig.vm.move_spare(ELSEWHERE)?;
    let (vcpu, result) = end(vcpu)?;
    check_eq!(result, ABORTED, "a copy during which memory was moved");
    let running = vcpu.start(Program::Load, |r| r.rdi = ELSEWHERE)?;
    let (vcpu, found) = running.wait_for_halt()?;
    let first = found.registers.rax.to_le_bytes();
    check!(pattern(1).starts_with(&first), "what was moved");
    let vcpu = begin(vcpu, Vm::buffer(0), WINDOW)?;
    rig.vm.clear_spare()?;
    let (vcpu, result) = end(vcpu)?;
    check_eq!(result, ABORTED, "a copy during which memory was removed");
    let vcpu = reads_nothing(vcpu, SPARE)?;
    reads_nothing(vcpu, ELSEWHERE)?;
    Ok(())
}

/// Roots that KVM loaded for the two vCPUs.
fn loads(rig: &Rig) -> rustix::io::Result<[u64; 2]> {
    Ok([rig.vmfunc.counters(0)?.loads, rig.vmfunc.counters(1)?.loads])
}

/// A parameter of KVM, which gets its value back in the end.
struct Parameter {
    path: PathBuf,
    old: String,
}

impl Parameter {
    fn new(name: &str) -> anyhow::Result<Self> {
        let path = Path::new("/sys/module/kvm/parameters").join(name);
        let old = fs::read_to_string(&path)?;
        Ok(Self { path, old })
    }

    fn set(&self, value: &str) -> anyhow::Result<()> {
        Ok(fs::write(&self.path, value)?)
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        // The next test that cares sets it again.
        let _ = self.set(self.old.trim());
    }
}

/// `nx_huge_pages` is switched: KVM makes new roots for all VMs. While it is on, KVM takes tables of
/// small pages away all the time to have large ones again.
pub(crate) fn nx_huge_pages() -> Outcome {
    const TIMES: u64 = 6;
    let period = Parameter::new("nx_huge_pages_recovery_period_ms")?;
    let ratio = Parameter::new("nx_huge_pages_recovery_ratio")?;
    let switch = Parameter::new("nx_huge_pages")?;
    let (rig, vcpus) = Rig::new(2)?;
    let mut memories = Vec::new();
    for view in 1..=2 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
        memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
    }
    switch.set("off")?;
    ratio.set("1")?;
    period.set("1")?;
    let running = start_both(vcpus)?;
    for _ in 0..TIMES {
        for value in ["force", "off"] {
            some_rounds(&rig.vm, 2)?;
            let before = loads(&rig)?;
            switch.set(value)?;
            some_rounds(&rig.vm, 2)?;
            let after = loads(&rig)?;
            let new = before.iter().zip(&after).all(|(b, a)| a > b);
            check!(new, "{value}: roots {before:?}, then {after:?}");
        }
    }
    stop_all(&rig.vm, running)?;
    for i in 0..2 {
        check_rounds(&rig.vm, i, 2 * TIMES)?;
    }
    Ok(())
}

/// System-management interrupts anywhere in round trips. In that mode there are no views, and
/// behind it there are again.
pub(crate) fn smm() -> Outcome {
    const COUNT: u64 = 100;
    let (rig, vcpu) = Rig::small()?;
    if !rig.vm.set_smm()? {
        return skip("this KVM has no system-management mode");
    }
    let _memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    let running = Rounds::new(1, 0).start(0, vcpu)?;
    some_rounds(&rig.vm, 1)?;
    for i in 1..=COUNT {
        running.send_smi();
        rig.wait_for(0, Count::Smis, i)?;
    }
    some_rounds(&rig.vm, 1)?;
    stop_all(&rig.vm, vec![running])?;
    check_rounds(&rig.vm, 0, 4)?;
    let count = |count| rig.vm.count(0, count);
    check_eq!(count(Count::Smis), COUNT, "SMIs");
    check_eq!(count(Count::SmmFaults), COUNT, "invalid opcodes in SMM");
    let aborts = count(Count::Aborts);
    println!("# {COUNT} SMIs: {aborts} aborts");
    check!(aborts <= COUNT, "{aborts} aborts");
    let counters = rig.vmfunc.counters(0)?;
    // One that comes in SMM is taken right behind it, with nothing of the guest in between.
    let arms = counters.arms;
    check!((2..=COUNT + 1).contains(&arms), "{arms} arms");
    check_eq!(counters.bounces, 0, "bounces");
    Ok(())
}

/// The file is closed while the guest switches: that is an invalid opcode from then on, and the
/// guest goes on.
pub(crate) fn close() -> Outcome {
    for _ in 0..5 {
        let (rig, vcpu) = Rig::small()?;
        let memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
        let (vcpu, _) = Rounds::new(1, 3).start(0, vcpu)?.wait_for_halt()?;
        let running = vcpu.start(Program::Switch, |_| {})?;
        rig.wait_for(0, Count::Rounds, 10)?;
        let Rig { vm, vmfunc } = rig;
        // Mappings keep the file.
        vm.clear_gate()?;
        drop(memory);
        check_eq!(vm.count(0, Count::Faults), 0, "invalid opcodes before");
        drop(vmfunc);
        let (vcpu, _) = running.wait_for_halt()?;
        check_eq!(vm.count(0, Count::Faults), 1, "invalid opcodes");
        let (_, end) = vcpu.start(Program::Add, |r| r.rsi = 9)?.wait_for_halt()?;
        check_eq!(end.registers.rax, 9, "sum afterwards");
    }
    Ok(())
}

pub(crate) fn rmmod_refused() -> Outcome {
    let (rig, vcpu) = Rig::small()?;
    let _memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    let refused = Err(Errno::WOULDBLOCK);
    check_eq!(module::unload(MODULE), refused, "rmmod while attached");
    let running = Rounds::new(1, 0).start(0, vcpu)?;
    rig.wait_for(0, Count::Rounds, 2)?;
    check_eq!(module::unload(MODULE), refused, "rmmod while it runs");
    let rounds = rig.vm.count(0, Count::Rounds);
    rig.wait_for(0, Count::Rounds, rounds + 2)?;
    rig.vm.ask_to_stop(0);
    running.wait_for_halt()?;
    check_rounds(&rig.vm, 0, 4)?;
    Ok(())
}

/// A VM that was attached still runs: the module goes, and comes back for the same VM.
pub(crate) fn rmmod_after_close(path: &Path) -> Outcome {
    let (rig, vcpu) = Rig::small()?;
    rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    let (vcpu, _) = Rounds::new(1, 3).start(0, vcpu)?.wait_for_halt()?;
    let running = vcpu.start(Program::Switch, |_| {})?;
    rig.wait_for(0, Count::Rounds, 1)?;
    let Rig { vm, vmfunc } = rig;
    vm.clear_gate()?;
    drop(vmfunc);
    unload()?;
    check!(!exists(), "the device is still there");
    let (vcpu, _) = running.wait_for_halt()?;
    check_eq!(vm.count(0, Count::Faults), 1, "invalid opcodes");
    module::load(path, "")?;

    let vmfunc = zeroshift_tests::vmfunc::Vmfunc::open()?;
    check_eq!(attach_again(&vmfunc, &vm)?, 1, "vCPUs");
    check_eq!(vmfunc.create_view(), Ok(1), "view");
    let _memory = vmfunc.add_owned(1, OFFSET, PAGE)?;
    vm.set_gate(&Arc::new(vmfunc.gate()?))?;
    Rounds::new(1, 3).start(0, vcpu)?.wait_for_halt()?;
    check_rounds(&vm, 0, 3)?;
    Ok(())
}

/// The VM is closed, then the file, and the process goes on: nothing of the attachment stays.
pub(crate) fn vm_ends(path: &Path) -> Outcome {
    // What a test before this one left may take a moment to go.
    unload()?;
    module::load(path, "")?;
    let (Rig { vm, vmfunc }, vcpu) = Rig::small()?;
    let memory = vmfunc.add_owned(1, OFFSET, PAGE)?;
    let (vcpu, _) = Rounds::new(1, 3).start(0, vcpu)?.wait_for_halt()?;
    check_rounds(&vm, 0, 3)?;
    drop(memory);
    drop((vm, vcpu));
    // What is left of the VM needs KVM's code to go.
    let refused = Err(Errno::WOULDBLOCK);
    check_eq!(module::unload("kvm_intel"), refused, "rmmod kvm_intel");
    drop(vmfunc);
    check_eq!(module::unload(MODULE), Ok(()), "rmmod");
    module::load(path, "")?;
    Ok(())
}

/// The file is closed, then the VM, of which no vCPU enters again, and the process goes on: nothing of
/// the attachment stays.
pub(crate) fn vm_ends_last(path: &Path) -> Outcome {
    let (Rig { vm, vmfunc }, vcpu) = Rig::small()?;
    let memory = vmfunc.add_owned(1, OFFSET, PAGE)?;
    let (vcpu, _) = Rounds::new(1, 3).start(0, vcpu)?.wait_for_halt()?;
    vm.clear_gate()?;
    drop((memory, vmfunc));
    let refused = Err(Errno::WOULDBLOCK);
    check_eq!(module::unload(MODULE), refused, "rmmod with an armed vCPU");
    drop((vm, vcpu));
    unload()?;
    module::load(path, "")?;
    Ok(())
}
