// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bench group `migration`: what migration with the kernel modules costs, by the VFIO uAPI, without a guest.
//!
//! Runs on the host that has the functions (here: in the rig's L1), as a VMM would: it opens a function, drives
//! its queues from this process, logs what it writes, saves it. Prints one JSON object per line: the machine, then
//! each figure (README, "Benches").

mod entries;
mod growth;
mod overhead;
mod probes;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::{json, Value};
use zeroshift_bench::report::{self, Figure};
use zeroshift_tests::vfio::space::Access;

/// The driver that is measured.
const DRIVER: &str = "zeroshift_vfio_pci";
/// What it is compared with.
const PLAIN: &str = "vfio-pci";

/// Measure the kernel modules by the VFIO uAPI: log sync, the stream, entries per I/O.
#[derive(Parser)]
struct Arguments {
    /// PCI address of an NVMe function that a card manages; its namespace 1 is read only
    #[arg(long, required_unless_present = "list", default_value = "")]
    function: String,
    /// Measure nothing: print the figures that there are, as if none could be measured
    #[arg(long)]
    list: bool,
    /// Repeats of each side
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Only figures whose name contains this
    filter: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How it is measured: with the function at an address, and a number of repeats.
type Measure = fn(&str, u32) -> Result<Value>;

const FIGURES: [(Figure, Measure); 4] = [
    (entries::FIGURE, entries::measure),
    (growth::DIRTY, growth::dirty),
    (growth::SPAN, growth::span),
    (overhead::FIGURE, overhead::measure),
];

/// A figure that cannot be measured is a line like any other: the next ones still are.
fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        for (figure, _) in FIGURES {
            print(&figure.not_measured("not asked for"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    print(&json!({"machine": {
        "cpu": report::cpu()?, "cores": std::thread::available_parallelism()?.get(), "kernel": kernel.trim_end(),
        "access": format!("{ACCESS:?}"),
    }}))?;
    let mut lines = Vec::new();
    for (figure, measure) in FIGURES {
        let wanted = |part: &String| figure.name.contains(part.as_str());
        if arguments.filter.as_ref().is_none_or(wanted) {
            let line = figure.line(|| measure(&arguments.function, arguments.pairs));
            print(&line)?;
            lines.push(line);
        }
    }
    Ok(report::exit_code(&lines))
}

/// How QEMU opens a function when it is told nothing else.
const ACCESS: Access = Access::Group;

fn print(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").context("standard output")
}
