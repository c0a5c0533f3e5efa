// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/migdirty`: what tools may ask.
//!
//! An open file has no state of its own; it only keeps the module in memory. Everything that comes
//! in is outside data. Must never hold a lock over a copy from or to the caller.

use crate::{
    common::{misc_device::FileOperations, pci_driver::Address},
    registry,
    uapi::{MigdirtyCard, MAX_ARGSZ, MIGDIRTY_GET_CARD},
};
use core::mem::size_of;
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

/// The device.
pub(crate) struct Chardev;

impl FileOperations for Chardev {
    const NAME: &'static CStr = c"migdirty";
    const MODE: u16 = 0o600;
    type File = ();

    fn open() -> Result {
        Ok(())
    }

    fn ioctl((): (), cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            MIGDIRTY_GET_CARD => get_card(UserPtr::from_addr(arg)),
            _ => Err(ENOTTY),
        }
    }
}

fn get_card(arg: UserPtr) -> Result<isize> {
    const KNOWN: usize = size_of::<MigdirtyCard>();

    let argsz: u32 = UserSlice::new(arg, size_of::<u32>()).reader().read()?;
    if argsz > MAX_ARGSZ {
        return Err(E2BIG);
    }
    // CAST: widens.
    let argsz = argsz as usize;
    if argsz < KNOWN {
        return Err(EINVAL);
    }
    // The second read of `argsz` may find another value; only the first one counts.
    let question: MigdirtyCard = UserSlice::new(arg, KNOWN).reader().read()?;
    if question.flags != 0
        || question.reserved.iter().any(|byte| *byte != 0)
        || question.reserved2.iter().any(|byte| *byte != 0)
    {
        return Err(EINVAL);
    }

    let answer = find(Address(question.address))?;

    let mut writer = UserSlice::new(arg, argsz).writer();
    writer.write(&answer)?;
    let zeroes = [0u8; 64];
    while !writer.is_empty() {
        let part = writer.len().min(zeroes.len());
        writer.write_slice(zeroes.get(..part).unwrap_or(&[]))?;
    }
    Ok(0)
}

/// Describes the first card from `address` on that stays long enough to be described.
fn find(address: Address) -> Result<MigdirtyCard> {
    loop {
        let card = registry::at_or_after(address).ok_or(ENOENT)?;
        match card.describe() {
            // Unbound between the two lines: it has left the registry, so the next look finds
            // another one or none.
            Err(error) if error == ENODEV => {}
            result => return result,
        }
    }
}
