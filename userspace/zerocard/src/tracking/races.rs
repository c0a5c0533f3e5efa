// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A marker and a harvester at the same time: every mark is found, with what was written before
//! it, by the first harvest that begins after it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{DirtyLog, Limits, Range};

const SHIFT: u8 = 12;
/// Each way of getting the order of operations wrong that we tried fails within 5,000.
const BATCHES: u64 = 20_000;

/// Granules that share words, and flags, at every level of the bitmap, so that each level is
/// emptied and filled all the time.
const GRANULES: [u64; 8] = [0, 1, 63, 64, 64 * 64 - 1, 1 << 12, 1 << 18, 1 << 24];

/// The next number of a generator that repeats (xorshift64).
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A value for each of the granules.
type Memory = [AtomicU64; GRANULES.len()];

struct Stage {
    log: DirtyLog,
    memory: Memory,
    /// What a host has copied after harvests.
    copy: Memory,
    /// Times that the harvester has emptied the log.
    harvests: AtomicU64,
    /// Granules that were reported.
    reported: AtomicU64,
    stop: AtomicBool,
}

impl Stage {
    fn harvester(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut more = true;
            while more {
                let mut found = [false; GRANULES.len()];
                more = self.log.harvest(2, &mut |start, count| {
                    let first = start >> SHIFT;
                    let run = first..first + u64::from(count);
                    for (found, granule) in found.iter_mut().zip(GRANULES) {
                        *found |= run.contains(&granule);
                    }
                });
                for slot in (0..GRANULES.len()).filter(|&slot| found[slot]) {
                    let value = self.memory[slot].load(Ordering::Relaxed);
                    self.copy[slot].store(value, Ordering::Relaxed);
                    self.reported.fetch_add(1, Ordering::Relaxed);
                }
            }
            self.harvests.fetch_add(1, Ordering::Release);
        }
    }

    /// Waits for a harvest that begins after the call to end.
    fn wait_for_harvest(&self) {
        // One may be under way.
        let until = self.harvests.load(Ordering::Acquire) + 2;
        let mut turns = 0;
        while self.harvests.load(Ordering::Acquire) < until {
            turns += 1;
            if turns % 1024 == 0 {
                // The harvester may be waiting for this processor.
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }

    /// Writes and marks a few granules at a time, at any moment of a harvest, and looks for them in
    /// the copy.
    fn marker(&self) -> Result<(), String> {
        let mut state = 0x9E37_79B9_7F4A_7C15;
        for batch in 1..=BATCHES {
            for _ in 0..random(&mut state) % 128 {
                std::hint::spin_loop();
            }
            for _ in 0..1 + random(&mut state) % 3 {
                let slot = (random(&mut state) % GRANULES.len() as u64) as usize;
                self.memory[slot].store(batch, Ordering::Relaxed);
                self.log.mark(GRANULES[slot] << SHIFT, 1);
            }
            self.wait_for_harvest();
            let values = |of: &Memory| of.each_ref().map(|value| value.load(Ordering::Relaxed));
            let (copy, memory) = (values(&self.copy), values(&self.memory));
            if copy != memory {
                return Err(format!(
                    "batch {batch}: copied {copy:?}, written {memory:?}"
                ));
            }
        }
        Ok(())
    }
}

#[test]
fn a_harvest_beside_the_marker_loses_nothing() {
    let range = Range {
        start: 0,
        granules: 1 << 25,
    };
    let stage = Stage {
        log: DirtyLog::start(&[range], SHIFT, Limits::default()).unwrap(),
        memory: Memory::default(),
        copy: Memory::default(),
        harvests: AtomicU64::new(0),
        reported: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let result = std::thread::scope(|scope| {
        scope.spawn(|| stage.harvester());
        let result = stage.marker();
        stage.stop.store(true, Ordering::Relaxed);
        result
    });
    assert_eq!(result, Ok(()));
    assert!(stage.log.is_clean());
    // Each batch was reported, and nothing more often than it was marked.
    let reported = stage.reported.load(Ordering::Relaxed);
    assert!((BATCHES..=3 * BATCHES).contains(&reported), "{reported}");
}
