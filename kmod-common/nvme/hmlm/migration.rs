// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Migration Send, opcode 41h, and Migration Receive, opcode 42h: NVMe Base 2.1, sections 5.1.16
//! and 5.1.17, figures 340 to 362.
//!
//! The command dwords. What the managing controller answers beside the checks of this file:
//!
//! - Suspend of a target that is suspended with the same type succeeds and changes nothing. Suspend
//!   of a target that is not enabled succeeds: nothing in section 5.1.17.1.1 asks for CC.EN.
//! - Resume of a target that is not suspended: Controller Not Suspended. While controller state was
//!   received for it and not yet verified and committed: Command Sequence Error.
//! - Set Controller State of a target that is neither suspended, nor enabled, nor an offline
//!   secondary controller: Invalid Controller Identifier. Any but the first part while no sequence
//!   is under way: Command Sequence Error. Invalid Field in Command for an index that CNS 20h does
//!   not list, an offset greater than the size of the state, CSVI 0 with NVMECSS not 0, CSUUIDI 0
//!   with VSS not 0, and NVMECSS not 0 while the target has any I/O queue.
//! - Get Controller State with an index that CNS 20h does not list, or an offset greater than the
//!   size of the data: Invalid Field in Command. An offset equal to the size is allowed and returns
//!   nothing defined.
//!
//! Suspend Notification (STYPE 0) only announces a later Suspend. It changes no state; the
//! specification asks nothing of the target, so what a card does with it (drain, or nothing) is its
//! own affair. While suspended, property accesses, CMB and PMR work as always, but setting CC.EN
//! may or may not lead to CSTS.RDY. A sanitize command fails with Controller Suspended while any
//! controller of the subsystem is suspended (section 5.1.22).
//!
//! Set Controller State with First starts anew and drops an unfinished sequence. With Last (the
//! text names only that one; Only is its own last) a successful command means that the state is
//! verified and committed: the queues exist, with their pointers. The host waits for each
//! completion before it sends the next part, and after any failure sends everything again.
//!
//! Get Controller State: CSVI 0 leaves the NVMe part out (NVMECSS 0), CSUUIDI 0 the vendor's part
//! (VSS 0). Both may be 0 here: a header comes back. NUMDL beyond the end of the data is no error;
//! what the dwords behind it hold is not defined. [`SUSPENDED`] in dword 0 of the completion (CSUP)
//! tells that the target was suspended all the time; only then, and without a reset meanwhile, do
//! the fields belong together.

use super::super::command::{admin, Command};
use super::super::status::Status;

/// Dword 0 bit 0 of the completion of Get Controller State: Controller Suspended (CSUP).
pub const SUSPENDED: u32 = 1 << 0;

/// Suspend Type (STYPE), CDW11 bits 23:16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendType {
    /// 0h: the target is going to be suspended by another command later.
    Notification,
    /// 1h: suspend. The target stops fetching, finishes what was fetched except Asynchronous Event
    /// Requests, then stops initiating transfers; the command completes after that.
    Suspend,
}

/// Sequence Indicator (SEQIND), MOS bits 1:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// 00b: neither the first nor the last.
    Middle,
    /// 01b: the first of several.
    First,
    /// 10b: the last of several; may carry no data.
    Last,
    /// 11b: the only one.
    Only,
}

impl Sequence {
    /// Whether this command starts a sequence.
    pub const fn starts(self) -> bool {
        matches!(self, Self::First | Self::Only)
    }

    /// Whether this command ends a sequence, and so commits the state.
    pub const fn ends(self) -> bool {
        matches!(self, Self::Last | Self::Only)
    }
}

/// A Migration Send command, by its Select field (SEL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationSend {
    /// SEL 0h: Suspend.
    Suspend {
        /// Controller Identifier (CNTLID) of the target, CDW11 bits 15:0.
        controller: u16,
        /// Suspend Type (STYPE).
        kind: SuspendType,
        /// Delete User Data Migration Queue (DUDMQ), CDW11 bit 31.
        delete_queue: bool,
    },
    /// SEL 1h: Resume.
    Resume {
        /// Controller Identifier (CNTLID) of the target, CDW11 bits 15:0.
        controller: u16,
    },
    /// SEL 2h: Set Controller State.
    SetState(SetState),
}

/// The fields of Set Controller State.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetState {
    /// Controller Identifier (CNTLID) of the target, CDW11 bits 15:0.
    pub controller: u16,
    /// Sequence Indicator (SEQIND).
    pub sequence: Sequence,
    /// Controller State Version Index (CSVI), CDW11 bits 23:16: 1-based in CNS 20h, 0 is no NVMe
    /// Controller State.
    pub version_index: u8,
    /// Controller State UUID Index (CSUUIDI), CDW11 bits 31:24: 1-based in CNS 20h, 0 is no vendor
    /// specific data.
    pub uuid_index: u8,
    /// Controller State Offset (CSOL, CSOU) of this part, in bytes, a multiple of 4; CDW12, CDW13.
    pub offset: u64,
    /// Number of Dwords (NUMD) of this part, CDW15, not 0's based; 0 only with [`Sequence::Last`].
    pub dwords: u32,
}

impl MigrationSend {
    /// Decodes the dwords of `command`, whose opcode the caller knows.
    ///
    /// # Errors
    ///
    /// Invalid Field in Command for a reserved SEL or STYPE; for Set Controller State also for an
    /// offset that is not a multiple of 4, no data in another command than the last, and both
    /// indices 0.
    pub const fn from_command(command: &Command) -> Result<Self, Status> {
        let controller = command.cdw11 as u16;
        match command.cdw10 as u8 {
            0 => {
                let kind = match (command.cdw11 >> 16) as u8 {
                    0 => SuspendType::Notification,
                    1 => SuspendType::Suspend,
                    _ => return Err(Status::INVALID_FIELD),
                };
                Ok(Self::Suspend {
                    controller,
                    kind,
                    delete_queue: command.cdw11 & 1 << 31 != 0,
                })
            }
            1 => Ok(Self::Resume { controller }),
            2 => {
                let set = SetState {
                    controller,
                    sequence: match command.cdw10 >> 16 & 3 {
                        0 => Sequence::Middle,
                        1 => Sequence::First,
                        2 => Sequence::Last,
                        _ => Sequence::Only,
                    },
                    version_index: (command.cdw11 >> 16) as u8,
                    uuid_index: (command.cdw11 >> 24) as u8,
                    offset: offset(command),
                    dwords: command.cdw15,
                };
                if set.offset & 3 != 0
                    || (set.dwords == 0 && !matches!(set.sequence, Sequence::Last))
                    || (set.version_index == 0 && set.uuid_index == 0)
                {
                    return Err(Status::INVALID_FIELD);
                }
                Ok(Self::SetState(set))
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Controller Identifier (CNTLID) of the target.
    pub const fn controller(&self) -> u16 {
        match self {
            Self::Suspend { controller, .. } | Self::Resume { controller } => *controller,
            Self::SetState(set) => set.controller,
        }
    }

    /// The command, with the data of Set Controller State at `prp1` and `prp2` (else 0).
    pub const fn to_command(self, prp1: u64, prp2: u64) -> Command {
        let mut command = Command::new(admin::MIGRATION_SEND);
        command.prp1 = prp1;
        command.prp2 = prp2;
        command.cdw11 = self.controller() as u32;
        match self {
            Self::Suspend {
                kind, delete_queue, ..
            } => {
                let kind = match kind {
                    SuspendType::Notification => 0,
                    SuspendType::Suspend => 1,
                };
                command.cdw11 |= kind << 16 | (delete_queue as u32) << 31;
            }
            Self::Resume { .. } => command.cdw10 = 1,
            Self::SetState(set) => {
                let sequence = match set.sequence {
                    Sequence::Middle => 0,
                    Sequence::First => 1,
                    Sequence::Last => 2,
                    Sequence::Only => 3,
                };
                command.cdw10 = 2 | sequence << 16;
                command.cdw11 |= (set.version_index as u32) << 16 | (set.uuid_index as u32) << 24;
                command.cdw12 = set.offset as u32;
                command.cdw13 = (set.offset >> 32) as u32;
                command.cdw15 = set.dwords;
            }
        }
        command
    }
}

/// A Migration Receive command with SEL 0h, Get Controller State.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetState {
    /// Controller Identifier (CNTLID) of the target, CDW11 bits 15:0.
    pub controller: u16,
    /// Controller State Version Index (CSVI), MOS bits 7:0: 1-based in CNS 20h, 0 is none.
    pub version_index: u8,
    /// Controller State UUID Index (CSUUIDI), CDW11 bits 23:16: 1-based in CNS 20h, 0 is none. (In
    /// Set Controller State it is in bits 31:24.)
    pub uuid_index: u8,
    /// Controller State UUID Index Parameter (CSUIDXP), CDW11 bits 31:24: vendor specific.
    pub uuid_parameter: u8,
    /// Offset (OL, OU) in the Controller State data structure, in bytes, a multiple of 4; CDW12,
    /// CDW13.
    pub offset: u64,
    /// Dwords to return, 1 to 2^32 (NUMDL in CDW15 is 0's based).
    pub dwords: u64,
}

impl GetState {
    /// Decodes the dwords of `command`, whose opcode the caller knows.
    ///
    /// # Errors
    ///
    /// Invalid Field in Command for a reserved SEL, or an offset that is not a multiple of 4.
    pub const fn from_command(command: &Command) -> Result<Self, Status> {
        let get = Self {
            controller: command.cdw11 as u16,
            version_index: (command.cdw10 >> 16) as u8,
            uuid_index: (command.cdw11 >> 16) as u8,
            uuid_parameter: (command.cdw11 >> 24) as u8,
            offset: offset(command),
            dwords: command.cdw15 as u64 + 1,
        };
        if command.cdw10 as u8 != 0 || get.offset & 3 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        Ok(get)
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
            cdw10: (self.version_index as u32) << 16,
            cdw11: self.controller as u32
                | (self.uuid_index as u32) << 16
                | (self.uuid_parameter as u32) << 24,
            cdw12: self.offset as u32,
            cdw13: (self.offset >> 32) as u32,
            cdw15: numdl,
            ..Command::new(admin::MIGRATION_RECEIVE)
        }
    }
}

const fn offset(command: &Command) -> u64 {
    command.cdw12 as u64 | (command.cdw13 as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::super::super::random::Random;
    use super::*;

    const SET: SetState = SetState {
        controller: 0x1234,
        sequence: Sequence::Only,
        version_index: 0x56,
        uuid_index: 0x78,
        offset: 0x0807_0605_0403_0204,
        dwords: 0x0c0b_0a09,
    };

    #[test]
    fn suspend_and_resume_have_the_dwords_of_the_specification() {
        let suspend = MigrationSend::Suspend {
            controller: 0x1234,
            kind: SuspendType::Suspend,
            delete_queue: true,
        };
        let entry = suspend.to_command(0, 0).to_bytes();
        let mut expected = [0u8; 64];
        expected[0] = 0x41;
        expected[44..48].copy_from_slice(&[0x34, 0x12, 0x01, 0x80]);
        assert_eq!(entry, expected);

        let entry = MigrationSend::Resume { controller: 2 }
            .to_command(0, 0)
            .to_bytes();
        let mut expected = [0u8; 64];
        expected[0] = 0x41;
        expected[40] = 1;
        expected[44] = 2;
        assert_eq!(entry, expected);
    }

    #[test]
    fn set_state_has_the_dwords_of_the_specification() {
        let entry = MigrationSend::SetState(SET)
            .to_command(0x5000, 0)
            .to_bytes();
        let mut expected = [0u8; 64];
        expected[0] = 0x41;
        expected[25] = 0x50;
        expected[40..44].copy_from_slice(&[2, 0, 3, 0]);
        expected[44..48].copy_from_slice(&[0x34, 0x12, 0x56, 0x78]);
        expected[48..56].copy_from_slice(&[4, 2, 3, 4, 5, 6, 7, 8]);
        expected[60..64].copy_from_slice(&[9, 10, 11, 12]);
        assert_eq!(entry, expected);
    }

    #[test]
    fn get_state_has_the_dwords_of_the_specification() {
        let get = GetState {
            controller: 0x1234,
            version_index: 0x56,
            uuid_index: 0x78,
            uuid_parameter: 0x9a,
            offset: 0x0807_0605_0403_0204,
            dwords: 0x0c0b_0a0a,
        };
        let entry = get.to_command(0x5000, 0).to_bytes();
        let mut expected = [0u8; 64];
        expected[0] = 0x42;
        expected[25] = 0x50;
        expected[40..44].copy_from_slice(&[0, 0, 0x56, 0]);
        expected[44..48].copy_from_slice(&[0x34, 0x12, 0x78, 0x9a]);
        expected[48..56].copy_from_slice(&[4, 2, 3, 4, 5, 6, 7, 8]);
        expected[60..64].copy_from_slice(&[9, 10, 11, 12]);
        assert_eq!(entry, expected);
        let mut command = Command::from_bytes(&entry);
        assert_eq!(GetState::from_command(&command), Ok(get));
        command.cdw15 = u32::MAX;
        let most = GetState::from_command(&command).unwrap();
        assert_eq!(most.dwords, 1 << 32);
        command.cdw12 |= 2;
        assert_eq!(GetState::from_command(&command), Err(Status::INVALID_FIELD));
        command.cdw12 = 0;
        command.cdw10 |= 1;
        assert_eq!(GetState::from_command(&command), Err(Status::INVALID_FIELD));
    }

    #[test]
    fn misuse_is_an_invalid_field() {
        let refused = |set: SetState| {
            let command = MigrationSend::SetState(set).to_command(0, 0);
            MigrationSend::from_command(&command) == Err(Status::INVALID_FIELD)
        };
        assert!(!refused(SET));
        assert!(!refused(SetState {
            version_index: 0,
            ..SET
        }));
        assert!(!refused(SetState {
            uuid_index: 0,
            ..SET
        }));
        assert!(refused(SetState { offset: 2, ..SET }));
        assert!(refused(SetState {
            version_index: 0,
            uuid_index: 0,
            ..SET
        }));
        for (sequence, without_data) in [
            (Sequence::Middle, true),
            (Sequence::First, true),
            (Sequence::Last, false),
            (Sequence::Only, true),
        ] {
            let set = SetState {
                sequence,
                dwords: 0,
                ..SET
            };
            assert_eq!(refused(set), without_data, "{sequence:?}");
        }
        for (cdw10, cdw11) in [(3, 0), (0xff, 0), (0, 2 << 16), (0, 0xff << 16)] {
            let command = Command {
                cdw10,
                cdw11,
                ..Command::new(admin::MIGRATION_SEND)
            };
            assert_eq!(
                MigrationSend::from_command(&command),
                Err(Status::INVALID_FIELD)
            );
        }
    }

    #[test]
    fn any_command_decodes_and_survives_the_way_back() {
        let mut random = Random::new(17);
        let mut entry = [0; 64];
        for _ in 0..4000 {
            random.fill(&mut entry);
            entry[40] &= 3;
            let command = Command::from_bytes(&entry);
            if let Ok(send) = MigrationSend::from_command(&command) {
                assert_eq!(
                    MigrationSend::from_command(&send.to_command(0, 0)),
                    Ok(send)
                );
            }
            if let Ok(get) = GetState::from_command(&command) {
                assert_eq!(GetState::from_command(&get.to_command(0, 0)), Ok(get));
            }
        }
    }

    #[test]
    fn sequences_start_and_end_where_they_should() {
        assert!(Sequence::First.starts() && !Sequence::First.ends());
        assert!(Sequence::Only.starts() && Sequence::Only.ends());
        assert!(!Sequence::Middle.starts() && !Sequence::Middle.ends());
        assert!(!Sequence::Last.starts() && Sequence::Last.ends());
    }
}
