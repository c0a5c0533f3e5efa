// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

#![no_std]
//! The ioctl interface of /dev/migdirty: structures and numbers, once for the module and for tools.
//!
//! A contract with userspace (`docs/interfaces.md`, section 4): fields are added at the end or in
//! what is reserved, never moved. `migdirty.h` is the C face; a test holds the two together.
//!
//! Every structure begins with `argsz`, the size that the caller knows, and `flags`. All ioctls
//! fail with EINVAL (`argsz` too small, flags or reserved fields not zero), E2BIG (`argsz` above
//! [`MAX_ARGSZ`]) and EFAULT; those that name a function also with ENOENT (no card manages it), EIO
//! (the card is dead, or refused), EBUSY (somebody else owns it) and EINTR. The documentation of
//! each tells what more there is.

mod card;
mod function;

pub use card::*;
pub use function::*;

/// Name of the device below `/dev`.
pub const DEVICE_NAME: &str = "migdirty";

/// Letter of the ioctl numbers.
pub const IOCTL_TYPE: u8 = 0xe7;

/// The largest `argsz`.
pub const MAX_ARGSZ: u32 = 4096;

/// Number of [`MIGDIRTY_GET_CARD`] within its letter.
pub const GET_CARD_NUMBER: u8 = 0x00;

/// Describes the card with the lowest address that is not below [`MigdirtyCard::address`]. ENOENT
/// when there is none from there on; EINTR when a signal came while every command slot was taken.
pub const MIGDIRTY_GET_CARD: u32 = iowr::<MigdirtyCard>(GET_CARD_NUMBER);

/// Describes the function with exactly this address, without asking the card.
pub const MIGDIRTY_GET_FUNCTION: u32 = iowr::<MigdirtyFunctionInfo>(0x01);

/// Starts a log of what the function writes. EALREADY when there is one; ENOSPC when the ranges
/// cannot be tracked, even joined and with the coarsest granule.
pub const MIGDIRTY_LOG_START: u32 = iowr::<MigdirtyLogStart>(0x02);

/// Reads what was written since, and forgets what it hands out. EINVAL without a log; EIO when the
/// log is lost.
pub const MIGDIRTY_LOG_SYNC: u32 = iowr::<MigdirtyLogSync>(0x03);

/// Ends the log; without one it does nothing.
pub const MIGDIRTY_LOG_STOP: u32 = iowr::<MigdirtyTarget>(0x04);

/// Suspends the function; returns when it is quiet. Suspended already: does nothing. ETIMEDOUT when
/// it did not become quiet in time and was resumed.
pub const MIGDIRTY_PAUSE: u32 = iowr::<MigdirtyTarget>(0x05);

/// Lets the function go on; running already: does nothing.
pub const MIGDIRTY_RESUME: u32 = iowr::<MigdirtyTarget>(0x06);

/// Gets the controller state of a paused function. EBUSY when it runs; ENOSPC when the room is too
/// small, with what is needed in [`MigdirtyState::size`].
pub const MIGDIRTY_SAVE: u32 = iowr::<MigdirtyState>(0x07);

/// Sets the controller state of a paused function that is not enabled (CC.EN = 0). EBUSY when it
/// runs; EINVAL when the card refuses the state; EOPNOTSUPP for a format that it does not know.
pub const MIGDIRTY_RESTORE: u32 = iowr::<MigdirtyState>(0x08);

/// Gets the identity record of a migration stream. ENOSPC when the room is too small, with what is
/// needed in [`MigdirtyIdentity::size`].
pub const MIGDIRTY_GET_IDENTITY: u32 = iowr::<MigdirtyIdentity>(0x09);

/// `_IOWR(0xE7, number, T)` of `include/uapi/asm-generic/ioctl.h`.
const fn iowr<T>(number: u8) -> u32 {
    const READ_WRITE: u32 = 3;
    // CAST: every structure is far below the 16 KiB that the field can tell.
    let size = core::mem::size_of::<T>() as u32 & 0x3fff;
    (READ_WRITE << 30) | (size << 16) | ((IOCTL_TYPE as u32) << 8) | number as u32
}
