// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bochs: an Intel machine with VMX, EPT and VMFUNC where none is at hand. Slow, so many jobs share one boot.
//!
//! Bochs has no clock worth the name here: with `sync=none` the time stamp counter counts instructions, which is
//! what makes its figures exact. The rfb display listens on every interface, so it runs without a network.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::console::{self, Transcript};
use super::image::{self, Overlay};
use super::l1::Place;
use crate::buildroot::Network;
use crate::command;
use crate::kernel::{Kernel, Kind};
use crate::ui::Step;

/// Processor models that Bochs offers and we test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// Skylake: EPT, VMFUNC, mode-based execute control, page-modification logging.
    SkylakeX,
    /// Haswell: EPT and VMFUNC, without the other two.
    Haswell,
}

impl Model {
    fn name(self) -> &'static str {
        match self {
            Self::SkylakeX => "corei7_skylake_x",
            Self::Haswell => "corei7_haswell_4770",
        }
    }
}

/// A machine in Bochs.
pub(crate) struct Bochs<'a> {
    /// Name of the run: of its log, and shown while it runs.
    pub(crate) name: &'a str,
    /// Its kernel.
    pub(crate) kernel: &'a Kernel,
    /// Its processor.
    pub(crate) model: Model,
    /// How many of them. Each takes as long as one alone: Bochs runs them in turn.
    pub(crate) cpus: u32,
    /// Modules of its own kernel to load at start.
    pub(crate) modules: &'a [&'a str],
    /// What it is to do.
    pub(crate) overlay: Overlay,
    /// How long all of it may take.
    pub(crate) limit: Duration,
}

impl Bochs<'_> {
    /// Boots it, runs its jobs, and ends it.
    pub(crate) fn run(&self, place: Place<'_>) -> Result<Transcript> {
        let Place { cache, root, repo } = place;
        let run = cache.run_dir(self.name)?;
        let iso = run.path().join("iso");
        fs::create_dir_all(&iso)?;
        let base = image::base(cache, root, repo, self.kernel, self.modules)?;
        self.overlay.write(root, &[base], &iso.join("initrd.gz"))?;
        fs::copy(&self.kernel.image, iso.join("vmlinuz"))?;
        fs::copy(
            root.path("usr/lib/ISOLINUX/isolinux.bin"),
            iso.join("isolinux.bin"),
        )?;
        fs::copy(
            root.path("usr/lib/syslinux/modules/bios/ldlinux.c32"),
            iso.join("ldlinux.c32"),
        )?;
        fs::write(iso.join("isolinux.cfg"), isolinux(self.cpus, self.mips()))?;
        let image = run.path().join("boot.iso");
        let mut make = root.command_with("xorriso", &[], Network::None);
        make.args([
            "-as",
            "mkisofs",
            "-quiet",
            "-b",
            "isolinux.bin",
            "-c",
            "boot.cat",
            "-no-emul-boot",
            "-boot-load-size",
            "4",
        ]);
        make.args(["-boot-info-table", "-o"]).arg(&image).arg(&iso);
        command::run(
            &format!("making the boot image of {}", self.name),
            &cache.log("iso"),
            make,
        )?;
        fs::remove_dir_all(&iso)?;
        let config = run.path().join("bochsrc");
        fs::write(&config, self.config(run.path()))?;
        let mut bochs = root.command_with("bochs", &[], Network::None);
        bochs.args(["-q", "-unlock", "-f"]).arg(&config);
        let step = Step::start(format!(
            "running {} on the {} kernel in Bochs",
            self.name,
            self.kernel.kind.name()
        ));
        let transcript = console::run(
            &step,
            bochs,
            &cache.log(&format!("console-{}", self.name)),
            self.limit,
            // It says nothing for minutes, and loses nothing.
            None,
        )?;
        step.done();
        Ok(transcript)
    }

    /// Millions of instructions in a second of the machine's time. The debug kernel takes some hundred thousand for a timer
    /// interrupt, a switch of threads and a VM entry: before the next interrupt a guest has to come to its own.
    fn mips(&self) -> u32 {
        match self.kernel.kind {
            Kind::Stock | Kind::Test => 50,
            Kind::Debug => 200,
        }
    }

    fn config(&self, dir: &Path) -> String {
        let dir = dir.display();
        let (model, cpus, mips) = (self.model.name(), self.cpus, self.mips());
        format!(
            "cpu: model={model}, count={cpus}, ips={mips}000000, reset_on_triple_fault=0, ignore_bad_msrs=1\n\
             memory: guest=768, host=768\n\
             romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
             vgaromimage: file=/usr/share/vgabios/vgabios.bin\n\
             ata0: enabled=1\n\
             ata0-master: type=cdrom, path={dir}/boot.iso, status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=file, dev=/dev/stdout\n\
             com2: enabled=1, mode=file, dev=/dev/stderr\n\
             display_library: rfb, options=\"timeout=0\"\n\
             clock: sync=none\n\
             log: {dir}/bochs.log\n\
             panic: action=report\nerror: action=report\ninfo: action=ignore\ndebug: action=ignore\n"
        )
    }
}

/// Boots at once. One processor without what belongs to several, and a fixed clock source: Bochs's timers do not
/// keep real time. The rate of the time stamp counter is `ips`; by CPUID it would be the model's, 70 times as high,
/// and timers would go off 70 times too early.
fn isolinux(cpus: u32, mips: u32) -> String {
    let smp = if cpus == 1 { " nosmp" } else { "" };
    format!(
        "DEFAULT linux\nPROMPT 0\nTIMEOUT 0\nLABEL linux\n  KERNEL vmlinuz\n  INITRD initrd.gz\n  APPEND console=ttyS0 loglevel=5 \
         oops=panic panic=-1 nokaslr tsc=reliable clocksource=tsc mitigations=off tsc_early_khz={mips}000{smp}\n"
    )
}
