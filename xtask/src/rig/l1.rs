// SPDX-License-Identifier: Apache-2.0 OR MIT

//! L1: a host in QEMU, booted from one initramfs, with an emulated IOMMU and card functions. With the QEMU
//! layer it runs guests (L2) itself.
//!
//! Guest memory is a shared memfd. Plain memory would give the card no file to map, and a private one would let
//! DMA "succeed" into a copy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::accel::Accelerator;
use super::card;
use super::console::{self, Transcript, SILENCE};
use super::image::{self, Overlay};
use crate::buildroot::{BuildRoot, Network};
use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::ui::Step;

/// Which IOMMU L1 sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Iommu {
    /// Intel VT-d with interrupt remapping.
    Vtd,
    /// AMD-Vi with interrupt and DMA remapping.
    AmdVi,
}

impl Iommu {
    /// QEMU's arguments. Without caching-mode QEMU aborts at the first map of a vfio-user device.
    pub(crate) fn arguments(self) -> [&'static str; 2] {
        match self {
            Self::Vtd => ["-device", "intel-iommu,intremap=on,caching-mode=on"],
            Self::AmdVi => ["-device", "amd-iommu,intremap=on,dma-remap=on"],
        }
    }
}

/// A host to boot.
pub(crate) struct L1<'a> {
    /// Name of the run: of its log, and shown while it runs.
    pub(crate) name: &'a str,
    /// Its kernel.
    pub(crate) kernel: &'a Kernel,
    /// Its IOMMU.
    pub(crate) iommu: Iommu,
    /// Sockets of the card functions that it gets.
    pub(crate) functions: Vec<PathBuf>,
    /// Its memory.
    pub(crate) memory_mib: u32,
    /// Modules of its own kernel to load at start.
    pub(crate) modules: &'a [&'a str],
    /// Whether it runs guests, so needs QEMU in its image.
    pub(crate) nested: bool,
    /// Whether it has fio, nvme-cli and ext4's programs.
    pub(crate) peers: bool,
    /// What it is to do.
    pub(crate) overlay: Overlay,
    /// How long all of it may take.
    pub(crate) limit: Duration,
}

/// Where a rig works.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The cache.
    pub(crate) cache: &'a Cache,
    /// The build root with the emulators.
    pub(crate) root: &'a BuildRoot,
    /// The checkout.
    pub(crate) repo: &'a Path,
}

impl L1<'_> {
    /// Boots it, runs its jobs, and ends it.
    pub(crate) fn run(&self, place: Place<'_>) -> Result<Transcript> {
        self.watched(place, &mut |step, line| step.detail(line))
    }

    /// The same; `watch` gets every line that it prints, as it comes.
    pub(crate) fn watched(
        &self,
        place: Place<'_>,
        watch: &mut dyn FnMut(&Step, &str),
    ) -> Result<Transcript> {
        let Place { cache, root, repo } = place;
        let run = cache.run_dir(self.name)?;
        let image = run.path().join("initramfs");
        let mut layers = vec![image::base(cache, root, repo, self.kernel, self.modules)?];
        if self.nested {
            layers.push(image::qemu(cache, root)?);
        }
        if self.peers {
            layers.push(image::peers(cache, root)?);
        }
        self.overlay.write(root, &layers, &image)?;
        let accelerator = match self.nested {
            true => Accelerator::pick_nested()?,
            false => Accelerator::pick()?,
        };
        let memory = format!(
            "memory-backend-memfd,id=ram,size={}M,share=on",
            self.memory_mib
        );
        let mut qemu = root.command_with("qemu-system-x86_64", &[], Network::None);
        qemu.args([
            "-M",
            &format!("{},memory-backend=ram", accelerator.machine()),
        ])
        .args(accelerator.arguments());
        // With two processors, QEMU's translator delivers interrupts twice to nested guests: docs/rigs.md, limits.
        let processors = match self.nested && accelerator == Accelerator::Tcg {
            true => "1",
            false => "2",
        };
        qemu.args([
            "-smp",
            processors,
            "-m",
            &format!("{}M", self.memory_mib),
            "-object",
            &memory,
        ]);
        qemu.args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
            "-serial",
            "file:/dev/stderr",
        ]);
        qemu.args(self.iommu.arguments())
            .args(card::function_arguments(&self.functions));
        qemu.arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&image);
        qemu.args(["-append", &command_line("")]);
        let step = Step::start(format!(
            "running {} on the {} kernel",
            self.name,
            self.kernel.kind.name()
        ));
        let transcript = console::watched(
            qemu,
            &cache.log(&format!("console-{}", self.name)),
            self.limit,
            Some(SILENCE),
            &mut |line| watch(&step, line),
        )?;
        step.done();
        Ok(transcript)
    }
}

/// An oops must end the machine, or the run hangs; what a kernel says of leaks and of crashed programs
/// (level "info") must reach the console, or nobody sees it. On a busy machine an emulator is late with the ten timer
/// interrupts that the kernel looks for, and with interrupt remapping it then panics.
pub(crate) fn command_line(more: &str) -> String {
    format!("console=ttyS0 loglevel=7 oops=panic panic=-1 mitigations=off no_timer_check {more}")
        .trim_end()
        .to_owned()
}
