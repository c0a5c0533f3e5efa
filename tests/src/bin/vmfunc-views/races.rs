// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Threads that get in each other's way: attaching, views, windows and the file's end, while vCPUs
//! run.

use crate::rig::{
    attach_again, begin, check_rounds, check_samples, copy, end, fill, page_of, pattern, poison,
    start_all, stop_all, unload, wait_for, Rig, Rounds, Samples, OFFSET, PAGE, WINDOW,
};
use anyhow::{ensure, Context as _, Result};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use rustix::io::Errno;
use rustix::thread::{sched_setaffinity, CpuSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::{Vmfunc, MODULE};
use zeroshift_tests::vmm::{Count, Program, Running, Vcpu, Vm, ABORTED, GATE};
use zeroshift_tests::{check, check_eq, module};

/// What the guest of [`Program::Exits`] has at its buffer.
const MARK: u64 = 0x1234_5678_9abc_def0;

/// vCPUs that exit all the time, and look at their memory.
fn exits(vm: &Vm, vcpus: Vec<Vcpu>) -> Result<Vec<Running>> {
    let start = |(i, vcpu): (u64, Vcpu)| {
        vm.write(Vm::buffer(i), &MARK.to_le_bytes());
        vcpu.start(Program::Exits, |r| (r.rbx, r.r15) = (Vm::buffer(i), MARK))
    };
    (0..).zip(vcpus).map(start).collect()
}

/// All of them go on.
fn some_more(vm: &Vm, running: &[Running]) -> Result<()> {
    for (i, _) in (0..).zip(running) {
        wait_for(vm, i, Count::Rounds, vm.count(i, Count::Rounds) + 20)?;
        let errors = vm.count(i, Count::Errors);
        ensure!(errors == 0, "vCPU {i}: its memory was wrong {errors} times");
    }
    Ok(())
}

/// Guests that were in the middle of something else get through round trips.
fn rounds_after(rig: &Rig, running: Vec<Running>) -> Outcome {
    let ends = stop_all(&rig.vm, running)?;
    let vcpus: Vec<_> = ends.into_iter().map(|(vcpu, _)| vcpu).collect();
    let count = vcpus.len() as u64;
    let mut memories = Vec::new();
    for view in 1..=vcpus.len() as u32 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
        memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
    }
    rig.vm.set_gate(&Arc::new(rig.vmfunc.gate()?))?;
    // CAST: a few.
    for running in start_all(vcpus, |vcpu| Rounds::new(vcpu as u32 + 1, 10))? {
        running.wait_for_halt()?;
    }
    for vcpu in 0..count {
        check_rounds(&rig.vm, vcpu, 10)?;
    }
    Ok(())
}

/// The guest runs, with its memory, while the module attaches and lets go of it again and again.
pub(crate) fn attach_while_running() -> Outcome {
    const TIMES: usize = 20;
    let (vm, vcpus) = Vm::new(2)?;
    let running = exits(&vm, vcpus)?;
    some_more(&vm, &running)?;
    for _ in 0..TIMES {
        let vmfunc = Vmfunc::open()?;
        check_eq!(attach_again(&vmfunc, &vm)?, 2, "vCPUs");
        let view = vmfunc.create_view()?;
        let memory = vmfunc.add_owned(view, OFFSET, PAGE)?;
        some_more(&vm, &running)?;
        for i in 0..2 {
            check_eq!(vmfunc.counters(i)?.arms, 1, "arms of vCPU {i}");
        }
        drop((memory, vmfunc));
        some_more(&vm, &running)?;
    }
    let vmfunc = Vmfunc::open()?;
    attach_again(&vmfunc, &vm)?;
    rounds_after(&Rig { vm, vmfunc }, running)
}

/// A signal comes while a thread attaches, which takes all locks of the address space and gives that
/// up then: nothing is attached, and nothing is left of it.
pub(crate) fn attach_interrupted() -> Outcome {
    const TIMES: u32 = 25;
    signal_hook::flag::register(Signal::SIGALRM as i32, Arc::new(AtomicBool::new(false)))?;
    let mut timer = Timer::new(
        ClockId::CLOCK_MONOTONIC,
        SigEvent::new(SigevNotify::SigevThreadId {
            signal: Signal::SIGALRM,
            thread_id: rustix::thread::gettid().as_raw_nonzero().get(),
            si_value: 0,
        }),
    )?;
    let (vm, vcpus) = Vm::new(2)?;
    let running = exits(&vm, vcpus)?;
    some_more(&vm, &running)?;
    // How long it takes when no signal comes.
    let start = Instant::now();
    Vmfunc::open()?.attach(vm.raw_fd(), GATE)?;
    let mut whole = start.elapsed();
    some_more(&vm, &running)?;
    let (mut interrupted, mut attached) = (0, 0);
    for i in 1..=TIMES {
        let vmfunc = Vmfunc::open()?;
        let start = Instant::now();
        // The last ones nobody interrupts.
        if i <= TIMES - 3 {
            let once = Expiration::OneShot((whole * i / TIMES).into());
            timer.set(once, TimerSetTimeFlags::empty())?;
        }
        match vmfunc.attach(vm.raw_fd(), GATE) {
            Ok(_) => {
                attached += 1;
                whole = whole.min(start.elapsed());
            }
            Err(Errno::INTR) => interrupted += 1,
            // What was attached before goes when its vCPUs have run.
            Err(Errno::BUSY) => {}
            Err(other) => return Err(other.into()),
        }
        // Somebody else uses what became free.
        let trash = Memory::new(64 * PAGE)?;
        trash.write(0, &vec![0xff; trash.length()]);
        drop(vmfunc);
        some_more(&vm, &running)?;
    }
    println!("# {interrupted} times interrupted, {attached} times attached, in {whole:?}");
    check!(interrupted >= 1, "never interrupted");
    check!(attached >= 1, "never attached");
    drop(timer);
    let vmfunc = Vmfunc::open()?;
    check_eq!(attach_again(&vmfunc, &vm)?, 2, "vCPUs");
    rounds_after(&Rig { vm, vmfunc }, running)
}

/// Views, windows of both kinds and mappings of one file come and go in several threads, from before
/// it is attached on, while the guest uses a window that stays.
pub(crate) fn threads() -> Outcome {
    const TIMES: u64 = 40;
    const THREADS: u64 = 3;
    let (vm, mut vcpus) = Vm::new(1)?;
    let vmfunc = Vmfunc::open()?;
    let at = |page: u64| OFFSET + page * PAGE as u64;
    let come_and_go = |thread: u64| -> Result<()> {
        let own = Memory::new(2 * PAGE)?;
        for i in 0..TIMES {
            let view = vmfunc.create_view()?;
            let memory = vmfunc.add_owned(view, OFFSET, PAGE)?;
            memory.write(0, &i.to_le_bytes());
            // In the view that the guest uses, beside what it uses.
            vmfunc.add_window(1, at(8 + 8 * thread), &own)?;
            let second = vmfunc.add_owned(1, at(12 + 8 * thread), PAGE)?;
            drop(memory);
            vmfunc.remove_window(1, at(8 + 8 * thread))?;
            drop(vmfunc.gate()?);
            vmfunc.remove_window(1, at(12 + 8 * thread))?;
            vmfunc.destroy_view(view)?;
            drop(second);
            ensure!(vmfunc.counters(0)?.vcpu == 0, "counters");
        }
        Ok(())
    };
    let attached = AtomicBool::new(false);
    thread::scope(|scope| -> Outcome {
        // Somebody maps the gate as soon as there is one.
        let early = scope.spawn(|| loop {
            // Read before it is tried: attaching may end between the answer and the look at it.
            let attached = attached.load(Ordering::SeqCst);
            match vmfunc.gate() {
                Ok(gate) => return Ok(gate),
                Err(Errno::NOTCONN) if !attached => thread::yield_now(),
                Err(error) => return Err(error),
            }
        });
        let result = vmfunc.attach(vm.raw_fd(), GATE);
        // Nor does he wait for what failed.
        attached.store(true, Ordering::SeqCst);
        result?;
        let gate = early.join().map_err(|_| "a thread panicked")??;
        vm.set_gate(&Arc::new(gate))?;
        check_eq!(vmfunc.create_view(), Ok(1), "view");
        let memory = vmfunc.add_owned(1, OFFSET, PAGE)?;
        let vcpu = vcpus.pop().context("a vCPU")?;
        let running = Rounds::new(1, 0).start(0, vcpu)?;
        let all: Vec<_> = (0..THREADS)
            .map(|i| scope.spawn(move || come_and_go(i)))
            .collect();
        for thread in all {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        let ends = stop_all(&vm, vec![running])?;
        check_rounds(&vm, 0, 1)?;
        check_eq!(ends.len(), 1, "vCPUs");
        drop(memory);
        Ok(())
    })?;
    check_eq!(vmfunc.create_view(), Ok(2), "the next view");
    Ok(())
}

/// Windows come and go under two vCPUs that use them: what they read is what is in the window, and
/// never what became of the memory afterwards.
pub(crate) fn windows_under_use() -> Outcome {
    const TIMES: u8 = 20;
    let (rig, vcpus) = Rig::new(2)?;
    check_eq!(rig.vmfunc.create_view(), Ok(1), "view");
    let mine = Memory::new(PAGE)?;
    let mut generation = 1;
    fill(&mine, generation);
    rig.vmfunc.add_window(1, OFFSET, &mine)?;
    let running = Samples::new(1).start_both(vcpus)?;
    let all_have = |count, least: u64| (0..2).try_for_each(|i| rig.wait_for(i, count, least));
    all_have(Count::Seen, generation.into())?;
    for i in 0..TIMES {
        rig.vmfunc.remove_window(1, OFFSET)?;
        poison(&mine);
        generation += 1;
        if i % 2 == 0 {
            // Nothing is there for a while.
            let aborts = [0, 1].map(|i| rig.vm.count(i, Count::Aborts));
            (0..2).try_for_each(|i| rig.wait_for(i, Count::Aborts, aborts[i as usize] + 2))?;
        }
        // Zeroes for a moment.
        let owned = rig.vmfunc.add_owned_read_only(1, OFFSET, PAGE)?;
        fill(&owned, generation);
        all_have(Count::Seen, generation.into())?;
        rig.vmfunc.remove_window(1, OFFSET)?;
        poison(&owned);
        generation += 1;
        fill(&mine, generation);
        rig.vmfunc.add_window(1, OFFSET, &mine)?;
        all_have(Count::Seen, generation.into())?;
    }
    stop_all(&rig.vm, running)?;
    for i in 0..2 {
        check_samples(&rig.vm, i)?;
        check_eq!(rig.vm.count(i, Count::Faults), 0, "invalid opcodes");
    }
    Ok(())
}

/// A view ends under two vCPUs that use it, and its index is used again: so often that one of them was in
/// the view when it ended.
pub(crate) fn views_under_use() -> Outcome {
    const TIMES: u16 = 20;
    // Only where it never happens.
    const MOST: u16 = 1000;
    let (rig, vcpus) = Rig::new(2)?;
    check_eq!(rig.vmfunc.create_view(), Ok(1), "view");
    let mut memory = rig.vmfunc.add_owned_read_only(1, OFFSET, PAGE)?;
    let running = Samples::new(1).start_both(vcpus)?;
    // Aborts of copies that were in the view. The others come behind an invalid opcode or behind a bounce:
    // the view had ended already, or has no window yet.
    let evicted = || -> Result<u64> {
        let of = |i: u32| {
            let aborts = rig.vm.count(i.into(), Count::Aborts);
            let others = rig.vm.count(i.into(), Count::Faults) + rig.bounces(i)?;
            anyhow::Ok(aborts.saturating_sub(others))
        };
        Ok(of(0)? + of(1)?)
    };
    for i in 1..MOST {
        if i >= TIMES && evicted()? > 0 {
            break;
        }
        // CAST: at most the last generation there is.
        let generation = i.min(127) as u8;
        fill(&memory, generation);
        (0..2).try_for_each(|i| rig.wait_for(i, Count::Seen, generation.into()))?;
        let faults = [0, 1].map(|i| rig.vm.count(i, Count::Faults));
        rig.vmfunc.destroy_view(1)?;
        poison(&memory);
        if generation % 2 == 0 {
            (0..2).try_for_each(|i| rig.wait_for(i, Count::Faults, faults[i as usize] + 1))?;
        }
        check_eq!(rig.vmfunc.create_view(), Ok(1), "view");
        memory = rig.vmfunc.add_owned_read_only(1, OFFSET, PAGE)?;
    }
    stop_all(&rig.vm, running)?;
    for i in 0..2 {
        check_samples(&rig.vm, i)?;
    }
    let evicted = evicted()?;
    println!("# {evicted} copies were in the view when it ended");
    check!(evicted > 0, "no copy was in the view when it ended");
    Ok(())
}

/// A guest that never exits by itself has passed by its probe when a window has been removed or a view
/// has ended: before it executes anything more, each of its contexts is flushed.
pub(crate) fn removal_interrupts() -> Outcome {
    const TIMES: usize = 50;
    let (rig, vcpu) = Rig::small()?;
    let memory = Memory::new(PAGE)?;
    // With a second processor the guest is there all the time.
    let processors = thread::available_parallelism()?.get();
    keep_to(processors - 1)?;
    let running = vcpu.start(Program::Spin, |_| {})?;
    keep_to(0)?;
    rig.wait_for(0, Count::Rounds, 1)?;
    for i in 0..TIMES {
        rig.vmfunc.add_window(1, OFFSET, &memory)?;
        let before = rig.vmfunc.counters(0)?.invepts;
        if i % 2 == 0 {
            rig.vmfunc.remove_window(1, OFFSET)?;
        } else {
            rig.vmfunc.destroy_view(1)?;
        }
        let rounds = rig.vm.count(0, Count::Rounds);
        rig.wait_for(0, Count::Rounds, rounds + 1)?;
        let flushes = rig.vmfunc.counters(0)?.invepts - before;
        // The default view and the view.
        check!(flushes >= 2, "{flushes} flushes after removal {i}");
        if i % 2 != 0 {
            check_eq!(rig.vmfunc.create_view(), Ok(1), "view");
        }
    }
    stop_all(&rig.vm, vec![running])?;
    Ok(())
}

/// Has this thread, and those that it starts, run on one processor.
fn keep_to(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).context("cannot choose a processor")
}

/// The file is closed while a vCPU is in a view, and not in the guest: it goes on in the default view.
pub(crate) fn closed_inside() -> Outcome {
    let (Rig { vm, vmfunc }, vcpu) = Rig::small()?;
    let memory = vmfunc.add_owned(1, OFFSET, PAGE)?;
    memory.write(0, &pattern(1));
    let buffer = Vm::buffer(0);
    let (vcpu, result) = copy(vcpu, 1, buffer, WINDOW, PAGE)?;
    check_eq!(result, 0, "copy");
    let vcpu = begin(vcpu, buffer, WINDOW)?;
    // The same code, which does not keep the file.
    let face = Memory::private(PAGE)?;
    face.write(0, &page_of(&vmfunc.gate()?, 0));
    vm.clear_gate()?;
    vm.set_gate(&Arc::new(face))?;
    drop((memory, vmfunc));
    let (vcpu, result) = end(vcpu)?;
    check_eq!(result, ABORTED, "the copy");
    let running = vcpu.start(Program::Switch, |r| (r.r12, r.rbp) = (1, 1))?;
    running.wait_for_halt()?;
    check_eq!(vm.count(0, Count::Faults), 1, "invalid opcodes");
    Ok(())
}

/// The file is closed while one vCPU is halted, and the other one goes on. What is left goes when the
/// halted one has entered the guest once more.
pub(crate) fn closed_halted(path: &Path) -> Outcome {
    let (Rig { vm, vmfunc }, mut vcpus) = Rig::new(2)?;
    check_eq!(vmfunc.create_view(), Ok(1), "view");
    let memory = vmfunc.add_owned(1, OFFSET, PAGE)?;
    let halted = vcpus.pop().context("two vCPUs")?;
    let (halted, _) = Rounds::new(1, 3).start(1, halted)?.wait_for_halt()?;
    let running = exits(&vm, vcpus)?;
    some_more(&vm, &running)?;
    drop(memory);
    vm.clear_gate()?;
    drop(vmfunc);
    some_more(&vm, &running)?;
    check_eq!(module::unload(MODULE), Err(Errno::WOULDBLOCK), "rmmod");
    let second = Vmfunc::open()?;
    let busy = Err(Errno::BUSY);
    check_eq!(second.attach(vm.raw_fd(), GATE), busy, "attach");
    drop(second);
    halted.start(Program::Add, |_| {})?.wait_for_halt()?;
    unload()?;
    some_more(&vm, &running)?;
    stop_all(&vm, running)?;
    module::load(path, "")?;
    Ok(())
}
