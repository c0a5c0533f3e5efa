// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Submission queue entries and what goes into them: NVMe Base 2.1, sections 3.3.3.1 and 5.
//!
//! The common 64-byte command, the admin opcodes, the Identify CNS values, and builders for the
//! commands that a driver of ours sends. Knows no queue: where the entry goes is the caller's.

use super::bytes;

/// Admin command opcodes.
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_IO_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_IO_SQ: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_IO_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_IO_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Namespace Management.
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    /// Firmware Commit.
    pub const FIRMWARE_COMMIT: u8 = 0x10;
    /// Firmware Image Download.
    pub const FIRMWARE_DOWNLOAD: u8 = 0x11;
    /// Namespace Attachment.
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Track Send.
    pub const TRACK_SEND: u8 = 0x3d;
    /// Track Receive.
    pub const TRACK_RECEIVE: u8 = 0x3e;
    /// Migration Send.
    pub const MIGRATION_SEND: u8 = 0x41;
    /// Migration Receive.
    pub const MIGRATION_RECEIVE: u8 = 0x42;
    /// Controller Data Queue.
    pub const CONTROLLER_DATA_QUEUE: u8 = 0x45;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
    /// Format NVM.
    pub const FORMAT_NVM: u8 = 0x80;
}

/// Controller or Namespace Structure (CNS) values of the Identify command.
pub mod cns {
    /// Identify Namespace of the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active Namespace ID list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace Identification Descriptor list.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// I/O Command Set specific Identify Namespace.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// I/O Command Set specific Identify Controller.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// I/O Command Set specific Active Namespace ID list.
    pub const COMMAND_SET_NAMESPACES: u8 = 0x07;
    /// I/O Command Set independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Allocated Namespace ID list: of the NVM subsystem, attached or not.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// Identify Namespace of an allocated namespace, attached or not.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controller list of a namespace: the controllers that it is attached to.
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    /// Controller list of the NVM subsystem.
    pub const CONTROLLER_LIST: u8 = 0x13;
    /// Primary Controller Capabilities.
    pub const PRIMARY_CAPABILITIES: u8 = 0x14;
    /// Secondary Controller list.
    pub const SECONDARY_CONTROLLERS: u8 = 0x15;
    /// UUID list.
    pub const UUID_LIST: u8 = 0x17;
    /// I/O Command Set data structure.
    pub const IO_COMMAND_SETS: u8 = 0x1c;
    /// Supported Controller State Formats.
    pub const CONTROLLER_STATE_FORMATS: u8 = 0x20;
}

/// Log page identifiers (LID) of the Get Log Page command.
pub mod log {
    /// Supported Log Pages.
    pub const SUPPORTED_PAGES: u8 = 0x00;
    /// Error Information.
    pub const ERROR_INFORMATION: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART_HEALTH: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT: u8 = 0x03;
    /// Changed Attached Namespace list.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const COMMAND_EFFECTS: u8 = 0x05;
}

/// Feature identifiers (FID) of the Get Features and Set Features commands.
pub mod feature {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing.
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration.
    pub const INTERRUPT_VECTOR: u8 = 0x09;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0e;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR: u8 = 0x16;
    /// Controller Data Queue.
    pub const CONTROLLER_DATA_QUEUE: u8 = 0x21;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation Notification Mask.
    pub const RESERVATION_NOTIFICATION_MASK: u8 = 0x82;
    /// Reservation Persistence.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
    /// Namespace Write Protection Config.
    pub const NAMESPACE_WRITE_PROTECTION: u8 = 0x84;
}

/// NSID that means every namespace.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// A submission queue entry in the common command format.
///
/// Pointers are PRP entries; a command whose [`Command::psdt`] says SGL has its first descriptor in
/// the same 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Opcode, CDW0 bits 7:0.
    pub opcode: u8,
    /// CDW0 bits 15:8: FUSE in 1:0, PSDT in 7:6.
    pub flags: u8,
    /// Command Identifier, CDW0 bits 31:16.
    pub cid: u16,
    /// Namespace Identifier.
    pub nsid: u32,
    /// Command dword 2.
    pub cdw2: u32,
    /// Command dword 3.
    pub cdw3: u32,
    /// Metadata Pointer.
    pub mptr: u64,
    /// PRP Entry 1.
    pub prp1: u64,
    /// PRP Entry 2.
    pub prp2: u64,
    /// Command dword 10.
    pub cdw10: u32,
    /// Command dword 11.
    pub cdw11: u32,
    /// Command dword 12.
    pub cdw12: u32,
    /// Command dword 13.
    pub cdw13: u32,
    /// Command dword 14.
    pub cdw14: u32,
    /// Command dword 15.
    pub cdw15: u32,
}

impl Command {
    /// Size of an entry in a queue, in bytes.
    pub const SIZE: usize = 64;

    /// Identify with a CNS value and a controller identifier (0 where the CNS does not use it).
    pub const fn identify(cns: u8, controller_id: u16, nsid: u32, prp1: u64) -> Self {
        Self {
            nsid,
            prp1,
            cdw10: cns as u32 | ((controller_id as u32) << 16),
            ..Self::new(admin::IDENTIFY)
        }
    }

    /// Abort of the command `cid` that was submitted to queue `queue`.
    pub const fn abort(queue: u16, cid: u16) -> Self {
        Self {
            cdw10: queue as u32 | ((cid as u32) << 16),
            ..Self::new(admin::ABORT)
        }
    }

    /// A command with nothing but an opcode.
    pub const fn new(opcode: u8) -> Self {
        Self {
            opcode,
            flags: 0,
            cid: 0,
            nsid: 0,
            cdw2: 0,
            cdw3: 0,
            mptr: 0,
            prp1: 0,
            prp2: 0,
            cdw10: 0,
            cdw11: 0,
            cdw12: 0,
            cdw13: 0,
            cdw14: 0,
            cdw15: 0,
        }
    }

    /// Fused Operation (FUSE).
    pub const fn fuse(&self) -> u8 {
        self.flags & 3
    }

    /// PRP or SGL for Data Transfer (PSDT): 0 is PRP.
    pub const fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// Decodes an entry. Every pattern of bits is some command.
    pub fn from_bytes(entry: &[u8; Self::SIZE]) -> Self {
        Self {
            opcode: bytes::u8_at(entry, 0),
            flags: bytes::u8_at(entry, 1),
            cid: bytes::u16_at(entry, 2),
            nsid: bytes::u32_at(entry, 4),
            cdw2: bytes::u32_at(entry, 8),
            cdw3: bytes::u32_at(entry, 12),
            mptr: bytes::u64_at(entry, 16),
            prp1: bytes::u64_at(entry, 24),
            prp2: bytes::u64_at(entry, 32),
            cdw10: bytes::u32_at(entry, 40),
            cdw11: bytes::u32_at(entry, 44),
            cdw12: bytes::u32_at(entry, 48),
            cdw13: bytes::u32_at(entry, 52),
            cdw14: bytes::u32_at(entry, 56),
            cdw15: bytes::u32_at(entry, 60),
        }
    }

    /// Encodes the entry as it goes into a submission queue.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut entry = [0; Self::SIZE];
        bytes::put(&mut entry, 0, &[self.opcode, self.flags]);
        bytes::put(&mut entry, 2, &self.cid.to_le_bytes());
        bytes::put(&mut entry, 4, &self.nsid.to_le_bytes());
        bytes::put(&mut entry, 8, &self.cdw2.to_le_bytes());
        bytes::put(&mut entry, 12, &self.cdw3.to_le_bytes());
        bytes::put(&mut entry, 16, &self.mptr.to_le_bytes());
        bytes::put(&mut entry, 24, &self.prp1.to_le_bytes());
        bytes::put(&mut entry, 32, &self.prp2.to_le_bytes());
        bytes::put(&mut entry, 40, &self.cdw10.to_le_bytes());
        bytes::put(&mut entry, 44, &self.cdw11.to_le_bytes());
        bytes::put(&mut entry, 48, &self.cdw12.to_le_bytes());
        bytes::put(&mut entry, 52, &self.cdw13.to_le_bytes());
        bytes::put(&mut entry, 56, &self.cdw14.to_le_bytes());
        bytes::put(&mut entry, 60, &self.cdw15.to_le_bytes());
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte of the entry differs, so a field read from a wrong place shows.
    fn golden() -> ([u8; 64], Command) {
        let mut entry = [0u8; 64];
        for (i, byte) in entry.iter_mut().enumerate() {
            *byte = 0x40 + i as u8;
        }
        let command = Command {
            opcode: 0x40,
            flags: 0x41,
            cid: 0x4342,
            nsid: 0x4746_4544,
            cdw2: 0x4b4a_4948,
            cdw3: 0x4f4e_4d4c,
            mptr: 0x5756_5554_5352_5150,
            prp1: 0x5f5e_5d5c_5b5a_5958,
            prp2: 0x6766_6564_6362_6160,
            cdw10: 0x6b6a_6968,
            cdw11: 0x6f6e_6d6c,
            cdw12: 0x7372_7170,
            cdw13: 0x7776_7574,
            cdw14: 0x7b7a_7978,
            cdw15: 0x7f7e_7d7c,
        };
        (entry, command)
    }

    #[test]
    fn entry_has_the_common_command_format() {
        let (entry, command) = golden();
        assert_eq!(Command::from_bytes(&entry), command);
        assert_eq!(command.to_bytes(), entry);
        assert_eq!((command.fuse(), command.psdt()), (1, 1));
    }

    #[test]
    fn identify_puts_cns_and_controller_in_dword_10() {
        let entry = Command::identify(cns::CONTROLLER, 0x1234, 0, 0x10_0000).to_bytes();
        let mut expected = [0u8; 64];
        expected[0] = 0x06;
        expected[26] = 0x10;
        expected[40] = 0x01;
        expected[42] = 0x34;
        expected[43] = 0x12;
        assert_eq!(entry, expected);
    }

    #[test]
    fn abort_names_queue_and_command() {
        let command = Command::abort(3, 0xbeef);
        assert_eq!((command.opcode, command.cdw10), (0x08, 0xbeef_0003));
    }
}
