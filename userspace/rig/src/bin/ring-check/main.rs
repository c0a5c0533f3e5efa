// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `ring-check`: runs in a guest that is migrated with its disk, and finds memory that was left behind.
//!
//! It writes every block of a region of the device once, then reads random ones into a ring of pages that nothing
//! but the device writes. Each line of its output is one JSON object with `"workload": "ring-check"`; a line `stop`
//! on its input, or SIGTERM, ends it with a full check. It must never write to a page of the ring itself.

mod check;
mod pattern;
mod sys;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context as _, Result};
use clap::Parser;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use serde_json::{json, Value};

use check::{Check, Medium, Plan, Stale};
use pattern::{Page, PAGE};

/// Stale pages that are named; more are counted only.
const NAMED: u64 = 16;
/// Pages of one write while the region is filled.
const SCRATCH: usize = 32;

/// Read a device into pages that only it writes, and check that they keep what they held
#[derive(Parser)]
struct Arguments {
    /// The block device; its content is lost
    #[arg(long)]
    device: PathBuf,
    /// First 4 KiB block of the region
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Blocks of the region
    #[arg(long, default_value_t = 2048)]
    blocks: u64,
    /// Pages of the ring
    #[arg(long, default_value_t = 2048)]
    pages: usize,
    /// Pages that one read fills
    #[arg(long, default_value_t = 4)]
    burst: usize,
    /// Turns of a round, after which every page of the ring is checked
    #[arg(long, default_value_t = 100)]
    turns: u64,
    /// Turns until a block is rewritten with its next generation; 0 for never
    #[arg(long, default_value_t = 4)]
    rewrite_every: u64,
    /// End after that many rounds; else when told to stop
    #[arg(long)]
    rounds: Option<u64>,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The device, past every cache.
struct Device(File);

impl Device {
    fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        // CAST: the flag is a bit of a C int.
        options.custom_flags(OFlags::DIRECT.bits() as i32);
        let file = options.read(true).write(true).open(path);
        file.map(Self)
            .with_context(|| format!("open {} with O_DIRECT", path.display()))
    }
}

impl Medium for Device {
    fn read(&mut self, block: u64, pages: &mut [Page]) -> Result<()> {
        let bytes = pages.as_flattened_mut();
        self.0
            .read_exact_at(bytes, block * PAGE as u64)
            .with_context(|| format!("read block {block}"))
    }

    fn write(&mut self, block: u64, pages: &[Page]) -> Result<()> {
        let bytes = pages.as_flattened();
        self.0
            .write_all_at(bytes, block * PAGE as u64)
            .with_context(|| format!("write block {block}"))
    }
}

/// The word that ends it, from the input or as a signal.
struct Stop {
    signal: Arc<AtomicBool>,
    input: Option<File>,
    said: Vec<u8>,
}

impl Stop {
    fn new() -> Result<Self> {
        let signal = Arc::new(AtomicBool::new(false));
        for number in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::flag::register(number, Arc::clone(&signal))?;
        }
        let input = rustix::io::dup(std::io::stdin()).context("duplicate standard input")?;
        Ok(Self {
            signal,
            input: Some(input.into()),
            said: Vec::new(),
        })
    }

    /// Whether it was said; does not wait.
    fn came(&mut self) -> Result<bool> {
        if self.signal.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let Some(input) = &mut self.input else {
            return Ok(false);
        };
        let mut fds = [PollFd::new(input, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(e) => return Err(e).context("poll standard input"),
        }
        let mut bytes = [0; 256];
        let n = input.read(&mut bytes).context("read standard input")?;
        if n == 0 {
            self.input = None;
            return Ok(false);
        }
        self.said.extend(bytes.iter().take(n));
        let mut came = false;
        while let Some(end) = self.said.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.said.drain(..=end).collect();
            came |= line.trim_ascii() == b"stop";
        }
        Ok(came)
    }
}

fn say(event: &str, mut fields: Value) -> Result<()> {
    if let Value::Object(object) = &mut fields {
        object.insert("workload".into(), "ring-check".into());
        object.insert("event".into(), event.into());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{fields}").context("write to standard output")
}

fn say_stale(stale: Stale) -> Result<()> {
    let event = if stale.just_read { "misread" } else { "stale" };
    say(
        event,
        json!({"page": stale.page, "expected": stale.expected.json(), "found": stale.found.json()}),
    )
}

fn per_second(count: u64, time: Duration) -> u64 {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1000) / ms
}

fn run(arguments: &Arguments) -> Result<bool> {
    ensure!(arguments.turns > 0, "--turns 0: a round needs a turn");
    let plan = Plan {
        first: arguments.first,
        blocks: arguments.blocks,
        burst: arguments.burst,
        rewrite_every: arguments.rewrite_every,
        seed: arguments.seed,
    };
    let mut stop = Stop::new()?;
    let (mut named, mut unsaid) = (0, Ok(()));
    let mut note = |stale: Stale| {
        named += 1;
        if named <= NAMED && unsaid.is_ok() {
            unsaid = say_stale(stale);
        }
    };
    let began = Instant::now();
    let (ring, scratch) = (sys::pages(arguments.pages)?, sys::pages(SCRATCH)?);
    let device = Device::open(&arguments.device)?;
    let mut check = Check::prepare(device, plan, ring, scratch, &mut note)?;
    let frames = sys::frames(check.ring())?;
    ensure!(
        !frames.contains(&0),
        "cannot see where pages are\n=> run it as root (CAP_SYS_ADMIN)"
    );
    let ready = json!({"pages": arguments.pages, "blocks": arguments.blocks, "ms": u64::try_from(began.elapsed().as_millis())?});
    say("ready", ready)?;
    let mut round = 0;
    let mut stopped = false;
    while !stopped && arguments.rounds != Some(round) {
        round += 1;
        let (began, before) = (Instant::now(), check.counts());
        let mut longest = Duration::ZERO;
        for _ in 0..arguments.turns {
            let turn = Instant::now();
            check.turn(&mut note)?;
            longest = longest.max(turn.elapsed());
            if stop.came()? {
                stopped = true;
                break;
            }
        }
        let ios = (check.counts().reads - before.reads) + (check.counts().writes - before.writes);
        let took = began.elapsed();
        check.verify_all(&mut note);
        let now = check.counts();
        let fields = json!({
            "round": round, "checked": now.checked - before.checked, "reads": now.reads - before.reads,
            "stale": now.stale, "misread": now.misread, "iops": per_second(ios, took),
            "longest_ms": u64::try_from(longest.as_millis())?,
        });
        say("round", fields)?;
    }
    let moved = sys::frames(check.ring())?
        .iter()
        .zip(&frames)
        .filter(|(now, then)| now != then)
        .count();
    check.read_back(&mut note)?;
    let now = check.counts();
    // A page that the kernel moved was written by the processor: then this check proves nothing about it.
    let pass = now.stale == 0 && now.misread == 0 && moved == 0;
    let fields = json!({
        "pass": pass, "rounds": round, "turns": now.turns, "checked": now.checked, "reads": now.reads, "writes": now.writes,
        "stale": now.stale, "misread": now.misread, "moved": moved,
    });
    say("summary", fields)?;
    unsaid?;
    Ok(pass)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("ring-check: {e:#}");
            ExitCode::FAILURE
        }
    }
}
