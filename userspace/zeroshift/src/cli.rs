// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the command line looks like. Nothing is done here.

use crate::address::Address;
use crate::card::CardOptions;
use crate::size;
use crate::view::ViewCommand;
use clap::{Args, Parser, Subcommand, ValueEnum};
use migdirty_uapi::MigdirtyRange;
use serde::Serialize;
use std::path::PathBuf;

/// Looks after migration-capable cards, their functions, and windows of guests
///
/// A card is a PCI device with an NVMe administrative controller, which the module migdirty drives,
/// and functions that it manages. A function whose driver is zeroshift_vfio_pci can be passed
/// through to a guest, and the guest with it can be migrated. Functions are named by their PCI
/// address, 0000:02:00.0, or 02:00.0 in domain 0. 'zeroshift view' needs no card: it gives guests
/// windows onto memory. All commands want root but 'inspect', 'card', 'completions' and 'man'.
#[derive(Debug, Parser)]
#[command(name = "zeroshift", version, after_long_help = MORE)]
pub(crate) struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What help and the main page end with.
const MORE: &str = "\
FROM A CARD TO A GUEST THAT MOVES
  On both hosts, as root:
    zeroshift doctor migration           what this host lacks to migrate guests
    zeroshift list --functions           cards, and the functions that they manage
    zeroshift bind 0000:02:00.0          a function goes to the VFIO driver that migrates
    qemu-system-x86_64 ... -device vfio-pci,host=0000:02:00.0 [-incoming tcp:0:4444]
  In the monitor of the first QEMU:
    migrate -d tcp:OTHER-HOST:4444
  Then, on the first host:
    zeroshift unbind 0000:02:00.0        the function goes back to its usual driver
  The same by hand, without a guest: log start, log sync, pause, log sync, save; pause, restore.

EXIT STATUS
  0 done (also when there was nothing to do), 1 an error, 2 bad usage. An error names the object,
  the cause and the next step, on standard error, also with --json.";

/// Subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what this host lacks to migrate guests and to give them views, and the next step
    ///
    /// For migration it looks at the kernel (without IOMMUFD, as Debian builds it, nothing can report
    /// what a function writes, and QEMU refuses to migrate), the IOMMU, the modules, the cards and their
    /// functions; for views at the processor (Intel's VMFUNC), KVM's parameters and the module. Changes
    /// nothing. The exit status is 1 when something is missing of what was asked for.
    Doctor(DoctorOptions),
    /// List the cards of this machine and what each can do
    ///
    /// Cards that the module migdirty has bound are asked over /dev/migdirty; NVMe administrative
    /// controllers that it has not bound are found in sysfs, with the command that binds them.
    List(ListOptions),
    /// Give a function to the VFIO driver that can migrate it
    ///
    /// Takes the function from the driver that has it, which must not be in use, and binds it to
    /// the other one. What it would need is checked before anything is changed; when the new
    /// driver does not take the function, the old one gets it back.
    Bind(BindOptions),
    /// Give a function back to its usual driver
    ///
    /// Ends what 'zeroshift bind' did; the kernel then chooses the driver as if nothing had been.
    Unbind(UnbindOptions),
    /// Show a function: its card, state, owner, log and counters
    Status(FunctionOptions),
    /// Log which memory a function writes
    ///
    /// For a function that no VFIO user has. The addresses are those that the function uses; behind
    /// an IOMMU they are I/O virtual addresses.
    #[command(subcommand)]
    Log(LogCommand),
    /// Suspend a function; returns when it is quiet
    ///
    /// It stays so until 'zeroshift resume', a reset of the function or one of its card.
    Pause(FunctionOptions),
    /// Let a suspended function go on
    Resume(FunctionOptions),
    /// Save the controller state of a paused function to a file
    ///
    /// The file is a migration stream with the identity of the function. It is complete when it is
    /// there: it is written under another name first.
    Save(SaveOptions),
    /// Set the controller state of a paused function from a file
    ///
    /// The function has to be the one that was saved, or one of the same identity on another card:
    /// serial number, model, SUBNQN, namespaces. It has to be disabled: take it from its driver,
    /// reset it ('echo 1 > /sys/bus/pci/devices/BDF/reset'; drivers leave it enabled), then pause it.
    Restore(RestoreOptions),
    /// Show what a saved file is, and whether it is whole
    Inspect(InspectOptions),
    /// Give the guest of a running VMM windows onto memory, which it opens and closes by VMFUNC
    ///
    /// For the guests of KVM on Intel processors, with the module vmfunc_view. A view is the guest's
    /// memory with windows beside it; VMFUNC leaf 0 with its index in ECX switches to it, without a VM
    /// exit. What the guest's code has to keep to is section 16 of docs/interfaces.md.
    #[command(subcommand)]
    View(ViewCommand),
    /// Look into a software card that zerocard serves, or make it misbehave
    ///
    /// Asks the card over the control socket in its directory.
    Card(CardOptions),
    /// Print a completion script for a shell
    ///
    /// For bash: 'zeroshift completions bash > /usr/share/bash-completion/completions/zeroshift'.
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print a manual page, or write all of them
    ///
    /// To read one: 'zeroshift man log sync | man -l -'. To install all: 'zeroshift man --all
    /// /usr/local/share/man/man1'.
    Man {
        /// Subcommand to print the page of, instead of the main page
        command: Vec<String>,

        /// Write the pages of all commands into this folder, instead of printing one
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        all: Option<PathBuf>,
    },
}

/// Where the kernel is to be found: other places are for tests.
#[derive(Args, Clone, Debug)]
pub(crate) struct Places {
    /// Where sysfs is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys", hide = true)]
    pub(crate) sysfs: PathBuf,

    /// Device of the module migdirty
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/dev/migdirty",
        hide = true
    )]
    pub(crate) device: PathBuf,
}

/// What a host may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Purpose {
    /// Guests with functions that move to another host
    Migration,
    /// Windows for guests, by VMFUNC ('zeroshift view')
    Views,
}

impl Purpose {
    /// What a host can, and what it cannot.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Migration => ("can migrate guests", "cannot migrate guests yet"),
            Self::Views => ("can give guests views", "cannot give guests views yet"),
        }
    }
}

/// Options of `doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorOptions {
    /// What for [default: both]
    #[arg(value_name = "PURPOSE")]
    pub(crate) purposes: Vec<Purpose>,

    /// Device of the module vmfunc_view
    #[arg(long, value_name = "PATH", default_value = "/dev/vmfunc", hide = true)]
    pub(crate) vmfunc: PathBuf,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) places: Places,
}

/// Options of `list`.
#[derive(Args, Debug)]
pub(crate) struct ListOptions {
    /// List the functions that the cards manage, too
    #[arg(long)]
    pub(crate) functions: bool,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) places: Places,
}

/// A function, and how to print the answer.
#[derive(Args, Debug)]
pub(crate) struct FunctionOptions {
    /// PCI address of the function, as 'zeroshift list --functions' shows it
    #[arg(value_name = "BDF")]
    pub(crate) address: Address,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) places: Places,
}

/// The driver that makes functions migratable.
pub(crate) const DRIVER: &str = "zeroshift_vfio_pci";

/// Options of `bind`.
#[derive(Args, Debug)]
pub(crate) struct BindOptions {
    #[command(flatten)]
    pub(crate) function: FunctionOptions,

    /// Driver that gets the function
    #[arg(long, value_name = "NAME", default_value = DRIVER)]
    pub(crate) driver: String,

    /// Take it although it is in use, or has no IOMMU group
    #[arg(long)]
    pub(crate) force: bool,
}

/// Options of `unbind`.
#[derive(Args, Debug)]
pub(crate) struct UnbindOptions {
    #[command(flatten)]
    pub(crate) function: FunctionOptions,

    /// Take it although it is in use; the kernel waits until its user has closed it
    #[arg(long)]
    pub(crate) force: bool,
}

/// Subcommands of `log`.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Start a log
    #[command(after_long_help = "\
EXAMPLES
  What a driver of this host uses behind an IOMMU, in granules of 4 KiB if the card can:
    zeroshift log start 0000:02:00.0 --range 0+4G --granule 4K
  Memory without an IOMMU, 2 GiB below 4 GiB and 6 GiB above:
    zeroshift log start 0000:02:00.0 --range 0+2G --range 4G+6G")]
    Start(LogStartOptions),
    /// Print what was written since the start or the last sync, and forget it
    ///
    /// Of a paused function that is all of it ("complete"); a running one may have written more
    /// meanwhile.
    Sync(LogSyncOptions),
    /// End a log; without one it does nothing
    Stop(FunctionOptions),
}

/// Options of `log start`.
#[derive(Args, Debug)]
pub(crate) struct LogStartOptions {
    #[command(flatten)]
    pub(crate) function: FunctionOptions,

    /// What to log: first address and bytes, multiples of 4096, 0x for hexadecimal, K, M, G, T for
    /// powers of 1024; up to 256 times
    #[arg(long = "range", value_name = "IOVA+LENGTH", required = true, value_parser = size::range)]
    pub(crate) ranges: Vec<MigdirtyRange>,

    /// How exact: bytes, a power of two from 4K on [default: as the card likes]
    #[arg(long, value_name = "SIZE", value_parser = size::power_of_two)]
    pub(crate) granule: Option<u64>,
}

/// Options of `log sync`.
#[derive(Args, Debug)]
pub(crate) struct LogSyncOptions {
    #[command(flatten)]
    pub(crate) function: FunctionOptions,

    /// Only this part [default: all that is logged]
    #[arg(long, value_name = "IOVA+LENGTH", value_parser = size::range)]
    pub(crate) range: Option<MigdirtyRange>,

    /// Print how much it is, not where
    #[arg(long)]
    pub(crate) totals: bool,
}

/// Options of `save`.
#[derive(Args, Debug)]
pub(crate) struct SaveOptions {
    #[command(flatten)]
    pub(crate) function: FunctionOptions,

    /// File to write, or - for standard output
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Replace the file when there is one
    #[arg(long)]
    pub(crate) force: bool,
}

/// Options of `restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreOptions {
    #[command(flatten)]
    pub(crate) function: FunctionOptions,

    /// File to read, or - for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Options of `inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectOptions {
    /// File to read, or - for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn log_ranges_are_read() {
        let parse = |arguments: &str| {
            let words = format!("zeroshift log start 2:0.0 {arguments}");
            Arguments::try_parse_from(words.split(' '))
        };
        let parsed = parse("--range 0+2G --range 0x100000000+0x1000 --granule 64K").unwrap();
        let Command::Log(LogCommand::Start(options)) = parsed.command else {
            panic!()
        };
        assert_eq!(options.function.address, Address(0x200));
        let ranges: Vec<_> = options.ranges.iter().map(|r| (r.iova, r.length)).collect();
        assert_eq!(ranges, [(0, 2 << 30), (4 << 30, 4096)]);
        assert_eq!(options.granule, Some(65536));
        for wrong in [
            "--granule 4K",
            "--range 4K",
            "--range 0+0",
            "--range 1+4K",
            "--range 0+100",
            "--range 0xfffffffffffff000+8K",
            "--range 0+4K --granule 3K",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
