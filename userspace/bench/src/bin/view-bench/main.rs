// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bench group `view`: what views cost guests that use them, and those that do not.
//!
//! Runs where KVM has VMFUNC, with guests of its own. Where the time stamp counter counts instructions,
//! as Bochs's does, figures are instructions, and repeat exactly, but those of copies, in which Bochs
//! counts one more for some REP MOVSB; elsewhere figures in instructions have no value, and
//! `raw` has ticks. Prints one JSON object per line: the machine, then each figure (README, "Benches").

mod entry;
mod memory;
mod rig;
mod trace;
mod trip;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{ensure, Context as _, Result};
use clap::Parser;
use serde_json::{json, Value};
use zeroshift_bench::report::{self, Figure};
use zeroshift_tests::vmm;

/// Measure views of a guest's memory: round trips, VM entries, memory.
#[derive(Parser)]
struct Arguments {
    /// File of the module vmfunc_view, which this loads and unloads
    #[arg(long, required_unless_present = "list")]
    module: Option<PathBuf>,
    /// Measure nothing: print the figures that there are, as if none could be measured
    #[arg(long)]
    list: bool,
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

/// How a figure is measured, with the module's file.
type Measure = fn(&Figure, &std::path::Path) -> Result<Value>;

const FIGURES: [(Figure, Measure); 8] = [
    (trip::EXITS, trip::exits),
    (trip::VMFUNCS, trip::vmfuncs),
    (trip::EMPTY, trip::empty),
    (trip::COPY64, trip::copy64),
    (trip::COPY1500, trip::copy1500),
    (entry::UNATTACHED, entry::unattached),
    (entry::ATTACHED, entry::attached),
    (memory::PAGES, memory::pages),
];

/// A figure that cannot be measured is a line like any other: the next ones still are.
fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        for (figure, _) in FIGURES {
            print(&figure.not_measured("not asked for"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let module = arguments.module.as_deref().context("--module")?;
    if let Some(why) = vmm::obstacle() {
        ensure!(false, "guests cannot run here: {why}");
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    print(&json!({"machine": {
        "cpu": report::cpu()?, "cores": std::thread::available_parallelism()?.get(), "kernel": kernel.trim_end(),
    }}))?;
    let mut lines = Vec::new();
    for (figure, measure) in FIGURES {
        let wanted = |part: &String| figure.name.contains(part.as_str());
        if arguments.filter.as_ref().is_none_or(wanted) {
            let line = figure.line(|| measure(&figure, module));
            print(&line)?;
            lines.push(line);
        }
    }
    Ok(report::exit_code(&lines))
}

fn print(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").context("standard output")
}
