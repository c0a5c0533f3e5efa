// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One repeat of one side of a comparison.

use std::time::Duration;

/// One repeat of one side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) ios: u64,
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
}

impl Sample {
    /// I/Os per second of CPU time.
    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.ios as f64 / self.cpu.as_secs_f64()
    }

    /// I/Os per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.ios as f64 / self.wall.as_secs_f64()
    }
}
