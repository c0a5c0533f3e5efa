// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/migdirty`: what tools may ask.
//!
//! An open file has no state of its own; it only keeps the module in memory. Everything that comes
//! in is outside data. Must never hold a lock over a copy from or to the caller.

use crate::{
    common::{argument, misc_device::FileOperations, pci_driver::Address},
    function::Function,
    registry, tools,
    uapi::{
        MigdirtyCard, MAX_ARGSZ, MIGDIRTY_GET_CARD, MIGDIRTY_GET_FUNCTION, MIGDIRTY_GET_IDENTITY,
        MIGDIRTY_LOG_START, MIGDIRTY_LOG_STOP, MIGDIRTY_LOG_SYNC, MIGDIRTY_PAUSE, MIGDIRTY_RESTORE,
        MIGDIRTY_RESUME, MIGDIRTY_SAVE,
    },
};
use kernel::{
    prelude::*,
    transmute::{AsBytes, FromBytes},
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
            MIGDIRTY_GET_CARD => call(arg, get_card),
            MIGDIRTY_GET_FUNCTION => call(arg, tools::describe),
            MIGDIRTY_LOG_START => call(arg, tools::log_start),
            MIGDIRTY_LOG_SYNC => call(arg, tools::log_sync),
            MIGDIRTY_LOG_STOP => call(arg, |target| tools::order(target, Function::log_stop)),
            MIGDIRTY_PAUSE => call(arg, |target| tools::order(target, Function::suspend)),
            MIGDIRTY_RESUME => call(arg, |target| tools::order(target, Function::resume)),
            MIGDIRTY_SAVE => call(arg, tools::save),
            MIGDIRTY_RESTORE => call(arg, tools::restore),
            MIGDIRTY_GET_IDENTITY => call(arg, tools::identity),
            _ => Err(ENOTTY),
        }
    }
}

/// As [`argument::call`]. A log forgets what it hands out, so it matters that nothing is done whose
/// answer nobody can get.
fn call<T: AsBytes + FromBytes>(
    arg: usize,
    perform: impl FnOnce(T) -> Result<(T, Result)>,
) -> Result<isize> {
    argument::call(arg, MAX_ARGSZ, perform)
}

fn get_card(question: MigdirtyCard) -> Result<(MigdirtyCard, Result)> {
    if question.flags != 0
        || question.reserved.iter().any(|byte| *byte != 0)
        || question.reserved2.iter().any(|byte| *byte != 0)
    {
        return Err(EINVAL);
    }
    let address = Address(question.address);
    // The first card from there on that stays long enough to be described.
    loop {
        let card = registry::at_or_after(address).ok_or(ENOENT)?;
        match card.describe() {
            // Unbound between the two lines: it has left the registry, so the next look finds
            // another one or none.
            Err(error) if error == ENODEV => {}
            result => return Ok((result?, Ok(()))),
        }
    }
}
