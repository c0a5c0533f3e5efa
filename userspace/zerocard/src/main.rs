// SPDX-License-Identifier: Apache-2.0 OR MIT

//! zerocard: a software-defined PCIe card whose functions are served over vfio-user.
//!
//! Command line, logging, and the life of the process: make the sockets, say so in one line, run a
//! thread per function, end on SIGINT or SIGTERM with nothing left behind. The contract is section
//! 3 of `docs/interfaces.md`.

mod attention;
mod backing;
mod card;
mod control;
mod counters;
mod faults;
mod memory;
mod nvme;
mod options;
mod pci;
mod poller;
mod sys;
mod throttle;
mod tracking;
mod transport;

use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing_subscriber::EnvFilter;

use card::{Card, Serial, Slot};
use control::ControlTarget;
use faults::Rule;
use nvme::migration::{self, Granules};
use options::{FunctionOptions, NamespaceOptions};
use poller::Poller;
use transport::listener::{DirectoryLock, Listener};

/// The software card: PCIe functions for virtual machines, without hardware.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Diagnostics go to standard error. ZEROCARD_LOG filters them, for example ZEROCARD_LOG=debug or
ZEROCARD_LOG=zerocard::nvme=debug,warn."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(Serve),
}

/// Serve one card until SIGINT or SIGTERM.
///
/// Each function gets a vfio-user socket in the directory: admin.sock for the administrative
/// controller, nvme1.sock, nvme2.sock, ... for the others unless they are given names. When all of
/// them listen, one line on standard output says so.
#[derive(clap::Args)]
#[command(after_long_help = "\
EXAMPLE: a virtual machine with the card's administrative controller
  mkdir -p /run/card && zerocard serve --dir /run/card &
  qemu-system-x86_64 -M q35 -m 1G \\
    -object memory-backend-memfd,id=ram,size=1G,share=on -machine memory-backend=ram \\
    -device pcie-root-port,id=port,chassis=1,slot=1 \\
    -device '{\"driver\":\"vfio-user-pci\",\"bus\":\"port\",
              \"socket\":{\"type\":\"unix\",\"path\":\"/run/card/admin.sock\"}}' ...

The memory has to be shared (memfd, share=on): the card accesses it directly. End virtual machines
before the card: QEMU aborts when a device that it serves disappears.

EXIT CODES: 0 ended by a signal, 1 an error, 2 bad usage.")]
struct Serve {
    /// Directory for the sockets; it has to exist
    #[arg(long)]
    dir: PathBuf,
    /// Serial number of the card; everything a host recognises the card by derives from it
    #[arg(long, value_name = "TEXT", default_value = "ZS00000001")]
    serial: Serial,
    /// A namespace: memory=SIZE, or file=PATH[,size=SIZE]; block=512|4096; readonly. Namespaces get
    /// the identifiers 1, 2, ... in the order of these options
    #[arg(long = "namespace", value_name = "KEY=VALUE,...")]
    namespaces: Vec<NamespaceOptions>,
    /// A function: name=NAME; namespaces=1:2:... (default: all); queues=N I/O queue pairs; iops=N,
    /// bytes_per_second=SIZE, burst_ms=N (rate limit). Functions get the controller ids 1, 2, ... in
    /// the order of these options
    #[arg(long = "function", value_name = "KEY=VALUE,...")]
    functions: Vec<FunctionOptions>,
    /// That many functions with all namespaces
    #[arg(long = "functions", value_name = "N", conflicts_with = "functions", default_value_t = 0,
          value_parser = clap::value_parser!(u16).range(0..=64))]
    count: u16,
    /// Threads that do the I/O; functions are divided among them
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pollers: u16,
    /// How long a poller looks for more work before it sleeps, in microseconds
    #[arg(long, value_name = "US", default_value_t = 15)]
    spin: u64,
    /// A fault or a delay; the rules are section 9 of docs/interfaces.md, for example
    /// op=read,nth=100,status=2/0x81 or function=nvme1,queue=io,delay=1ms..5ms
    #[arg(long = "fault", value_name = "RULE")]
    faults: Vec<Rule>,
    /// Where random faults start from: the same seed gives the same faults
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Memory ranges that a host may track over all functions (CMMRTD)
    #[arg(long, value_name = "N", default_value_t = migration::DEFAULT_RANGES)]
    max_ranges: u16,
    /// The same for the NVM subsystem (NMMRTD)
    #[arg(long, value_name = "N", default_value_t = migration::DEFAULT_RANGES)]
    max_ranges_subsystem: u16,
    /// Smallest and largest granule of tracked memory
    #[arg(long, value_name = "MIN..MAX", default_value = "4K..2M")]
    granules: Granules,
    /// Print the ready line as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Command::Serve(arguments) = Arguments::parse().command;
    if let Err(error) = start_logging() {
        complain(format_args!("ZEROCARD_LOG: {error}"));
        return ExitCode::from(2);
    }
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// An error message. Unlike `eprintln!`, it does not panic when nobody takes it.
fn complain(message: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "error: {message}");
}

fn start_logging() -> Result<()> {
    let filter = match std::env::var("ZEROCARD_LOG") {
        Ok(text) => EnvFilter::try_new(text)?,
        Err(std::env::VarError::NotPresent) => EnvFilter::new("info"),
        Err(error) => return Err(error.into()),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A line that cannot be written (full disk, reader gone) would be reported with eprintln!,
        // whose panic would end the function, and with it the virtual machine that uses it.
        .log_internal_errors(false)
        .init();
    Ok(())
}

fn serve(arguments: &Serve) -> Result<()> {
    let mut options = arguments.functions.clone();
    options.resize(
        options.len().max(arguments.count.into()),
        FunctionOptions::default(),
    );
    sys::sigbus::install().context("signal handlers")?;
    raise_descriptor_limit();
    let limits = control::Limits {
        max_ranges: arguments.max_ranges,
        max_ranges_subsystem: arguments.max_ranges_subsystem,
        min_granule: arguments.granules.min,
        max_granule: arguments.granules.max,
    };
    limits.check().map_err(anyhow::Error::msg)?;
    let card = Card::new(&card::Options {
        serial: &arguments.serial,
        namespaces: &arguments.namespaces,
        functions: &options,
        seed: arguments.seed,
        limits,
    })?;
    for rule in &arguments.faults {
        let added = card.faults().add(rule.clone());
        added.map_err(|error| anyhow::anyhow!("--fault {rule}: {error}"))?;
    }
    let card = Arc::new(card);
    let lock = DirectoryLock::acquire(&arguments.dir)?;
    // Before anything that would have to be cleaned up exists.
    let signals = Signals::new().context("signal handlers")?;
    let mut functions = Vec::new();
    for slot in card.slots() {
        let path = arguments.dir.join(format!("{}.sock", slot.name));
        let listener = Listener::bind(&path, &lock)?;
        functions.push((slot.clone(), path, listener));
    }
    let control = Listener::bind(&arguments.dir.join("control.sock"), &lock)?;
    drop(lock);
    let described: Vec<_> = functions
        .iter()
        .map(|(slot, path, _)| (slot, path))
        .collect();
    announce(arguments, &described)?;

    let stop = event()?;
    let ended = event()?;
    let pollers = start_pollers(arguments, &functions, &ended)?;
    let mut threads = Vec::new();
    threads.push({
        let server = control::Server::new(Arc::clone(&card) as Arc<dyn ControlTarget>);
        let (stop, ended) = (Arc::clone(&stop), Arc::clone(&ended));
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let _notify = Notify(&ended);
                let served = server.run(control.socket(), stop.as_fd());
                served.context("control socket")
            })
            .context("thread")?
    });
    for (slot, _, listener) in functions {
        let (stop, ended) = (Arc::clone(&stop), Arc::clone(&ended));
        let thread = std::thread::Builder::new()
            .name(slot.name.clone())
            .spawn(move || run_function(&slot, &listener, &stop, &ended))
            .context("thread")?;
        threads.push(thread);
    }
    wait_for_either(&signals.0, &ended)?;
    signal(&stop);
    let mut result = Ok(());
    for thread in threads {
        let ended = match thread.join() {
            Ok(ended) => ended,
            // The panic message is on standard error already.
            Err(_) => Err(anyhow::anyhow!("a function of the card failed")),
        };
        result = result.and(ended);
    }
    // Sessions wait for requests that pollers finish, so pollers end last.
    for poller in pollers {
        result = result.and(poller.end());
    }
    result
}

/// A client brings a descriptor for each interrupt vector, and the usual limit is below what 64
/// functions need. What cannot be raised shows when a client is refused.
fn raise_descriptor_limit() {
    use rustix::process::{getrlimit, setrlimit, Resource};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("limit of open files: {error}");
    }
}

/// Starts the pollers and divides the functions among them.
fn start_pollers(
    arguments: &Serve,
    functions: &[(Slot, PathBuf, Listener)],
    ended: &Arc<OwnedFd>,
) -> Result<Vec<Poller>> {
    let count = usize::from(arguments.pollers).min(functions.len());
    let spin = Duration::from_micros(arguments.spin);
    let mut pollers = Vec::new();
    for index in 0..count {
        let served = functions.iter().skip(index).step_by(count);
        let served = served.map(|(slot, _, _)| Arc::clone(&slot.function));
        let name = format!("poller{index}");
        let poller = Poller::start(&name, served.collect(), spin, Arc::clone(ended))?;
        pollers.push(poller);
    }
    Ok(pollers)
}

/// However a thread ends, the process learns of it.
struct Notify<'a>(&'a OwnedFd);

impl Drop for Notify<'_> {
    fn drop(&mut self) {
        signal(self.0);
    }
}

fn run_function(slot: &Slot, listener: &Listener, stop: &OwnedFd, ended: &OwnedFd) -> Result<()> {
    let _notify = Notify(ended);
    let _span = tracing::info_span!("function", name = slot.name).entered();
    listener
        .serve(slot.function.as_ref(), stop.as_fd())
        .with_context(|| format!("function {}", slot.name))
}

/// The ready line.
#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    card: ReadyCard,
    functions: Vec<ReadyFunction<'a>>,
}

#[derive(Serialize)]
struct ReadyCard {
    serial: String,
}

#[derive(Serialize)]
struct ReadyFunction<'a> {
    name: &'a str,
    kind: &'a str,
    controller_id: u16,
    socket: &'a str,
}

fn announce(arguments: &Serve, functions: &[(&Slot, &PathBuf)]) -> Result<()> {
    let serial = &arguments.serial;
    let mut line = if arguments.json {
        let mut list = Vec::new();
        for (slot, path) in functions {
            list.push(ReadyFunction {
                name: &slot.name,
                kind: slot.kind,
                controller_id: slot.controller_id,
                socket: path.to_str().context("with --json, DIR has to be UTF-8")?,
            });
        }
        let card = ReadyCard {
            serial: serial.to_string(),
        };
        serde_json::to_string(&Ready {
            event: "ready",
            card,
            functions: list,
        })?
    } else {
        let list: Vec<String> = functions
            .iter()
            .map(|(slot, path)| {
                let Slot {
                    name,
                    kind,
                    controller_id,
                    ..
                } = slot;
                format!(
                    "{name} ({kind}, controller {controller_id}) on {}",
                    path.display()
                )
            })
            .collect();
        format!("card {serial} is ready: {}", list.join(", "))
    };
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .context("standard output")
}

/// SIGINT and SIGTERM as a descriptor that becomes readable.
struct Signals(UnixStream);

impl Signals {
    fn new() -> Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        for number in [SIGINT, SIGTERM] {
            signal_hook::low_level::pipe::register(number, sender.try_clone()?)?;
        }
        Ok(Self(receiver))
    }
}

fn event() -> Result<Arc<OwnedFd>> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    Ok(Arc::new(
        rustix::event::eventfd(0, flags).context("eventfd")?,
    ))
}

fn signal(event: &OwnedFd) {
    // The counter cannot overflow: it is signalled once per thread and once at the end.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

fn wait_for_either(one: &impl AsFd, other: &impl AsFd) -> Result<()> {
    loop {
        let mut fds = [
            PollFd::new(one, PollFlags::IN),
            PollFd::new(other, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).context("poll"),
        }
    }
}
