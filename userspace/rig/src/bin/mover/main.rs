// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `mover`: runs in a host of the rig. Starts a guest in a stock QEMU, waits until its programs work, migrates it to
//! a second QEMU while they go on, and says how it went. It ends what it started, and touches nothing else.

mod events;
mod guest;
mod interruption;
mod plan;
mod qemu;
mod qmp;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;

use interruption::Interruption;
use qemu::Side;

/// Run a guest in QEMU, move it to another QEMU, and judge what its programs say
///
/// Output: lines `ZS-EVENT {...}`, the last one the verdict, and `L2| ...`, what the guest says. Exit code 0 only
/// when the guest's programs passed and the move went as it had to.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
pub(crate) struct Arguments {
    /// PCI function that the guest has at the start, bound to a VFIO driver
    #[arg(long, value_name = "BDF")]
    source: Option<String>,
    /// PCI function that it gets by the move
    #[arg(long, value_name = "BDF")]
    destination: Option<String>,
    /// Move the guest
    #[arg(long)]
    migrate: bool,
    /// Before the move, begin one that comes to nothing: the guest has to go on where it is
    #[arg(
        long = "interrupt",
        value_name = "HOW",
        value_enum,
        requires = "migrate"
    )]
    interruptions: Vec<Interruption>,
    /// Stop the guest before the move, and let it go on after
    #[arg(long, requires = "migrate")]
    paused: bool,
    /// Try to move the guest: it has to fail with this text, and the guest has to go on
    #[arg(long, value_name = "TEXT", conflicts_with = "migrate")]
    expect_refusal: Option<String>,
    /// Use iommufd instead of a VFIO container
    #[arg(long)]
    iommufd: bool,
    /// The guest's kernel
    #[arg(long)]
    kernel: PathBuf,
    /// Its initramfs
    #[arg(long)]
    initrd: PathBuf,
    /// A file with its command line
    #[arg(long)]
    append: PathBuf,
    /// Its memory, in pages of 2 MiB from the host's pool
    #[arg(long, default_value_t = 512)]
    memory_mib: u32,
    /// A program of the guest, and how many of its rounds to wait for before and after the move
    #[arg(long = "workload", value_name = "NAME=ROUNDS", value_parser = workload)]
    workloads: Vec<(String, u64)>,
    /// A capability of QEMU's migration to switch on
    #[arg(long = "capability", value_name = "NAME")]
    capabilities: Vec<String>,
    /// More arguments for both QEMUs
    #[arg(long = "qemu", value_name = "ARGUMENT", allow_hyphen_values = true)]
    more: Vec<String>,
    /// How long the guest may stand still, in ms, as QEMU estimates it; after some passes in vain, longer
    #[arg(long, default_value_t = 300)]
    downtime_limit: u32,
    /// Copy slowly until all memory went once and every program has done a round since, so that much of what was
    /// sent is written again
    #[arg(long, conflicts_with = "paused")]
    behind_first_pass: bool,
    /// How long to wait for anything, in s
    #[arg(long, default_value_t = 300)]
    limit: u64,
    /// A directory for the socket of the migration
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
}

impl Arguments {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }

    fn uri(&self) -> String {
        format!(
            "unix:{}/migration-{}",
            self.dir.display(),
            std::process::id()
        )
    }

    /// What QEMU is started with. Both sides get the same, but for the function and for who starts.
    fn qemu(&self, side: Side) -> Result<Vec<String>> {
        let memory = self.memory_mib;
        let append = fs::read_to_string(&self.append)
            .with_context(|| format!("read {}", self.append.display()))?;
        // Pages of 2 MiB: mapped for the device one by one, 4 KiB pages take minutes.
        let backend = format!(
            "memory-backend-memfd,id=ram,size={memory}M,hugetlb=on,hugetlbsize=2M,share=on"
        );
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|w| (*w).to_owned()));
        add(&["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]);
        add(&["-M", "q35,kernel-irqchip=split,memory-backend=ram"]);
        // Without the paravirtual end of interrupt, an emulated host rarely delivers an interrupt twice: docs/rigs.md, limits.
        add(&["-accel", "kvm", "-cpu", "host,kvm-pv-eoi=off"]);
        add(&["-m", &format!("{memory}M"), "-object", &backend]);
        add(&["-nodefaults", "-display", "none", "-no-reboot"]);
        add(&["-kernel", &self.kernel.display().to_string()]);
        add(&["-initrd", &self.initrd.display().to_string()]);
        add(&["-append", append.trim_end()]);
        let function = match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        };
        if let Some(function) = function {
            let mut device = format!("vfio-pci,host={function},bus=rp0,id=function0");
            if self.iommufd {
                add(&["-object", "iommufd,id=iommufd0"]);
                device += ",iommufd=iommufd0";
            }
            add(&["-device", "pcie-root-port,id=rp0,chassis=1,slot=1"]);
            add(&["-device", &device]);
        }
        if side == Side::Destination {
            add(&["-incoming", "defer"]);
        }
        arguments.extend(self.more.iter().cloned());
        Ok(arguments)
    }
}

fn workload(text: &str) -> Result<(String, u64)> {
    let (name, rounds) = text.split_once('=').context("not NAME=ROUNDS")?;
    Ok((
        name.to_owned(),
        rounds.parse().context("ROUNDS is no number")?,
    ))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match plan::Run::new(&arguments).run() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
