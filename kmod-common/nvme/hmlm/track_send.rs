// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Track Send, opcode 3Dh, and the Track Memory Changes data structure: NVMe Base 2.1, section
//! 5.1.27, figures 463 to 471.
//!
//! The command carries no length: the controller reads the header of the data structure first and
//! takes the length of the list from it.
//!
//! What the controller answers to Track Memory Changes, beside the checks of this file (all but
//! the first two bullets for a start only):
//!
//! - Controller Suspended: the target is suspended. Figure 467 makes no difference between start
//!   and stop, so a stop has to wait for Resume as well.
//! - Invalid Controller Identifier: the target is the controller that processes the command.
//! - Invalid Controller Identifier: some controller of the subsystem already tracks the target.
//! - Invalid Field in Command: granularity below MINMRTG or above MAXMRTG; more descriptors than
//!   CMMRTD leaves after those that this controller tracks for other targets, or than NMMRTD leaves
//!   in the subsystem; TRATTR.MRTLL and a length that is not a power of two; an address that is not
//!   aligned, or that is not host memory of the target.
//! - Not Enough Resources, with [`Capability`]: too many descriptors, or too fine a granularity,
//!   for what is free now.
//!
//! Stop of a target that is not tracked is not described; nor is a length of 0.

use super::super::bytes;
use super::super::command::{admin, Command};
use super::super::completion::Completion;
use super::super::status::Status;
use super::{granule_bytes, Malformed, MemoryRange};

/// A Track Send command, by its Select field (SEL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackSend {
    /// SEL 0h: Log User Data Changes.
    LogUserData {
        /// Controller Data Queue Identifier (CDQID), CDW11 bits 15:0.
        queue: u16,
        /// Logging Action (LACT), MOS bits 3:0: start or stop.
        start: bool,
    },
    /// SEL 1h: Track Memory Changes. With `start`, the data buffer holds the ranges; without, it
    /// is ignored.
    TrackMemory {
        /// Controller Identifier (CNTLID) of the target, CDW11 bits 15:0.
        controller: u16,
        /// Tracking Action (TACT), MOS bit 0: start or stop.
        start: bool,
    },
}

impl TrackSend {
    /// Decodes the dwords of `command`, whose opcode the caller knows.
    ///
    /// # Errors
    ///
    /// Invalid Field in Command for a reserved SEL or LACT. Reserved bits are ignored.
    pub const fn from_command(command: &Command) -> Result<Self, Status> {
        let id = command.cdw11 as u16;
        let action = (command.cdw10 >> 16) as u16;
        match (command.cdw10 as u8, action & 0xf) {
            (0, 0 | 1) => Ok(Self::LogUserData {
                queue: id,
                start: action & 1 != 0,
            }),
            (1, _) => Ok(Self::TrackMemory {
                controller: id,
                start: action & 1 != 0,
            }),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The command, with the data structure at `prp1` and `prp2` (0 when there is none).
    pub const fn to_command(self, prp1: u64, prp2: u64) -> Command {
        let (select, id, start) = match self {
            Self::LogUserData { queue, start } => (0, queue, start),
            Self::TrackMemory { controller, start } => (1, controller, start),
        };
        Command {
            prp1,
            prp2,
            cdw10: select | (start as u32) << 16,
            cdw11: id as u32,
            ..Command::new(admin::TRACK_SEND)
        }
    }
}

/// What a controller can track, in the completion of a Track Memory Changes that failed with Not
/// Enough Resources: fall back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Memory Range Tracking Granularity (MRTG), dword 0 bits 15:0: the lowest usable for the list
    /// of ranges that was given, in the unit of RMRTG (exponent over 4 KiB).
    pub granularity: u16,
    /// Number of Memory Range Tracking Descriptors (NMRTD), dword 1: how many can be tracked with
    /// the granularity that was asked for.
    pub descriptors: u32,
}

impl Capability {
    /// From a completion; without meaning unless its status is Not Enough Resources.
    pub const fn from_completion(completion: &Completion) -> Self {
        Self {
            granularity: completion.dw0 as u16,
            descriptors: completion.dw1,
        }
    }

    /// Dwords 0 and 1 of the completion.
    pub const fn to_dwords(self) -> (u32, u32) {
        (self.granularity as u32, self.descriptors)
    }
}

/// Size of the header of the data structure, in bytes.
pub const HEADER: usize = 8;
/// Size of a Memory Range Tracking Descriptor, in bytes. They are packed: every second one is not
/// aligned to its address field.
pub const DESCRIPTOR: usize = 12;

/// Bytes of a data structure with `ranges` descriptors, if a `usize` can tell it.
pub const fn encoded_size(ranges: usize) -> Option<usize> {
    match ranges.checked_mul(DESCRIPTOR) {
        Some(list) => list.checked_add(HEADER),
        None => None,
    }
}

/// Writes a data structure with `ranges` into `buffer` and returns its size in bytes; `None` when
/// it does not fit. The ranges are taken as they are: the caller has aligned them.
pub fn encode(
    buffer: &mut [u8],
    granularity: u8,
    ranges: impl IntoIterator<Item = MemoryRange>,
) -> Option<usize> {
    let mut end = HEADER;
    let mut count = 0u32;
    for range in ranges {
        let descriptor = buffer.get_mut(end..)?.get_mut(..DESCRIPTOR)?;
        bytes::put(descriptor, 0, &range.address.to_le_bytes());
        bytes::put(descriptor, 8, &range.granules.to_le_bytes());
        end = end.checked_add(DESCRIPTOR)?;
        count = count.checked_add(1)?;
    }
    let header = buffer.get_mut(..HEADER)?;
    header.fill(0);
    bytes::put(header, 3, &[granularity]);
    bytes::put(header, 4, &count.to_le_bytes());
    Some(end)
}

/// The header of a Track Memory Changes data structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Requested Memory Range Tracking Granularity (RMRTG): granules of 2^n x 4 KiB.
    pub granularity: u8,
    /// Requested Number of Memory Range Tracking Descriptors (RNMRTD), 1 or more.
    pub descriptors: u32,
}

impl Header {
    /// Decodes the first [`HEADER`] bytes.
    ///
    /// # Errors
    ///
    /// A version other than 0, no descriptor, or a granule beyond 2^63 bytes. Limits of the card
    /// (MINMRTG, CMMRTD and so on) are the caller's to check.
    pub fn decode(header: &[u8; HEADER]) -> Result<Self, Malformed> {
        if bytes::u8_at(header, 0) != 0 {
            return Err(Malformed::new(0, "unknown version"));
        }
        let granularity = bytes::u8_at(header, 3);
        if granule_bytes(u16::from(granularity)).is_none() {
            return Err(Malformed::new(3, "granularity too coarse"));
        }
        let descriptors = bytes::u32_at(header, 4);
        if descriptors == 0 {
            return Err(Malformed::new(4, "no descriptor"));
        }
        Ok(Self {
            granularity,
            descriptors,
        })
    }

    /// Bytes of the list behind the header, at most 48 GiB.
    pub const fn list_bytes(&self) -> u64 {
        self.descriptors as u64 * DESCRIPTOR as u64
    }

    /// The ranges in `list`, the bytes behind the header (any part of them from a descriptor on:
    /// a caller with a small buffer decodes it piece by piece). Ends with the first error; bytes
    /// at the end that are no whole descriptor are left alone.
    pub fn ranges<'a>(
        &self,
        list: &'a [u8],
    ) -> impl Iterator<Item = Result<MemoryRange, Malformed>> + 'a {
        super::ranges(list, DESCRIPTOR, HEADER, self.granularity.into())
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

    /// Figures 468 and 469, granules of 1 MiB.
    const GOLDEN: [u8; 32] = [
        0, 0, 0, 8, 2, 0, 0, 0, // VER, reserved, RMRTG, RNMRTD
        0, 0, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12, // SADDR, LEN
        0, 0, 0x10, 0, 0, 0, 0, 0, 1, 0, 0, 0,
    ];

    #[test]
    fn commands_have_the_dwords_of_the_specification() {
        let start = TrackSend::TrackMemory {
            controller: 0x1234,
            start: true,
        };
        let entry = start.to_command(0x5000, 0).to_bytes();
        let mut expected = [0u8; 64];
        expected[0] = 0x3d;
        expected[25] = 0x50;
        expected[40..48].copy_from_slice(&[1, 0, 1, 0, 0x34, 0x12, 0, 0]);
        assert_eq!(entry, expected);
        for send in [
            start,
            TrackSend::TrackMemory {
                controller: 7,
                start: false,
            },
            TrackSend::LogUserData {
                queue: 9,
                start: true,
            },
        ] {
            assert_eq!(TrackSend::from_command(&send.to_command(0, 0)), Ok(send));
        }
        let mut command = Command::new(admin::TRACK_SEND);
        command.cdw10 = 2;
        assert_eq!(
            TrackSend::from_command(&command),
            Err(Status::INVALID_FIELD)
        );
        command.cdw10 = 0x0002_0000; // LACT 2h
        assert_eq!(
            TrackSend::from_command(&command),
            Err(Status::INVALID_FIELD)
        );
    }

    #[test]
    fn capability_is_in_both_dwords() {
        let completion = Completion {
            dw0: 0xffff_0003,
            dw1: 0x0001_0002,
            ..Completion::default()
        };
        let capability = Capability::from_completion(&completion);
        assert_eq!(
            (capability.granularity, capability.descriptors),
            (3, 0x1_0002)
        );
        assert_eq!(capability.to_dwords(), (3, 0x1_0002));
    }

    #[test]
    fn structure_has_the_layout_of_the_specification() {
        let mut buffer = [0xff; 40];
        assert_eq!(encode(&mut buffer, 8, RANGES), Some(32));
        assert_eq!(buffer[..32], GOLDEN);
        assert_eq!(encoded_size(2), Some(32));
        let (header, list) = GOLDEN.split_first_chunk().unwrap();
        let header = Header::decode(header).unwrap();
        assert_eq!((header.granularity, header.descriptors), (8, 2));
        assert_eq!(header.list_bytes(), 24);
        let ranges: Result<Vec<_>, _> = header.ranges(list).collect();
        assert_eq!(ranges.unwrap(), RANGES);
    }

    #[test]
    fn what_does_not_fit_is_not_written_short() {
        let mut buffer = [0; 31];
        assert_eq!(encode(&mut buffer, 8, RANGES), None);
        assert_eq!(encode(&mut buffer[..7], 8, []), None);
        assert_eq!(encoded_size(usize::MAX), None);
    }

    #[test]
    fn bad_headers_and_ranges_are_errors() {
        let bad = |at: usize, value: u8| {
            let mut header = [0, 0, 0, 8, 2, 0, 0, 0];
            header[at] = value;
            Header::decode(&header).map_err(|error| error.offset)
        };
        assert_eq!(bad(0, 1), Err(0));
        assert_eq!(bad(3, 52), Err(3));
        assert_eq!(bad(4, 0), Err(4));
        assert!(bad(1, 0xff).is_ok());

        let header = Header {
            granularity: 8,
            descriptors: 2,
        };
        let mut list = [0u8; 24];
        list[1] = 0x10; // 4 KiB, in granules of 1 MiB
        list[12..].fill(0xff);
        let ranges: Vec<_> = header.ranges(&list).collect();
        assert_eq!(
            ranges,
            [Err(Malformed::new(8, "address not aligned to the granule"))]
        );
    }

    #[test]
    fn any_bytes_decode_without_panic() {
        let mut random = Random::new(11);
        let mut bytes = [0; 128];
        for _ in 0..2000 {
            random.fill(&mut bytes);
            let end = HEADER + random.below(bytes.len() - HEADER);
            let (header, list) = bytes[..end].split_first_chunk().unwrap();
            if let Ok(header) = Header::decode(header) {
                let errors = header.ranges(list).filter(Result::is_err).count();
                assert!(errors <= 1);
            }
        }
    }
}
