// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Host Managed Live Migration (TP4159): NVMe Base 2.1, sections 5.1.16, 5.1.17, 5.1.26, 5.1.27
//! and 8.1.12.
//!
//! Owned by nobody: the software card decodes what the driver encodes, and the other way round.
//! Commands come as enums and go as dwords; data structures are written into the caller's buffer
//! and read by iterators. Decoders are total: any bytes give a value or an error.
//!
//! | file | structure |
//! |---|---|
//! | `track_send.rs` | Track Send, Track Memory Changes data structure |
//! | `track_receive.rs` | Track Receive, Tracked Memory Change data structure |
//! | `migration.rs` | Migration Send and Migration Receive |
//! | `state.rs` | Controller State and NVMe Controller State, version 0 |
//! | `formats.rs` | Supported Controller State Formats (Identify CNS 20h) |
//! | `cdq.rs` | what is needed to refuse the Controller Data Queue command |
//!
//! # Resets
//!
//! The *managing* controller (MMC in the specification) sets OACS.HMLMS and processes these
//! commands, a *migratable* controller is their target. A Controller Level Reset of
//!
//! - the managing controller ends every suspension that it was asked for (5.1.17.1.1), stops all
//!   tracking of host memory and deletes its User Data Migration Queues (8.1.12);
//! - a migratable controller ends its own suspension and keeps persistent state that was committed
//!   to it (8.1.12). Nothing says that it stops the tracking of that controller, so a log goes on.
//!
//! Section 5.1.17.1.1 names only Resume and the reset of the managing controller as the end of a
//! suspension; section 8.1.12 adds the reset of the target. Both hold. A reset during Get
//! Controller State costs the image its consistency (5.1.16.1.1).
//!
//! # Misprints of Base 2.1
//!
//! The example in 8.1.12.1 has other SEL values than the tables, 8.1.12 says CNS 21h for 20h, and
//! figure 103 lists Controller Not Suspended for Track Send. The tables of the commands are right.

pub mod cdq;
pub mod formats;
pub mod migration;
pub mod state;
pub mod track_receive;
pub mod track_send;

use super::bytes;
use super::status::Status;

/// Bytes of the smallest granule; granularities are exponents of two over it.
pub const GRANULE: u64 = 4096;

/// Bytes of a granule of 2^`granularity` x 4 KiB; `None` beyond 2^63 bytes, which no valid
/// structure has.
pub const fn granule_bytes(granularity: u16) -> Option<u64> {
    if granularity > 51 {
        return None;
    }
    Some(GRANULE << granularity)
}

/// A structure that came from the other side and is not what the specification allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Byte offset in the structure.
    pub offset: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl Malformed {
    pub(super) const fn new(offset: usize, what: &'static str) -> Self {
        Self { offset, what }
    }
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} at byte {}", self.what, self.offset)
    }
}

impl From<Malformed> for Status {
    /// What a controller answers to a malformed structure from the host.
    fn from(_: Malformed) -> Self {
        Status::INVALID_FIELD
    }
}

/// A range of host memory, in granules of the structure that it stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRange {
    /// Start (SADDR), a host address that is aligned to the granule.
    pub address: u64,
    /// Length (LEN), in granules.
    pub granules: u32,
}

impl MemoryRange {
    /// Length in bytes for a granularity; `None` when the range leaves the 64-bit address space.
    pub const fn bytes(&self, granularity: u16) -> Option<u64> {
        let Some(granule) = granule_bytes(granularity) else {
            return None;
        };
        let Some(bytes) = granule.checked_mul(self.granules as u64) else {
            return None;
        };
        // The last byte must have an address; the end itself may be 2^64.
        if bytes != 0 && self.address.checked_add(bytes - 1).is_none() {
            return None;
        }
        Some(bytes)
    }

    /// Alignment and end, for a descriptor at byte `offset`.
    pub(super) fn validate(self, granularity: u16, offset: usize) -> Result<Self, Malformed> {
        match granule_bytes(granularity) {
            Some(granule) if self.address & granule.wrapping_sub(1) == 0 => {}
            _ => return Err(Malformed::new(offset, "address not aligned to the granule")),
        }
        match self.bytes(granularity) {
            Some(_) => Ok(self),
            None => Err(Malformed::new(offset, "range beyond 2^64")),
        }
    }
}

/// The ranges in a list of descriptors of `size` bytes, each SADDR and LEN first, that begins at byte
/// `offset` of its structure. Ends with the first error; bytes at the end that are no whole
/// descriptor are left alone.
fn ranges(
    list: &[u8],
    size: usize,
    offset: usize,
    granularity: u16,
) -> impl Iterator<Item = Result<MemoryRange, Malformed>> + '_ {
    let mut failed = false;
    list.chunks_exact(size)
        .enumerate()
        .map_while(move |(index, descriptor)| {
            if failed {
                return None;
            }
            let range = MemoryRange {
                address: bytes::u64_at(descriptor, 0),
                granules: bytes::u32_at(descriptor, 8),
            }
            .validate(granularity, offset + index * size);
            failed = range.is_err();
            Some(range)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_are_powers_of_two_of_4_kib() {
        assert_eq!(granule_bytes(0), Some(4096));
        assert_eq!(granule_bytes(8), Some(1 << 20)); // the example of figure 460
        assert_eq!(granule_bytes(51), Some(1 << 63));
        assert_eq!(granule_bytes(52), None);
        assert_eq!(granule_bytes(u16::MAX), None);
    }

    #[test]
    fn a_range_may_end_at_the_top_of_memory_but_not_beyond() {
        let mut range = MemoryRange {
            address: 0xffff_ffff_ffff_f000,
            granules: 1,
        };
        assert_eq!(range.bytes(0), Some(4096));
        range.granules = 2;
        assert_eq!(range.bytes(0), None);
        assert!(range.validate(0, 8).is_err());
        range.granules = 0;
        assert_eq!(range.bytes(0), Some(0));
        assert_eq!(
            range.validate(1, 8),
            Err(Malformed::new(8, "address not aligned to the granule"))
        );
        assert!(range.validate(600, 8).is_err());
        assert_eq!(Status::from(Malformed::new(0, "")), Status::INVALID_FIELD);
    }
}
