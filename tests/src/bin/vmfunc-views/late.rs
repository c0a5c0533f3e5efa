// SPDX-License-Identifier: Apache-2.0 OR MIT

//! vCPUs that are made when their VM is attached already.

use crate::rig::{check_rounds, repeat, start_all, stop_all, Rig, Rounds, OFFSET, PAGE};
use anyhow::{Context as _, Result};
use rustix::io::Errno;
use zeroshift_tests::ktap::Outcome;
use zeroshift_tests::vmm::{Count, Program, Running, Vcpu};
use zeroshift_tests::{check, check_eq};

/// Makes one more vCPU, and lets it enter the guest once: that prepares it.
fn add(rig: &mut Rig) -> Result<Vcpu> {
    let before = rig.vmfunc.query()?.vcpus;
    let vcpu = rig.vm.add_vcpu()?;
    let (vcpu, _) = vcpu.start(Program::Add, |_| {})?.wait_for_halt()?;
    wait_for(rig, before + 1)?;
    Ok(vcpu)
}

fn wait_for(rig: &Rig, vcpus: u32) -> Result<()> {
    let there = || Ok((rig.vmfunc.query()?.vcpus == vcpus).then_some(()));
    repeat(there)?.with_context(|| format!("{vcpus} vCPUs are not prepared"))
}

/// One that enters the guest gets the views that there are, and those that come.
pub(crate) fn one() -> Outcome {
    let (mut rig, first) = Rig::small()?;
    let mut memories = vec![rig.vmfunc.add_owned(1, OFFSET, PAGE)?];
    let (first, _) = Rounds::new(1, 3).start(0, first)?.wait_for_halt()?;
    check_eq!(rig.vmfunc.counters(1).err(), Some(Errno::NOENT), "before");
    let second = add(&mut rig)?;
    check_eq!(rig.vmfunc.query()?.vcpus, 2, "vCPUs");
    for view in 2..=3 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
        memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
    }
    let mut second = second;
    for view in 1..=3 {
        (second, _) = Rounds::new(view, 3).start(1, second)?.wait_for_halt()?;
        check_rounds(&rig.vm, 1, 3)?;
    }
    check!(rig.vmfunc.counters(1)?.arms >= 1, "it was never armed");
    // A view that it was not made for ends for it as for the other one.
    rig.vmfunc.destroy_view(1)?;
    let vcpus = [(0, first), (1, second)];
    for (index, vcpu) in vcpus {
        let running = vcpu.start(Program::Switch, |r| (r.r12, r.rbp) = (1, 1))?;
        running.wait_for_halt()?;
        check_eq!(rig.vm.count(index, Count::Rounds), 0, "switches");
    }
    Ok(())
}

/// One is in the guest when it is made ready, and does not leave it on its own.
pub(crate) fn in_guest() -> Outcome {
    let (mut rig, _first) = Rig::small()?;
    let _memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    let second = rig.vm.add_vcpu()?;
    let running = second.start(Program::Spin, |_| {})?;
    wait_for(&rig, 2)?;
    let armed = || Ok((rig.vmfunc.counters(1)?.arms > 0).then_some(()));
    repeat(armed)?.context("it is not armed")?;
    running.stop()?;
    Ok(())
}

/// Many, while others are at work and views come and go.
pub(crate) fn many() -> Outcome {
    let (mut rig, vcpus) = Rig::new(2)?;
    let mut memories = Vec::new();
    for view in 1..=7 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
        memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
    }
    // CAST: below 8.
    let rounds = |vcpu: u64| Rounds::new(vcpu as u32 + 1, 0);
    let mut running = start_all(vcpus, rounds)?;
    for index in 2..7 {
        let vcpu = add(&mut rig)?;
        running.push(rounds(index).start(index, vcpu)?);
        check_eq!(rig.vmfunc.create_view(), Ok(8), "one more view");
        rig.vmfunc.destroy_view(8)?;
    }
    for index in 0..7 {
        rig.wait_for(index, Count::Rounds, 3)?;
    }
    stop_all(&rig.vm, running)?;
    for index in 0..7 {
        check_rounds(&rig.vm, index, 3)?;
    }
    Ok(())
}

/// One that never enters the guest is no burden.
pub(crate) fn idle() -> Outcome {
    let (mut rig, first) = Rig::small()?;
    let _memory = rig.vmfunc.add_owned(1, OFFSET, PAGE)?;
    let _second = rig.vm.add_vcpu()?;
    let running: Running = Rounds::new(1, 3).start(0, first)?;
    running.wait_for_halt()?;
    check_rounds(&rig.vm, 0, 3)?;
    check_eq!(rig.vmfunc.query()?.vcpus, 1, "vCPUs");
    Ok(())
}
