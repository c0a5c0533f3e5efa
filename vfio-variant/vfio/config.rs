// SPDX-License-Identifier: GPL-2.0-only

//! Reads of a device's regions: as the core gives them, but for what of configuration space the
//! driver hides.
//!
//! A VMM compares the configuration space of a migration's destination with the source's, byte for
//! byte, and refuses a difference. What tells one function of a card from another must not be in it.

use super::{device::Device, pci::Operations, sys};
use crate::logic::config::overlap;
use kernel::{
    bindings,
    ffi::{c_char, c_void},
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

/// A part of configuration space that reads as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hidden {
    /// Its offset.
    pub(crate) offset: u16,
    /// Its bytes, 8 at most.
    pub(crate) size: u8,
}

/// # Safety
///
/// The core's `read` operation: called with an open device of the driver `T`.
pub(super) unsafe extern "C" fn read<T: Operations>(
    vdev: *mut sys::vfio_device,
    buffer: *mut c_char,
    count: usize,
    position: *mut bindings::loff_t,
) -> isize {
    // SAFETY: the caller's promise.
    let at = unsafe { *position };
    // SAFETY: as above.
    let done = unsafe { sys::vfio_pci_core_read(vdev, buffer, count, position) };
    let Ok(bytes) = usize::try_from(done) else {
        return done;
    };
    // SAFETY: as above.
    let hidden = T::hidden(unsafe { Device::<T>::from_vdev(vdev) });
    match hidden.map_or(Ok(()), |hidden| hide(hidden, at, buffer, bytes)) {
        Ok(()) => done,
        // CAST: an errno is small.
        Err(error) => error.to_errno() as isize,
    }
}

/// Puts zeroes over what is hidden of the `bytes` in `buffer`, which were read at `at`.
fn hide(hidden: Hidden, at: bindings::loff_t, buffer: *mut c_char, bytes: usize) -> Result {
    // CAST: the core has read there, so it is not negative.
    let at = at as u64;
    if at >> sys::VFIO_PCI_OFFSET_SHIFT != u64::from(sys::VFIO_PCI_CONFIG_REGION_INDEX) {
        return Ok(());
    }
    let position = at & ((1 << sys::VFIO_PCI_OFFSET_SHIFT) - 1);
    let Some((offset, count)) = overlap(position, bytes, hidden.offset, hidden.size) else {
        return Ok(());
    };
    let zeroes = [0; 8];
    let zeroes = zeroes.get(..count).ok_or(EINVAL)?;
    let user = UserPtr::from_ptr(buffer.cast::<c_void>()).wrapping_byte_add(offset);
    UserSlice::new(user, count).writer().write_slice(zeroes)
}
