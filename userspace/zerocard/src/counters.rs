// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters of one function: what it did so far, for the control socket and the SMART log.
//!
//! Owned by the function, read by anybody at any time. Each counter has one writing thread at a
//! time (any one of the function's), so counting is a load and a store, not a locked operation;
//! two writers at once would lose counts, never more than that. A reader sees each counter whole,
//! but not all of them at one instant.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds, on the thread that writes this counter. It wraps after 2^64.
    #[inline]
    pub(crate) fn add(&self, amount: u64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(amount), Ordering::Relaxed);
    }

    /// Adds one.
    #[inline]
    pub(crate) fn count(&self) {
        self.add(1);
    }

    /// The value now.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of a function. Those of the I/O thread stand together, away from those of the
/// thread that serves the connection: neither takes the other's cache line.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) io: IoCounters,
    pub(crate) connection: ConnectionCounters,
}

/// Written by the thread that executes the function's commands.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct IoCounters {
    /// Read commands completed, with or without success; so for the other kinds.
    pub(crate) reads: Counter,
    pub(crate) writes: Counter,
    /// I/O commands that are neither.
    pub(crate) others: Counter,
    pub(crate) admin: Counter,
    /// Commands of any kind that completed with an error status.
    pub(crate) errors: Counter,
    /// Bytes of user data that reads gave to the host.
    pub(crate) bytes_read: Counter,
    /// Bytes of user data that writes took from the host.
    pub(crate) bytes_written: Counter,
    /// Polls of the queues that found something to do.
    pub(crate) polls: Counter,
    /// Interrupts raised.
    pub(crate) interrupts: Counter,
    /// Time from fetching an I/O command to posting its completion.
    pub(crate) latency: Histogram,
}

/// Written by the thread that serves the function's connection.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ConnectionCounters {
    /// Doorbells that arrived as trapped register writes.
    pub(crate) doorbells: Counter,
    /// Clients that connected.
    pub(crate) connects: Counter,
    /// Controller level resets.
    pub(crate) resets: Counter,
}

impl Counters {
    /// Everything, as it goes to readers.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let Self { io, connection } = self;
        Snapshot {
            reads: io.reads.get(),
            writes: io.writes.get(),
            others: io.others.get(),
            admin: io.admin.get(),
            errors: io.errors.get(),
            bytes_read: io.bytes_read.get(),
            bytes_written: io.bytes_written.get(),
            doorbells: connection.doorbells.get(),
            polls: io.polls.get(),
            interrupts: io.interrupts.get(),
            // Guest memory counts these itself.
            memory_accesses: 0,
            dirty_pages: 0,
            connects: connection.connects.get(),
            resets: connection.resets.get(),
            latency: io.latency.snapshot(),
        }
    }
}

/// Values of all counters, as in section 8 of `docs/interfaces.md`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) others: u64,
    pub(crate) admin: u64,
    pub(crate) errors: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
    pub(crate) doorbells: u64,
    pub(crate) polls: u64,
    pub(crate) interrupts: u64,
    pub(crate) memory_accesses: u64,
    pub(crate) dirty_pages: u64,
    pub(crate) connects: u64,
    pub(crate) resets: u64,
    pub(crate) latency: Latency,
}

/// The buckets of an octave, as a power of two: a bucket is at most a quarter of its lower end
/// wide.
const SUB_BITS: u32 = 2;
/// Below 2^FIRST nanoseconds (about a microsecond) there is one bucket.
const FIRST: u32 = 10;
/// From 2^LAST nanoseconds (about 17 seconds) on there is one bucket.
const LAST: u32 = 34;
const BUCKETS: usize = ((LAST - FIRST) << SUB_BITS) as usize + 2;

/// How often which time was seen.
#[derive(Debug)]
pub(crate) struct Histogram([Counter; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Histogram {
    /// Counts a time, on the thread that writes this histogram.
    #[inline]
    pub(crate) fn record(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.0.get(bucket_of(nanoseconds)) {
            bucket.count();
        }
    }

    fn snapshot(&self) -> Latency {
        let counted = self.0.iter().map(Counter::get).enumerate();
        Latency::new(
            counted
                .filter(|(_, count)| *count > 0)
                .map(|(bucket, count)| (upper_end(bucket), count))
                .collect(),
        )
    }
}

fn bucket_of(nanoseconds: u64) -> usize {
    match nanoseconds.checked_ilog2() {
        Some(octave @ FIRST..LAST) => {
            let sub = (nanoseconds >> (octave - SUB_BITS)) & ((1 << SUB_BITS) - 1);
            1 + (((octave - FIRST) << SUB_BITS) as usize) + sub as usize
        }
        Some(LAST..) => BUCKETS - 1,
        _ => 0,
    }
}

/// The first value above a bucket; of the last, which has no end, twice its start.
fn upper_end(bucket: usize) -> u64 {
    if bucket + 1 >= BUCKETS {
        return 1 << (LAST + 1);
    }
    let octave = FIRST + (bucket >> SUB_BITS) as u32;
    let sub = (bucket & ((1 << SUB_BITS) - 1)) as u64;
    (1 << octave) + (sub << (octave - SUB_BITS))
}

/// A histogram of times as it goes to readers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    /// Buckets that are not empty, ascending: end of the bucket in nanoseconds (not included, and
    /// where the next begins unless that is empty), and how many.
    pub(crate) buckets: Vec<(u64, u64)>,
}

impl Latency {
    fn new(buckets: Vec<(u64, u64)>) -> Self {
        let count = buckets
            .iter()
            .fold(0u64, |sum, (_, n)| sum.saturating_add(*n));
        let percentile = |per_mille| percentile(&buckets, count, per_mille);
        Self {
            count,
            p50_ns: percentile(500),
            p90_ns: percentile(900),
            p99_ns: percentile(990),
            p999_ns: percentile(999),
            buckets,
        }
    }
}

/// The end of the bucket that the value at `per_mille` is in: at most a quarter above it. 0 when
/// there are no values.
fn percentile(buckets: &[(u64, u64)], count: u64, per_mille: u64) -> u64 {
    let rank = (u128::from(count) * u128::from(per_mille)).div_ceil(1000);
    let mut below = 0u128;
    for (end, n) in buckets {
        below += u128::from(*n);
        if below >= rank {
            return *end;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_are_where_they_are_documented() {
        for (nanoseconds, end) in [
            (0, 1024),
            (1, 1024),
            (1023, 1024),
            (1024, 1280),
            (1279, 1280),
            (1280, 1536),
            (2047, 2048),
            (2048, 2560),
            (1_000_000, 1_048_576),
            ((1 << 34) - 1, 1 << 34),
            (1 << 34, 1 << 35),
            (u64::MAX, 1 << 35),
        ] {
            assert_eq!(upper_end(bucket_of(nanoseconds)), end, "{nanoseconds}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_of_known_values() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot(), Latency::default());
        for _ in 0..98 {
            histogram.record(Duration::from_micros(10));
        }
        histogram.record(Duration::from_millis(1));
        histogram.record(Duration::from_secs(3600));
        let latency = histogram.snapshot();
        assert_eq!(latency.count, 100);
        // 10 us is in 8192..10240 ns, 1 ms in 917504..1048576 ns.
        assert_eq!((latency.p50_ns, latency.p90_ns), (10_240, 10_240));
        assert_eq!(latency.p99_ns, 1_048_576);
        assert_eq!(latency.p999_ns, 1 << 35);
        let buckets = [(10_240, 98), (1_048_576, 1), (1 << 35, 1)];
        assert_eq!(latency.buckets, buckets);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_values_to_a_quarter(nanoseconds in 1024u64..1 << 34) {
            let end = upper_end(bucket_of(nanoseconds));
            prop_assert!(nanoseconds < end && end - nanoseconds <= nanoseconds / 4 + 1);
            prop_assert!(bucket_of(nanoseconds) <= bucket_of(nanoseconds + 1));
        }
    }

    #[test]
    fn a_snapshot_has_every_counter() {
        let counters = Counters::default();
        let Counters { io, connection } = &counters;
        let all = [
            (&io.reads, "reads"),
            (&io.writes, "writes"),
            (&io.others, "others"),
            (&io.admin, "admin"),
            (&io.errors, "errors"),
            (&io.bytes_read, "bytes_read"),
            (&io.bytes_written, "bytes_written"),
            (&connection.doorbells, "doorbells"),
            (&io.polls, "polls"),
            (&io.interrupts, "interrupts"),
            (&connection.connects, "connects"),
            (&connection.resets, "resets"),
        ];
        for ((counter, _), amount) in all.iter().zip(1..) {
            counter.add(amount);
        }
        let value = serde_json::to_value(counters.snapshot()).unwrap();
        for ((_, name), amount) in all.iter().zip(1..) {
            assert_eq!(value[name], amount, "{name}");
        }
        // Guest memory counts these two itself, and the histogram has a test of its own.
        for name in ["memory_accesses", "dirty_pages"] {
            assert_eq!(value[name], 0, "{name}");
        }
        assert_eq!(value.as_object().unwrap().len(), all.len() + 3);
    }
}
