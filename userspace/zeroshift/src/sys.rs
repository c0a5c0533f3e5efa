// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ioctls, and the only `unsafe` of this program.

use migdirty_uapi::{MigdirtyCard, MIGDIRTY_GET_CARD};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{ioctl, Updater};

/// `MIGDIRTY_GET_CARD` on an open `/dev/migdirty`.
pub(crate) fn get_card(device: impl AsFd, card: &mut MigdirtyCard) -> Result<(), Errno> {
    // The kernel writes no more than this says, so it must not say more than there is.
    card.argsz = migdirty_uapi::MIN_ARGSZ;
    // SAFETY: the opcode is the one of the module's header, whose argument is this structure for
    // reading and writing.
    let request = unsafe { Updater::<{ MIGDIRTY_GET_CARD }, MigdirtyCard>::new(card) };
    // SAFETY: as above. On a file that is not /dev/migdirty the kernel refuses the number, or means
    // another structure of the same size: the size is part of the number.
    unsafe { ioctl(device, request) }
}
