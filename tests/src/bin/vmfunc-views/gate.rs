// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The gate (`docs/interfaces.md`, section 16): its operations, and what comes between any two of
//! their instructions. Each call then says that it was aborted or done, and what it says is so.

use crate::calls::{is_zero, Call, Pages, CALLS, DONE, MAX_COPY};
use crate::rig::{copy, guest_page, page_of, pattern, Rig, OFFSET, PAGE, WINDOW};
use anyhow::{bail, ensure, Result};
use std::cell::Cell;
use std::sync::Arc;
use zeroshift_tests::ktap::{skip, Outcome, Stop};
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmm::{Count, End, Event, Program, Vcpu, Vm, ABORTED, GATE};
use zeroshift_tests::{check, check_eq};

/// AL.
fn answer(end: &End) -> u8 {
    // CAST: the low byte.
    end.registers.rax as u8
}

/// A guest with a window.
struct Gate {
    rig: Rig,
    window: Memory,
}

impl Gate {
    fn new() -> Result<(Self, Vcpu), Stop> {
        let (rig, vcpu) = Rig::small()?;
        let window = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
        Ok((Self { rig, window }, vcpu))
    }

    fn set_pages(&self) {
        let pages = Pages::before();
        self.window.write(0, &pages.window);
        self.rig.vm.write(Vm::buffer(0), &pages.ram);
    }

    fn pages(&self) -> Pages {
        Pages {
            window: page_of(&self.window, 0),
            ram: guest_page(&self.rig.vm, Vm::buffer(0)),
        }
    }

    fn count(&self, count: Count) -> u64 {
        self.rig.vm.count(0, count)
    }

    /// A call from its beginning to its end.
    fn call(&self, vcpu: Vcpu, call: Call) -> Result<(Vcpu, End)> {
        vcpu.start(Program::Gate, |r| call.set(r))?.wait_for_halt()
    }

    /// The addresses of its instructions in the gate, a string instruction as often as it has steps,
    /// with the number of steps before each.
    fn instructions(&self, vcpu: &mut Vcpu, call: Call) -> Result<Vec<(usize, u64)>> {
        self.set_pages();
        let (all, end) = vcpu.trace(Program::Gate, |r| call.set(r))?;
        // CAST: AL.
        let al = end.rax as u8;
        ensure!(al == call.answer(), "{call:?}, step by step: {al}");
        ensure!(self.pages() == call.after(), "{call:?}, step by step: data");
        let page = GATE..GATE + PAGE as u64;
        let all = all.into_iter().enumerate();
        Ok(all.filter(|(_, at)| page.contains(at)).collect())
    }

    /// Runs a call until some of its steps have been made, anew, from the pages as at the beginning.
    fn stop_at(&self, vcpu: Vcpu, call: Call, (steps, at): (usize, u64)) -> Result<Vcpu> {
        self.set_pages();
        let made = Cell::new(0);
        vcpu.step_to(
            Program::Gate,
            |r| call.set(r),
            |r| {
                made.set(made.get() + 1);
                made.get() == steps && r.rip == at
            },
        )
    }

    /// What an interrupted call has to be, and then the same once more. `None`: it never ended.
    fn judge(&self, vcpu: Vcpu, call: Call, end: Option<&End>, aborted: bool) -> Result<Vcpu> {
        let (before, after, now) = (Pages::before(), call.after(), self.pages());
        ensure!(now.is_between(&before, &after), "neither old nor new");
        let Some(end) = end else {
            self.set_pages();
            return self.again(vcpu, call);
        };
        let wanted = if aborted { ABORTED } else { call.answer() };
        let al = answer(end);
        ensure!(al == wanted, "answers {al} and not {wanted}");
        let is_made = is_zero(&end.registers);
        if !aborted {
            call.check_registers(&end.registers)?;
            ensure!(now == after, "says that it is done");
        } else if call == Call::Exchange {
            let wanted = if is_made { &after } else { &before };
            ensure!(now == *wanted, "exchanged, says ZF: {is_made}");
        } else if call == Call::ExchangeAnother {
            ensure!(!is_made, "says that it has exchanged");
        }
        match call {
            // It would find its own word.
            Call::Exchange if is_made => Ok(vcpu),
            _ => self.again(vcpu, call),
        }
    }

    /// A call that nothing interrupts, from pages that are as at the beginning or as an interrupted
    /// one has left them.
    fn again(&self, vcpu: Vcpu, call: Call) -> Result<Vcpu> {
        let (vcpu, end) = self.call(vcpu, call)?;
        let al = answer(&end);
        ensure!(al == call.answer(), "{call:?} answers {al}");
        call.check_registers(&end.registers)?;
        ensure!(self.pages() == call.after(), "wrong data, {call:?}");
        Ok(vcpu)
    }

    /// Every call does what it should.
    fn check_all(&self, mut vcpu: Vcpu) -> Result<Vcpu> {
        for call in CALLS {
            self.set_pages();
            vcpu = self.again(vcpu, call)?;
        }
        Ok(vcpu)
    }

    /// Lets something happen before each instruction of each call, and judges what comes of it.
    /// Gives the number of places inside the view.
    fn everywhere(
        &self,
        mut vcpu: Vcpu,
        mut happen: impl FnMut(Vcpu, bool) -> Result<(Vcpu, Option<End>)>,
    ) -> Result<(Vcpu, u64)> {
        let mut inside = 0;
        for call in CALLS {
            for place in self.instructions(&mut vcpu, call)? {
                let at = place.1;
                let mut one = |vcpu| -> Result<Vcpu> {
                    let vcpu = self.stop_at(vcpu, call, place)?;
                    let aborted = call.is_inside(at);
                    let (vcpu, end) = happen(vcpu, aborted)?;
                    self.judge(vcpu, call, end.as_ref(), aborted)
                };
                let offset = at - GATE;
                vcpu = match one(vcpu) {
                    Ok(vcpu) => vcpu,
                    Err(error) => bail!("{call:?} at {offset:#x}, step {}: {error:#}", place.0),
                };
                inside += u64::from(call.is_inside(at));
            }
        }
        // By the listing of section 16, and two more steps of each copy: 2 * 10 + 7 + 3 + 3 + 2 * 5.
        ensure!(inside == 43, "{inside} places in the view");
        Ok((vcpu, inside))
    }
}

/// What nothing interrupts.
pub(crate) fn calls() -> Outcome {
    let (gate, vcpu) = Gate::new()?;
    let vcpu = gate.check_all(vcpu)?;
    // The longest.
    let memory = Memory::new(2 * PAGE)?;
    let both = [pattern(3), pattern(4)].concat();
    memory.write(0, &both);
    gate.rig
        .vmfunc
        .add_window(1, OFFSET + 4 * PAGE as u64, &memory)?;
    let from = WINDOW + 4 * PAGE as u64;
    gate.rig.vm.write(Vm::buffer(0), &[0xaa; 2 * PAGE]);
    // CAST: less than two pages.
    let (_, result) = copy(vcpu, 1, Vm::buffer(0), from, MAX_COPY as usize)?;
    check_eq!(result, DONE, "{MAX_COPY} bytes");
    let mut now = vec![0; 2 * PAGE];
    gate.rig.vm.read(Vm::buffer(0), &mut now);
    let (last, most) = now.split_last().ok_or("no bytes")?;
    check!(most == &both[..most.len()] && *last == 0xaa, "wrong data");
    Ok(())
}

/// An exception or interrupt whose handler is not in the view: one bounce, one abort.
fn interrupted(event: Event, count: Count) -> Outcome {
    let (gate, vcpu) = Gate::new()?;
    let before = gate.rig.bounces(0)?;
    let mut places = 0;
    let (_, inside) = gate.everywhere(vcpu, |vcpu, inside| {
        let before = gate.rig.bounces(0)?;
        vcpu.send(event)?;
        let (vcpu, end) = vcpu.go_on()?.wait_for_halt()?;
        let handled = gate.count(count);
        ensure!(handled == 1, "{count:?}: {handled}");
        let bounces = gate.rig.bounces(0)? - before;
        ensure!(bounces == u64::from(inside), "{bounces} bounces");
        places += 1;
        Ok((vcpu, Some(end)))
    })?;
    println!("# {places} places, {inside} in the view");
    check_eq!(gate.rig.bounces(0)? - before, inside, "bounces in all");
    Ok(())
}

pub(crate) fn nmi_everywhere() -> Outcome {
    interrupted(Event::Nmi, Count::Nmis)
}

pub(crate) fn debug_everywhere() -> Outcome {
    interrupted(Event::Debug, Count::Debugs)
}

pub(crate) fn machine_check_everywhere() -> Outcome {
    interrupted(Event::Check, Count::Checks)
}

/// KVM loads a root for SMM and another one behind it.
pub(crate) fn smi_everywhere() -> Outcome {
    let (gate, vcpu) = Gate::new()?;
    if !gate.rig.vm.set_smm()? {
        return skip("KVM has no SMM");
    }
    gate.everywhere(vcpu, |vcpu, _| {
        let before = gate.rig.vmfunc.counters(0)?.loads;
        vcpu.send(Event::Smi)?;
        let (vcpu, end) = vcpu.go_on()?.wait_for_halt()?;
        let handled = gate.count(Count::Smis);
        ensure!(handled == 1, "{handled} SMIs");
        let loads = gate.rig.vmfunc.counters(0)?.loads - before;
        ensure!(loads > 0, "no root was loaded");
        Ok((vcpu, Some(end)))
    })?;
    Ok(())
}

/// A memory slot goes, and KVM's root with it.
pub(crate) fn new_root_everywhere() -> Outcome {
    let (gate, vcpu) = Gate::new()?;
    let spare = Arc::new(Memory::new(PAGE)?);
    gate.everywhere(vcpu, |vcpu, _| {
        let before = gate.rig.vmfunc.counters(0)?.loads;
        gate.rig.vm.set_spare(&spare)?;
        gate.rig.vm.clear_spare()?;
        let (vcpu, end) = vcpu.go_on()?.wait_for_halt()?;
        let loads = gate.rig.vmfunc.counters(0)?.loads - before;
        ensure!(loads > 0, "no root was loaded");
        Ok((vcpu, Some(end)))
    })?;
    Ok(())
}

/// The VMM resets the vCPU.
pub(crate) fn reset_everywhere() -> Outcome {
    let (gate, vcpu) = Gate::new()?;
    gate.everywhere(vcpu, |vcpu, _| Ok((vcpu.reset()?, None)))?;
    Ok(())
}

/// The guest goes on in its RAM, where nothing can be executed in a view.
pub(crate) fn jump_everywhere() -> Outcome {
    let (gate, vcpu) = Gate::new()?;
    gate.everywhere(vcpu, |vcpu, inside| {
        let before = gate.rig.bounces(0)?;
        vcpu.jump(Program::Halt)?;
        let (vcpu, end) = vcpu.go_on()?.wait_for_halt()?;
        ensure!(end.runs == 1, "KVM_RUN returned {} times", end.runs);
        let bounces = gate.rig.bounces(0)? - before;
        ensure!(bounces == u64::from(inside), "{bounces} bounces");
        Ok((vcpu, None))
    })?;
    Ok(())
}

/// Breakpoints of the guest's own. Each try meets it again, and is aborted; without it all is well.
pub(crate) fn breakpoint_everywhere() -> Outcome {
    let (gate, mut vcpu) = Gate::new()?;
    for call in CALLS {
        let mut places = gate.instructions(&mut vcpu, call)?;
        places.dedup_by_key(|(_, at)| *at);
        for (_, at) in places {
            let inside = call.is_inside(at);
            for times in 1..=2 {
                gate.set_pages();
                vcpu.set_breakpoint(Some(at))?;
                let end;
                (vcpu, end) = gate.call(vcpu, call)?;
                let what = format!("{call:?}, breakpoint at {at:#x}, {times}");
                check_eq!(gate.count(Count::Debugs), 1, "debug exceptions, {what}");
                let wanted = if inside { ABORTED } else { call.answer() };
                check_eq!(answer(&end), wanted, "{what}");
            }
            vcpu.set_breakpoint(None)?;
            gate.set_pages();
            vcpu = gate.again(vcpu, call)?;
        }
    }
    Ok(())
}

/// A guest that is stepped through by itself comes out of the view at once.
pub(crate) fn stepped() -> Outcome {
    const TF: u64 = 1 << 8;
    let (gate, mut vcpu) = Gate::new()?;
    for call in CALLS {
        gate.set_pages();
        let before = gate.rig.bounces(0)?;
        let running = vcpu.start(Program::Gate, |r| {
            call.set(r);
            r.rflags |= TF;
        })?;
        let end;
        (vcpu, end) = running.wait_for_halt()?;
        check_eq!(answer(&end), ABORTED, "{call:?}");
        check!(gate.count(Count::Debugs) > 4, "{call:?}: no debug traps");
        check_eq!(gate.rig.bounces(0)? - before, 1, "bounces, {call:?}");
        check!(gate.pages() == Pages::before(), "{call:?} did something");
        vcpu = gate.again(vcpu, call)?;
    }
    Ok(())
}

/// A guest whose kernel cheats comes into the view at every byte of the page, with more to copy than
/// a call may. Nothing happens but what the gate does, to the window and to what its addresses name,
/// and each time the guest is back in its default view.
pub(crate) fn cheated() -> Outcome {
    const TRIES: u64 = 4096;
    /// RAM that no address leads to.
    const ELSEWHERE: u64 = 0x10_0000;
    let (gate, vcpu) = Gate::new()?;
    let others = [pattern(5), pattern(6)];
    let (buffer, page) = (Vm::buffer(0), PAGE as u64);
    gate.set_pages();
    gate.rig.vm.write(buffer + page, &others[0]);
    gate.rig.vm.write(ELSEWHERE, &others[1]);
    let before = gate.rig.bounces(0)?;
    let running = vcpu.start(Program::Cheat, |r| {
        r.rcx = 1 << 63 | 1;
        (r.rdi, r.rsi, r.r15) = (buffer, WINDOW, buffer + 3 * page);
    })?;
    let (vcpu, end) = running.wait_for_halt()?;
    let bounces = gate.rig.bounces(0)? - before;
    let [done, aborts, refusals, faults, traps] = [
        Count::Rounds,
        Count::Aborts,
        Count::Refusals,
        Count::Faults,
        Count::Traps,
    ]
    .map(|count| gate.count(count));
    println!("# {done} done, {aborts} aborted, {refusals} refused; {faults} #UD, {traps} #BP, {bounces} bounces");
    check_eq!(done + aborts + refusals, TRIES, "tries");
    check_eq!(end.runs, 1, "returns of KVM_RUN");
    check!(
        guest_page(&gate.rig.vm, buffer + page) == others[0],
        "RAM behind what was named"
    );
    check!(
        guest_page(&gate.rig.vm, ELSEWHERE) == others[1],
        "RAM elsewhere"
    );
    gate.check_all(vcpu)?;
    if bounces == 0 {
        return skip("the processor looks at its tables again, so nobody can cheat this way");
    }
    check!(bounces > TRIES * 3 / 4, "only {bounces} of {TRIES} came in");
    check!(done >= 4, "nobody got through");
    Ok(())
}
