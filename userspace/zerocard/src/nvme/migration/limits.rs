// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What memory tracking may cost: descriptors and granules, as Identify Controller shows them.
//!
//! Shared by the administrative controller, which obeys them, and whoever sets them while the card
//! runs. All four are set and read together. Logs that exist are not affected by a change.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::control;

/// Ranges that a host may track by default: 64 functions, each with as many as VFIO takes.
pub(crate) const DEFAULT_RANGES: u16 = 64 * 256;

/// The limits. See the top of the file.
#[derive(Debug)]
pub(crate) struct Limits {
    /// CMMRTD in bits 15:0, NMMRTD 31:16, MINMRTG 39:32, MAXMRTG 47:40.
    packed: AtomicU64,
    /// Bytes of bitmap that one log may have.
    bitmap_bytes: AtomicU64,
}

impl Default for Limits {
    fn default() -> Self {
        let limits = Self {
            packed: AtomicU64::new(0),
            bitmap_bytes: AtomicU64::new(crate::tracking::Limits::default().bitmap_bytes),
        };
        limits.set(control::Limits {
            max_ranges: DEFAULT_RANGES,
            max_ranges_subsystem: DEFAULT_RANGES,
            min_granule: 0,
            max_granule: control::Limits::LARGEST_GRANULE,
        });
        limits
    }
}

impl Limits {
    /// As they are now.
    pub(crate) fn get(&self) -> control::Limits {
        let packed = self.packed.load(Ordering::Relaxed);
        control::Limits {
            max_ranges: packed as u16,
            max_ranges_subsystem: (packed >> 16) as u16,
            min_granule: (packed >> 32) as u8,
            max_granule: (packed >> 40) as u8,
        }
    }

    /// Sets all four, which the caller has found to be consistent.
    pub(crate) fn set(&self, limits: control::Limits) {
        let packed = u64::from(limits.max_ranges)
            | u64::from(limits.max_ranges_subsystem) << 16
            | u64::from(limits.min_granule) << 32
            | u64::from(limits.max_granule) << 40;
        self.packed.store(packed, Ordering::Relaxed);
    }

    /// What one log may cost.
    pub(super) fn log(&self) -> crate::tracking::Limits {
        crate::tracking::Limits {
            bitmap_bytes: self.bitmap_bytes.load(Ordering::Relaxed),
        }
    }

    /// Bytes of bitmap that one log may have.
    #[cfg(test)]
    pub(super) fn set_bitmap_bytes(&self, bytes: u64) {
        self.bitmap_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// Smallest and largest granule as the command line has them: sizes, `4K..2M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granules {
    /// n of 2^n times 4 KiB.
    pub(crate) min: u8,
    /// Likewise.
    pub(crate) max: u8,
}

impl FromStr for Granules {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "granules are MIN..MAX, powers of two from 4K to 2M";
        let exponent = |text: &str| {
            let sizes = ["4K", "8K", "16K", "32K", "64K", "128K", "256K", "512K"];
            let sizes = sizes.iter().chain(&["1M", "2M"]);
            let found = sizes.zip(0..).find(|(size, _)| **size == text);
            found.map(|(_, exponent)| exponent).ok_or(WRONG)
        };
        let (min, max) = text.split_once("..").ok_or(WRONG)?;
        let (min, max) = (exponent(min)?, exponent(max)?);
        if min > max {
            return Err(WRONG);
        }
        Ok(Self { min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_back_as_they_were_set() {
        let limits = Limits::default();
        let some = control::Limits {
            max_ranges: 0xfffe,
            max_ranges_subsystem: 0xffff,
            min_granule: 3,
            max_granule: 9,
        };
        limits.set(some);
        assert_eq!(limits.get(), some);
        assert!(Limits::default().get().check().is_ok());
    }

    #[test]
    fn granules_are_sizes() {
        assert_eq!("4K..2M".parse(), Ok(Granules { min: 0, max: 9 }));
        assert_eq!("64K..64K".parse(), Ok(Granules { min: 4, max: 4 }));
        for bad in ["", "4K", "4K..", "2M..4K", "4K..4M", "4096..2M", "3K..1M"] {
            assert!(bad.parse::<Granules>().is_err(), "{bad:?}");
        }
    }
}
