// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rate limits: commands and bytes per second, with a burst that an idle function saves up.
//!
//! Owned by the controller. Each limit is one point in time (a generic cell rate algorithm): when the
//! commands so far would be over at exactly the rate. A command may start while that is less than the
//! burst ahead of now.

use std::time::{Duration, Instant};

use crate::control::Rate;

/// Both limits of a function.
pub(super) struct Limiter {
    rate: Rate,
    commands: Option<Instant>,
    bytes: Option<Instant>,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new(Rate::default())
    }
}

impl Limiter {
    /// With nothing used up yet.
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            commands: None,
            bytes: None,
        }
    }

    /// The limits.
    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// When the next command may start; `None` is at once.
    pub(super) fn wait(&self, now: Instant) -> Option<Instant> {
        let burst = Duration::from_millis(self.rate.burst_ms.into());
        let used = [self.commands, self.bytes].into_iter().flatten().max()?;
        let start = used.checked_sub(burst).unwrap_or(now);
        (start > now).then_some(start)
    }

    /// A command starts that transfers this many bytes.
    pub(super) fn charge(&mut self, bytes: u64, now: Instant) {
        self.commands = advance(self.commands, 1, self.rate.iops, now);
        self.bytes = advance(self.bytes, bytes, self.rate.bytes_per_second, now);
    }
}

/// The point in time after `amount` more at `rate` per second; `None` without a limit.
fn advance(used: Option<Instant>, amount: u64, rate: u64, now: Instant) -> Option<Instant> {
    const SECOND: u128 = 1_000_000_000;
    let nanoseconds = (u128::from(amount) * SECOND).checked_div(u128::from(rate))?;
    let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
    // An amount that takes longer than time itself is not limited any more.
    used.map_or(now, |used| used.max(now)).checked_add(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(iops: u64, bytes_per_second: u64, burst_ms: u32) -> Limiter {
        Limiter::new(Rate {
            iops,
            bytes_per_second,
            burst_ms,
        })
    }

    /// Commands of `bytes` that start within the first second.
    fn in_one_second(mut limiter: Limiter, bytes: u64) -> u32 {
        let start = Instant::now();
        let mut now = start;
        let mut count = 0;
        while now < start + Duration::from_secs(1) && count < 1_000_000 {
            match limiter.wait(now) {
                Some(later) => now = later,
                None => {
                    limiter.charge(bytes, now);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn commands_and_bytes_keep_their_rates() {
        // The rate, and what 10 ms of it allow in advance.
        assert!((1000..=1012).contains(&in_one_second(limiter(1000, 0, 10), 4096)));
        assert!((100..=103).contains(&in_one_second(limiter(0, 409_600, 10), 4096)));
        assert!((100..=103).contains(&in_one_second(limiter(1000, 409_600, 10), 4096)));
        assert_eq!(in_one_second(limiter(0, 0, 10), 4096), 1_000_000);
    }

    #[test]
    fn idle_time_saves_up_to_the_burst_and_no_more() {
        let mut limiter = limiter(100, 0, 50);
        let mut now = Instant::now();
        for _ in 0..3 {
            let mut count = 0;
            while limiter.wait(now).is_none() {
                limiter.charge(0, now);
                count += 1;
            }
            assert!((5..=6).contains(&count), "{count}");
            now += Duration::from_secs(10);
        }
    }
}
