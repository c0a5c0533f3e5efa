// SPDX-License-Identifier: GPL-2.0-only

//! A VFIO PCI device: the core's structure and, behind it, the driver's state.
//!
//! Memory is the core's: `_vfio_alloc_device` makes it in probe, the last reference frees it, which
//! may be long after unbind. The driver's part is initialised in `ops.init` and dropped in
//! `ops.release`, so every callback in between finds it. Drivers only ever get shared references,
//! for the length of a call.

use super::{
    log, migration,
    pci::{Features, Operations},
    sys,
};
use core::{mem::offset_of, ops::Deref, ptr::addr_of_mut};
use kernel::{bindings, error::to_result, pci::Device as PciDevice, prelude::*, types::Opaque};

/// A device of the driver `T`.
///
/// # Invariants
///
/// `core` is a `struct vfio_pci_core_device` that `vfio_pci_core_init_dev` has initialised, `data`
/// is initialised and pinned.
#[repr(C)]
pub(crate) struct Device<T> {
    // First, because the core allocates and frees by a pointer to it.
    core: Opaque<sys::vfio_pci_core_device>,
    data: Opaque<T>,
}

const _: () = assert!(offset_of!(sys::vfio_pci_core_device, vdev) == 0);

impl<T> Deref for Device<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: initialised by the type invariant; only shared references are handed out.
        unsafe { &*self.data.get() }
    }
}

impl<T> Device<T> {
    /// The core's callbacks give it like this.
    ///
    /// # Safety
    ///
    /// `vdev` is a device of this driver, between `ops.init` and `ops.release`, for all of `'a`.
    pub(super) unsafe fn from_vdev<'a>(vdev: *mut sys::vfio_device) -> &'a Self {
        // SAFETY: `vdev` is at offset 0 of the core device, which is at offset 0 of this.
        unsafe { &*vdev.cast() }
    }

    /// The device's own part of the core's structure.
    pub(super) fn vdev(&self) -> *mut sys::vfio_device {
        self.core.get().cast()
    }

    /// The core's structure.
    pub(super) fn core(&self) -> *mut sys::vfio_pci_core_device {
        self.core.get()
    }

    /// The PCI device.
    pub(crate) fn pdev(&self) -> &PciDevice {
        // SAFETY: set by `vfio_pci_core_init_dev` and constant from then on; `pci::Device` is
        // transparent over `struct pci_dev`. All callbacks of a device come while it is registered,
        // and as long its parent has a reference from it.
        unsafe { &*(*self.core()).pdev.cast() }
    }

    /// Reads a register of BAR `bar` at `offset`, which is a multiple of 4.
    ///
    /// `EINVAL` when there is no such register. Only from [`Operations::enabled`] on and until
    /// [`Operations::closing`] returns: the core maps BARs while a device is open.
    pub(crate) fn read32(&self, bar: u32, offset: u64) -> Result<u32> {
        let mut value = 0;
        // SAFETY: the core device is initialised by the type invariant; `value` is a live local.
        to_result(unsafe { sys::zs_vfio_pci_read32(self.core(), bar, offset, &mut value) })?;
        Ok(value)
    }

    /// Vectors of its MSI-X capability, 0 when there is none. As for [`Self::read32`].
    pub(crate) fn msix_vectors(&self) -> u32 {
        // SAFETY: the core device is initialised by the type invariant; enabling sets the fields,
        // which are constant until it is enabled again.
        let (bar, bytes) = unsafe { ((*self.core()).msix_bar, (*self.core()).msix_size) };
        match bar {
            // The core's mark for "none".
            0xff => 0,
            _ => u32::from(bytes) / 16,
        }
    }
}

impl<T: Operations> Device<T> {
    /// Makes the driver's part of a new device.
    ///
    /// # Safety
    ///
    /// Called by `ops.init`: `vdev` is zeroed memory of this type, of which the core has set the
    /// generic part, and which nobody else has seen. When this fails it is not used again.
    pub(super) unsafe fn init(vdev: *mut sys::vfio_device) -> Result {
        let this: *mut Self = vdev.cast();
        // SAFETY: `vdev` is set up as far as its `dev` field, which is that of a PCI device: probe
        // allocates for nothing else.
        let pdev: *mut bindings::pci_dev = unsafe {
            let dev = (*vdev).dev;
            kernel::container_of!(dev, bindings::pci_dev, dev)
        };
        // SAFETY: bound to us right now; `pci::Device` is transparent over `struct pci_dev`.
        let pdev: &PciDevice = unsafe { &*pdev.cast() };
        // SAFETY: memory of the right type, that stays where it is until the core frees it.
        let data: *mut T = Opaque::cast_into(unsafe { addr_of_mut!((*this).data) });
        // SAFETY: as above; on an error nothing was initialised.
        unsafe { T::new(pdev).__pinned_init(data) }?;
        // INVARIANT: with this `core` is initialised as well.
        // SAFETY: the core calls `init` for this.
        let result = to_result(unsafe { sys::vfio_pci_core_init_dev(vdev) });
        if result.is_err() {
            // SAFETY: initialised above, and `release` is not called for a device whose `init`
            // has failed.
            unsafe { data.drop_in_place() };
        }
        result
    }

    /// Ends the driver's part.
    ///
    /// # Safety
    ///
    /// Called by `ops.release`, once, for a device whose [`Self::init`] has succeeded.
    pub(super) unsafe fn release(vdev: *mut sys::vfio_device) {
        let this: *mut Self = vdev.cast();
        // SAFETY: initialised by `init`, and the last reference is gone.
        unsafe {
            Opaque::<T>::cast_into(addr_of_mut!((*this).data)).drop_in_place();
            sys::vfio_pci_core_release_dev(vdev);
        }
    }

    /// Sets what the device offers, for one open.
    ///
    /// The core's header calls these fields static, and its registration checks them. What reads
    /// them after that is the feature ioctl only, which an open has to come before (the core
    /// publishes an open with release semantics), and the debugfs file `migration/state`, which
    /// exists only for a device that was registered with them; ours are not.
    ///
    /// # Safety
    ///
    /// Called by `ops.open_device` and `ops.close_device`, which the core serialises and which no
    /// ioctl runs beside.
    pub(super) unsafe fn offer(&self, features: Features) {
        let vdev = self.vdev();
        let (flags, migration): (_, *const _) = match features.migration {
            true => (migration::FLAGS, migration::Table::<T>::OPS),
            false => (0, core::ptr::null()),
        };
        // A kernel without IOMMUFD_DRIVER has no bitmaps, so it could start a log and never report
        // it, which is worse than none: the user would take everything for clean.
        let log: *const sys::vfio_log_ops = match features.log && cfg!(CONFIG_IOMMUFD_DRIVER) {
            true => log::Table::<T>::OPS,
            false => core::ptr::null(),
        };
        // SAFETY: the caller's promise.
        unsafe {
            (*vdev).migration_flags = flags;
            (*vdev).mig_ops = migration;
            (*vdev).log_ops = log;
        }
    }
}
