// SPDX-License-Identifier: GPL-2.0-only

//! The DMA logging callbacks of a VFIO device.
//!
//! The core calls them from the feature ioctl, several at a time when several threads ask, only
//! between open and close. It keeps no state of its own, so every order of calls can come.

use super::{device::Device, iova_bitmap::IovaBitmap, pci, sys};
use core::marker::PhantomData;
use kernel::{
    bindings,
    ffi::{c_int, c_ulong},
    prelude::*,
};

/// What a driver does to log what a device writes.
pub(crate) trait Operations: Sized {
    /// Starts a log of `ranges` with granules of `page_size` bytes, as any user wrote it; returns
    /// the size that it became.
    fn log_start(device: &Device<Self>, ranges: &Ranges<'_>, page_size: u64) -> Result<u64>;

    /// Ends the log, if there is one.
    fn log_stop(device: &Device<Self>) -> Result;

    /// Reports what was written in `length` bytes from `iova`, which may be no bytes, and forgets
    /// it. Runs in the context of the ioctl.
    fn log_read_and_clear(
        device: &Device<Self>,
        iova: u64,
        length: u64,
        bitmap: &mut IovaBitmap<'_>,
    ) -> Result;
}

/// The ranges of a log to be started: apart from each other, ascending.
pub(crate) struct Ranges<'a> {
    tree: &'a mut bindings::rb_root_cached,
    count: u32,
}

impl Ranges<'_> {
    /// How many there are, at least 1.
    pub(crate) fn len(&self) -> usize {
        // CAST: widens.
        self.count as usize
    }

    /// First and last byte of each. One of length 0 ends a byte before it begins.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let tree: *const bindings::rb_root_cached = self.tree;
        // SAFETY: the core's tree, which nobody changes while it is borrowed; the call reads it.
        let mut node =
            unsafe { bindings::interval_tree_iter_first(tree.cast_mut(), 0, c_ulong::MAX) };
        core::iter::from_fn(move || {
            if node.is_null() {
                return None;
            }
            // SAFETY: a node of that tree.
            let range = unsafe { ((*node).start, (*node).last) };
            // SAFETY: as above.
            node = unsafe { bindings::interval_tree_iter_next(node, 0, c_ulong::MAX) };
            // CAST: both have 64 bits on the architectures that have VFIO migration.
            Some((range.0 as u64, range.1 as u64))
        })
    }
}

/// The table of a driver's callbacks.
pub(super) struct Table<T>(PhantomData<T>);

impl<T: pci::Operations> Table<T> {
    pub(super) const OPS: &'static sys::vfio_log_ops = &sys::vfio_log_ops {
        log_start: Some(Self::log_start),
        log_stop: Some(Self::log_stop),
        log_read_and_clear: Some(Self::log_read_and_clear),
    };

    /// # Safety
    ///
    /// Called by the core for an open device of this driver, with a tree of `count` ranges and a
    /// pointer to a variable.
    unsafe extern "C" fn log_start(
        vdev: *mut sys::vfio_device,
        tree: *mut bindings::rb_root_cached,
        count: u32,
        page_size: *mut u64,
    ) -> c_int {
        // SAFETY: the caller's promise.
        let (device, tree, page_size) =
            unsafe { (Device::<T>::from_vdev(vdev), &mut *tree, &mut *page_size) };
        match T::log_start(device, &Ranges { tree, count }, *page_size) {
            Ok(granule) => {
                *page_size = granule;
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the core for an open device of this driver.
    unsafe extern "C" fn log_stop(vdev: *mut sys::vfio_device) -> c_int {
        // SAFETY: the caller's promise.
        match T::log_stop(unsafe { Device::<T>::from_vdev(vdev) }) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the core for an open device of this driver, with a bitmap of its own.
    unsafe extern "C" fn log_read_and_clear(
        vdev: *mut sys::vfio_device,
        iova: c_ulong,
        length: c_ulong,
        bitmap: *mut bindings::iova_bitmap,
    ) -> c_int {
        // SAFETY: the caller's promise.
        let device = unsafe { Device::<T>::from_vdev(vdev) };
        // CAST: both have 64 bits on the architectures that have VFIO migration.
        let (iova, length) = (iova as u64, length as u64);
        // SAFETY: the caller's promise.
        let mut bitmap = unsafe { IovaBitmap::new(bitmap, iova, length) };
        match T::log_read_and_clear(device, iova, length, &mut bitmap) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }
}
