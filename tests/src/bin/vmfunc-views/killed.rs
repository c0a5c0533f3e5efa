// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The VMM is killed at each step: everything of it goes, and so can the module.

use crate::rig::{start_all, unload, Rig, Rounds, OFFSET, PAGE};
use anyhow::{ensure, Context as _, Result};
use clap::ValueEnum;
use rustix::io::Errno;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use zeroshift_tests::ktap::{Outcome, Stop};
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmfunc::MODULE;
use zeroshift_tests::vmm::Count;
use zeroshift_tests::{check_eq, module};

/// Where the VMM stays until it is killed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Step {
    /// Attached, with the gate.
    Attached,
    /// With views and windows of both kinds.
    Windows,
    /// Its two vCPUs go through round trips.
    Running,
    /// One goes through round trips, the other is stopped.
    OneStopped,
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
    if matches!(step, Step::Running | Step::OneStopped) {
        // CAST: 0 and 1.
        running = start_all(vcpus, |vcpu| Rounds::new(vcpu as u32 + 1, 0))?;
        vcpus = Vec::new();
        for i in 0..2 {
            rig.wait_for(i, Count::Rounds, 3)?;
        }
    }
    if matches!(step, Step::OneStopped) {
        let (vcpu, _) = running.pop().context("two vCPUs")?.stop()?;
        vcpus.push(vcpu);
    }
    let mut output = std::io::stdout();
    writeln!(output, "{SAYS}")?;
    output.flush()?;
    // Until the test kills it, or dies itself.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    drop((running, vcpus, memories));
    Ok(())
}

pub(crate) fn killed(path: &Path) -> Outcome {
    for step in Step::value_variants() {
        let mut child = start(*step)?;
        check_eq!(
            module::unload(MODULE),
            Err(Errno::WOULDBLOCK),
            "rmmod, {step:?}"
        );
        child.kill()?;
        child.wait()?;
        unload().with_context(|| format!("rmmod after {step:?}"))?;
        module::load(path, "")?;
    }
    // And what comes after works.
    crate::windows::owned_window()
}

fn start(step: Step) -> Result<Child> {
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
