// SPDX-License-Identifier: GPL-2.0-only

//! Reading and setting the controller state of a function (NVMe Base 2.1, 5.1.16 and 5.1.17).
//!
//! The state goes in parts of what a command can transfer. It is opaque but for the header that
//! tells its size. Only a suspended function has one state, so every part has to say that the
//! function was suspended all the time.

use crate::{
    admin_queue::Data,
    card::{command_timeout_ms, StateFormat},
    function::Function,
    nvme::{
        hmlm::{
            migration::{self, GetState, MigrationSend, Sequence, SetState},
            state::{Header, HEADER},
        },
        status::Status,
    },
    operations::{Failure, Protocol},
    uapi::MAX_STATE,
};
use kernel::prelude::*;

/// A state that was read.
pub(crate) enum Read {
    /// So many bytes of the room.
    Whole(usize),
    /// The room is too small; so many bytes are needed.
    Needs(usize),
}

impl Function {
    /// Reads the state of a suspended function into `room`. `EBUSY` when it is not suspended,
    /// `EOPNOTSUPP` when the card has no version that is known, `EFBIG` when the state is larger
    /// than 64 MiB, `ENODEV` when the function does not answer.
    pub(crate) fn get_state(&self, room: &mut [u8]) -> Result<(Read, StateFormat)> {
        let mut protocol = self.protocol.lock();
        // The card says whether it is.
        if !protocol.log.may_be_suspended() {
            return Err(EBUSY);
        }
        self.push_writes()?;
        let format = self.card().state_format()?;
        let transfer = self.card().transfer();
        let mut header = [0; HEADER];
        let mut total = transfer;
        let mut offset = 0;
        while offset < total {
            let size = transfer.min(total - offset);
            let command = GetState {
                controller: self.controller(),
                version_index: format.version_index,
                uuid_index: format.uuid_index,
                uuid_parameter: 0,
                // CAST: widens.
                offset: offset as u64,
                dwords: (size / 4) as u64,
            };
            let answer = self.command(
                &mut protocol,
                command.to_command(0, 0),
                Data::Receive(size),
                command_timeout_ms(),
            )?;
            if let Err(status) = answer.result() {
                drop(answer);
                self.card().report("Get Controller State", status);
                return Err(refusal(status, EIO));
            }
            if answer.reply().dw0 & migration::SUSPENDED == 0 {
                drop(answer);
                return Err(self.is_not_suspended(&mut protocol));
            }
            if offset == 0 {
                answer.read(0, &mut header)?;
                let header = Header::decode(&header).map_err(|malformed| {
                    self.card().warn(fmt!(
                        "state of function {}: {} at byte {}",
                        self.address(),
                        malformed.what,
                        malformed.offset,
                    ));
                    EIO
                })?;
                if !header.suspended {
                    drop(answer);
                    return Err(self.is_not_suspended(&mut protocol));
                }
                if header.total_bytes() > MAX_STATE {
                    return Err(EFBIG);
                }
                // CAST: just checked to be small.
                total = header.total_bytes() as usize;
                if total > room.len() {
                    return Ok((Read::Needs(total), format));
                }
            }
            let end = total.min(offset + size);
            answer.read(0, room.get_mut(offset..end).ok_or(EIO)?)?;
            offset = end;
        }
        protocol.log.suspend();
        self.show(&protocol);
        self.note(|status| status.states_read = status.states_read.wrapping_add(1));
        Ok((Read::Whole(total), format))
    }

    /// Sets the state of a function that is suspended and not enabled. `EBUSY` when it is not
    /// suspended, `EINVAL` when the card refuses the state, `EOPNOTSUPP` for a form that it does
    /// not know; nothing is applied then.
    pub(crate) fn set_state(&self, state: &[u8], version: u16, uuid: [u8; 16]) -> Result {
        let mut protocol = self.protocol.lock();
        // The card says whether it is.
        if !protocol.log.may_be_suspended() {
            return Err(EBUSY);
        }
        let format = self.card().find_format(version, uuid)?;
        let header = state.first_chunk::<HEADER>().ok_or(EINVAL)?;
        let header = Header::decode(header).map_err(|_| EINVAL)?;
        // CAST: widens.
        if header.total_bytes() != state.len() as u64 || header.total_bytes() > MAX_STATE {
            return Err(EINVAL);
        }
        let transfer = self.card().transfer();
        let mut offset = 0;
        while offset < state.len() {
            let end = state.len().min(offset + transfer);
            let part = state.get(offset..end).ok_or(EIO)?;
            let command = MigrationSend::SetState(SetState {
                controller: self.controller(),
                sequence: match (offset == 0, end == state.len()) {
                    (true, true) => Sequence::Only,
                    (true, false) => Sequence::First,
                    (false, true) => Sequence::Last,
                    (false, false) => Sequence::Middle,
                },
                version_index: format.version_index,
                uuid_index: format.uuid_index,
                // CAST: widens.
                offset: offset as u64,
                // CAST: a part of what a command transfers; whole dwords, as the header says.
                dwords: (part.len() / 4) as u32,
            });
            let command = command.to_command(0, 0);
            match self.send(
                &mut protocol,
                command,
                Data::Send(part),
                command_timeout_ms(),
            ) {
                Ok(()) => {}
                Err(Failure::Lost(error)) => return Err(error),
                Err(Failure::Refused(status)) => {
                    self.card().report("Set Controller State", status);
                    if status.is(Status::CONTROLLER_NOT_SUSPENDED) {
                        return Err(self.is_not_suspended(&mut protocol));
                    }
                    // Of a function that is neither enabled nor suspended, some cards say this.
                    if status.is(Status::INVALID_CONTROLLER_IDENTIFIER) {
                        protocol.log.doubt();
                        self.show(&protocol);
                        return Err(EBUSY);
                    }
                    return Err(refusal(status, EINVAL));
                }
            }
            offset = end;
        }
        self.note(|status| status.states_written = status.states_written.wrapping_add(1));
        Ok(())
    }

    /// The card says that the function runs: somebody else has reset it.
    fn is_not_suspended(&self, protocol: &mut Protocol) -> Error {
        self.runs(protocol);
        EBUSY
    }
}

/// What a status means for who asked; `refused` when the card could not do it with this state.
fn refusal(status: Status, refused: Error) -> Error {
    if status.is(Status::ABORT_REQUESTED) {
        ETIMEDOUT
    } else if status.is(Status::INTERNAL_ERROR) || status.is(Status::DATA_TRANSFER_ERROR) {
        EIO
    } else {
        refused
    }
}
