// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Scatter Gather List descriptors: NVMe Base 2.1, section 4.3.2.
//!
//! Decoding, and the rules that one descriptor has to follow where it stands. Never follows an
//! address: walking segments in the host's memory, and bounding how many, is the caller's work.
//!
//! PSDT in the command ([`super::command::Command::psdt`]) is 0 for PRP, 1 for an SGL with a
//! contiguous metadata buffer, 2 for an SGL with an SGL for metadata; 3 is reserved. The first
//! descriptor stands in bytes 39:24 of the command. Admin commands on PCIe use PRPs only.

use super::bytes;
use super::status::Status;

/// SGL Descriptor Type (SGLDT), bits 7:4 of byte 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 0h: a Data Block; all zeroes is a null descriptor.
    DataBlock,
    /// 1h: a Bit Bucket, data of a read that is not wanted. Nothing in a write.
    BitBucket,
    /// 2h: where the next segment is, which is not the last.
    Segment,
    /// 3h: where the next and last segment is.
    LastSegment,
    /// Keyed and transport data blocks, reserved and vendor specific types: not used on PCIe.
    Other(u8),
}

/// An SGL descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Address (ADDR) of the block or segment; without meaning in a Bit Bucket.
    pub address: u64,
    /// Length (LEN), in bytes.
    pub length: u32,
    /// SGL Descriptor Type.
    pub kind: Kind,
    /// SGL Descriptor Sub Type (SGLDST), bits 3:0 of byte 15; 0 is an address.
    pub sub_type: u8,
}

/// Where a descriptor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the command itself, which has room for this one only.
    Command,
    /// In a segment that a Segment descriptor points to. `end` tells the last one of the segment.
    Segment {
        /// Whether it is the last descriptor of the segment.
        end: bool,
    },
    /// In the segment that a Last Segment descriptor points to.
    LastSegment,
}

impl Descriptor {
    /// Size of a descriptor, in bytes.
    pub const SIZE: usize = 16;

    /// Decodes a descriptor. Every pattern of bits is some descriptor; [`Descriptor::check`] tells
    /// whether it is a good one.
    pub fn from_bytes(descriptor: &[u8; Self::SIZE]) -> Self {
        let identifier = bytes::u8_at(descriptor, 15);
        Self {
            address: bytes::u64_at(descriptor, 0),
            length: bytes::u32_at(descriptor, 8),
            kind: match identifier >> 4 {
                0 => Kind::DataBlock,
                1 => Kind::BitBucket,
                2 => Kind::Segment,
                3 => Kind::LastSegment,
                other => Kind::Other(other),
            },
            sub_type: identifier & 0xf,
        }
    }

    /// The first descriptor of a command, from its data pointer.
    pub fn from_data_pointer(prp1: u64, prp2: u64) -> Self {
        let mut descriptor = [0; Self::SIZE];
        bytes::put(&mut descriptor, 0, &prp1.to_le_bytes());
        bytes::put(&mut descriptor, 8, &prp2.to_le_bytes());
        Self::from_bytes(&descriptor)
    }

    /// Encodes the descriptor.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let kind = match self.kind {
            Kind::DataBlock => 0,
            Kind::BitBucket => 1,
            Kind::Segment => 2,
            Kind::LastSegment => 3,
            Kind::Other(other) => other,
        };
        let mut descriptor = [0; Self::SIZE];
        bytes::put(&mut descriptor, 0, &self.address.to_le_bytes());
        bytes::put(&mut descriptor, 8, &self.length.to_le_bytes());
        bytes::put(&mut descriptor, 15, &[kind << 4 | self.sub_type & 0xf]);
        descriptor
    }

    /// Whether the descriptor points to a segment.
    pub const fn is_link(&self) -> bool {
        matches!(self.kind, Kind::Segment | Kind::LastSegment)
    }

    /// Number of descriptors in the segment that a link points to; 0 for anything else.
    pub const fn linked_descriptors(&self) -> usize {
        if self.is_link() {
            self.length as usize / Self::SIZE
        } else {
            0
        }
    }

    /// Whether this descriptor may stand at `place`.
    ///
    /// # Errors
    ///
    /// The status to complete the command with, in this order:
    ///
    /// - a type other than the four of PCIe, or a sub type other than 0: SGL Descriptor Type
    ///   Invalid (section 4.3.2; sub type 1, an offset, is reserved for PCIe);
    /// - a link in the last segment: Invalid SGL Segment Descriptor;
    /// - a link that is not the last descriptor of its segment: Invalid Number of SGL Descriptors;
    /// - a link with a length of 0 or not a multiple of 16, or an address that is not aligned to 8
    ///   bytes: Invalid SGL Segment Descriptor;
    /// - address plus length beyond 2^64: Data SGL Length Invalid.
    ///
    /// A segment that was not announced as the last one and has no link ends the list all the same:
    /// section 4.3.2 does not make it an error.
    pub fn check(&self, place: Place) -> Result<(), Status> {
        if self.sub_type != 0 || matches!(self.kind, Kind::Other(_)) {
            return Err(Status::SGL_TYPE_INVALID);
        }
        match (place, self.is_link()) {
            (Place::LastSegment, true) => return Err(Status::INVALID_SGL_SEGMENT),
            (Place::Segment { end: false }, true) => return Err(Status::INVALID_SGL_COUNT),
            _ => {}
        }
        if self.is_link() && (self.length == 0 || self.length & 15 != 0 || self.address & 7 != 0) {
            return Err(Status::INVALID_SGL_SEGMENT);
        }
        let past_end = self.length != 0
            && self
                .address
                .checked_add(u64::from(self.length) - 1)
                .is_none();
        if past_end && !matches!(self.kind, Kind::BitBucket) {
            return Err(Status::DATA_SGL_LENGTH_INVALID);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    const BLOCK: Descriptor = Descriptor {
        address: 0x0807_0605_0403_0201,
        length: 0x0c0b_0a09,
        kind: Kind::DataBlock,
        sub_type: 0,
    };
    const LINK: Descriptor = Descriptor {
        address: 0x1000,
        length: 32,
        kind: Kind::Segment,
        sub_type: 0,
    };

    #[test]
    fn descriptor_has_the_layout_of_the_specification() {
        let mut bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0x00];
        assert_eq!(Descriptor::from_bytes(&bytes), BLOCK);
        assert_eq!(BLOCK.to_bytes(), bytes);
        for (identifier, kind) in [
            (0x10, Kind::BitBucket),
            (0x20, Kind::Segment),
            (0x30, Kind::LastSegment),
            (0x40, Kind::Other(4)),
            (0xf0, Kind::Other(15)),
        ] {
            bytes[15] = identifier;
            let descriptor = Descriptor::from_bytes(&bytes);
            assert_eq!(descriptor.kind, kind);
            assert_eq!(descriptor.to_bytes(), bytes);
        }
        let from_command =
            Descriptor::from_data_pointer(0x0807_0605_0403_0201, 0x3000_0000_0c0b_0a09);
        assert_eq!(from_command.kind, Kind::LastSegment);
        assert_eq!(from_command.length, BLOCK.length);
    }

    #[test]
    fn place_decides_what_may_stand_there() {
        let middle = Place::Segment { end: false };
        let end = Place::Segment { end: true };
        let table = [
            (BLOCK, Place::Command, Ok(())),
            (BLOCK, middle, Ok(())),
            (BLOCK, end, Ok(())),
            (BLOCK, Place::LastSegment, Ok(())),
            (LINK, Place::Command, Ok(())),
            (LINK, middle, Err(Status::INVALID_SGL_COUNT)),
            (LINK, end, Ok(())),
            (LINK, Place::LastSegment, Err(Status::INVALID_SGL_SEGMENT)),
        ];
        for (descriptor, place, result) in table {
            assert_eq!(descriptor.check(place), result, "{descriptor:?} {place:?}");
        }
    }

    #[test]
    fn lengths_and_types_are_checked() {
        let at = |descriptor: Descriptor| descriptor.check(Place::Command);
        for length in [0, 8, 17] {
            assert_eq!(
                at(Descriptor { length, ..LINK }),
                Err(Status::INVALID_SGL_SEGMENT)
            );
        }
        let odd = Descriptor {
            address: 0x1004,
            ..LINK
        };
        assert_eq!(at(odd), Err(Status::INVALID_SGL_SEGMENT));
        let sub_type = Descriptor {
            sub_type: 1,
            ..BLOCK
        };
        assert_eq!(at(sub_type), Err(Status::SGL_TYPE_INVALID));
        let keyed = Descriptor {
            kind: Kind::Other(4),
            ..BLOCK
        };
        assert_eq!(at(keyed), Err(Status::SGL_TYPE_INVALID));
        let mut top = Descriptor {
            address: u64::MAX,
            length: 1,
            ..BLOCK
        };
        assert_eq!(at(top), Ok(()));
        top.length = 2;
        assert_eq!(at(top), Err(Status::DATA_SGL_LENGTH_INVALID));
        top.kind = Kind::BitBucket;
        assert_eq!(at(top), Ok(()));
        assert_eq!(
            (LINK.linked_descriptors(), BLOCK.linked_descriptors()),
            (2, 0)
        );
    }

    #[test]
    fn any_bytes_are_a_descriptor_or_an_error() {
        let mut random = Random::new(7);
        let mut bytes = [0; 16];
        for _ in 0..2000 {
            random.fill(&mut bytes);
            let descriptor = Descriptor::from_bytes(&bytes);
            for place in [
                Place::Command,
                Place::Segment { end: false },
                Place::Segment { end: true },
                Place::LastSegment,
            ] {
                if descriptor.check(place).is_ok() && descriptor.is_link() {
                    assert!(descriptor.linked_descriptors() > 0);
                }
            }
        }
    }
}
