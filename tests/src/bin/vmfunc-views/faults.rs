// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a guest does wrong, and what comes between.

use crate::rig::{
    call, check_rounds, copy, guest_page, page_of, pattern, some_rounds, Rig, Rounds, OFFSET, PAGE,
    SIZES, WINDOW,
};
use std::fs;
use std::sync::Arc;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmm::{Count, Program, Stop, Vcpu, Vm, ABORTED, GATE_COPY, NOTHING, SPARE};
use zeroshift_tests::{check, check_eq};

/// In the default view there is nothing where the window is, before and after it was used.
pub(crate) fn default_view() -> Outcome {
    let (rig, mut vcpu) = Rig::small()?;
    let memory = Memory::new(PAGE)?;
    memory.write(0, &pattern(1));
    rig.vmfunc.add_window(1, OFFSET, &memory)?;
    for _ in 0..3 {
        vcpu = reads_nothing(vcpu, WINDOW + 64)?;
        let result;
        (vcpu, result) = copy(vcpu, 1, Vm::buffer(0), WINDOW, PAGE)?;
        check_eq!(result, 0, "copy");
        check!(
            guest_page(&rig.vm, Vm::buffer(0)) == pattern(1),
            "wrong data"
        );
    }
    Ok(())
}

/// What the VMM has put into the private slot is there in the default view, and not in another one.
pub(crate) fn memory_in_slot() -> Outcome {
    let (rig, mut vcpu) = Rig::small()?;
    let theirs = Arc::new(Memory::new(2 * PAGE)?);
    theirs.write(0, &pattern(1));
    theirs.write(PAGE, &pattern(2));
    rig.vm.set_spare_at(WINDOW, &theirs)?;
    let window = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    window.write(0, &pattern(3));
    let buffer = Vm::buffer(0);
    let second = WINDOW + PAGE as u64;
    for round in 0..2 {
        let mut result;
        for (to, from) in [(buffer, second), (second, buffer)] {
            rig.vm.write(buffer, &pattern(4));
            (vcpu, result) = call(vcpu, 1, to, from, PAGE)?;
            let what = format!("from {from:#x} to {to:#x}, round {round}");
            check_eq!(result, ABORTED, "{what}");
            check!(guest_page(&rig.vm, buffer) == pattern(4), "{what}: read");
            check!(page_of(&theirs, 1) == pattern(2), "{what}: written");
        }
        (vcpu, result) = copy(vcpu, 1, buffer, WINDOW, PAGE)?;
        check_eq!(result, 0, "copy, round {round}");
        check!(guest_page(&rig.vm, buffer) == pattern(3), "wrong data");
        for (at, seed) in [(WINDOW, 1), (second, 2)] {
            let end;
            (vcpu, end) = vcpu.start(Program::Load, |r| r.rdi = at)?.wait_for_halt()?;
            let first = end.registers.rax.to_le_bytes();
            check!(pattern(seed).starts_with(&first), "load from {at:#x}");
        }
    }
    Ok(())
}

/// The guest reads where nothing is, and goes on.
pub(crate) fn reads_nothing(vcpu: Vcpu, at: u64) -> anyhow::Result<Vcpu> {
    let (vcpu, end) = vcpu.start(Program::Load, |r| r.rdi = at)?.wait()?;
    anyhow::ensure!(end.stop == Stop::Read(at), "read at {at:#x}: {end:x?}");
    let (vcpu, end) = vcpu.go_on()?.wait_for_halt()?;
    let got = end.registers.rax;
    let right = got == u64::from_ne_bytes([NOTHING; 8]);
    anyhow::ensure!(right, "read {got:#x} at {at:#x}");
    Ok(vcpu)
}

/// A window that is only for reading, of either kind, and places without a window: what the guest
/// writes goes nowhere, the gate does not say that it copied, and the guest goes on.
pub(crate) fn no_way() -> Outcome {
    const BYTES: u64 = 64;
    let (rig, mut vcpu) = Rig::small()?;
    let mine = Memory::new(PAGE)?;
    rig.vmfunc.add_window(1, OFFSET, &mine)?;
    let second = WINDOW + PAGE as u64;
    let owned = rig
        .vmfunc
        .add_owned_read_only(1, OFFSET + PAGE as u64, PAGE)?;
    for memory in [&mine, &owned] {
        memory.write(0, &pattern(6));
    }
    let buffer = Vm::buffer(0);
    rig.vm.write(buffer, &pattern(7));
    let nowhere = WINDOW + 16 * PAGE as u64;
    let bad = [
        (WINDOW, buffer),
        (second, buffer),
        (nowhere, buffer),
        (buffer, nowhere),
        // Outside of the private slot: nothing, then read-only memory.
        (SPARE, buffer),
        (buffer, SPARE),
        (SPARE + PAGE as u64, buffer),
    ];
    let rom = Arc::new(Memory::new(2 * PAGE)?);
    let mut good = Vec::new();
    for (to, from) in bad {
        if to == SPARE + PAGE as u64 {
            rig.vm.set_spare_read_only(&rom)?;
        }
        let running = vcpu.start(Program::Gate, |r| {
            (r.rbx, r.rcx) = (GATE_COPY, 1);
            (r.rdi, r.rsi, r.rdx) = (to, from, BYTES);
        })?;
        let mut end;
        let mut exits = 0;
        (vcpu, end) = running.wait()?;
        while matches!(end.stop, Stop::Read(_) | Stop::Write(_)) {
            exits += 1;
            check!(exits <= BYTES, "from {from:#x} to {to:#x}: exits for ever");
            (vcpu, end) = vcpu.go_on()?.wait()?;
        }
        let what = format!("from {from:#x} to {to:#x}, after {exits} exits");
        check_eq!(end.stop, Stop::Halt, "{what}");
        // CAST: AL.
        let result = end.registers.rax as u8;
        println!("# {what}: the gate returned {result}");
        if result == 0 {
            good.push(what);
        }
        check!(page_of(&mine, 0) == pattern(6), "the guest wrote to it");
        check!(
            page_of(&owned, 0) == pattern(6),
            "the guest wrote to the module's"
        );
    }
    for window in [WINDOW, second] {
        let result;
        (vcpu, result) = copy(vcpu, 1, buffer, window, PAGE)?;
        check_eq!(result, 0, "copy after it");
        check!(
            guest_page(&rig.vm, buffer) == pattern(6),
            "wrong data after it"
        );
    }
    check!(good.is_empty(), "the gate says that it copied: {good:?}");
    Ok(())
}

/// A view that does not exist, or a function that does not: an invalid opcode, and nothing else.
pub(crate) fn bad_index() -> Outcome {
    let (rig, mut vcpu) = Rig::small()?;
    let memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    memory.write(0, &pattern(2));
    // Function and view.
    let bad = [
        (0, 2),
        (0, 63),
        (0, 64),
        (0, 511),
        (0, 512),
        (0, u32::MAX),
        (1, 0),
        (63, 1),
    ];
    let bad = bad.into_iter().chain([(64, 0), (u32::MAX, 1)]);
    for (function, view) in bad {
        let running = vcpu.start(Program::Switch, |r| {
            (r.r14, r.r12, r.rbp) = (function.into(), view.into(), 1);
        })?;
        let end;
        (vcpu, end) = running.wait_for_halt()?;
        let faults = rig.vm.count(0, Count::Faults);
        check_eq!(
            faults,
            1,
            "invalid opcodes, function {function}, view {view}"
        );
        check_eq!(end.runs, 1, "returns of KVM_RUN");
        let result;
        (vcpu, result) = copy(vcpu, 1, Vm::buffer(0), WINDOW, PAGE)?;
        check_eq!(result, 0, "copy after it");
        check!(
            guest_page(&rig.vm, Vm::buffer(0)) == pattern(2),
            "wrong data after it"
        );
    }
    // A view that was there.
    check_eq!(rig.vmfunc.create_view(), Ok(2), "view 2");
    rig.vmfunc.destroy_view(2)?;
    let running = vcpu.start(Program::Switch, |r| (r.r12, r.rbp) = (2, 1))?;
    let (vcpu, _) = running.wait_for_halt()?;
    check_eq!(
        rig.vm.count(0, Count::Faults),
        1,
        "invalid opcodes after its end"
    );
    check_eq!(rig.bounces(0)?, 0, "bounces");
    drop(vcpu);
    Ok(())
}

/// VMFUNC outside of the gate: the next instruction is nowhere in the view. Each is one bounce, and
/// the guest goes on in the default view.
pub(crate) fn fetch_in_view() -> Outcome {
    const COUNT: u64 = 100;
    let (rig, vcpu) = Rig::small()?;
    let memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    memory.write(0, &pattern(4));
    let running = vcpu.start(Program::Switch, |r| (r.r12, r.rbp) = (1, COUNT))?;
    let (vcpu, end) = running.wait_for_halt()?;
    check_eq!(end.runs, 1, "returns of KVM_RUN");
    check_eq!(rig.vm.count(0, Count::Rounds), COUNT, "rounds");
    check_eq!(rig.vm.count(0, Count::Faults), 0, "invalid opcodes");
    check_eq!(rig.bounces(0)?, COUNT, "bounces");
    let vcpu = reads_nothing(vcpu, WINDOW)?;
    let (vcpu, result) = copy(vcpu, 1, Vm::buffer(0), WINDOW, PAGE)?;
    check_eq!(result, 0, "copy after it");
    check!(
        guest_page(&rig.vm, Vm::buffer(0)) == pattern(4),
        "wrong data after it"
    );
    // To the default view from itself is no bounce.
    let running = vcpu.start(Program::Switch, |r| (r.r12, r.rbp) = (0, COUNT))?;
    running.wait_for_halt()?;
    check_eq!(
        rig.vm.count(0, Count::Rounds),
        COUNT,
        "rounds in the default view"
    );
    check_eq!(rig.bounces(0)?, COUNT, "bounces in the end");
    Ok(())
}

/// The same from ring 3, which no control can forbid.
pub(crate) fn ring3() -> Outcome {
    const COUNT: u64 = 100;
    let (rig, vcpu) = Rig::small()?;
    let running = vcpu.start(Program::Ring3, |r| (r.r12, r.rbp) = (1, COUNT))?;
    running.wait_for_out()?;
    check_eq!(rig.bounces(0)?, COUNT, "bounces");
    Ok(())
}

/// A guest that lets its ring 3 have the gate: it can copy where KVM does not tell the modes apart, else
/// it is as with any other code in the view.
pub(crate) fn ring3_in_gate() -> Outcome {
    let (rig, mut vcpu) = Rig::small()?;
    let memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    memory.write(0, &pattern(1));
    let buffer = Vm::buffer(0);
    let mbec = fs::read_to_string("/sys/module/kvm_intel/parameters/mbec");
    let is_kept = mbec.is_ok_and(|value| value.trim() == "Y");
    println!("# ring 3 is kept out of the gate: {is_kept}");
    // In ring 0 first: what the copy touches is there then.
    let result;
    (vcpu, result) = copy(vcpu, 1, buffer, WINDOW, PAGE)?;
    check_eq!(result, 0, "copy in ring 0");
    rig.vm.write(buffer, &pattern(2));
    let bounces = rig.bounces(0)?;
    let running = vcpu.start(Program::Ring3Gate, |r| {
        (r.rbx, r.rcx) = (GATE_COPY, 1);
        (r.rdi, r.rsi, r.rdx) = (buffer, WINDOW, PAGE as u64);
    })?;
    let (_, end) = running.wait_for_out()?;
    // CAST: AL.
    let result = end.registers.rax as u8;
    let (expected, data, more) = match is_kept {
        true => (ABORTED, pattern(2), 1),
        false => (0, pattern(1), 0),
    };
    check_eq!(result, expected, "copy in ring 3");
    check!(guest_page(&rig.vm, buffer) == data, "the data");
    check_eq!(rig.bounces(0)? - bounces, more, "bounces");
    Ok(())
}

/// Non-maskable interrupts anywhere in round trips: each arrives once, the data is right in the end.
pub(crate) fn nmis() -> Outcome {
    const COUNT: u64 = 100;
    let (rig, mut vcpu) = Rig::small()?;
    let _memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    let mut all = 0;
    for bytes in SIZES {
        let before = rig.bounces(0)?;
        let what = Rounds {
            bytes,
            ..Rounds::new(1, 0)
        };
        let running = what.start(0, vcpu)?;
        some_rounds(&rig.vm, 1)?;
        for i in 1..=COUNT {
            running.send_nmi();
            rig.wait_for(0, Count::Nmis, i)?;
        }
        some_rounds(&rig.vm, 1)?;
        rig.vm.ask_to_stop(0);
        (vcpu, _) = running.wait_for_halt()?;
        check_rounds(&rig.vm, 0, 4)?;
        let count = |count| rig.vm.count(0, count);
        check_eq!(count(Count::Nmis), COUNT, "NMIs");
        let (aborts, bounces) = (count(Count::Aborts), rig.bounces(0)? - before);
        let rounds = count(Count::Rounds);
        println!("# {COUNT} NMIs in {rounds} rounds of {bytes} bytes: {bounces} bounces, {aborts} aborts");
        // Behind the handler the guest is in the gate's slide.
        check_eq!(aborts, bounces, "aborts and bounces");
        check!(bounces <= COUNT, "{bounces} bounces");
        all += bounces;
    }
    check!(all > 0, "no NMI met the guest in a view");
    Ok(())
}
