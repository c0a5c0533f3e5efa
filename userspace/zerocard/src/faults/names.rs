// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Names of opcodes in fault rules.
//!
//! An opcode means one thing on the admin queue and another on an I/O queue, so a name stands for
//! the queue too.

use zeroshift_nvme::command::admin;

/// Kind of queue and opcode of each name; NVMe Base 2.1 figure 142 and NVM Command Set 1.1
/// figure 21.
const NAMES: [(&str, bool, u8); 28] = [
    ("flush", false, 0x00),
    ("write", false, 0x01),
    ("read", false, 0x02),
    ("write-uncorrectable", false, 0x04),
    ("compare", false, 0x05),
    ("write-zeroes", false, 0x08),
    ("dataset-management", false, 0x09),
    ("verify", false, 0x0c),
    ("delete-io-sq", true, admin::DELETE_IO_SQ),
    ("create-io-sq", true, admin::CREATE_IO_SQ),
    ("get-log-page", true, admin::GET_LOG_PAGE),
    ("delete-io-cq", true, admin::DELETE_IO_CQ),
    ("create-io-cq", true, admin::CREATE_IO_CQ),
    ("identify", true, admin::IDENTIFY),
    ("abort", true, admin::ABORT),
    ("set-features", true, admin::SET_FEATURES),
    ("get-features", true, admin::GET_FEATURES),
    ("async-event-request", true, admin::ASYNC_EVENT_REQUEST),
    ("namespace-management", true, admin::NAMESPACE_MANAGEMENT),
    ("namespace-attachment", true, admin::NAMESPACE_ATTACHMENT),
    ("keep-alive", true, admin::KEEP_ALIVE),
    ("track-send", true, admin::TRACK_SEND),
    ("track-receive", true, admin::TRACK_RECEIVE),
    ("migration-send", true, admin::MIGRATION_SEND),
    ("migration-receive", true, admin::MIGRATION_RECEIVE),
    ("controller-data-queue", true, admin::CONTROLLER_DATA_QUEUE),
    (
        "doorbell-buffer-config",
        true,
        admin::DOORBELL_BUFFER_CONFIG,
    ),
    ("format-nvm", true, admin::FORMAT_NVM),
];

/// Whether the name is of an admin command, and its opcode.
pub(super) fn opcode(name: &str) -> Option<(bool, u8)> {
    let found = NAMES.iter().find(|(known, ..)| *known == name);
    found.map(|&(_, admin, opcode)| (admin, opcode))
}

/// The name of an opcode.
pub(super) fn name(admin: bool, opcode: u8) -> Option<&'static str> {
    let found = NAMES
        .iter()
        .find(|known| (known.1, known.2) == (admin, opcode));
    found.map(|(name, ..)| *name)
}

/// All names, for error messages.
pub(super) fn all() -> String {
    NAMES.map(|(name, ..)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_opcodes_stand_for_each_other() {
        for (known, admin, code) in NAMES {
            assert_eq!(opcode(known), Some((admin, code)));
            assert_eq!(name(admin, code), Some(known));
        }
        // Literally, from the tables of the specifications.
        assert_eq!(opcode("track-receive"), Some((true, 0x3e)));
        assert_eq!(opcode("migration-send"), Some((true, 0x41)));
        assert_eq!(opcode("read"), Some((false, 0x02)));
        assert_eq!(opcode("fly"), None);
    }
}
