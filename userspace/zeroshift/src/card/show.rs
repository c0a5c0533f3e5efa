// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Answers of a card as text.

use super::client::Client;
use super::replies::{AllCounters, Faults, Functions, Limits, Rates};
use crate::{size, table, WRITING};
use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::Write;

/// Prints the answer to an operation.
pub(super) fn answer(
    operation: &str,
    client: &Client,
    answer: Value,
    output: &mut impl Write,
) -> Result<()> {
    let number = |key: &str| answer.get(key).and_then(Value::as_u64).unwrap_or_default();
    match operation {
        "functions" => functions(&understand(client, answer)?, output),
        "counters" => counters(&understand(client, answer)?, output),
        "faults" => faults(&understand(client, answer)?, output),
        "limits" => limits(&understand(client, answer)?, output),
        "rate" => rates(&understand(client, answer)?, output),
        "fault-add" => writeln!(output, "added fault {}", number("fault")),
        "fault-clear" => writeln!(output, "removed {} faults", number("removed")),
        "release" => writeln!(output, "released {} commands", number("released")),
        "disconnect" => writeln!(output, "closed {} connections", number("disconnected")),
        // Done is done.
        _ => Ok(()),
    }
    .context(WRITING)
}

/// An answer in the form that this program knows.
pub(super) fn understand<T: DeserializeOwned>(client: &Client, answer: Value) -> Result<T> {
    serde_json::from_value(answer).with_context(|| {
        format!(
            "{}: the answer lacks something; zeroshift and zerocard have to be of one version",
            client.socket().display()
        )
    })
}

fn functions(answer: &Functions, output: &mut impl Write) -> std::io::Result<()> {
    let head = [
        "FUNCTION",
        "KIND",
        "ID",
        "CLIENT",
        "STATE",
        "STALLED",
        "TRACKED RANGES",
    ];
    let mut rows = vec![head.map(String::from)];
    rows.extend(answer.functions.iter().map(|function| {
        let state = match (&function.dead, function.suspended, function.ready) {
            (Some(mode), ..) => format!("dead ({mode})"),
            (None, true, _) => "suspended".into(),
            (None, false, true) => "ready".into(),
            (None, false, false) => "disabled".into(),
        };
        [
            function.name.clone(),
            function.kind.clone(),
            function.controller_id.to_string(),
            if function.connected { "yes" } else { "no" }.into(),
            state,
            function.stalled.to_string(),
            function.tracked_ranges.to_string(),
        ]
    }));
    table::write(output, &rows)
}

fn counters(answer: &AllCounters, output: &mut impl Write) -> std::io::Result<()> {
    let head = [
        "FUNCTION",
        "READS",
        "WRITES",
        "OTHERS",
        "ADMIN",
        "ERRORS",
        "BYTES READ",
        "WRITTEN",
        "DIRTY PAGES",
        "TRACKED RANGES",
        "DOORBELLS",
        "POLLS",
        "INTERRUPTS",
        "MEMORY ACCESSES",
        "CONNECTS",
        "RESETS",
        "P50",
        "P99",
    ];
    let mut rows = vec![head.map(String::from)];
    rows.extend(answer.functions.iter().map(|counters| {
        let numbers = [
            counters.reads,
            counters.writes,
            counters.others,
            counters.admin,
            counters.errors,
            counters.bytes_read,
            counters.bytes_written,
            counters.dirty_pages,
            counters.tracked_ranges,
            counters.doorbells,
            counters.polls,
            counters.interrupts,
            counters.memory_accesses,
            counters.connects,
            counters.resets,
        ];
        let mut row: [String; 18] = std::array::from_fn(|_| String::new());
        row[0].clone_from(&counters.function);
        for (cell, number) in row[1..].iter_mut().zip(numbers) {
            *cell = number.to_string();
        }
        row[16] = time(counters.latency.p50_ns);
        row[17] = time(counters.latency.p99_ns);
        row
    }));
    table::write(output, &rows)
}

fn faults(answer: &Faults, output: &mut impl Write) -> std::io::Result<()> {
    if answer.faults.is_empty() {
        return writeln!(output, "no fault rules (seed {})", answer.seed);
    }
    let mut rows = vec![["FAULT", "MATCHED", "FIRED", "RULE"].map(String::from)];
    rows.extend(answer.faults.iter().map(|fault| {
        [
            fault.fault.to_string(),
            fault.matched.to_string(),
            fault.fired.to_string(),
            fault.rule.clone(),
        ]
    }));
    table::write(output, &rows)?;
    writeln!(output, "seed {}", answer.seed)
}

fn limits(answer: &Limits, output: &mut impl Write) -> std::io::Result<()> {
    let granule = |n| format!("{n} ({})", size::bytes(size::granule(n)));
    let rows = [
        ["max ranges".into(), answer.max_ranges.to_string()],
        [
            "of the whole card".into(),
            answer.max_ranges_subsystem.to_string(),
        ],
        ["min granule".into(), granule(answer.min_granule)],
        ["max granule".into(), granule(answer.max_granule)],
    ];
    table::write(output, &rows)
}

fn rates(answer: &Rates, output: &mut impl Write) -> std::io::Result<()> {
    let limit = |value: u64| match value {
        0 => "no limit".into(),
        value => value.to_string(),
    };
    let mut rows = vec![["FUNCTION", "IOPS", "BYTES/S", "BURST"].map(String::from)];
    rows.extend(answer.functions.iter().map(|rate| {
        [
            rate.function.clone(),
            limit(rate.iops),
            limit(rate.bytes_per_second),
            format!("{} ms", rate.burst_ms),
        ]
    }));
    table::write(output, &rows)
}

/// Nanoseconds for people, three digits; `-` for none.
pub(super) fn time(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0 => "-".into(),
        1..=999_999 => digits(value / 1e3, "us"),
        1_000_000..=999_999_999 => digits(value / 1e6, "ms"),
        _ => digits(value / 1e9, "s"),
    }
}

fn digits(value: f64, unit: &str) -> String {
    let decimals = match value {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {unit}")
}
