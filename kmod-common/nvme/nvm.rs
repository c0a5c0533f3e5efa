// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Commands of the NVM command set: NVM Command Set 1.1, section 3.3, and the reservation commands
//! of Base 2.1, section 7.
//!
//! Opcodes, the fields of the block commands, and the ranges of Dataset Management. Pure data:
//! whether a reservation or write protection allows a command belongs to the controller.

use super::bytes;
use super::command::Command;

/// Opcodes of I/O commands.
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0c;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release.
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Copy.
    pub const COPY: u8 = 0x19;
}

/// CDW12 bit 31 of block commands: Limited Retry (LR).
pub const LIMITED_RETRY: u32 = 1 << 31;
/// CDW12 bit 30 of block commands: Force Unit Access (FUA).
pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// CDW12 bits 29:26 of block commands: Protection Information Action and Check (PRINFO).
pub const PROTECTION_INFORMATION: u32 = 0xf << 26;
/// CDW12 bit 25 of Write Zeroes: Deallocate (DEAC).
pub const DEALLOCATE: u32 = 1 << 25;
/// CDW12 bit 24 of block commands: Storage Tag Check (STC).
pub const STORAGE_TAG_CHECK: u32 = 1 << 24;
/// CDW12 bit 23 of Write Zeroes: Namespace Zeroes (NSZ), the whole namespace.
pub const NAMESPACE_ZEROES: u32 = 1 << 23;

/// CDW11 bit 2 of Dataset Management: Attribute Deallocate (AD).
pub const DATASET_DEALLOCATE: u32 = 1 << 2;
/// CDW11 bit 1 of Dataset Management: Integral Dataset for Write (IDW), a hint.
pub const DATASET_INTEGRAL_WRITE: u32 = 1 << 1;
/// CDW11 bit 0 of Dataset Management: Integral Dataset for Read (IDR), a hint.
pub const DATASET_INTEGRAL_READ: u32 = 1 << 0;

/// The fields that Read, Write, Compare, Write Zeroes, Write Uncorrectable and Verify share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCommand {
    /// Starting LBA (SLBA): CDW10 low, CDW11 high.
    pub slba: u64,
    /// Number of Logical Blocks, 1 to 65536 (NLB in CDW12 bits 15:0 is 0's based).
    pub blocks: u32,
    /// CDW12 without NLB: bits 31:16, to be tested with the constants of this file.
    pub control: u32,
}

impl BlockCommand {
    /// The fields of `command`. Every pattern of bits is some range.
    pub const fn from_command(command: &Command) -> Self {
        Self {
            slba: command.cdw10 as u64 | (command.cdw11 as u64) << 32,
            blocks: (command.cdw12 & 0xffff) + 1,
            control: command.cdw12 & !0xffff,
        }
    }

    /// A command with these fields; `blocks` outside 1 to 65536 is cut to it.
    pub const fn to_command(self, opcode: u8, nsid: u32) -> Command {
        let nlb = match self.blocks {
            0 => 0,
            1..=0x1_0000 => self.blocks - 1,
            _ => 0xffff,
        };
        Command {
            nsid,
            cdw10: self.slba as u32,
            cdw11: (self.slba >> 32) as u32,
            cdw12: nlb | self.control & !0xffff,
            ..Command::new(opcode)
        }
    }

    /// Whether all blocks are below `nsze`, the size of the namespace in blocks. If not, the status
    /// is LBA Out of Range.
    pub const fn is_inside(&self, nsze: u64) -> bool {
        match self.slba.checked_add(self.blocks as u64) {
            Some(end) => end <= nsze,
            None => false,
        }
    }

    /// Whether the bits of `flag` (one of the CDW12 constants) are all set.
    pub const fn has(&self, flag: u32) -> bool {
        self.control & flag == flag
    }
}

/// Number of ranges of a Dataset Management command, 1 to 256 (NR in CDW10 bits 7:0, 0's based).
pub const fn dataset_ranges(command: &Command) -> usize {
    (command.cdw10 & 0xff) as usize + 1
}

/// A range of Dataset Management.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatasetRange {
    /// Context Attributes (CATTR): hints on how the range is used.
    pub context: u32,
    /// Length in Logical Blocks (LLB), not 0's based; 0 is an empty range.
    pub blocks: u32,
    /// Starting LBA (SLBA).
    pub slba: u64,
}

impl DatasetRange {
    /// Size of a range in the data buffer, in bytes.
    pub const SIZE: usize = 16;

    /// Decodes a range.
    pub fn from_bytes(range: &[u8; Self::SIZE]) -> Self {
        Self {
            context: bytes::u32_at(range, 0),
            blocks: bytes::u32_at(range, 4),
            slba: bytes::u64_at(range, 8),
        }
    }

    /// Encodes the range.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut range = [0; Self::SIZE];
        bytes::put(&mut range, 0, &self.context.to_le_bytes());
        bytes::put(&mut range, 4, &self.blocks.to_le_bytes());
        bytes::put(&mut range, 8, &self.slba.to_le_bytes());
        range
    }

    /// Whether all blocks are below `nsze`, the size of the namespace in blocks.
    pub const fn is_inside(&self, nsze: u64) -> bool {
        match self.slba.checked_add(self.blocks as u64) {
            Some(end) => end <= nsze,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    #[test]
    fn block_command_has_the_dwords_of_the_specification() {
        let command = BlockCommand {
            slba: 0x0807_0605_0403_0201,
            blocks: 0x1_0000,
            control: LIMITED_RETRY | FORCE_UNIT_ACCESS | DEALLOCATE,
        };
        let entry = command.to_command(io::WRITE_ZEROES, 7).to_bytes();
        let mut expected = [0u8; 64];
        expected[0] = 0x08;
        expected[4] = 7;
        expected[40..48].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        expected[48..52].copy_from_slice(&[0xff, 0xff, 0, 0xc2]);
        assert_eq!(entry, expected);
        let command = BlockCommand::from_command(&Command::from_bytes(&entry));
        assert_eq!(
            (command.slba, command.blocks),
            (0x0807_0605_0403_0201, 65536)
        );
        assert!(command.has(FORCE_UNIT_ACCESS) && command.has(DEALLOCATE));
        assert!(!command.has(PROTECTION_INFORMATION) && !command.has(NAMESPACE_ZEROES));
    }

    #[test]
    fn flags_are_at_their_bits() {
        let all = [
            (LIMITED_RETRY, 0x8000_0000),
            (FORCE_UNIT_ACCESS, 0x4000_0000),
            (PROTECTION_INFORMATION, 0x3c00_0000),
            (DEALLOCATE, 0x0200_0000),
            (STORAGE_TAG_CHECK, 0x0100_0000),
            (NAMESPACE_ZEROES, 0x0080_0000),
            (DATASET_DEALLOCATE, 4),
        ];
        for (flag, bits) in all {
            assert_eq!(flag, bits);
        }
    }

    #[test]
    fn a_range_must_end_inside_the_namespace() {
        let mut command = BlockCommand {
            slba: 6,
            blocks: 2,
            control: 0,
        };
        assert!(command.is_inside(8) && !command.is_inside(7));
        command.slba = u64::MAX;
        assert!(!command.is_inside(u64::MAX));
        let range = DatasetRange {
            slba: u64::MAX,
            blocks: 0,
            context: 0,
        };
        assert!(range.is_inside(u64::MAX));
        assert!(!DatasetRange { blocks: 1, ..range }.is_inside(u64::MAX));
    }

    #[test]
    fn dataset_range_has_its_layout() {
        let bytes = [1, 0, 0, 0, 2, 3, 0, 0, 4, 0, 0, 0, 0, 0, 0, 5];
        let range = DatasetRange {
            context: 1,
            blocks: 0x0302,
            slba: 0x0500_0000_0000_0004,
        };
        assert_eq!(DatasetRange::from_bytes(&bytes), range);
        assert_eq!(range.to_bytes(), bytes);
        let mut command = Command::new(io::DATASET_MANAGEMENT);
        command.cdw10 = 0xffff_ffff;
        assert_eq!(dataset_ranges(&command), 256);
    }

    #[test]
    fn any_command_is_some_range_and_survives_the_way_back() {
        let mut random = Random::new(5);
        let mut entry = [0; 64];
        for _ in 0..1000 {
            random.fill(&mut entry);
            let fields = BlockCommand::from_command(&Command::from_bytes(&entry));
            assert!((1..=65536).contains(&fields.blocks));
            let _ = fields.is_inside(random.next());
            let again = BlockCommand::from_command(&fields.to_command(0, 0));
            assert_eq!(again, fields);
        }
    }
}
