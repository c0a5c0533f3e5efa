// SPDX-License-Identifier: Apache-2.0 OR MIT

//! kselftests under virtme-ng: our kernel, the build root as root file system, and the test programs exactly as
//! they are run on a host.
//!
//! The root goes over 9P. Over virtiofs, under TCG, programs crash at random: virtiofsd is another process that
//! writes into guest memory, QEMU's translator does not see that, and runs stale translations of code pages.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::accel::Accelerator;
use super::card;
use super::console::{self, Transcript, SILENCE};
use super::l1::{self, Iommu, Place};
use crate::buildroot::Network;
use crate::kernel::Kernel;
use crate::ui::Step;

/// A machine for kselftests.
pub(crate) struct Virtme<'a> {
    /// Name of the run: of its log, and shown while it runs.
    pub(crate) name: &'a str,
    /// Its kernel.
    pub(crate) kernel: &'a Kernel,
    /// Sockets of the card functions that it gets.
    pub(crate) functions: Vec<PathBuf>,
    /// Its memory.
    pub(crate) memory_mib: u32,
    /// Jobs: name and shell script, in order.
    pub(crate) jobs: Vec<(&'a str, String)>,
    /// How long all of it may take.
    pub(crate) limit: Duration,
}

impl Virtme<'_> {
    /// Boots it, runs its jobs, and ends it.
    pub(crate) fn run(&self, place: Place<'_>) -> Result<Transcript> {
        let mut script = String::from(
            "exec 2>&1\nmount -t debugfs debugfs /sys/kernel/debug 2>/dev/null\necho ZS-BOOT $(uname -r)\n",
        );
        for (name, job) in &self.jobs {
            script += &format!("echo ZS-BEGIN {name}\n(\n{job}\n)\necho ZS-END {name} $?\n");
        }
        script += "echo ZS-HALT\n";
        let run = place.cache.run_dir(self.name)?;
        let path = run.path().join("jobs.sh");
        std::fs::write(&path, script)?;
        let mut vng = place.root.command_with("vng", &[], Network::None);
        vng.args([
            "--force-9p",
            "--disable-microvm",
            "--disable-monitor",
            "--verbose",
            "--cpus",
            "2",
        ]);
        let accelerator = Accelerator::pick()?;
        if accelerator == Accelerator::Tcg {
            vng.arg("--disable-kvm");
        }
        vng.arg("--memory").arg(format!("{}M", self.memory_mib));
        vng.arg("--run")
            .arg(&self.kernel.image)
            .arg("--append")
            .arg(l1::command_line(""));
        vng.arg(format!("--qemu-opts={}", self.qemu_options(accelerator)));
        vng.arg("--exec").arg(format!("sh {}", path.display()));
        let step = Step::start(format!(
            "running {} on the {} kernel",
            self.name,
            self.kernel.kind.name()
        ));
        let transcript = console::run(
            &step,
            vng,
            &place.cache.log(&format!("console-{}", self.name)),
            self.limit,
            Some(SILENCE),
        )?;
        step.done();
        Ok(transcript)
    }

    fn qemu_options(&self, accelerator: Accelerator) -> String {
        let mut options: Vec<String> = accelerator
            .arguments()
            .iter()
            .map(|a| (*a).to_owned())
            .collect();
        let memory = format!(
            "memory-backend-memfd,id=ram,size={}M,share=on",
            self.memory_mib
        );
        options.extend([
            "-object".into(),
            memory,
            "-machine".into(),
            format!("{},memory-backend=ram", accelerator.machine()),
        ]);
        options.extend(Iommu::Vtd.arguments().map(str::to_owned));
        options.extend(card::function_arguments(&self.functions));
        // virtme-ng splits them as a shell does; none of ours contains a quote of that kind.
        options
            .iter()
            .map(|o| format!("'{o}'"))
            .collect::<Vec<_>>()
            .join(" ")
    }
}
