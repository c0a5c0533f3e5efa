// SPDX-License-Identifier: GPL-2.0-only

//! What tools do with a function, by ioctls of `/dev/migdirty`.
//!
//! Every field that comes in is outside data. Copies from and to the caller are made without a lock;
//! what a log hands out goes through kernel memory, and back into the log when the copy fails.

use crate::{
    common::pci_driver::Address,
    function::Function,
    identity, locate,
    logic::span::Span,
    state::Read,
    uapi::{
        MigdirtyFunctionInfo, MigdirtyIdentity, MigdirtyLogStart, MigdirtyLogSync, MigdirtyRange,
        MigdirtyState, MigdirtyTarget, MAX_LOG_RANGES, MAX_STATE, MAX_SYNC_RANGES,
        MIGDIRTY_SYNC_COMPLETE, MIGDIRTY_SYNC_MORE,
    },
};
use core::mem::size_of;
use kernel::{
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice},
};

/// How often a state may grow while it is being read.
const MAX_TRIES: u32 = 4;

/// How a call ended that has an answer: with success, or with an error that the answer explains.
type Answered<T> = Result<(T, Result)>;

fn answer<T>(answer: T) -> Answered<T> {
    Ok((answer, Ok(())))
}

/// The function at an address that came from a caller.
fn function(address: u32) -> Result<Arc<Function>> {
    locate::function_at(Address(address))
}

/// A card that was unbound manages nothing.
fn translate(error: Error) -> Error {
    if error == ENODEV {
        ENOENT
    } else {
        error
    }
}

/// `MIGDIRTY_GET_FUNCTION`.
pub(crate) fn describe(question: MigdirtyFunctionInfo) -> Answered<MigdirtyFunctionInfo> {
    if question.flags != 0 || question.reserved != 0 || question.reserved2 != [0; 6] {
        return Err(EINVAL);
    }
    answer(function(question.address)?.describe())
}

/// A call that needs nothing but the function.
pub(crate) fn order(
    target: MigdirtyTarget,
    order: impl FnOnce(&Function) -> Result,
) -> Answered<MigdirtyTarget> {
    if target.flags != 0 || target.reserved != 0 {
        return Err(EINVAL);
    }
    let function = function(target.address)?;
    let _call = function.enter()?;
    order(&function).map_err(translate)?;
    answer(target)
}

/// `MIGDIRTY_LOG_START`.
pub(crate) fn log_start(start: MigdirtyLogStart) -> Answered<MigdirtyLogStart> {
    if start.flags != 0 || start.count == 0 || start.count > MAX_LOG_RANGES {
        return Err(EINVAL);
    }
    // CAST: widens.
    let count = start.count as usize;
    let mut ranges = user(start.ranges, count * size_of::<MigdirtyRange>())?.reader();
    let mut wanted = KVVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        let range: MigdirtyRange = ranges.read()?;
        let span = Span::of_length(range.iova, range.length).ok_or(EINVAL)?;
        wanted.push(span, GFP_KERNEL)?;
    }
    let function = function(start.address)?;
    let _call = function.enter()?;
    let granule = function
        .log_start(wanted, start.granule)
        .map_err(translate)?;
    answer(MigdirtyLogStart { granule, ..start })
}

/// `MIGDIRTY_LOG_SYNC`.
pub(crate) fn log_sync(sync: MigdirtyLogSync) -> Answered<MigdirtyLogSync> {
    if sync.flags != 0 || sync.count == 0 || sync.count > MAX_SYNC_RANGES {
        return Err(EINVAL);
    }
    let span = Span::of_length(sync.iova, sync.length).ok_or(EINVAL)?;
    // CAST: widens.
    let room = sync.count as usize;
    let mut writer = user(sync.ranges, room * size_of::<MigdirtyRange>())?.writer();
    let mut found: KVVec<Span> = KVVec::with_capacity(room, GFP_KERNEL)?;

    let function = function(sync.address)?;
    let _call = function.enter()?;
    let harvested = function.log_harvest().map_err(translate)?;
    let all = function.log_take(span, |part| found.push_within_capacity(part).is_ok())?;
    let mut flags = 0;
    if !all {
        flags |= MIGDIRTY_SYNC_MORE;
    } else if harvested.complete && function.has_no_dirty() {
        flags |= MIGDIRTY_SYNC_COMPLETE;
    }
    for part in found.iter() {
        // Never all addresses, whose length does not fit: the caller could not ask for them.
        let range = MigdirtyRange {
            iova: part.first(),
            length: part.bytes_less_one().wrapping_add(1),
        };
        if let Err(error) = writer.write(&range) {
            // Nobody has seen these; they are written again as far as the caller knows.
            function.log_put_back(&found);
            return Err(error);
        }
    }
    answer(MigdirtyLogSync {
        flags,
        // CAST: at most `MAX_SYNC_RANGES`.
        count: found.len() as u32,
        ..sync
    })
}

/// `MIGDIRTY_SAVE`.
pub(crate) fn save(state: MigdirtyState) -> Answered<MigdirtyState> {
    if state.flags != 0 || state.reserved != 0 || state.size > MAX_STATE {
        return Err(EINVAL);
    }
    // CAST: just checked to be small.
    let room = state.size as usize;
    let writer = user(state.data, room)?.writer();
    let function = function(state.address)?;
    let _call = function.enter()?;
    // Not the caller's room: it is as large as it likes, and most of it stays empty.
    let mut buffer = KVVec::new();
    let mut guess = room.min(64 << 10);
    let mut tries = 0;
    let (size, format) = loop {
        tries += 1;
        buffer.resize(guess, 0, GFP_KERNEL)?;
        match function.get_state(&mut buffer).map_err(translate)? {
            (Read::Whole(size), format) => break (size, format),
            (Read::Needs(size), format) if size > room => {
                let needed = MigdirtyState {
                    version: crate::card::STATE_VERSION,
                    uuid: format.uuid,
                    // CAST: widens.
                    size: size as u64,
                    ..state
                };
                return Ok((needed, Err(ENOSPC)));
            }
            // It may have grown meanwhile.
            (Read::Needs(size), _) if size > guess && tries < MAX_TRIES => guess = size,
            _ => return Err(EIO),
        }
    };
    let mut writer = writer;
    writer.write_slice(buffer.get(..size).ok_or(EIO)?)?;
    answer(MigdirtyState {
        version: crate::card::STATE_VERSION,
        uuid: format.uuid,
        // CAST: widens.
        size: size as u64,
        ..state
    })
}

/// `MIGDIRTY_RESTORE`.
pub(crate) fn restore(state: MigdirtyState) -> Answered<MigdirtyState> {
    if state.flags != 0 || state.reserved != 0 || state.size == 0 || state.size > MAX_STATE {
        return Err(EINVAL);
    }
    let function = function(state.address)?;
    let _call = function.enter()?;
    // CAST: just checked to be small.
    let mut reader = user(state.data, state.size as usize)?.reader();
    let mut buffer = KVVec::new();
    // Piece by piece: a size that nothing is behind takes no memory.
    while !reader.is_empty() {
        let start = buffer.len();
        let part = reader.len().min(1 << 20);
        buffer.resize(start + part, 0, GFP_KERNEL)?;
        reader.read_slice(buffer.get_mut(start..).ok_or(EIO)?)?;
    }
    function
        .set_state(&buffer, state.version, state.uuid)
        .map_err(translate)?;
    answer(state)
}

/// `MIGDIRTY_GET_IDENTITY`.
pub(crate) fn identity(question: MigdirtyIdentity) -> Answered<MigdirtyIdentity> {
    if question.flags != 0 {
        return Err(EINVAL);
    }
    // CAST: widens.
    let mut writer = user(question.data, question.size as usize)?.writer();
    let function = function(question.address)?;
    let record = identity::of(&function).map_err(translate)?;
    let answered = MigdirtyIdentity {
        // CAST: at most 64 KiB.
        size: record.len() as u32,
        ..question
    };
    if writer.len() < record.len() {
        return Ok((answered, Err(ENOSPC)));
    }
    writer.write_slice(&record)?;
    answer(answered)
}

/// Memory of the caller.
fn user(address: u64, length: usize) -> Result<UserSlice> {
    let address = usize::try_from(address).map_err(|_| EFAULT)?;
    Ok(UserSlice::new(UserPtr::from_addr(address), length))
}
