// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The Controller Data Queue command, opcode 45h: NVMe Base 2.1, section 5.1.4.
//!
//! Only what it takes to refuse it and to name it in a log: the software card has no user data
//! migration queues (TRATTR.TUDCS is 0). Such a card answers Invalid Command Opcode to the command,
//! Invalid Field in Command to feature 21h, and Invalid Controller Data Queue to a Track Send that
//! names a queue, because no queue exists.

use super::super::command::Command;

/// SEL 0h: Create Controller Data Queue.
pub const CREATE: u8 = 0;
/// SEL 1h: Delete Controller Data Queue.
pub const DELETE: u8 = 1;
/// Queue Type (QT, MOS bits 7:0 of Create): User Data Migration Queue.
pub const USER_DATA_MIGRATION: u8 = 0;

/// Select (SEL), CDW10 bits 7:0.
pub const fn select(command: &Command) -> u8 {
    command.cdw10 as u8
}

#[cfg(test)]
mod tests {
    use super::super::super::command::admin;
    use super::*;

    #[test]
    fn select_is_the_low_byte() {
        let mut command = Command::new(admin::CONTROLLER_DATA_QUEUE);
        command.cdw10 = 0xffff_ff01;
        assert_eq!((command.opcode, select(&command)), (0x45, DELETE));
    }
}
