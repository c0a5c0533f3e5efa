// SPDX-License-Identifier: GPL-2.0-only

//! The migration callbacks of a VFIO device.
//!
//! The core calls them from the feature ioctl, several at a time when several threads ask, only
//! between open and close. It keeps no state of its own.

use super::{device::Device, pci, sys};
use crate::logic::arcs::State;
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi::{c_int, c_ulong},
    fs::File,
    ioctl::_IO,
    prelude::*,
    sync::aref::ARef,
};

/// What the devices of this layer support.
pub(super) const FLAGS: u32 =
    sys::VFIO_MIGRATION_STOP_COPY | sys::VFIO_MIGRATION_P2P | sys::VFIO_MIGRATION_PRE_COPY;

// The numbers of `State` are the core's.
const _: () = {
    use sys::*;
    assert!(State::Error.raw() == vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR);
    assert!(State::Stop.raw() == vfio_device_mig_state_VFIO_DEVICE_STATE_STOP);
    assert!(State::Running.raw() == vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING);
    assert!(State::StopCopy.raw() == vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY);
    assert!(State::Resuming.raw() == vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING);
    assert!(State::RunningP2p.raw() == vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P);
    assert!(State::PreCopy.raw() == vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY);
    assert!(State::PreCopyP2p.raw() == vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P);
    assert!(State::ALL.len() == vfio_device_mig_state_VFIO_DEVICE_STATE_NR as usize);
};

/// `VFIO_MIG_GET_PRECOPY_INFO`, an ioctl of a data file.
pub(crate) const GET_PRECOPY_INFO: u32 = _IO(sys::VFIO_TYPE as u32, sys::VFIO_BASE + 21);

pub(crate) use sys::vfio_precopy_info as PrecopyInfo;

/// What a driver does to migrate a device.
pub(crate) trait Operations: Sized {
    /// Brings the device to `target`, arc by arc ([`next_state`]), and gives the file that the last
    /// arc has made. An error leaves it where it got.
    fn set_state(device: &Device<Self>, target: State) -> Result<Option<ARef<File>>>;

    /// The state that it is in.
    fn state(device: &Device<Self>) -> State;

    /// About how many bytes a data file would give if the device was stopped now.
    fn data_size(device: &Device<Self>) -> usize;
}

/// The next state on the way from `current`, which is not [`State::Error`], to `target`. `EINVAL`
/// when no way leads there.
pub(crate) fn next_state<T>(device: &Device<T>, current: State, target: State) -> Result<State> {
    // The core warns of a driver that asks.
    if current == State::Error {
        return Err(EIO);
    }
    let mut next = 0;
    // SAFETY: the device is initialised; `next` is a live local.
    to_result(unsafe {
        sys::vfio_mig_get_next_state(device.vdev(), current.raw(), target.raw(), &mut next)
    })?;
    State::from_raw(next).ok_or(EINVAL)
}

/// Whether the device's user has opted in to `VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2`.
pub(crate) fn wants_precopy_info_v2<T>(device: &Device<T>) -> bool {
    // SAFETY: the device is initialised. The core writes the byte without a lock while it may be
    // read here: an opt-in that comes at the same time counts or does not.
    unsafe { (&raw const (*device.vdev()).precopy_info_v2).read_volatile() != 0 }
}

/// The table of a driver's callbacks.
pub(super) struct Table<T>(PhantomData<T>);

impl<T: pci::Operations> Table<T> {
    pub(super) const OPS: &'static sys::vfio_migration_ops = &sys::vfio_migration_ops {
        migration_set_state: Some(Self::set_state),
        migration_get_state: Some(Self::get_state),
        migration_get_data_size: Some(Self::get_data_size),
    };

    /// # Safety
    ///
    /// Called by the core for an open device of this driver.
    unsafe extern "C" fn set_state(
        vdev: *mut sys::vfio_device,
        target: sys::vfio_device_mig_state,
    ) -> *mut kernel::bindings::file {
        // SAFETY: the caller's promise.
        let device = unsafe { Device::<T>::from_vdev(vdev) };
        let result = State::from_raw(target)
            .ok_or(EINVAL)
            .and_then(|target| T::set_state(device, target));
        match result {
            Ok(None) => core::ptr::null_mut(),
            // The core takes the reference over.
            Ok(Some(file)) => ARef::into_raw(file).as_ptr().cast(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// Called by the core for an open device of this driver, with a pointer to a variable.
    unsafe extern "C" fn get_state(
        vdev: *mut sys::vfio_device,
        state: *mut sys::vfio_device_mig_state,
    ) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { *state = T::state(Device::<T>::from_vdev(vdev)).raw() };
        0
    }

    /// # Safety
    ///
    /// Called by the core for an open device of this driver, with a pointer to a variable.
    unsafe extern "C" fn get_data_size(vdev: *mut sys::vfio_device, size: *mut c_ulong) -> c_int {
        // SAFETY: the caller's promise.
        unsafe { *size = T::data_size(Device::<T>::from_vdev(vdev)) };
        0
    }
}
