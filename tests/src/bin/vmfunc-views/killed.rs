// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The VMM is killed at each step: everything of it goes, and so can the module.

use crate::rig::{begin, some_rounds, start_both, stop_all, unload, Rig, OFFSET, PAGE, WINDOW};
use anyhow::{ensure, Context as _, Result};
use clap::ValueEnum;
use rustix::io::Errno;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use zeroshift_tests::ktap::{Outcome, Stop};
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::MODULE;
use zeroshift_tests::vmm::Vm;
use zeroshift_tests::{check_eq, module};

/// Where the VMM stays until it is killed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Step {
    /// With a VM, and not attached.
    Vm,
    /// Attached, with the gate.
    Attached,
    /// With views and windows of both kinds.
    Windows,
    /// Its two vCPUs go through round trips.
    Running,
    /// One goes through round trips, the other is stopped.
    OneStopped,
    /// One goes through round trips, the other has stopped inside a view.
    OneInside,
    /// Both have halted, and do not run.
    Halted,
    /// Both go through round trips, while windows and views come and go.
    Busy,
}

const SAYS: &str = "ready";

/// What the killed process is.
pub(crate) fn victim(step: Step) -> ExitCode {
    let Err(error) = stay(step) else {
        return ExitCode::SUCCESS;
    };
    match error {
        Stop::Skip(why) | Stop::Fail(why) => eprintln!("# the VMM: {why}"),
    }
    ExitCode::FAILURE
}

fn stay(step: Step) -> Outcome {
    if matches!(step, Step::Vm) {
        let vm = Vm::new(1)?;
        say_ready()?;
        stay_here()?;
        drop(vm);
        return Ok(());
    }
    let (rig, mut vcpus) = Rig::new(2)?;
    let mut memories = Vec::new();
    let mut running = Vec::new();
    let mine = Memory::new(PAGE)?;
    if !matches!(step, Step::Attached) {
        for _ in 0..2 {
            let view = rig.vmfunc.create_view()?;
            memories.push(rig.vmfunc.add_owned(view, OFFSET, PAGE)?);
            rig.vmfunc.add_window(view, OFFSET + 8192, &mine)?;
        }
    }
    if !matches!(step, Step::Attached | Step::Windows) {
        running = start_both(vcpus)?;
        vcpus = Vec::new();
        some_rounds(&rig.vm, 2)?;
    }
    match step {
        Step::OneStopped => {
            let (vcpu, _) = running.pop().context("two vCPUs")?.stop()?;
            vcpus.push(vcpu);
        }
        Step::OneInside => {
            let (vcpu, _) = running.remove(0).stop()?;
            vcpus.push(begin(vcpu, Vm::buffer(0), WINDOW)?);
        }
        Step::Halted => {
            let ends = stop_all(&rig.vm, std::mem::take(&mut running))?;
            vcpus = ends.into_iter().map(|(vcpu, _)| vcpu).collect();
        }
        Step::Vm | Step::Attached | Step::Windows | Step::Running | Step::Busy => {}
    }
    let come_and_go = || -> Result<()> {
        let view = rig.vmfunc.create_view()?;
        rig.vmfunc.add_window(view, OFFSET, &mine)?;
        drop(rig.vmfunc.add_owned(1, OFFSET + 16384, PAGE)?);
        rig.vmfunc.remove_window(1, OFFSET + 16384)?;
        Ok(rig.vmfunc.destroy_view(view)?)
    };
    if matches!(step, Step::Busy) {
        (0..10).try_for_each(|_| come_and_go())?;
        say_ready()?;
        loop {
            come_and_go()?;
        }
    }
    say_ready()?;
    stay_here()?;
    drop((running, vcpus, memories));
    Ok(())
}

fn say_ready() -> Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{SAYS}")?;
    Ok(output.flush()?)
}

/// Until the test kills this process, or dies itself.
fn stay_here() -> Result<()> {
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

pub(crate) fn killed(path: &Path) -> Outcome {
    let attached = |step: &&Step| !matches!(step, Step::Vm);
    for step in Step::value_variants().iter().filter(attached) {
        let mut child = start(*step)?;
        let refused = module::unload(MODULE);
        child.kill()?;
        let status = child.wait()?;
        check_eq!(refused, Err(Errno::WOULDBLOCK), "rmmod, {step:?}");
        // It did not end by itself before.
        check_eq!(status.signal(), Some(9), "{step:?}: {status}");
        unload().with_context(|| format!("rmmod after {step:?}"))?;
        module::load(path, "")?;
    }
    // And what comes after works.
    crate::windows::owned_window()
}

/// Starts a VMM, and waits until it has come to a step.
pub(crate) fn start(step: Step) -> Result<Child> {
    let name = step.to_possible_value().context("a name")?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--victim", name.get_name()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let output = child.stdout.as_mut().context("no pipe")?;
    BufReader::new(output).read_line(&mut line)?;
    ensure!(line.trim() == SAYS, "the VMM did not come to {step:?}");
    Ok(child)
}
