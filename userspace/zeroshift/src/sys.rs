// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ioctls, and the only `unsafe` of this program.
//!
//! Structures with addresses in them are filled in here only, from slices, so that the kernel never
//! gets an address that is not backed by as much memory as the structure says.

use migdirty_uapi::{
    MigdirtyCard, MigdirtyFunctionInfo, MigdirtyIdentity, MigdirtyLogStart, MigdirtyLogSync,
    MigdirtyRange, MigdirtyState, MigdirtyTarget, MIGDIRTY_GET_CARD, MIGDIRTY_GET_FUNCTION,
    MIGDIRTY_GET_IDENTITY, MIGDIRTY_LOG_START, MIGDIRTY_LOG_STOP, MIGDIRTY_LOG_SYNC,
    MIGDIRTY_PAUSE, MIGDIRTY_RESTORE, MIGDIRTY_RESUME, MIGDIRTY_SAVE,
};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{ioctl, Opcode, Updater};

/// Implements [`Argument`] for structures that begin with `argsz`.
macro_rules! arguments {
    ($($name:ident)*) => {
        $(impl Argument for $name {
            fn argsz(&mut self) -> &mut u32 {
                &mut self.argsz
            }
        })*
    };
}

pub(crate) mod vmfunc;

/// An argument: how large it says it is.
trait Argument {
    fn argsz(&mut self) -> &mut u32;
}

arguments!(MigdirtyCard MigdirtyFunctionInfo MigdirtyIdentity MigdirtyLogStart MigdirtyLogSync
    MigdirtyState MigdirtyTarget);

/// Asks again when a signal came in between.
///
/// # Safety
///
/// `OPCODE` takes a `T`, and every address in it is that of as much memory as `T` says, good for
/// what the kernel does with it.
unsafe fn ask<const OPCODE: Opcode, T: Argument>(
    device: impl AsFd,
    argument: &mut T,
) -> Result<(), Errno> {
    loop {
        // The kernel writes no more than this says, so it must not say more than there is.
        *argument.argsz() = size_of::<T>() as u32;
        // SAFETY: by the contract of this function. On a file that is not of that device the kernel
        // refuses the number, or means another structure of the same size: the size is part of the
        // number.
        let result = unsafe { ioctl(&device, Updater::<OPCODE, T>::new(argument)) };
        match result {
            Err(Errno::INTR) => continue,
            result => return result,
        }
    }
}

/// `MIGDIRTY_GET_CARD` on an open `/dev/migdirty`.
pub(crate) fn get_card(device: impl AsFd, card: &mut MigdirtyCard) -> Result<(), Errno> {
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<MIGDIRTY_GET_CARD, _>(device, card) }
}

/// `MIGDIRTY_GET_FUNCTION`.
pub(crate) fn get_function(device: impl AsFd, address: u32) -> Result<MigdirtyFunctionInfo, Errno> {
    let mut function = MigdirtyFunctionInfo::question(address);
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<MIGDIRTY_GET_FUNCTION, _>(device, &mut function) }?;
    Ok(function)
}

/// `MIGDIRTY_LOG_START`; the granule in use, in bytes.
pub(crate) fn log_start(
    device: impl AsFd,
    address: u32,
    ranges: &[MigdirtyRange],
    granule: u64,
) -> Result<u64, Errno> {
    let mut log = MigdirtyLogStart {
        count: u32::try_from(ranges.len()).map_err(|_| Errno::INVAL)?,
        granule,
        ranges: ranges.as_ptr() as u64,
        ..MigdirtyLogStart::question(address)
    };
    // SAFETY: the module's header pairs this number and structure. The kernel reads `count` ranges
    // at `ranges`, which the slice has.
    unsafe { ask::<MIGDIRTY_LOG_START, _>(device, &mut log) }?;
    Ok(log.granule)
}

/// `MIGDIRTY_LOG_SYNC`; how many of `room` are filled now, and the flags.
pub(crate) fn log_sync(
    device: impl AsFd,
    address: u32,
    iova: u64,
    length: u64,
    room: &mut [MigdirtyRange],
) -> Result<(usize, u32), Errno> {
    let mut sync = MigdirtyLogSync {
        count: u32::try_from(room.len()).map_err(|_| Errno::INVAL)?,
        iova,
        length,
        ranges: room.as_mut_ptr() as u64,
        ..MigdirtyLogSync::question(address)
    };
    // SAFETY: the module's header pairs this number and structure. The kernel writes at most
    // `count` ranges at `ranges`, which the slice has; any bytes are a range.
    unsafe { ask::<MIGDIRTY_LOG_SYNC, _>(device, &mut sync) }?;
    // More than there is room for would be a lie of the module's.
    Ok(((sync.count as usize).min(room.len()), sync.flags))
}

/// `MIGDIRTY_LOG_STOP`.
pub(crate) fn log_stop(device: impl AsFd, address: u32) -> Result<(), Errno> {
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<MIGDIRTY_LOG_STOP, _>(device, &mut MigdirtyTarget::question(address)) }
}

/// `MIGDIRTY_PAUSE`.
pub(crate) fn pause(device: impl AsFd, address: u32) -> Result<(), Errno> {
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<MIGDIRTY_PAUSE, _>(device, &mut MigdirtyTarget::question(address)) }
}

/// `MIGDIRTY_RESUME`.
pub(crate) fn resume(device: impl AsFd, address: u32) -> Result<(), Errno> {
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<MIGDIRTY_RESUME, _>(device, &mut MigdirtyTarget::question(address)) }
}

/// `MIGDIRTY_SAVE` into `room`. The answer's `size` is what the state has; with ENOSPC, what it
/// would need.
pub(crate) fn save(
    device: impl AsFd,
    address: u32,
    room: &mut [u8],
) -> (MigdirtyState, Result<(), Errno>) {
    let mut state = MigdirtyState {
        data: room.as_mut_ptr() as u64,
        size: room.len() as u64,
        ..MigdirtyState::question(address)
    };
    // SAFETY: the module's header pairs this number and structure. The kernel writes at most `size`
    // bytes at `data`, which the slice has.
    let result = unsafe { ask::<MIGDIRTY_SAVE, _>(device, &mut state) };
    (state, result)
}

/// `MIGDIRTY_RESTORE` from `bytes`.
pub(crate) fn restore(
    device: impl AsFd,
    address: u32,
    version: u16,
    uuid: [u8; 16],
    bytes: &[u8],
) -> Result<(), Errno> {
    let mut state = MigdirtyState {
        version,
        uuid,
        data: bytes.as_ptr() as u64,
        size: bytes.len() as u64,
        ..MigdirtyState::question(address)
    };
    // SAFETY: the module's header pairs this number and structure. The kernel reads `size` bytes at
    // `data`, which the slice has.
    unsafe { ask::<MIGDIRTY_RESTORE, _>(device, &mut state) }
}

/// `MIGDIRTY_GET_IDENTITY` into `room`; how many bytes it has. With ENOSPC there are more.
pub(crate) fn get_identity(
    device: impl AsFd,
    address: u32,
    room: &mut [u8],
) -> Result<usize, Errno> {
    let mut identity = MigdirtyIdentity {
        size: u32::try_from(room.len()).map_err(|_| Errno::INVAL)?,
        data: room.as_mut_ptr() as u64,
        ..MigdirtyIdentity::question(address)
    };
    // SAFETY: the module's header pairs this number and structure. The kernel writes at most `size`
    // bytes at `data`, which the slice has.
    unsafe { ask::<MIGDIRTY_GET_IDENTITY, _>(device, &mut identity) }?;
    Ok((identity.size as usize).min(room.len()))
}
