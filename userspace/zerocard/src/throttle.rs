// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A limit for log lines that a guest can provoke as often as it likes.
//!
//! Owned by whoever logs. The first line comes at once and then at most one in a second: enough to
//! see what goes on, too little to fill a disk.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(1);

/// When the last line came.
#[derive(Default)]
pub(crate) struct Throttle(Option<Instant>);

impl Throttle {
    /// Whether a line may come now; it counts as come.
    pub(crate) fn ready(&mut self) -> bool {
        self.ready_at(Instant::now())
    }

    fn ready_at(&mut self, now: Instant) -> bool {
        if self.0.is_some_and(|last| now.duration_since(last) < PAUSE) {
            return false;
        }
        self.0 = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_second() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let ready: Vec<bool> = [0, 1, 999, 1000, 1001, 5000]
            .map(|ms| throttle.ready_at(at(ms)))
            .to_vec();
        assert_eq!(ready, [true, false, false, true, false, true]);
    }
}
