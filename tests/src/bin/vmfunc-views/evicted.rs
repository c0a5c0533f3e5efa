// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A vCPU that is in a view, in the middle of a copy and not in the guest, while the view changes:
//! what is in its place afterwards is none of its business. And one that is halted meanwhile.

use crate::rig::{
    begin, call, copy, end, guest_page, page_of, pattern, repeat, Rig, OFFSET, PAGE, WINDOW,
};
use anyhow::{bail, ensure, Result};
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vmm::{Program, Running, Vcpu, Vm, ABORTED};
use zeroshift_tests::{check, check_eq};

/// Nothing changes: it is done as if it had not been stopped.
pub(crate) fn unchanged() -> Outcome {
    let (rig, vcpu) = Rig::small()?;
    let memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    memory.write(0, &pattern(1));
    let buffer = Vm::buffer(0);
    let (vcpu, result) = copy(vcpu, 1, buffer, WINDOW, PAGE)?;
    check_eq!(result, 0, "first copy");
    rig.vm.write(buffer, &[0; PAGE]);
    let bounces = rig.bounces(0)?;
    let vcpu = begin(vcpu, buffer, WINDOW)?;
    // Another view is none of its business either.
    check_eq!(rig.vmfunc.create_view(), Ok(2), "another view");
    rig.vmfunc.add_owned(2, OFFSET, PAGE)?;
    rig.vmfunc.remove_window(2, OFFSET)?;
    rig.vmfunc.destroy_view(2)?;
    let (_, result) = end(vcpu)?;
    check_eq!(result, 0, "a copy that was stopped");
    check!(guest_page(&rig.vm, buffer) == pattern(1), "wrong data");
    check_eq!(rig.bounces(0)?, bounces, "bounces");
    Ok(())
}

/// The window is another one now.
pub(crate) fn by_window() -> Outcome {
    let (rig, vcpu) = Rig::small()?;
    replaced(&rig, vcpu, || rig.vmfunc.remove_window(1, OFFSET))
}

/// The view is another one now, of the same index.
pub(crate) fn by_view() -> Outcome {
    let (rig, vcpu) = Rig::small()?;
    replaced(&rig, vcpu, || {
        rig.vmfunc.destroy_view(1)?;
        rig.vmfunc.create_view().map(|view| assert_eq!(view, 1))
    })
}

fn replaced(rig: &Rig, mut vcpu: Vcpu, replace: impl Fn() -> rustix::io::Result<()>) -> Outcome {
    let buffer = Vm::buffer(0);
    for (round, write) in [false, true, false, true].into_iter().enumerate() {
        let old = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
        old.write(0, &pattern(1));
        let (to, from) = match write {
            true => (WINDOW, buffer),
            false => (buffer, WINDOW),
        };
        let mut result;
        rig.vm.write(buffer, &pattern(2));
        (vcpu, result) = copy(vcpu, 1, to, from, PAGE)?;
        check_eq!(result, 0, "copy before, round {round}");

        rig.vm.write(buffer, &pattern(2));
        vcpu = begin(vcpu, to, from)?;
        replace()?;
        let new = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
        new.write(0, &pattern(3));
        (vcpu, result) = end(vcpu)?;
        check_eq!(result, ABORTED, "the copy, round {round}");
        check!(page_of(&new, 0) == pattern(3), "it wrote to the new window");
        let now = guest_page(&rig.vm, buffer);
        let both = |(a, b): (&[u8], &[u8])| a == b;
        let read = now.chunks(8).zip(pattern(3).chunks(8)).any(both);
        check!(!read, "it read the new window, round {round}");

        (vcpu, result) = copy(vcpu, 1, buffer, WINDOW, PAGE)?;
        check_eq!(result, 0, "copy afterwards, round {round}");
        check!(guest_page(&rig.vm, buffer) == pattern(3), "wrong data");
        rig.vmfunc.remove_window(1, OFFSET)?;
    }
    Ok(())
}

/// A vCPU waits in KVM, halted, while what it has used goes: nobody waits for it, and behind its HLT it
/// has what is there then.
pub(crate) fn halted() -> Outcome {
    let (vm, mut vcpus) = Vm::that_waits()?;
    let Rig { vm, vmfunc } = Rig::of(vm)?;
    let mut windows = Vec::new();
    let mut add = |seed| -> Result<()> {
        let window = vmfunc.add_owned(1, OFFSET, PAGE)?;
        window.write(0, &pattern(seed));
        windows.push(window);
        Ok(())
    };
    let create = || -> Result<()> {
        let view = vmfunc.create_view()?;
        ensure!(view == 1, "view {view}");
        Ok(())
    };
    create()?;
    let buffer = Vm::buffer(0);
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    let mut running = vcpu.start(Program::Wait, |r| {
        (r.r13, r.r15, r.r14, r.r12) = (buffer, WINDOW, PAGE as u64, 1);
    })?;
    for step in 0..6 {
        running = wait_until_halted(&vm, running)?;
        match step {
            1 => vmfunc.remove_window(1, OFFSET)?,
            3 => vmfunc.destroy_view(1)?,
            4 => {
                create()?;
                add(step)?;
            }
            5 => {
                vmfunc.destroy_view(1)?;
                create()?;
                add(step)?;
            }
            _ => add(step)?,
        }
        let (expected, data) = match step {
            1 | 3 => (ABORTED, pattern(9)),
            _ => (0, pattern(step)),
        };
        let mut result = ABORTED;
        // The first copy there is aborted, when KVM has to map what it touches.
        for _ in 0..3 {
            running = wait_until_halted(&vm, running)?;
            vm.write(buffer, &pattern(9));
            running.send_nmi();
            let (vcpu, told) = running.wait_for_out()?;
            running = vcpu.go_on()?;
            // CAST: AL.
            result = told.registers.rax as u8;
            if result == 0 {
                break;
            }
        }
        check_eq!(result, expected, "the copy after step {step}");
        check!(
            guest_page(&vm, buffer) == data,
            "the data after step {step}"
        );
    }
    Ok(())
}

/// Waits until the vCPU waits in KVM.
fn wait_until_halted(vm: &Vm, running: Running) -> Result<Running> {
    if repeat(|| Ok(vm.is_waiting(0)?.then_some(())))?.is_some() {
        return Ok(running);
    }
    let (_, end) = running.stop()?;
    bail!("the vCPU does not halt: {end:x?}")
}

/// What a view had is not in the next one of its index, and what is next to a window stays.
pub(crate) fn nothing_left() -> Outcome {
    let (rig, mut vcpu) = Rig::small()?;
    let buffer = Vm::buffer(0);
    // Two tables, and one with a neighbour.
    let far = (2 << 20) - PAGE as u64;
    let neighbour = rig.vmfunc.add_owned(1, OFFSET + 4 * PAGE as u64, PAGE)?;
    neighbour.write(0, &pattern(7));
    for round in 0..3 {
        for offset in [OFFSET, OFFSET + far] {
            let memory = rig.vmfunc.add_owned(1, offset, 2 * PAGE)?;
            memory.write(PAGE, &pattern(round));
        }
        let places = [WINDOW + PAGE as u64, WINDOW + far + PAGE as u64];
        let mut result;
        for place in places {
            (vcpu, result) = copy(vcpu, 1, buffer, place, PAGE)?;
            check_eq!(result, 0, "copy from {place:#x}");
            check!(guest_page(&rig.vm, buffer) == pattern(round), "wrong data");
        }
        match round {
            1 => {
                rig.vmfunc.destroy_view(1)?;
                check_eq!(rig.vmfunc.create_view(), Ok(1), "the view again");
            }
            _ => {
                rig.vmfunc.remove_window(1, OFFSET)?;
                rig.vmfunc.remove_window(1, OFFSET + far)?;
            }
        }
        for place in places {
            (vcpu, result) = call(vcpu, 1, buffer, place, PAGE)?;
            check_eq!(result, ABORTED, "copy from {place:#x}, round {round}");
            (vcpu, result) = call(vcpu, 1, place, buffer, PAGE)?;
            check_eq!(result, ABORTED, "copy to {place:#x}, round {round}");
        }
        let place = WINDOW + 4 * PAGE as u64;
        (vcpu, result) = match round {
            0 => copy(vcpu, 1, buffer, place, PAGE)?,
            _ => call(vcpu, 1, buffer, place, PAGE)?,
        };
        let expected = if round == 0 { 0 } else { ABORTED };
        check_eq!(result, expected, "the neighbour, round {round}");
        let right = round != 0 || guest_page(&rig.vm, buffer) == pattern(7);
        check!(right, "the neighbour's data");
    }
    Ok(())
}
