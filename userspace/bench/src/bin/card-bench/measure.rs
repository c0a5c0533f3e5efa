// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The measurements: two sides in turn, a number of times, and the median of the ratios.
//!
//! What is compared runs in one process's life, on one core, on one file, right after each other: a
//! machine that is slow for a while is slow for both.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{ensure, Context as _, Result};
use serde_json::{json, Value};

use crate::baseline;
use crate::card::Card;
use crate::controller::{Controller, Doorbells, DATA};
use crate::cores::{self, Cores};
use crate::load::{Buffers, Load, BLOCK};
use crate::queue::Queue;
use crate::sample::Sample;
use crate::sys::{CpuClock, Direction, Ram};
use zeroshift_bench::report::{Figure, Goal, Spread};

/// CPU time of random reads.
pub(crate) const READ: Figure = ratio("card.nvme_randread_ratio", Goal::AtLeast(0.6));
/// CPU time of random writes.
pub(crate) const WRITE: Figure = ratio("card.nvme_randwrite_ratio", Goal::AtLeast(0.6));
/// What memory tracking costs.
pub(crate) const TRACKING: Figure = ratio("card.tracking_cost", Goal::AtLeast(0.95));
/// Accesses to guest memory.
pub(crate) const ACCESSES: Figure = ratio("card.accesses", Goal::AtMost(0.5));

const fn ratio(name: &'static str, goal: Goal) -> Figure {
    Figure {
        name,
        unit: "ratio",
        goal,
    }
}

/// Guest RAM of the measured function.
const RAM: usize = 64 << 20;
/// Guest RAM of the administrative controller.
const ADMIN_RAM: usize = 1 << 20;
/// Name and controller id of the measured function.
const FUNCTION: (&str, u16) = ("nvme1", 1);

/// Everything that a measurement needs.
pub(crate) struct Bench<'a> {
    pub(crate) card: &'a Card,
    pub(crate) file: &'a File,
    pub(crate) file_bytes: u64,
    pub(crate) cores: Cores,
    pub(crate) pairs: u32,
    pub(crate) ios: u64,
    pub(crate) depth: u16,
}

/// A controller with its I/O queues.
struct Disk {
    controller: Controller,
    queue: Queue,
}

impl Bench<'_> {
    fn disk(&self, doorbells: Doorbells) -> Result<Disk> {
        let socket = self.card.socket(FUNCTION.0);
        let mut controller = Controller::enable(&socket, RAM)?;
        let queue = controller.io_queue(doorbells)?;
        self.card.pin(self.cores.card)?;
        cores::pin_self(self.cores.client)?;
        Ok(Disk { controller, queue })
    }

    fn load(&self, direction: Direction, buffers: Buffers, seed: u64) -> Load {
        let bytes = self.file_bytes;
        Load::new(direction, self.depth, self.ios, bytes, buffers, seed)
    }

    fn on_card(&self, disk: &mut Disk, mut load: Load) -> Result<Sample> {
        self.sample(self.card.clock()?, || {
            disk.queue.run(&mut disk.controller, &mut load, false)
        })
    }

    /// On the card's core, with the CPU time of this process, whose only busy thread this is.
    fn on_io_uring(&self, ram: &Ram, mut load: Load) -> Result<Sample> {
        cores::pin_self(self.cores.card)?;
        let sample = self.sample(CpuClock::of(0)?, || {
            baseline::run(&mut load, self.file.as_fd(), ram)
        });
        cores::pin_self(self.cores.client)?;
        sample
    }

    fn sample(&self, clock: CpuClock, work: impl FnOnce() -> Result<()>) -> Result<Sample> {
        let (before, start) = (clock.now()?, Instant::now());
        work()?;
        Ok(Sample {
            ios: self.ios,
            wall: start.elapsed(),
            cpu: clock.now()?.saturating_sub(before),
        })
    }

    /// `card.nvme_randread_ratio` and `card.nvme_randwrite_ratio`.
    pub(crate) fn ratio(&self, figure: &Figure, direction: Direction) -> Result<Value> {
        let mut disk = self.disk(Doorbells::Shadow)?;
        let ram = Ram::new(RAM)?;
        let mut pairs = Vec::new();
        // The first pair warms both sides up.
        for seed in 0..=u64::from(self.pairs) {
            let load = self.load(direction, Buffers::PerSlot, seed);
            pairs.push(in_turn(
                seed,
                || self.on_card(&mut disk, load.clone()),
                || self.on_io_uring(&ram, load.clone()),
            )?);
        }
        pairs.remove(0);
        // What was written goes to the medium now, not while something else is measured.
        self.file.sync_data()?;
        let ratios = |(card, raw): &(Sample, Sample)| card.per_cpu_second() / raw.per_cpu_second();
        let values = Spread::of(pairs.iter().map(ratios));
        let raw = json!({
            "card": side(pairs.iter().map(|pair| pair.0)),
            "io_uring": side(pairs.iter().map(|pair| pair.1)),
            "ios": self.ios, "pairs": pairs.len(), "depth": self.depth,
            "ratios": pairs.iter().map(ratios).collect::<Vec<_>>(),
        });
        Ok(figure.measured(&values, &raw))
    }

    /// `card.tracking_cost`: random reads, which make the card write to guest memory, to buffers all
    /// over RAM.
    pub(crate) fn tracking(&self) -> Result<Value> {
        let mut admin = Controller::enable(&self.card.socket("admin"), ADMIN_RAM)?;
        let disk = RefCell::new(self.disk(Doorbells::Shadow)?);
        admin
            .start_tracking(FUNCTION.1, RAM as u64)
            .context("the card does not track memory")?;
        admin.stop_tracking(FUNCTION.1)?;
        let buffers = Buffers::Rotating(RAM as u64 - DATA);
        let mut pairs = Vec::new();
        for seed in 0..=u64::from(self.pairs) {
            let load = self.load(Direction::Read, buffers, seed);
            let on = || {
                // A new log each time: nothing is marked yet.
                admin.start_tracking(FUNCTION.1, RAM as u64)?;
                let before = self.card.counter(FUNCTION.0, "dirty_pages")?;
                let sample = self.on_card(&mut disk.borrow_mut(), load.clone());
                let after = self.card.counter(FUNCTION.0, "dirty_pages")?;
                admin.stop_tracking(FUNCTION.1)?;
                // Else this would be the cost of nothing.
                let marked = after.saturating_sub(before);
                let least = self.ios.min((RAM as u64 - DATA) / u64::from(BLOCK));
                ensure!(marked >= least, "{marked} pages were marked, not {least}");
                sample
            };
            let off = || self.on_card(&mut disk.borrow_mut(), load.clone());
            pairs.push(in_turn(seed, on, off)?);
        }
        pairs.remove(0);
        let ratios = |(on, off): &(Sample, Sample)| on.per_second() / off.per_second();
        let by_cpu = |(on, off): &(Sample, Sample)| on.per_cpu_second() / off.per_cpu_second();
        let values = Spread::of(pairs.iter().map(ratios));
        let raw = json!({
            "on": side(pairs.iter().map(|pair| pair.0)),
            "off": side(pairs.iter().map(|pair| pair.1)),
            "by_cpu_time": Spread::of(pairs.iter().map(by_cpu)),
            "ios": self.ios, "pairs": pairs.len(), "depth": self.depth,
            "ratios": pairs.iter().map(ratios).collect::<Vec<_>>(),
        });
        Ok(TRACKING.measured(&values, &raw))
    }

    /// `card.accesses`: with trapped doorbells, so that the count does not depend on how often the
    /// card looked for work in vain.
    pub(crate) fn accesses(&self) -> Result<Value> {
        self.accesses_so_far().context("the card does not count")?;
        let polled = self.polled_accesses()?;
        let mut disk = self.disk(Doorbells::Trapped)?;
        // A trap takes a message, and a fixed number of commands is enough for a count.
        let ios = self.ios.min(20_000);
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        for seed in 0..u64::from(self.pairs) {
            for (depth, out) in [(1, &mut alone), (self.depth, &mut together)] {
                let buffers = Buffers::PerSlot;
                let direction = Direction::Read;
                let mut load = Load::new(direction, depth, ios, self.file_bytes, buffers, seed);
                let before = self.accesses_so_far()?;
                disk.queue.run(&mut disk.controller, &mut load, true)?;
                let made = self.accesses_so_far()?.wrapping_sub(before);
                out.push(made as f64 / ios as f64);
            }
        }
        let values = Spread::of(together.iter().zip(&alone).map(|(many, one)| many / one));
        let raw = json!({
            "per_request_at_depth": Spread::of(together),
            "per_request_alone": Spread::of(alone),
            "per_request_with_shadow_doorbells": polled,
            "ios": ios, "pairs": self.pairs, "depth": self.depth,
        });
        Ok(ACCESSES.measured(&values, &raw))
    }

    /// Accesses per request with shadow doorbells and the queue kept full, looks at the doorbells
    /// included.
    fn polled_accesses(&self) -> Result<f64> {
        let mut disk = self.disk(Doorbells::Shadow)?;
        let mut load = self.load(Direction::Read, Buffers::PerSlot, 1);
        let before = self.accesses_so_far()?;
        disk.queue.run(&mut disk.controller, &mut load, false)?;
        let made = self.accesses_so_far()?.wrapping_sub(before);
        Ok(made as f64 / self.ios as f64)
    }

    fn accesses_so_far(&self) -> Result<u64> {
        self.card
            .counter(FUNCTION.0, "memory_accesses")
            .context("counters")
    }
}

/// A pair of samples; which of the two comes first changes from turn to turn.
fn in_turn(
    turn: u64,
    one: impl FnOnce() -> Result<Sample>,
    other: impl FnOnce() -> Result<Sample>,
) -> Result<(Sample, Sample)> {
    if turn % 2 == 0 {
        let first = one()?;
        Ok((first, other()?))
    } else {
        let first = other()?;
        Ok((one()?, first))
    }
}

/// One side of a comparison, for the raw numbers.
fn side(samples: impl Iterator<Item = Sample> + Clone) -> Value {
    let whole = |values: Spread| {
        let [median, min, max] = [values.median, values.min, values.max].map(|v| v.round() as u64);
        json!({"median": median, "min": min, "max": max})
    };
    json!({
        "ios_per_cpu_second": whole(Spread::of(samples.clone().map(|s| s.per_cpu_second()))),
        "ios_per_second": whole(Spread::of(samples.clone().map(|s| s.per_second()))),
        "cpu_ms": samples.map(|s| s.cpu.as_millis()).collect::<Vec<_>>(),
    })
}
