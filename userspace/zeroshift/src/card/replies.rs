// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a card answers, as far as text is made of it. Unknown keys are ignored, as section 8 of
//! `docs/interfaces.md` asks readers to.

use serde::Deserialize;

/// Answer to `functions`.
#[derive(Deserialize)]
pub(super) struct Functions {
    pub(super) functions: Vec<Function>,
}

#[derive(Deserialize)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) controller_id: u16,
    pub(super) connected: bool,
    pub(super) ready: bool,
    pub(super) suspended: bool,
    pub(super) dead: Option<String>,
    pub(super) stalled: u64,
    pub(super) tracked_ranges: u64,
}

/// Answer to `counters`.
#[derive(Deserialize)]
pub(super) struct AllCounters {
    /// When, on a clock of the card's.
    pub(super) clock_ns: u64,
    pub(super) functions: Vec<Counters>,
}

#[derive(Deserialize)]
pub(super) struct Counters {
    pub(super) function: String,
    pub(super) tracked_ranges: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) others: u64,
    pub(super) admin: u64,
    pub(super) errors: u64,
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
    pub(super) doorbells: u64,
    pub(super) polls: u64,
    pub(super) interrupts: u64,
    pub(super) memory_accesses: u64,
    pub(super) dirty_pages: u64,
    pub(super) connects: u64,
    pub(super) resets: u64,
    pub(super) latency: Latency,
}

#[derive(Deserialize)]
pub(super) struct Latency {
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
    /// Ends of buckets in nanoseconds, ascending, and how many values are in each.
    pub(super) buckets: Vec<(u64, u64)>,
}

/// Answer to `faults`.
#[derive(Deserialize)]
pub(super) struct Faults {
    pub(super) seed: u64,
    pub(super) faults: Vec<Fault>,
}

#[derive(Deserialize)]
pub(super) struct Fault {
    pub(super) fault: u64,
    pub(super) rule: String,
    pub(super) matched: u64,
    pub(super) fired: u64,
}

/// Answer to `limits`.
#[derive(Deserialize)]
pub(super) struct Limits {
    pub(super) max_ranges: u16,
    pub(super) max_ranges_subsystem: u16,
    pub(super) min_granule: u8,
    pub(super) max_granule: u8,
}

/// Answer to `rate`.
#[derive(Deserialize)]
pub(super) struct Rates {
    pub(super) functions: Vec<Rate>,
}

#[derive(Deserialize)]
pub(super) struct Rate {
    pub(super) function: String,
    pub(super) iops: u64,
    pub(super) bytes_per_second: u64,
    pub(super) burst_ms: u32,
}
