// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The status field of a completion entry: NVMe Base 2.1, section 4.2.3.
//!
//! Status code type, status code and flags as one 15-bit value, with the names of the codes that
//! this project sends or meets. Decides nothing: whether to retry is the caller's business.

use core::fmt;

/// Status code type 0: generic command status.
pub const GENERIC: u8 = 0;
/// Status code type 1: command specific status.
pub const COMMAND_SPECIFIC: u8 = 1;
/// Status code type 2: media and data integrity errors.
pub const MEDIA: u8 = 2;
/// Status code type 3: path related status.
pub const PATH: u8 = 3;
/// Status code type 7: vendor specific.
pub const VENDOR: u8 = 7;

/// Status field of a completion: SC in bits 7:0, SCT 10:8, CRD 12:11, More 13, Do Not Retry 14.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Status(u16);

impl Status {
    const MORE: u16 = 1 << 13;
    const DO_NOT_RETRY: u16 = 1 << 14;

    /// A status of a code type (3 bits) and a code, without flags.
    pub const fn new(code_type: u8, code: u8) -> Self {
        Self(((code_type as u16 & 7) << 8) | code as u16)
    }

    /// From the 15 bits of a completion entry (bits 31:17 of its last dword, shifted down).
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7fff)
    }

    /// The 15 bits as they go into a completion entry.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Status Code (SC).
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Status Code Type (SCT).
    pub const fn code_type(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Command Retry Delay (CRD): 0 none, else which of CRDT1..3 of Identify Controller.
    pub const fn retry_delay(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }

    /// More (M): the Error Information log page tells more.
    pub const fn more(self) -> bool {
        self.0 & Self::MORE != 0
    }

    /// Do Not Retry (DNR): the same command would fail again.
    pub const fn do_not_retry(self) -> bool {
        self.0 & Self::DO_NOT_RETRY != 0
    }

    /// The same status with Do Not Retry set.
    pub const fn with_do_not_retry(self) -> Self {
        Self(self.0 | Self::DO_NOT_RETRY)
    }

    /// The same status with More set.
    pub const fn with_more(self) -> Self {
        Self(self.0 | Self::MORE)
    }

    /// Code type and code without the flags: what to compare with the constants.
    pub const fn without_flags(self) -> Self {
        Self(self.0 & 0x7ff)
    }

    /// Whether the command succeeded.
    pub const fn is_success(self) -> bool {
        self.without_flags().0 == 0
    }

    /// Whether this is `other`, whatever the flags say.
    pub const fn is(self, other: Status) -> bool {
        self.without_flags().0 == other.without_flags().0
    }

    /// `Ok` for success, else the status itself.
    pub const fn result(self) -> Result<(), Status> {
        if self.is_success() {
            Ok(())
        } else {
            Err(self)
        }
    }
}

macro_rules! statuses {
    ($($name:ident = $code_type:ident, $code:literal, $text:literal;)*) => {
        impl Status {
            $(#[doc = $text] pub const $name: Status = Status::new($code_type, $code);)*

            /// What the specification calls this status; `None` for a code that is not listed here.
            pub const fn text(self) -> Option<&'static str> {
                match (self.code_type(), self.code()) {
                    $(($code_type, $code) => Some($text),)*
                    _ => None,
                }
            }
        }

        #[cfg(test)]
        const ALL: &[Status] = &[$(Status::$name),*];
    };
}

statuses! {
    SUCCESS = GENERIC, 0x00, "Successful Completion";
    INVALID_COMMAND_OPCODE = GENERIC, 0x01, "Invalid Command Opcode";
    INVALID_FIELD = GENERIC, 0x02, "Invalid Field in Command";
    COMMAND_ID_CONFLICT = GENERIC, 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = GENERIC, 0x04, "Data Transfer Error";
    ABORTED_POWER_LOSS = GENERIC, 0x05, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = GENERIC, 0x06, "Internal Error";
    ABORT_REQUESTED = GENERIC, 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = GENERIC, 0x08, "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = GENERIC, 0x09, "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = GENERIC, 0x0a, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE = GENERIC, 0x0b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = GENERIC, 0x0c, "Command Sequence Error";
    INVALID_SGL_SEGMENT = GENERIC, 0x0d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = GENERIC, 0x0e, "Invalid Number of SGL Descriptors";
    DATA_SGL_LENGTH_INVALID = GENERIC, 0x0f, "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = GENERIC, 0x10, "Metadata SGL Length Invalid";
    SGL_TYPE_INVALID = GENERIC, 0x11, "SGL Descriptor Type Invalid";
    CONTROLLER_MEMORY_BUFFER_USE = GENERIC, 0x12, "Invalid Use of Controller Memory Buffer";
    PRP_OFFSET_INVALID = GENERIC, 0x13, "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = GENERIC, 0x14, "Atomic Write Unit Exceeded";
    OPERATION_DENIED = GENERIC, 0x15, "Operation Denied";
    SGL_OFFSET_INVALID = GENERIC, 0x16, "SGL Offset Invalid";
    HOST_IDENTIFIER_INCONSISTENT = GENERIC, 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = GENERIC, 0x19, "Keep Alive Timeout Expired";
    KEEP_ALIVE_INVALID = GENERIC, 0x1a, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT = GENERIC, 0x1b, "Command Aborted due to Preempt and Abort";
    SGL_GRANULARITY_INVALID = GENERIC, 0x1e, "SGL Data Block Granularity Invalid";
    NAMESPACE_WRITE_PROTECTED = GENERIC, 0x20, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = GENERIC, 0x21, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = GENERIC, 0x22, "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = GENERIC, 0x23, "Command Prohibited by Command and Feature Lockdown";
    MEDIA_NOT_READY = GENERIC, 0x24, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = GENERIC, 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = GENERIC, 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = GENERIC, 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = GENERIC, 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = GENERIC, 0x84, "Format in Progress";
    COMPLETION_QUEUE_INVALID = COMMAND_SPECIFIC, 0x00, "Completion Queue Invalid";
    INVALID_QUEUE_IDENTIFIER = COMMAND_SPECIFIC, 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = COMMAND_SPECIFIC, 0x02, "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = COMMAND_SPECIFIC, 0x03, "Abort Command Limit Exceeded";
    ASYNC_EVENT_LIMIT_EXCEEDED = COMMAND_SPECIFIC, 0x05,
        "Asynchronous Event Request Limit Exceeded";
    INVALID_FIRMWARE_SLOT = COMMAND_SPECIFIC, 0x06, "Invalid Firmware Slot";
    INVALID_FIRMWARE_IMAGE = COMMAND_SPECIFIC, 0x07, "Invalid Firmware Image";
    INVALID_INTERRUPT_VECTOR = COMMAND_SPECIFIC, 0x08, "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = COMMAND_SPECIFIC, 0x09, "Invalid Log Page";
    INVALID_FORMAT = COMMAND_SPECIFIC, 0x0a, "Invalid Format";
    INVALID_QUEUE_DELETION = COMMAND_SPECIFIC, 0x0c, "Invalid Queue Deletion";
    FEATURE_NOT_SAVEABLE = COMMAND_SPECIFIC, 0x0d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = COMMAND_SPECIFIC, 0x0e, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = COMMAND_SPECIFIC, 0x0f, "Feature Not Namespace Specific";
    NAMESPACE_IDENTIFIER_UNAVAILABLE = COMMAND_SPECIFIC, 0x16, "Namespace Identifier Unavailable";
    NAMESPACE_ALREADY_ATTACHED = COMMAND_SPECIFIC, 0x18, "Namespace Already Attached";
    NAMESPACE_IS_PRIVATE = COMMAND_SPECIFIC, 0x19, "Namespace Is Private";
    NAMESPACE_NOT_ATTACHED = COMMAND_SPECIFIC, 0x1a, "Namespace Not Attached";
    CONTROLLER_LIST_INVALID = COMMAND_SPECIFIC, 0x1c, "Controller List Invalid";
    INVALID_CONTROLLER_IDENTIFIER = COMMAND_SPECIFIC, 0x1f, "Invalid Controller Identifier";
    COMMAND_SET_NOT_SUPPORTED = COMMAND_SPECIFIC, 0x29, "I/O Command Set Not Supported";
    COMMAND_SET_COMBINATION_REJECTED = COMMAND_SPECIFIC, 0x2b,
        "I/O Command Set Combination Rejected";
    INVALID_COMMAND_SET = COMMAND_SPECIFIC, 0x2c, "Invalid I/O Command Set";
    INVALID_CONTROLLER_DATA_QUEUE = COMMAND_SPECIFIC, 0x37, "Invalid Controller Data Queue";
    NOT_ENOUGH_RESOURCES = COMMAND_SPECIFIC, 0x38, "Not Enough Resources";
    CONTROLLER_SUSPENDED = COMMAND_SPECIFIC, 0x39, "Controller Suspended";
    CONTROLLER_NOT_SUSPENDED = COMMAND_SPECIFIC, 0x3a, "Controller Not Suspended";
    CONTROLLER_DATA_QUEUE_FULL = COMMAND_SPECIFIC, 0x3b, "Controller Data Queue Full";
    CONFLICTING_ATTRIBUTES = COMMAND_SPECIFIC, 0x80, "Conflicting Attributes";
    INVALID_PROTECTION_INFORMATION = COMMAND_SPECIFIC, 0x81, "Invalid Protection Information";
    WRITE_TO_READ_ONLY_RANGE = COMMAND_SPECIFIC, 0x82, "Attempted Write to Read Only Range";
    WRITE_FAULT = MEDIA, 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = MEDIA, 0x81, "Unrecovered Read Error";
    COMPARE_FAILURE = MEDIA, 0x85, "Compare Failure";
    ACCESS_DENIED = MEDIA, 0x86, "Access Denied";
    UNWRITTEN_BLOCK = MEDIA, 0x87, "Deallocated or Unwritten Logical Block";
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text)?,
            None => f.write_str("unknown status")?,
        }
        write!(f, " (SCT {:x}h SC {:02x}h", self.code_type(), self.code())?;
        if self.do_not_retry() {
            f.write_str(", do not retry")?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::BTreeSet;
    use std::string::ToString;

    #[test]
    fn fields_are_where_the_layout_has_them() {
        let status = Status::from_bits(0xffff);
        assert_eq!(status.bits(), 0x7fff);
        let status = Status::from_bits(1 << 14 | 1 << 13 | 2 << 11 | 1 << 8 | 0x3a);
        assert!(status.do_not_retry() && status.more());
        assert_eq!(
            (status.retry_delay(), status.code_type(), status.code()),
            (2, 1, 0x3a)
        );
        assert!(status.is(Status::CONTROLLER_NOT_SUSPENDED) && !status.is_success());
        assert_eq!(Status::INVALID_FIELD.with_do_not_retry().bits(), 0x4002);
    }

    #[test]
    fn live_migration_codes_have_their_numbers() {
        let wire = [
            (Status::COMMAND_SEQUENCE_ERROR, 0x00c),
            (Status::INVALID_CONTROLLER_IDENTIFIER, 0x11f),
            (Status::INVALID_CONTROLLER_DATA_QUEUE, 0x137),
            (Status::NOT_ENOUGH_RESOURCES, 0x138),
            (Status::CONTROLLER_SUSPENDED, 0x139),
            (Status::CONTROLLER_NOT_SUSPENDED, 0x13a),
            (Status::CONTROLLER_DATA_QUEUE_FULL, 0x13b),
        ];
        for (status, bits) in wire {
            assert_eq!(status.bits(), bits);
        }
    }

    #[test]
    fn data_path_codes_have_their_numbers() {
        let wire = [
            (Status::ABORTED_FAILED_FUSED, 0x009),
            (Status::ABORTED_MISSING_FUSED, 0x00a),
            (Status::INVALID_SGL_SEGMENT, 0x00d),
            (Status::INVALID_SGL_COUNT, 0x00e),
            (Status::DATA_SGL_LENGTH_INVALID, 0x00f),
            (Status::SGL_TYPE_INVALID, 0x011),
            (Status::PRP_OFFSET_INVALID, 0x013),
            (Status::ATOMIC_WRITE_UNIT_EXCEEDED, 0x014),
            (Status::SGL_GRANULARITY_INVALID, 0x01e),
            (Status::NAMESPACE_WRITE_PROTECTED, 0x020),
            (Status::LBA_OUT_OF_RANGE, 0x080),
            (Status::CAPACITY_EXCEEDED, 0x081),
            (Status::NAMESPACE_NOT_READY, 0x082),
            (Status::RESERVATION_CONFLICT, 0x083),
            (Status::FORMAT_IN_PROGRESS, 0x084),
            (Status::COMPLETION_QUEUE_INVALID, 0x100),
            (Status::INVALID_QUEUE_IDENTIFIER, 0x101),
            (Status::INVALID_QUEUE_SIZE, 0x102),
            (Status::INVALID_INTERRUPT_VECTOR, 0x108),
            (Status::INVALID_FORMAT, 0x10a),
            (Status::INVALID_QUEUE_DELETION, 0x10c),
            (Status::FEATURE_NOT_CHANGEABLE, 0x10e),
            (Status::FEATURE_NOT_NAMESPACE_SPECIFIC, 0x10f),
            (Status::INVALID_COMMAND_SET, 0x12c),
            (Status::CONFLICTING_ATTRIBUTES, 0x180),
            (Status::WRITE_TO_READ_ONLY_RANGE, 0x182),
            (Status::COMPARE_FAILURE, 0x285),
            (Status::ACCESS_DENIED, 0x286),
        ];
        for (status, bits) in wire {
            assert_eq!(status.bits(), bits, "{status}");
        }
    }

    #[test]
    fn names_are_distinct_and_success_is_unique() {
        let bits: BTreeSet<u16> = ALL.iter().map(|s| s.bits()).collect();
        assert_eq!(bits.len(), ALL.len());
        assert_eq!(ALL.iter().filter(|s| s.is_success()).count(), 1);
        assert_eq!(Status::new(7, 0xc0).text(), None);
        assert_eq!(Status::new(7, 0xc0).result(), Err(Status::new(7, 0xc0)));
    }

    #[test]
    fn text_names_and_numbers_the_status() {
        assert_eq!(
            Status::PRP_OFFSET_INVALID.with_do_not_retry().to_string(),
            "PRP Offset Invalid (SCT 0h SC 13h, do not retry)"
        );
        assert_eq!(
            Status::new(7, 0xc1).to_string(),
            "unknown status (SCT 7h SC c1h)"
        );
    }
}
