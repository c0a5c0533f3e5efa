// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The VMM by itself: what the other tests stand on.

use crate::rig::wait_for;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vmm::{Count, Program, Stop, Vm, NOTHING, SPARE};
use zeroshift_tests::{check, check_eq};

/// Two guests at the same time.
pub(crate) fn guest_adds() -> Outcome {
    let (_vm, vcpus) = Vm::new(2)?;
    let mut running = Vec::new();
    for (i, vcpu) in (0..).zip(vcpus) {
        running.push(vcpu.start(Program::Add, |r| (r.rdi, r.rsi) = (40, i))?);
    }
    for (i, running) in (0..).zip(running) {
        let (_, end) = running.wait_for_halt()?;
        check_eq!(end.registers.rax, 40 + i, "sum of vCPU {i}");
        check_eq!(end.runs, 1, "returns of KVM_RUN");
    }
    Ok(())
}

pub(crate) fn guest_reads_nothing() -> Outcome {
    let (_vm, mut vcpus) = Vm::new(1)?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    let user = 0x1000;
    let (vcpu, end) = vcpu
        .start(Program::Load, |r| r.rdi = user)?
        .wait_for_halt()?;
    check!(end.registers.rax != 0, "there is no code at {user:#x}");
    // Not mapped in the guest's tables, and it has no handler for that.
    let (_, end) = vcpu.start(Program::Load, |r| r.rdi = 2 * SPARE)?.wait()?;
    check!(matches!(end.stop, Stop::Other(_)), "{end:x?}");

    let (_vm, mut vcpus) = Vm::new(1)?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    let at = crate::rig::WINDOW + 0x10_0040;
    let (vcpu, end) = vcpu.start(Program::Load, |r| r.rdi = at)?.wait()?;
    check_eq!(end.stop, Stop::Read(at), "end of a read where nothing is");
    let (_, end) = vcpu.go_on()?.wait_for_halt()?;
    check_eq!(
        end.registers.rax,
        u64::from_ne_bytes([NOTHING; 8]),
        "what it read"
    );
    Ok(())
}

/// VMFUNC is an invalid opcode, and the guest goes on behind it.
pub(crate) fn guest_has_no_vmfunc() -> Outcome {
    let (vm, mut vcpus) = Vm::new(1)?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    let running = vcpu.start(Program::Switch, |r| r.rbp = 5)?;
    let (_, end) = running.wait_for_halt()?;
    check_eq!(vm.count(0, Count::Faults), 1, "invalid opcodes");
    check_eq!(vm.count(0, Count::Rounds), 0, "rounds");
    check_eq!(end.runs, 1, "returns of KVM_RUN");
    Ok(())
}

/// Each arrives once.
pub(crate) fn guest_takes_nmis() -> Outcome {
    const COUNT: u64 = 20;
    let (vm, mut vcpus) = Vm::new(1)?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    let running = vcpu.start(Program::Spin, |_| {})?;
    wait_for(&vm, 0, Count::Rounds, 1)?;
    for i in 1..=COUNT {
        running.send_nmi();
        wait_for(&vm, 0, Count::Nmis, i)?;
    }
    vm.ask_to_stop(0);
    running.wait_for_halt()?;
    check_eq!(vm.count(0, Count::Nmis), COUNT, "NMIs");
    Ok(())
}
