// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bench group `card`: zerocard against raw io_uring, and against itself.
//!
//! Starts a card, drives it as a guest's driver would, over its socket and shared memory, and prints
//! one JSON object per line: the machine, then each figure (README, "Benches"). `cargo xtask bench
//! card` builds and runs it.

mod baseline;
mod card;
mod client;
mod controller;
mod cores;
mod load;
mod machine;
mod measure;
mod queue;
mod sample;
mod sys;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::Value;

use card::Card;
use cores::Cores;
use machine::Machine;
use measure::Bench;
use sys::Direction;
use zeroshift_bench::report::{self, Figure};

/// Measure zerocard: I/Os per second of CPU time against raw io_uring, the cost of tracking, and
/// accesses to guest memory.
#[derive(Parser)]
struct Arguments {
    /// The zerocard program to measure
    #[arg(long)]
    zerocard: PathBuf,
    /// An empty directory for sockets and the file
    #[arg(long)]
    dir: PathBuf,
    /// Size of the file in MiB
    #[arg(long, default_value_t = 256)]
    file_mib: u64,
    /// I/Os of one repeat
    #[arg(long, default_value_t = 200_000)]
    ios: u64,
    /// Repeats of each side
    #[arg(long, default_value_t = 9)]
    pairs: u32,
    /// I/Os in flight
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=64))]
    depth: u16,
    /// Only figures whose name contains this
    filter: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(lines) => report::exit_code(&lines),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the machine and the figures; gives back the latter.
fn run(arguments: &Arguments) -> Result<Vec<Value>> {
    let cores = Cores::choose()?;
    let path = arguments.dir.join("medium");
    make_file(&path, arguments.file_mib << 20)?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let card = Card::start(&arguments.zerocard, &arguments.dir, &path)?;
    print(&serde_json::to_value(Machine::describe(
        &arguments.zerocard,
        &path,
    )?)?)?;
    let bench = Bench {
        card: &card,
        file: &file,
        file_bytes: arguments.file_mib << 20,
        cores,
        pairs: arguments.pairs.max(1),
        ios: arguments.ios.max(1),
        depth: arguments.depth,
    };
    let figures: [(&Figure, &dyn Fn() -> Result<Value>); 4] = [
        (&measure::READ, &|| {
            bench.ratio(&measure::READ, Direction::Read)
        }),
        (&measure::WRITE, &|| {
            bench.ratio(&measure::WRITE, Direction::Write)
        }),
        (&measure::TRACKING, &|| bench.tracking()),
        (&measure::ACCESSES, &|| bench.accesses()),
    ];
    let mut lines = Vec::new();
    for (figure, measure) in figures {
        let wanted = |part: &String| figure.name.contains(part.as_str());
        if arguments.filter.as_ref().is_none_or(wanted) {
            let line = figure.line(measure);
            print(&line)?;
            lines.push(line);
        }
    }
    Ok(lines)
}

fn print(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").context("standard output")
}

/// A file full of data that is on the medium and in the page cache: no I/O allocates blocks, and
/// buffered ones do not wait for the medium.
fn make_file(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create_new(path).with_context(|| format!("make {}", path.display()))?;
    let chunk: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 7) as u8).collect();
    for _ in 0..bytes >> 20 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    let mut chunk = chunk;
    let mut file = File::open(path)?;
    while file.read(&mut chunk)? > 0 {}
    Ok(())
}
