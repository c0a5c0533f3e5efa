// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Track Receive, opcode 3Eh, and the Tracked Memory Change data structure: NVMe Base 2.1, section
//! 5.1.26, figures 457 to 462.
//!
//! Reading is destructive: what a successful command returned is no longer in the log. There is
//! no offset, so a report is what fits into one command. The log of a target is complete only in a
//! report with SUSP set and MTR clear; on a running target MTR clear says just that nothing more
//! was there at that moment.
//!
//! The only command specific status is Invalid Controller Identifier, whose text was copied from
//! Track Send; it is the one for a target that is not tracked.

use super::super::bytes;
use super::super::command::{admin, Command};
use super::super::status::Status;
use super::{granule_bytes, Malformed, MemoryRange};

/// A Track Receive command with SEL 0h, Tracked Memory Changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackReceive {
    /// Controller Identifier (CNTLID) of the target, CDW11 bits 15:0.
    pub controller: u16,
    /// Dwords to return, 1 to 2^32 (NUMDL in CDW12 is 0's based).
    pub dwords: u64,
}

impl TrackReceive {
    /// Decodes the dwords of `command`, whose opcode the caller knows.
    ///
    /// # Errors
    ///
    /// Invalid Field in Command for a reserved SEL.
    pub const fn from_command(command: &Command) -> Result<Self, Status> {
        if command.cdw10 as u8 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        Ok(Self {
            controller: command.cdw11 as u16,
            dwords: command.cdw12 as u64 + 1,
        })
    }

    /// The command, for a buffer at `prp1` and `prp2`. `dwords` outside 1 to 2^32 is cut to it.
    pub const fn to_command(self, prp1: u64, prp2: u64) -> Command {
        let numdl = match self.dwords {
            0 => 0,
            1..=0x1_0000_0000 => (self.dwords - 1) as u32,
            _ => u32::MAX,
        };
        Command {
            prp1,
            prp2,
            cdw11: self.controller as u32,
            cdw12: numdl,
            ..Command::new(admin::TRACK_RECEIVE)
        }
    }
}

/// Size of the header of a report, in bytes.
pub const HEADER: usize = 16;
/// Size of a Tracked Memory Changed Descriptor, in bytes.
pub const DESCRIPTOR: usize = 16;

const ATTRB_MTR: u8 = 1 << 0;
const ATTRB_SUSP: u8 = 1 << 1;

/// Writes a report into the buffer of a command, descriptor by descriptor.
pub struct ReportMut<'a> {
    buffer: &'a mut [u8],
    count: u32,
}

impl<'a> ReportMut<'a> {
    /// An empty report in `buffer`; `None` when not even the header fits.
    ///
    /// A report without descriptors cannot say that there is more. So a command without room for
    /// one descriptor, while the log is not empty, has to fail (Invalid Field in Command): answered
    /// with an empty report, a suspended target's log would look complete.
    pub fn new(buffer: &'a mut [u8], controller: u16, granularity: u16) -> Option<Self> {
        let header = buffer.get_mut(..HEADER)?;
        header.fill(0);
        bytes::put(header, 2, &controller.to_le_bytes());
        bytes::put(header, 8, &granularity.to_le_bytes());
        Some(Self { buffer, count: 0 })
    }

    /// How many more descriptors fit.
    pub fn room(&self) -> usize {
        let descriptors = self.buffer.len().saturating_sub(HEADER) / DESCRIPTOR;
        descriptors.saturating_sub(self.count as usize)
    }

    /// Appends `range`, or returns `false` when the buffer is full.
    #[must_use = "a range that did not fit must stay in the log"]
    pub fn push(&mut self, range: MemoryRange) -> bool {
        if self.room() == 0 || self.count == u32::MAX {
            return false;
        }
        let at = self.size();
        bytes::put(self.buffer, at, &range.address.to_le_bytes());
        bytes::put(self.buffer, at + 8, &range.granules.to_le_bytes());
        bytes::put(self.buffer, at + 12, &[0; 4]);
        self.count += 1;
        true
    }

    /// Ends the report and returns its size in bytes. `suspended`: the target was suspended while
    /// the command was processed. `more`: not everything fitted. In a report without descriptors
    /// it goes as clear, as figure 460 demands; see [`ReportMut::new`].
    pub fn finish(self, suspended: bool, more: bool) -> usize {
        let mut attributes = 0;
        if suspended {
            attributes |= ATTRB_SUSP;
        }
        if more && self.count != 0 {
            attributes |= ATTRB_MTR;
        }
        bytes::put(self.buffer, 1, &[attributes]);
        bytes::put(self.buffer, 4, &self.count.to_le_bytes());
        self.size()
    }

    fn size(&self) -> usize {
        // Within the buffer: `push` has checked.
        HEADER + self.count as usize * DESCRIPTOR
    }
}

/// A report as a driver reads it.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// Controller Identifier (CNTLID) of the target.
    pub controller: u16,
    /// Reported Memory Range Granularity (RPMPG): granules of 2^n x 4 KiB.
    pub granularity: u16,
    /// Suspended (SUSP): the target was suspended while the command was processed.
    pub suspended: bool,
    /// More To Report (MTR): another Track Receive returns more.
    pub more: bool,
    list: &'a [u8],
}

impl<'a> Report<'a> {
    /// Decodes the report in `buffer`, which may be longer than the report.
    ///
    /// # Errors
    ///
    /// Less than a header, a version other than 0, a granule beyond 2^63 bytes, more descriptors
    /// than the buffer holds, or MTR without a descriptor (a loop over such reports would not end).
    pub fn decode(buffer: &'a [u8]) -> Result<Self, Malformed> {
        let Some((header, rest)) = buffer.split_first_chunk::<HEADER>() else {
            return Err(Malformed::new(
                buffer.len(),
                "report shorter than its header",
            ));
        };
        if bytes::u8_at(header, 0) != 0 {
            return Err(Malformed::new(0, "unknown version"));
        }
        let attributes = bytes::u8_at(header, 1);
        let granularity = bytes::u16_at(header, 8);
        if granule_bytes(granularity).is_none() {
            return Err(Malformed::new(8, "granularity too coarse"));
        }
        let count = bytes::u32_at(header, 4);
        let more = attributes & ATTRB_MTR != 0;
        if more && count == 0 {
            return Err(Malformed::new(1, "more to report, but nothing reported"));
        }
        let list = (count as usize)
            .checked_mul(DESCRIPTOR)
            .and_then(|size| rest.get(..size));
        let Some(list) = list else {
            return Err(Malformed::new(4, "more descriptors than the buffer holds"));
        };
        Ok(Self {
            controller: bytes::u16_at(header, 2),
            granularity,
            suspended: attributes & ATTRB_SUSP != 0,
            more,
            list,
        })
    }

    /// Whether everything that the target wrote has now been reported, this report included. Stays
    /// so until the target is resumed or its suspension ends.
    pub const fn is_complete(&self) -> bool {
        self.suspended && !self.more
    }

    /// Number of descriptors (NTMCD).
    pub const fn len(&self) -> usize {
        self.list.len() / DESCRIPTOR
    }

    /// Whether there is no descriptor.
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The ranges that were written. Ends with the first error.
    ///
    /// # Errors
    ///
    /// A descriptor that is not aligned to the granule or ends beyond 2^64. The caller must then
    /// take the log as lost: the card has already forgotten the rest.
    pub fn ranges(&self) -> impl Iterator<Item = Result<MemoryRange, Malformed>> + 'a {
        super::ranges(self.list, DESCRIPTOR, HEADER, self.granularity)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::super::random::Random;
    use super::*;
    use std::vec::Vec;

    const RANGES: [MemoryRange; 2] = [
        MemoryRange {
            address: 0x0807_0605_0400_0000,
            granules: 0x0c0b_0a09,
        },
        MemoryRange {
            address: 0x0010_0000,
            granules: 1,
        },
    ];

    /// Figures 460 and 461: suspended, more to report, controller 1234h, granules of 1 MiB.
    const GOLDEN: [u8; 48] = [
        0, 3, 0x34, 0x12, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, // header
        0, 0, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0, // SADDR, LEN, reserved
        0, 0, 0x10, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn command_has_the_dwords_of_the_specification() {
        let receive = TrackReceive {
            controller: 0x1234,
            dwords: 0x400,
        };
        let entry = receive.to_command(0x5000, 0x6000).to_bytes();
        let mut expected = [0u8; 64];
        expected[0] = 0x3e;
        expected[25] = 0x50;
        expected[33] = 0x60;
        expected[44..50].copy_from_slice(&[0x34, 0x12, 0, 0, 0xff, 0x03]);
        assert_eq!(entry, expected);
        let mut command = Command::from_bytes(&entry);
        assert_eq!(TrackReceive::from_command(&command), Ok(receive));
        command.cdw12 = u32::MAX;
        let most = TrackReceive::from_command(&command).unwrap();
        assert_eq!(most.dwords, 1 << 32);
        assert_eq!(most.to_command(0, 0).cdw12, u32::MAX);
        command.cdw10 = 1;
        assert_eq!(
            TrackReceive::from_command(&command),
            Err(Status::INVALID_FIELD)
        );
    }

    #[test]
    fn report_has_the_layout_of_the_specification() {
        let mut buffer = [0xff; 48 + 15];
        let mut report = ReportMut::new(&mut buffer, 0x1234, 8).unwrap();
        assert_eq!(report.room(), 2);
        assert!(report.push(RANGES[0]) && report.push(RANGES[1]));
        assert!(!report.push(RANGES[0]) && report.room() == 0);
        assert_eq!(report.finish(true, true), 48);
        assert_eq!(buffer[..48], GOLDEN);
        assert!(buffer[48..].iter().all(|&byte| byte == 0xff));

        let report = Report::decode(&buffer).unwrap();
        assert_eq!((report.controller, report.granularity), (0x1234, 8));
        assert!(report.suspended && report.more && !report.is_complete());
        assert_eq!((report.len(), report.is_empty()), (2, false));
        let ranges: Result<Vec<_>, _> = report.ranges().collect();
        assert_eq!(ranges.unwrap(), RANGES);
    }

    #[test]
    fn an_empty_report_never_says_more() {
        let mut buffer = [0xff; 16];
        assert!(ReportMut::new(&mut buffer[..15], 1, 0).is_none());
        let report = ReportMut::new(&mut buffer, 1, 0).unwrap();
        assert_eq!(report.finish(true, true), 16);
        assert_eq!(buffer, [0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(Report::decode(&buffer).unwrap().is_complete());
    }

    #[test]
    fn bad_reports_are_errors() {
        let bad = |at: usize, value: u8| {
            let mut report = GOLDEN;
            report[at] = value;
            Report::decode(&report).map(|_| ()).map_err(|e| e.offset)
        };
        assert_eq!(bad(0, 1), Err(0));
        assert_eq!(bad(4, 3), Err(4));
        assert_eq!(bad(7, 0x80), Err(4));
        assert_eq!(bad(4, 0), Err(1));
        assert_eq!(bad(8, 52), Err(8));
        assert_eq!(bad(10, 0xff), Ok(()));
        assert_eq!(Report::decode(&GOLDEN[..15]).unwrap_err().offset, 15);
        let mut unaligned = GOLDEN;
        unaligned[17] = 0x10;
        let ranges: Vec<_> = Report::decode(&unaligned).unwrap().ranges().collect();
        assert_eq!(
            ranges,
            [Err(Malformed::new(
                16,
                "address not aligned to the granule"
            ))]
        );
    }

    #[test]
    fn any_bytes_decode_without_panic() {
        let mut random = Random::new(13);
        let mut bytes = [0; 160];
        for round in 0..4000 {
            if round % 2 == 0 {
                random.fill(&mut bytes);
            } else {
                bytes[..48].copy_from_slice(&GOLDEN);
                random.damage(&mut bytes[..48]);
            }
            let end = random.below(bytes.len());
            if let Ok(report) = Report::decode(&bytes[..end]) {
                assert!(report.len() * DESCRIPTOR + HEADER <= end);
                for range in report.ranges().flatten() {
                    assert!(range.bytes(report.granularity).is_some());
                }
            }
        }
    }
}
