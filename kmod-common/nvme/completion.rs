// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Completion queue entries: NVMe Base 2.1, section 4.2.
//!
//! Sixteen bytes, decoded and encoded. The phase tag travels with the entry; who compares it with
//! what, and in which order the bytes become visible, belongs to the queue.

use super::bytes;
use super::status::Status;

/// Byte offset of the dword that carries cid, phase and status. A reader takes this dword first
/// and the rest only when the phase is right; a writer writes it last.
pub const PHASE_DWORD: usize = 12;

/// A completion queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Command specific dword 0.
    pub dw0: u32,
    /// Command specific dword 1.
    pub dw1: u32,
    /// Submission Queue Head Pointer (SQHD).
    pub sqhd: u16,
    /// Submission Queue Identifier (SQID).
    pub sqid: u16,
    /// Command Identifier.
    pub cid: u16,
    /// Phase Tag (P).
    pub phase: bool,
    /// Status field.
    pub status: Status,
}

impl Completion {
    /// Size of an entry in a queue, in bytes.
    pub const SIZE: usize = 16;

    /// Decodes an entry.
    pub fn from_bytes(entry: &[u8; Self::SIZE]) -> Self {
        let status = bytes::u16_at(entry, 14);
        Self {
            dw0: bytes::u32_at(entry, 0),
            dw1: bytes::u32_at(entry, 4),
            sqhd: bytes::u16_at(entry, 8),
            sqid: bytes::u16_at(entry, 10),
            cid: bytes::u16_at(entry, 12),
            phase: phase_of(status),
            status: Status::from_bits(status >> 1),
        }
    }

    /// Encodes the entry as it goes into a completion queue.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let status = (self.status.bits() << 1) | u16::from(self.phase);
        let mut entry = [0; Self::SIZE];
        bytes::put(&mut entry, 0, &self.dw0.to_le_bytes());
        bytes::put(&mut entry, 4, &self.dw1.to_le_bytes());
        bytes::put(&mut entry, 8, &self.sqhd.to_le_bytes());
        bytes::put(&mut entry, 10, &self.sqid.to_le_bytes());
        bytes::put(&mut entry, 12, &self.cid.to_le_bytes());
        bytes::put(&mut entry, 14, &status.to_le_bytes());
        entry
    }
}

const fn phase_of(status: u16) -> bool {
    status & 1 != 0
}

/// Phase Tag of an entry whose last dword (at [`PHASE_DWORD`]) reads `dword`.
pub const fn phase_of_dword(dword: u32) -> bool {
    phase_of((dword >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_the_layout_of_the_specification() {
        // Status at 15:14 is P bit 0, SC 8:1, SCT 11:9, CRD 13:12, M 14, DNR 15.
        let entry = [
            0x01, 0x02, 0x03, 0x04, 0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x31, 0x32, 0x41, 0x42,
            0x75, 0x82,
        ];
        let completion = Completion {
            dw0: 0x0403_0201,
            dw1: 0x1413_1211,
            sqhd: 0x2221,
            sqid: 0x3231,
            cid: 0x4241,
            phase: true,
            status: Status::CONTROLLER_NOT_SUSPENDED.with_do_not_retry(),
        };
        assert_eq!(Completion::from_bytes(&entry), completion);
        assert_eq!(completion.to_bytes(), entry);
    }

    #[test]
    fn phase_is_bit_16_of_the_last_dword() {
        assert!(phase_of_dword(0x0001_0000));
        assert!(!phase_of_dword(0xfffe_ffff));
        let mut entry = [0u8; 16];
        entry[14] = 1;
        assert!(Completion::from_bytes(&entry).phase);
        assert!(Completion::from_bytes(&entry).status.is_success());
    }
}
