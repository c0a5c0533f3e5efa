// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line of `zeroshift view`.

use crate::size;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use vmfunc_uapi::{FIRST_WINDOW, MAX_VIEWS, MAX_WINDOW, SLOT_SIZE};

/// Guest-physical addresses that a top table reaches.
const TOP: u64 = 256 << 40;
const PAGE: u64 = 4096;

/// Subcommands of `view`.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "\
A WINDOW FOR A RUNNING VM
  As root; the VM is a QEMU that was started as usual:
    zeroshift doctor views                         what this host lacks
    zeroshift view attach --pid 1234               its guest may use VMFUNC from now on
    zeroshift view add --length 64K --write        a new view, with a window onto new memory
    zeroshift view add --view 1 --file /dev/shm/x  one more, onto a file in memory, to be read
    zeroshift view list
    zeroshift view stat                            what VMFUNC did, for each vCPU
    zeroshift view remove --view 1 --at 0x200000   closes a window
    zeroshift view remove --view 1                 ends the view
    zeroshift view detach
  Where several VMs are attached, each command takes --pid too.")]
pub(crate) enum ViewCommand {
    /// Attach to the VM of a running VMM, so that its guest may use VMFUNC
    ///
    /// Takes the VM's file from the process, which notices nothing. The kernel keeps views and windows
    /// for as long as one file is open; a small process holds it in the background from then on,
    /// until 'detach', or the VM ends, or a signal ends it.
    Attach(AttachOptions),
    /// List attached VMs, their views and windows
    ///
    /// Without the module it says so, and how to load it.
    List(ListOptions),
    /// Open a window in a view
    ///
    /// Onto memory that the module makes (zeroed; --write lets the guest write it), or onto a file in
    /// memory, such as the memfd that is the memory of another VM (--file; the guest can only read it).
    /// Without --view it makes a new view and says its index: what VMFUNC takes in ECX.
    Add(AddOptions),
    /// Close a window, or end a view with all its windows
    ///
    /// When it returns, no processor of the guest reads or writes the memory any more.
    Remove(RemoveOptions),
    /// Show what happened to each vCPU
    Stat(OneOptions),
    /// Close all windows and let go of the VM
    ///
    /// The guest gets #UD (invalid opcode) at its next VMFUNC.
    Detach(OneOptions),
    /// Hold an attachment: what 'attach' leaves in the background
    #[command(hide = true)]
    Hold(HoldOptions),
}

/// Where things are to be found: other places are for tests.
#[derive(Args, Clone, Debug)]
pub(crate) struct Places {
    /// Folder of the holders' sockets
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) runtime: Option<PathBuf>,

    /// Device of the module vmfunc_view
    #[arg(long, value_name = "PATH", default_value = "/dev/vmfunc", hide = true)]
    pub(crate) device: PathBuf,
}

/// Options of `attach`.
#[derive(Args, Debug)]
pub(crate) struct AttachOptions {
    /// Process of the VMM
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,

    /// File descriptor of the VM in that process, where it has several VMs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) vm: Option<i32>,

    /// Guest-physical address of the 512 GiB that views have to themselves, a multiple of 512G: no
    /// memory of the guest may be there
    #[arg(long, value_name = "ADDRESS", default_value = "512G", value_parser = slot)]
    pub(crate) slot: u64,

    /// Stay and hold it in this process: for service managers
    #[arg(long)]
    pub(crate) foreground: bool,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) places: Places,
}

/// Options of `list`.
#[derive(Args, Debug)]
pub(crate) struct ListOptions {
    /// Only of this process
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: Option<i32>,

    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) places: Places,
}

/// An attached VM, and how to print the answer.
#[derive(Args, Debug)]
pub(crate) struct OneOptions {
    /// Process of the VMM; may be left out when one VM is attached
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: Option<i32>,

    /// File descriptor of the VM in that process, where several of its VMs are attached
    #[arg(long, value_name = "N", requires = "pid", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) vm: Option<i32>,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) places: Places,
}

/// Options of `add`.
#[derive(Args, Debug)]
pub(crate) struct AddOptions {
    #[command(flatten)]
    pub(crate) one: OneOptions,

    /// Index of the view [default: a new one]
    #[arg(long, value_name = "N", value_parser = view())]
    pub(crate) view: Option<u32>,

    /// Where in the slot it begins: bytes from its base, a multiple of 4K from 2M on [default: the
    /// first place that is free, a multiple of 2M]
    #[arg(long, value_name = "OFFSET", value_parser = offset)]
    pub(crate) at: Option<u64>,

    /// Bytes, a multiple of 4K, at most 64M [default with --file: the rest of the file]
    #[arg(long, value_name = "SIZE", value_parser = length, required_unless_present = "file")]
    pub(crate) length: Option<u64>,

    /// The guest may write, too
    #[arg(long, conflicts_with = "file")]
    pub(crate) write: bool,

    /// Onto this file of memfd, tmpfs or hugetlbfs, from the byte OFFSET of it on: the memfd of a VMM
    /// is /proc/PID/fd/N
    #[arg(long, value_name = "PATH[:OFFSET]", value_parser = file)]
    pub(crate) file: Option<FilePart>,
}

/// Options of `remove`.
#[derive(Args, Debug)]
pub(crate) struct RemoveOptions {
    #[command(flatten)]
    pub(crate) one: OneOptions,

    /// Index of the view
    #[arg(long, value_name = "N", value_parser = view())]
    pub(crate) view: u32,

    /// Where in the slot the window begins [default: end the view with all its windows]
    #[arg(long, value_name = "OFFSET", value_parser = offset)]
    pub(crate) at: Option<u64>,
}

/// Options of `hold`: what it holds, for those who look at processes.
#[derive(Args, Debug)]
pub(crate) struct HoldOptions {
    /// Process of the VMM
    #[arg(long)]
    pub(crate) pid: i32,

    /// File descriptor of the VM in that process
    #[arg(long)]
    pub(crate) vm: i32,

    /// Socket to serve
    #[arg(long)]
    pub(crate) socket: PathBuf,
}

/// A file, from an offset on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePart {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
}

fn view() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_VIEWS))
}

fn slot(text: &str) -> Result<u64, String> {
    let slot = size::number(text)?;
    if slot == 0 || slot % SLOT_SIZE != 0 || slot >= TOP {
        return Err("the slot begins at a multiple of 512G, from 512G on, below 256T".into());
    }
    Ok(slot)
}

fn offset(text: &str) -> Result<u64, String> {
    let offset = size::number(text)?;
    if offset % PAGE != 0 || !(FIRST_WINDOW..SLOT_SIZE).contains(&offset) {
        return Err("windows begin at multiples of 4K, from 2M on, below 512G".into());
    }
    Ok(offset)
}

fn length(text: &str) -> Result<u64, String> {
    let length = size::number(text)?;
    if length == 0 || length % PAGE != 0 || length > MAX_WINDOW {
        return Err("a window has a multiple of 4K bytes, at least 4K and at most 64M".into());
    }
    Ok(length)
}

/// What is behind the last colon is an offset only if it is a number.
fn file(text: &str) -> Result<FilePart, String> {
    let part = |path: &str, offset| FilePart {
        path: path.into(),
        offset,
    };
    let (path, offset) = match text.rsplit_once(':') {
        Some((path, offset))
            if !path.is_empty() && offset.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            (path, size::number(offset)?)
        }
        _ => return Ok(part(text, 0)),
    };
    if offset % PAGE != 0 {
        return Err("the offset in the file has to be a multiple of 4K".into());
    }
    Ok(part(path, offset))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::{Arguments, Command};
    use clap::Parser as _;

    pub(crate) fn parse(words: &str) -> Result<ViewCommand, String> {
        let words = format!("zeroshift view {words}");
        match Arguments::try_parse_from(words.split_whitespace()) {
            Ok(arguments) => match arguments.command {
                Command::View(command) => Ok(command),
                other => panic!("{other:?}"),
            },
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn slots_and_windows_are_checked_before_anything_is_asked() {
        let slot = |text: &str| match parse(&format!("attach --pid 7 {text}"))? {
            ViewCommand::Attach(options) => Ok::<_, String>(options.slot),
            other => panic!("{other:?}"),
        };
        assert_eq!(slot(""), Ok(512 << 30));
        assert_eq!(slot("--slot 1T"), Ok(1 << 40));
        assert_eq!(slot("--slot 0xff8000000000"), Ok(511 << 39));
        for bad in [
            "--slot 0",
            "--slot 256G",
            "--slot 513G",
            "--slot 256T",
            "--pid 0",
        ] {
            assert!(slot(bad).is_err(), "{bad}");
        }
        let add = |text: &str| match parse(&format!("add {text}"))? {
            ViewCommand::Add(options) => Ok::<_, String>(options),
            other => panic!("{other:?}"),
        };
        let options = add("--length 64K --write --at 0x200000 --view 63").unwrap();
        assert_eq!(options.length, Some(65536));
        assert_eq!((options.at, options.view), (Some(2 << 20), Some(63)));
        for bad in [
            "",
            "--write",
            "--length 0",
            "--length 5000",
            "--length 65M",
            "--length 4K --at 1M",
            "--length 4K --at 512G",
            "--length 4K --at 0x200800",
            "--length 4K --view 0",
            "--length 4K --view 64",
            "--file /dev/shm/x --write",
            "--length 4K --vm 3",
        ] {
            assert!(add(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_may_have_an_offset() {
        let part = |path: &str, offset| {
            Ok(FilePart {
                path: path.into(),
                offset,
            })
        };
        assert_eq!(file("/proc/7/fd/9"), part("/proc/7/fd/9", 0));
        assert_eq!(file("/proc/7/fd/9:1M"), part("/proc/7/fd/9", 1 << 20));
        assert_eq!(file("/x/a:b"), part("/x/a:b", 0));
        assert_eq!(file("/x/a:1:0x2000"), part("/x/a:1", 0x2000));
        assert!(file("/x:100").is_err() && file("/x:1Z").is_err());
    }
}
