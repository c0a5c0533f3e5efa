// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the control socket needs from a card.
//!
//! The card implements [`ControlTarget`]; tests do with a recorder. Functions are numbered in the
//! order of [`ControlTarget::functions`], which never changes while the card runs.

use serde::Serialize;

use crate::counters::Snapshot;
use crate::faults::{Death, Faults};

/// A card as the control socket sees it. Called from the control thread only; nothing may block
/// for longer than a lock that I/O threads hold for one command.
pub(crate) trait ControlTarget: Send + Sync {
    /// All functions.
    fn functions(&self) -> Vec<FunctionInfo>;
    /// Counters of a function.
    fn counters(&self, function: usize) -> Snapshot;
    /// The fault rules, for the functions in the same order.
    fn faults(&self) -> &Faults;
    /// Lets commands go on that a rule stalls; how many.
    fn release(&self, function: usize) -> u64;
    /// What tracking can do now.
    fn limits(&self) -> Limits;
    /// Changes what tracking can do. They are [consistent](Limits::check); an error says why the
    /// card cannot have them.
    fn set_limits(&self, limits: Limits) -> Result<(), String>;
    /// Rate limit of a function.
    fn rate(&self, function: usize) -> Rate;
    /// Sets the rate limit of a function.
    fn set_rate(&self, function: usize, rate: Rate);
    /// Kills a function, or brings it back as if it had been reset (`None`).
    fn kill(&self, function: usize, death: Option<Death>);
    /// Closes the connection of a function; whether there was one.
    fn disconnect(&self, function: usize) -> bool;
}

/// A function.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct FunctionInfo {
    pub(crate) name: String,
    /// As in the ready line.
    pub(crate) kind: String,
    /// NVMe controller id (CNTLID).
    pub(crate) controller_id: u16,
    /// Whether a client is connected.
    pub(crate) connected: bool,
    /// Whether the controller is ready (CSTS.RDY).
    pub(crate) ready: bool,
    /// Whether the controller is suspended for migration.
    pub(crate) suspended: bool,
    /// How it was killed, if it was.
    pub(crate) dead: Option<Death>,
    /// Commands that a fault rule holds.
    pub(crate) stalled: u64,
    /// Memory ranges whose changes are tracked.
    pub(crate) tracked_ranges: u64,
}

/// Limits of memory tracking, as Identify Controller of the administrative controller shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Limits {
    /// Descriptors of one controller (CMMRTD).
    pub(crate) max_ranges: u16,
    /// Descriptors of the NVM subsystem (NMMRTD).
    pub(crate) max_ranges_subsystem: u16,
    /// Smallest granule, as n of 2^n times 4 KiB (MINMRTG).
    pub(crate) min_granule: u8,
    /// Largest granule, likewise (MAXMRTG).
    pub(crate) max_granule: u8,
}

impl Limits {
    /// Largest granule that a card may claim: 2^9 times 4 KiB, 2 MiB.
    pub(crate) const LARGEST_GRANULE: u8 = 9;

    /// Whether they make sense together.
    pub(crate) fn check(self) -> Result<(), String> {
        let largest = Self::LARGEST_GRANULE;
        if self.max_granule > largest {
            let value = self.max_granule;
            return Err(format!(
                "max_granule: {value} is not allowed; it takes 0 to {largest}, for 4 KiB to 2 MiB"
            ));
        }
        if self.min_granule > self.max_granule {
            let (min, max) = (self.min_granule, self.max_granule);
            return Err(format!(
                "min_granule {min} would be above max_granule {max}"
            ));
        }
        if self.max_ranges > self.max_ranges_subsystem {
            let (one, all) = (self.max_ranges, self.max_ranges_subsystem);
            return Err(format!(
                "max_ranges {one} would be above max_ranges_subsystem {all}"
            ));
        }
        Ok(())
    }
}

/// Rate limit of a function's I/O commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Rate {
    /// Commands per second; 0 is no limit.
    pub(crate) iops: u64,
    /// Bytes of user data per second; 0 is no limit.
    pub(crate) bytes_per_second: u64,
    /// How much an idle function may save up for later, as milliseconds of either rate.
    pub(crate) burst_ms: u32,
}

impl Default for Rate {
    /// No limit, and 10 ms to save up once there is one.
    fn default() -> Self {
        Self {
            iops: 0,
            bytes_per_second: 0,
            burst_ms: 10,
        }
    }
}
