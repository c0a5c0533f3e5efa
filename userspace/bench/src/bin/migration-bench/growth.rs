// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `logsync.growth_dirty`, `logsync.growth_span`: how the time of a report grows with what it has to say, and with
//! the addresses that are tracked.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use serde_json::{json, Value};
use zeroshift_bench::report::{Figure, Goal, Spread};
use zeroshift_tests::vfio::log::{pages_of, range, words, Pages, Range, PAGE};
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig::{function, open, Setup};

use crate::{ACCESS, DRIVER};

/// Ten times the dirty ranges.
pub(crate) const DIRTY: Figure = Figure {
    name: "logsync.growth_dirty",
    unit: "ratio",
    goal: Goal::AtMost(12.0),
};
/// Ten times the tracked addresses.
pub(crate) const SPAN: Figure = Figure {
    name: "logsync.growth_span",
    unit: "ratio",
    goal: Goal::AtMost(1.5),
};

/// What the function writes to: 64 MiB from 4 GiB on.
const TARGET: Range = range(1 << 32, 64 << 20);
/// Dirty ranges: single pages with clean ones between them, in the small and the large case.
const FEW: u64 = 800;
const MANY: u64 = 10 * FEW;
/// Reports of which the fastest counts: whatever else the machine does only makes one slower.
const TRIES: usize = 5;
/// Tracked bytes in the small and the large case; the dirty pages are in the first 64 MiB of both.
const NARROW: Range = range(TARGET.iova, 1 << 30);
const WIDE: Range = range(TARGET.iova, 10 << 30);

/// Time of a report with ten times the dirty ranges, divided by that with them.
pub(crate) fn dirty(address: &str, pairs: u32) -> Result<Value> {
    let small = Case {
        tracked: NARROW,
        ranges: FEW,
    };
    let large = Case {
        tracked: NARROW,
        ranges: MANY,
    };
    compare(&DIRTY, address, pairs, small, large)
}

/// Time of a report over ten times the addresses, with as many dirty ranges, divided by that over them.
pub(crate) fn span(address: &str, pairs: u32) -> Result<Value> {
    let small = Case {
        tracked: NARROW,
        ranges: FEW,
    };
    let large = Case {
        tracked: WIDE,
        ranges: FEW,
    };
    compare(&SPAN, address, pairs, small, large)
}

/// One side.
#[derive(Clone, Copy)]
struct Case {
    tracked: Range,
    ranges: u64,
}

impl Case {
    /// Every other page, and the rest of the target stays clean.
    fn pages(self) -> Pages {
        (0..self.ranges)
            .map(|i| TARGET.iova + 2 * i * PAGE)
            .collect()
    }
}

fn compare(figure: &Figure, address: &str, pairs: u32, small: Case, large: Case) -> Result<Value> {
    let Setup { dma, mut devices } = open(DRIVER, &[&function(address)], ACCESS)?;
    let memory = Memory::new(usize::try_from(TARGET.length)?)?;
    dma.space.map(TARGET.iova, &memory, 0, memory.length())?;
    let wish = Wish {
        entries: 64,
        vector: None,
    };
    let mut nvme = Nvme::start(devices.remove(0), &dma, wish)?;
    let mut ratios = Vec::new();
    let (mut small_us, mut large_us) = (Vec::new(), Vec::new());
    // The first pair warms both sides up; which side comes first changes from turn to turn.
    for turn in 0..=pairs {
        let (one, other) = if turn % 2 == 0 {
            let one = report_time(&mut nvme, small)?;
            (one, report_time(&mut nvme, large)?)
        } else {
            let other = report_time(&mut nvme, large)?;
            (report_time(&mut nvme, small)?, other)
        };
        if turn > 0 {
            ratios.push(other.as_secs_f64() / one.as_secs_f64());
            small_us.push(one.as_secs_f64() * 1e6);
            large_us.push(other.as_secs_f64() * 1e6);
        }
    }
    let raw = json!({
        "small": {"tracked_bytes": small.tracked.length, "ranges": small.ranges, "us": Spread::of(small_us)},
        "large": {"tracked_bytes": large.tracked.length, "ranges": large.ranges, "us": Spread::of(large_us)},
        "pairs": pairs, "tries": TRIES, "ratios": ratios,
    });
    Ok(figure.measured(&Spread::of(ratios), &raw))
}

/// The shortest time of a report over all that is tracked, in a log of its own. Each report has to be right, else
/// this would be the time of something else.
fn report_time(nvme: &mut Nvme<'_>, case: Case) -> Result<Duration> {
    nvme.device.start_log(PAGE, &[case.tracked])?;
    let pages = case.pages();
    let mut shortest = Duration::MAX;
    for _ in 0..TRIES {
        nvme.write_pages(&pages)?;
        let mut bitmap = vec![0; words(case.tracked.length, PAGE)];
        let begin = Instant::now();
        nvme.device.report_into(case.tracked, PAGE, &mut bitmap)?;
        shortest = shortest.min(begin.elapsed());
        let reported = pages_of(&bitmap, case.tracked.iova, PAGE);
        ensure!(
            reported == pages,
            "{} pages are reported, {} were written",
            reported.len(),
            pages.len()
        );
    }
    nvme.device.stop_log()?;
    Ok(shortest)
}
