// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What comes and goes around an attached VM: its memory, the file, the module.

use crate::rig::{
    attach_again, check_rounds, start_all, stop_all, unload, Rig, Rounds, OFFSET, PAGE,
};
use rustix::io::Errno;
use std::path::Path;
use std::sync::Arc;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::{exists, MODULE};
use zeroshift_tests::vmm::{Count, Program};
use zeroshift_tests::{check, check_eq, module};

/// KVM makes a new root whenever memory of a guest goes: the views are of the new one then.
pub(crate) fn memslots() -> Outcome {
    const TIMES: u64 = 30;
    let (rig, vcpus) = Rig::new(2)?;
    let mut memories = Vec::new();
    for view in 1..=2 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
        memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
    }
    // CAST: 0 and 1.
    let running = start_all(vcpus, |vcpu| Rounds::new(vcpu as u32 + 1, 0))?;
    let some_rounds = || -> anyhow::Result<()> {
        for i in 0..2 {
            let now = rig.vm.count(i, Count::Rounds);
            rig.wait_for(i, Count::Rounds, now + 2)?;
        }
        Ok(())
    };
    some_rounds()?;
    let loads = || -> rustix::io::Result<[u64; 2]> {
        Ok([rig.vmfunc.counters(0)?.loads, rig.vmfunc.counters(1)?.loads])
    };
    let before = loads()?;
    let spare = Arc::new(Memory::new(PAGE)?);
    for _ in 0..TIMES {
        rig.vm.set_spare(&spare)?;
        some_rounds()?;
        rig.vm.clear_spare()?;
        some_rounds()?;
    }
    let after = loads()?;
    let ends = stop_all(&rig.vm, running)?;
    for i in 0..2 {
        check_rounds(&rig.vm, i, 2 * TIMES)?;
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
            loads >= TIMES,
            "vCPU {i}: {loads} roots for {TIMES} removals"
        );
    }
    check_eq!(ends.len(), 2, "vCPUs");
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
    attach_again(&vmfunc, &vm)?;
    check_eq!(vmfunc.create_view(), Ok(1), "view");
    let _memory = vmfunc.add_owned(1, OFFSET, PAGE)?;
    vm.set_gate(&Arc::new(vmfunc.gate()?))?;
    Rounds::new(1, 3).start(0, vcpu)?.wait_for_halt()?;
    check_rounds(&vm, 0, 3)?;
    Ok(())
}

/// The VM is closed, then the file, and the process goes on: nothing of the attachment stays.
pub(crate) fn vm_ends(path: &Path) -> Outcome {
    let (Rig { vm, vmfunc }, vcpu) = Rig::small()?;
    let memory = vmfunc.add_owned(1, OFFSET, PAGE)?;
    let (vcpu, _) = Rounds::new(1, 3).start(0, vcpu)?.wait_for_halt()?;
    check_rounds(&vm, 0, 3)?;
    drop(memory);
    drop((vm, vcpu));
    drop(vmfunc);
    check_eq!(module::unload(MODULE), Ok(()), "rmmod");
    module::load(path, "")?;
    Ok(())
}
