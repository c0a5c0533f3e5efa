// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Get Controller State and Set Controller State: images of another controller, in parts (NVMe Base
//! 2.1, sections 5.1.16.1 and 5.1.17.1.3).
//!
//! An image is taken when offset 0 is read, and kept, so that all parts of it belong together even
//! if the guest rings a doorbell meanwhile. Parts that come in are kept until the last one, and
//! then the target takes all of it or nothing. Any failure drops what was received.

use zeroshift_nvme::command::Command;
use zeroshift_nvme::hmlm::migration::{self, GetState, SetState};
use zeroshift_nvme::status::Status;

use super::{Migration, VERSIONS};
use crate::faults::Fault;
use crate::nvme::admin::{Answer, Context, MAX_TRANSFER};
use crate::pci::{Parts, Phase};

/// Bytes of a state that comes in. One with 255 queue pairs has less than 20 KiB.
const MAX_STATE: u64 = 1 << 20;

/// What is under way with one target.
#[derive(Default)]
pub(super) struct Session {
    image: Option<Image>,
    incoming: Option<Incoming>,
}

/// An image that was taken.
struct Image {
    parts: Parts,
    /// The suspension in which it was taken; `None` when the target was running.
    suspension: Option<u64>,
    bytes: Vec<u8>,
}

/// Parts of a state that were received.
struct Incoming {
    version_index: u8,
    uuid_index: u8,
    suspension: u64,
    bytes: Vec<u8>,
}

impl Session {
    /// Whether state was received and not committed yet.
    pub(super) fn receiving(&self, phase: Phase) -> bool {
        let now = phase.quiet();
        self.incoming
            .as_ref()
            .is_some_and(|incoming| Some(incoming.suspension) == now)
    }
}

/// The parts that two indices into CNS 20h name.
fn parts(version_index: u8, uuid_index: u8) -> Result<Parts, Status> {
    if usize::from(version_index) > VERSIONS.len() || uuid_index > 1 {
        return Err(Status::INVALID_FIELD);
    }
    Ok(Parts {
        standard: version_index != 0,
        vendor: uuid_index != 0,
    })
}

impl Migration {
    /// Get Controller State.
    pub(super) fn get_state(
        &mut self,
        target: usize,
        get: GetState,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<Answer, Status> {
        let parts = parts(get.version_index, get.uuid_index)?;
        let len = get.dwords * 4;
        if len > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        let function = &self.fleet.functions[target].1;
        let image = &mut self.sessions[target].image;
        {
            let mut state = function.lock();
            let suspension = state.kind.phase().quiet();
            let same = |image: &Image| image.parts == parts && image.suspension == suspension;
            // Parts of two suspensions make no state.
            let other = |image: &Image| image.suspension != suspension;
            if get.offset != 0 && image.as_ref().is_some_and(other) {
                return Err(Status::COMMAND_SEQUENCE_ERROR);
            }
            if get.offset == 0 || !image.as_ref().is_some_and(same) {
                let bytes = function.with_kind(&mut state, |kind, bus| {
                    Some(kind.migratable()?.save(parts, bus))
                });
                *image = Some(Image {
                    parts,
                    suspension,
                    bytes: bytes.ok_or(Status::INVALID_CONTROLLER_IDENTIFIER)?,
                });
            }
        }
        let Some(image) = image else {
            return Err(Status::INTERNAL_ERROR);
        };
        let rest = usize::try_from(get.offset).ok();
        let rest = rest.and_then(|offset| image.bytes.get(offset..));
        let rest = rest.ok_or(Status::INVALID_FIELD)?;
        let mut data = rest[..rest.len().min(len as usize)].to_vec();
        if let (Some(Fault::CorruptState(random)), 1..) = (context.after, data.len()) {
            let at = random % data.len() as u64;
            data[at as usize] ^= 1 << (random >> 61);
        }
        // Behind the end there is nothing that means anything.
        data.resize(len as usize, 0);
        context.send(command, &data)?;
        Ok(Answer::Now(match image.suspension {
            Some(_) => migration::SUSPENDED,
            None => 0,
        }))
    }

    /// Set Controller State.
    pub(super) fn set_state(
        &mut self,
        target: usize,
        set: SetState,
        command: &Command,
        context: &Context<'_, '_>,
    ) -> Result<Answer, Status> {
        let suspension = {
            let state = self.fleet.functions[target].1.lock();
            match state.kind.phase() {
                Phase::Suspended(number) => number,
                // The Suspend command has not completed.
                Phase::Suspending(_) => return Err(Status::COMMAND_SEQUENCE_ERROR),
                Phase::Running if state.kind.status().ready => {
                    return Err(Status::CONTROLLER_NOT_SUSPENDED);
                }
                Phase::Running => return Err(Status::INVALID_CONTROLLER_IDENTIFIER),
            }
        };
        // It comes back only if nothing fails.
        let before = self.sessions[target].incoming.take();
        let mut incoming = if set.sequence.starts() {
            Incoming {
                version_index: set.version_index,
                uuid_index: set.uuid_index,
                suspension,
                bytes: Vec::new(),
            }
        } else {
            before
                .filter(|incoming| incoming.suspension == suspension)
                .ok_or(Status::COMMAND_SEQUENCE_ERROR)?
        };
        let parts = parts(set.version_index, set.uuid_index)?;
        if (set.version_index, set.uuid_index) != (incoming.version_index, incoming.uuid_index) {
            return Err(Status::INVALID_FIELD);
        }
        receive(&mut incoming.bytes, &set, command, context)?;
        if !set.sequence.ends() {
            self.sessions[target].incoming = Some(incoming);
            return Ok(Answer::Now(0));
        }
        self.commit(target, parts, &incoming)
    }

    fn commit(
        &mut self,
        target: usize,
        parts: Parts,
        incoming: &Incoming,
    ) -> Result<Answer, Status> {
        let (id, function) = &self.fleet.functions[target];
        let mut state = function.lock();
        // It may have been reset while the data came in.
        if state.kind.phase() != Phase::Suspended(incoming.suspension) {
            return Err(Status::COMMAND_SEQUENCE_ERROR);
        }
        let loaded = function.with_kind(&mut state, |kind, bus| {
            Some(kind.migratable()?.load(parts, &incoming.bytes, bus))
        });
        match loaded {
            Some(Ok(())) => {
                self.sessions[target].image = None;
                Ok(Answer::Now(0))
            }
            Some(Err(refused)) => {
                tracing::warn!("state for controller {id} refused: {refused}");
                Err(Status::INVALID_FIELD)
            }
            None => Err(Status::INVALID_CONTROLLER_IDENTIFIER),
        }
    }
}

/// Puts a part where it belongs. Parts leave no gaps.
fn receive(
    bytes: &mut Vec<u8>,
    set: &SetState,
    command: &Command,
    context: &Context<'_, '_>,
) -> Result<(), Status> {
    let len = u64::from(set.dwords) * 4;
    let end = set.offset.checked_add(len).ok_or(Status::INVALID_FIELD)?;
    if len > MAX_TRANSFER || set.offset > bytes.len() as u64 || end > MAX_STATE {
        return Err(Status::INVALID_FIELD);
    }
    // Both are at most MAX_STATE.
    let (from, to) = (set.offset as usize, end as usize);
    bytes.resize(bytes.len().max(to), 0);
    context.receive(command, &mut bytes[from..to])
}
