// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift card top`: rates between two looks at the counters.

use super::client::Client;
use super::options::TopOptions;
use super::replies::{AllCounters, Counters};
use super::show::{time, understand};
use crate::{table, WRITING};
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Map;
use std::io::{self, Write};
use std::time::Duration;

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A table that stays in its place on a terminal.
    Screen,
    /// One table after another.
    Lines,
    /// An object on a line for each look.
    Json,
}

/// Rates of a function.
#[derive(Debug, PartialEq, Serialize)]
struct Rates {
    function: String,
    /// I/O commands per second.
    iops: f64,
    read_bytes_per_second: f64,
    written_bytes_per_second: f64,
    dirty_pages_per_second: f64,
    tracked_ranges: u64,
    errors_per_second: f64,
    /// Of the commands in between; 0 without any.
    p50_ns: u64,
    p99_ns: u64,
}

/// Looks and prints until the card ends or, with `--once`, after the first time.
pub(super) fn run(
    client: &mut Client,
    options: &TopOptions,
    style: Style,
    sleep: impl Fn(Duration),
    output: &mut impl Write,
) -> Result<()> {
    let mut before = look(client)?;
    loop {
        sleep(Duration::from_secs(options.interval));
        let now = look(client)?;
        let rates = between(&before, &now);
        print(&rates, style, output)
            .and_then(|()| output.flush())
            .context(WRITING)?;
        if options.once {
            return Ok(());
        }
        before = now;
    }
}

fn look(client: &mut Client) -> Result<AllCounters> {
    let answer = client.ask("counters", Map::new())?;
    understand(client, answer)
}

fn between(before: &AllCounters, now: &AllCounters) -> Vec<Rates> {
    let nanoseconds = now.clock_ns.saturating_sub(before.clock_ns).max(1);
    let seconds = nanoseconds as f64 / 1e9;
    let find = |name: &str| before.functions.iter().find(|known| known.function == name);
    let rates = now.functions.iter().filter_map(|now| {
        let before = find(&now.function)?;
        let rate =
            |count: fn(&Counters) -> u64| count(now).saturating_sub(count(before)) as f64 / seconds;
        let buckets = subtract(&now.latency.buckets, &before.latency.buckets);
        Some(Rates {
            function: now.function.clone(),
            iops: rate(|c| c.reads.saturating_add(c.writes).saturating_add(c.others)),
            read_bytes_per_second: rate(|c| c.bytes_read),
            written_bytes_per_second: rate(|c| c.bytes_written),
            dirty_pages_per_second: rate(|c| c.dirty_pages),
            tracked_ranges: now.tracked_ranges,
            errors_per_second: rate(|c| c.errors),
            p50_ns: percentile(&buckets, 50),
            p99_ns: percentile(&buckets, 99),
        })
    });
    rates.collect()
}

/// What came to each bucket.
fn subtract(now: &[(u64, u64)], before: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let old = |end| {
        before
            .iter()
            .find(|known| known.0 == end)
            .map_or(0, |known| known.1)
    };
    now.iter()
        .map(|&(end, count)| (end, count.saturating_sub(old(end))))
        .collect()
}

/// End of the bucket in which the value at a percentage is; 0 without values.
fn percentile(buckets: &[(u64, u64)], percent: u128) -> u64 {
    let total: u128 = buckets.iter().map(|(_, count)| u128::from(*count)).sum();
    let rank = (total * percent).div_ceil(100).max(1);
    let mut below = 0;
    for (end, count) in buckets {
        below += u128::from(*count);
        if below >= rank {
            return *end;
        }
    }
    0
}

fn print(rates: &[Rates], style: Style, output: &mut impl Write) -> io::Result<()> {
    if style == Style::Json {
        let line = serde_json::json!({"functions": rates});
        return writeln!(output, "{line}");
    }
    let head = [
        "FUNCTION",
        "IOPS",
        "READ MB/S",
        "WRITE MB/S",
        "DIRTY PAGES/S",
        "TRACKED RANGES",
        "ERRORS/S",
        "P50",
        "P99",
    ];
    let mut rows = vec![head.map(String::from)];
    rows.extend(rates.iter().map(|rates| {
        [
            rates.function.clone(),
            format!("{:.0}", rates.iops),
            format!("{:.1}", rates.read_bytes_per_second / 1e6),
            format!("{:.1}", rates.written_bytes_per_second / 1e6),
            format!("{:.0}", rates.dirty_pages_per_second),
            rates.tracked_ranges.to_string(),
            format!("{:.0}", rates.errors_per_second),
            time(rates.p50_ns),
            time(rates.p99_ns),
        ]
    }));
    if style == Style::Lines {
        return table::write(output, &rows);
    }
    let mut screen = Vec::new();
    table::write(&mut screen, &rows)?;
    // From the top, each line cleared to its end and then what is below: nothing flickers.
    output.write_all(b"\x1b[H")?;
    for line in screen.split_inclusive(|byte| *byte == b'\n') {
        output.write_all(line.trim_ascii_end())?;
        output.write_all(b"\x1b[K\n")?;
    }
    output.write_all(b"\x1b[J")
}
