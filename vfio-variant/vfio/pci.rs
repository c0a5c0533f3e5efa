// SPDX-License-Identifier: GPL-2.0-only

//! A PCI variant driver: probe, open and close, reset, and the callbacks that the core implements.
//!
//! `kernel::pci::Driver` has no place for `err_handler`, `driver_managed_dma` and override-only
//! ids, and owns the driver data, on which the VFIO core insists; hence an adapter of our own. The
//! driver core holds the device lock over probe and unbind, the VFIO core its device set's lock
//! over open and close; unbind waits until the device is closed.

use super::{
    config::{self, Hidden},
    device::Device,
    log, migration, sys,
};
use core::{marker::PhantomData, mem::size_of};
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    ffi::{c_int, c_void},
    pci::Device as PciDevice,
    prelude::*,
    types::Opaque,
};

/// Matches a PCI class, only for devices whose driver was overridden.
pub(crate) const fn override_class(class: u32, mask: u32) -> bindings::pci_device_id {
    bindings::pci_device_id {
        // CAST: the constant is -1, that is, all ones.
        vendor: bindings::PCI_ANY_ID as u32,
        device: bindings::PCI_ANY_ID as u32,
        subvendor: bindings::PCI_ANY_ID as u32,
        subdevice: bindings::PCI_ANY_ID as u32,
        class,
        class_mask: mask,
        driver_data: 0,
        override_only: bindings::PCI_ID_F_VFIO_DRIVER_OVERRIDE,
    }
}

/// Defines `$name` as the table that ends these ids, under the name that modpost makes module
/// aliases (`vfio_pci:...`) from.
macro_rules! device_table {
    ($name:ident, $id:expr) => {
        #[rustfmt::skip]
        #[export_name = concat!(
            "__mod_device_table__", line!(), "__kmod_", module_path!(), "__pci__", stringify!($name)
        )]
        static $name: [::kernel::bindings::pci_device_id; 2] = [$id, ::pin_init::zeroed()];
    };
}
pub(crate) use device_table;

/// What a device offers while it is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// The migration features, with STOP_COPY, P2P and PRE_COPY.
    pub(crate) migration: bool,
    /// DMA logging. Without effect on a kernel that cannot report (no IOMMUFD_DRIVER).
    pub(crate) log: bool,
}

/// What a variant driver does beyond plain VFIO. The implementing type is the driver's state of
/// one device.
pub(crate) trait Operations:
    migration::Operations + log::Operations + Send + Sync + 'static
{
    /// Name of the driver.
    const NAME: &'static CStr;

    /// Ends with an empty entry; made by [`device_table`].
    const ID_TABLE: &'static [bindings::pci_device_id; 2];

    /// Makes the state of a device that is being probed.
    fn new(pdev: &PciDevice) -> impl PinInit<Self, Error>;

    /// The device is going to be opened: reset, then enabled. It is powered and bound. When this
    /// fails, nothing else is called for this open.
    fn open(device: &Device<Self>) -> Result;

    /// It was reset and enabled; says what it offers. When this fails, [`Self::close`] follows.
    fn enabled(device: &Device<Self>) -> Result<Features>;

    /// Its last file was closed; it is still enabled.
    fn closing(device: &Device<Self>);

    /// It was stopped, and reset if it can be: the opposite of [`Self::open`].
    fn close(device: &Device<Self>);

    /// What its user does not see of configuration space.
    fn hidden(device: &Device<Self>) -> Option<Hidden>;

    /// It was reset: because of an ioctl, by its user through configuration space, by an open, or
    /// by the kernel for a reason of its own. May run at any time while the device is bound, also
    /// beside all others; the core's memory lock may be held, so must not access user memory.
    fn reset_done(device: &Device<Self>);

    /// The kernel lost the way to it (AER, DPC) and is going to reset what lies on it, or has given
    /// up. Runs as [`Self::reset_done`] does.
    fn cut_off(device: &Device<Self>);

    /// It was reset with its link. [`Self::cut_off`] need not have come before, and resets by others
    /// may have come in between. Runs as [`Self::reset_done`] does.
    fn link_reset(device: &Device<Self>);
}

/// The registration of a driver. Unregisters it when dropped.
///
/// # Invariants
///
/// `driver` is registered.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Operations> {
    #[pin]
    driver: Opaque<bindings::pci_driver>,
    _operations: PhantomData<T>,
}

// SAFETY: a shared reference offers nothing.
unsafe impl<T: Operations> Sync for Registration<T> {}

// SAFETY: unregistration may happen on any thread.
unsafe impl<T: Operations> Send for Registration<T> {}

impl<T: Operations> Registration<T> {
    /// Registers the driver.
    pub(crate) fn new(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            driver <- Opaque::try_ffi_init(|slot: *mut bindings::pci_driver| {
                let driver = bindings::pci_driver {
                    name: T::NAME.as_char_ptr(),
                    id_table: T::ID_TABLE.as_ptr(),
                    probe: Some(Adapter::<T>::probe),
                    remove: Some(Adapter::<T>::remove),
                    err_handler: Adapter::<T>::ERROR_HANDLERS,
                    // The IOMMU group belongs to whoever opens the device, not to us.
                    driver_managed_dma: true,
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is valid for a write.
                unsafe { slot.write(driver) };
                // INVARIANT: registered when this succeeds.
                // SAFETY: the structure stays where it is until it is dropped, which unregisters.
                to_result(unsafe {
                    bindings::__pci_register_driver(slot, module.as_ptr(), T::NAME.as_char_ptr())
                })
            }),
            _operations: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: registered by the type invariant.
        unsafe { bindings::pci_unregister_driver(self.driver.get()) }
    }
}

/// A reference to a device's power: it is on while this exists.
///
/// # Invariants
///
/// One use of the device is counted; the device outlives this.
struct Powered(*mut bindings::device);

impl Powered {
    /// # Safety
    ///
    /// `vdev` is initialised and its device stays bound while the result exists.
    unsafe fn new(vdev: *mut sys::vfio_device) -> Result<Self> {
        // SAFETY: the caller's promise.
        let dev = unsafe { (*vdev).dev };
        // SAFETY: as above. INVARIANT: counted when it succeeds.
        to_result(unsafe { sys::zs_pm_runtime_get(dev) })?;
        Ok(Self(dev))
    }
}

impl Drop for Powered {
    fn drop(&mut self) {
        // SAFETY: counted by the type invariant.
        unsafe { sys::zs_pm_runtime_put(self.0) }
    }
}

/// The callbacks of a driver.
pub(super) struct Adapter<T: Operations>(PhantomData<T>);

impl<T: Operations> Adapter<T> {
    // Tables that the kernel keeps are references, so that the compiler answers for their lifetime.
    const ERROR_HANDLERS: &'static bindings::pci_error_handlers = &bindings::pci_error_handlers {
        error_detected: Some(Self::error_detected),
        slot_reset: Some(Self::slot_reset),
        reset_done: Some(Self::reset_done),
        ..pin_init::zeroed()
    };

    #[cfg(CONFIG_VFIO_PCI_DMABUF)]
    const PCI_OPS: &'static sys::vfio_pci_device_ops = &sys::vfio_pci_device_ops {
        get_dmabuf_phys: Some(sys::vfio_pci_core_get_dmabuf_phys),
    };

    /// Everything but open, close and what is hidden is plain VFIO.
    const OPS: &'static sys::vfio_device_ops = &sys::vfio_device_ops {
        // The core only reads it.
        name: T::NAME.to_bytes_with_nul().as_ptr().cast_mut(),
        init: Some(Self::init),
        release: Some(Self::release),
        open_device: Some(Self::open_device),
        close_device: Some(Self::close_device),
        ioctl: Some(sys::vfio_pci_core_ioctl),
        get_region_info_caps: Some(sys::vfio_pci_ioctl_get_region_info),
        device_feature: Some(sys::vfio_pci_core_ioctl_feature),
        read: Some(config::read::<T>),
        write: Some(sys::vfio_pci_core_write),
        mmap: Some(sys::vfio_pci_core_mmap),
        request: Some(sys::vfio_pci_core_request),
        match_: Some(sys::vfio_pci_core_match),
        match_token_uuid: Some(sys::vfio_pci_core_match_token_uuid),
        // Without IOMMUFD these are macros for NULL.
        #[cfg(CONFIG_IOMMUFD)]
        bind_iommufd: Some(sys::vfio_iommufd_physical_bind),
        #[cfg(CONFIG_IOMMUFD)]
        unbind_iommufd: Some(sys::vfio_iommufd_physical_unbind),
        #[cfg(CONFIG_IOMMUFD)]
        attach_ioas: Some(sys::vfio_iommufd_physical_attach_ioas),
        #[cfg(CONFIG_IOMMUFD)]
        detach_ioas: Some(sys::vfio_iommufd_physical_detach_ioas),
        #[cfg(CONFIG_IOMMUFD)]
        pasid_attach_ioas: Some(sys::vfio_iommufd_physical_pasid_attach_ioas),
        #[cfg(CONFIG_IOMMUFD)]
        pasid_detach_ioas: Some(sys::vfio_iommufd_physical_pasid_detach_ioas),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Called by the PCI core for a device that is being bound to this driver.
    unsafe extern "C" fn probe(
        pdev: *mut bindings::pci_dev,
        _id: *const bindings::pci_device_id,
    ) -> c_int {
        // SAFETY: the caller's promise.
        match unsafe { Self::try_probe(pdev) } {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As for [`Self::probe`].
    unsafe fn try_probe(pdev: *mut bindings::pci_dev) -> Result {
        // SAFETY: `pdev` is valid.
        let dev = unsafe { &raw mut (*pdev).dev };
        // SAFETY: the operations are constant; the core asks for memory of this size, zeroed, and
        // calls `init` for it.
        let vdev = from_err_ptr(unsafe {
            sys::_vfio_alloc_device(size_of::<Device<T>>(), dev, Self::OPS)
        })?;
        let core: *mut sys::vfio_pci_core_device = vdev.cast();
        // The core looks for itself there. The driver core clears it when the device is unbound,
        // also when probe fails.
        // SAFETY: bound to us.
        unsafe { bindings::dev_set_drvdata(dev, core.cast::<c_void>()) };
        #[cfg(CONFIG_VFIO_PCI_DMABUF)]
        // SAFETY: not registered yet, so nobody else looks at it.
        unsafe {
            (*core).pci_ops = Self::PCI_OPS;
        }
        // SAFETY: initialised, and the driver's data is set.
        let result = to_result(unsafe { sys::vfio_pci_core_register_device(core) });
        if result.is_err() {
            // SAFETY: the reference that the allocation gave.
            unsafe { sys::zs_vfio_put_device(vdev) };
        }
        result
    }

    /// # Safety
    ///
    /// Called by the PCI core for a device that is bound to this driver.
    unsafe extern "C" fn remove(pdev: *mut bindings::pci_dev) {
        // SAFETY: `pdev` is valid.
        let data = unsafe { bindings::dev_get_drvdata(&raw const (*pdev).dev) };
        let core: *mut sys::vfio_pci_core_device = data.cast();
        // SAFETY: registered by probe, whose reference goes after it.
        unsafe {
            sys::vfio_pci_core_unregister_device(core);
            sys::zs_vfio_put_device(core.cast());
        }
    }

    /// # Safety
    ///
    /// Called by the PCI core, with the device lock held, for a device that is bound to this
    /// driver.
    unsafe extern "C" fn reset_done(pdev: *mut bindings::pci_dev) {
        // SAFETY: `pdev` is valid.
        let data = unsafe { bindings::dev_get_drvdata(&raw const (*pdev).dev) };
        // A reset between the allocation and the registration of a device cannot be: probe holds
        // the device lock as well. Before and after it there is no data.
        if !data.is_null() {
            // SAFETY: set by probe; the lock keeps the device bound during the call.
            T::reset_done(unsafe { Device::<T>::from_vdev(data.cast()) });
        }
    }

    /// # Safety
    ///
    /// As for [`Self::reset_done`].
    unsafe extern "C" fn error_detected(
        pdev: *mut bindings::pci_dev,
        state: bindings::pci_channel_state_t,
    ) -> bindings::pci_ers_result_t {
        // SAFETY: `pdev` is valid.
        let data = unsafe { bindings::dev_get_drvdata(&raw const (*pdev).dev) };
        if data.is_null() {
            return bindings::pci_ers_result_PCI_ERS_RESULT_NONE;
        }
        // SAFETY: set by probe; the lock keeps the device bound during the call.
        let device = unsafe { Device::<T>::from_vdev(data.cast()) };
        if state != bindings::pci_channel_io_normal {
            T::cut_off(device);
        }
        // Behind that, because it tells the user, who may look at once.
        // SAFETY: the caller's promise is the same.
        let vote = unsafe { sys::vfio_pci_core_aer_err_detected(pdev, state) };
        match state {
            // It is reset in any case; only who asks for that is told when it was.
            bindings::pci_channel_io_frozen => bindings::pci_ers_result_PCI_ERS_RESULT_NEED_RESET,
            _ => vote,
        }
    }

    /// # Safety
    ///
    /// As for [`Self::reset_done`].
    unsafe extern "C" fn slot_reset(pdev: *mut bindings::pci_dev) -> bindings::pci_ers_result_t {
        // Nobody else gives it its BARs back, nor its vectors: what the core saved last.
        // SAFETY: `pdev` is valid, and the lock is held.
        unsafe { bindings::pci_restore_state(pdev) };
        // SAFETY: `pdev` is valid.
        let data = unsafe { bindings::dev_get_drvdata(&raw const (*pdev).dev) };
        if !data.is_null() {
            // SAFETY: set by probe; the lock keeps the device bound during the call.
            T::link_reset(unsafe { Device::<T>::from_vdev(data.cast()) });
        }
        bindings::pci_ers_result_PCI_ERS_RESULT_RECOVERED
    }

    /// # Safety
    ///
    /// Called by the core for a new device.
    unsafe extern "C" fn init(vdev: *mut sys::vfio_device) -> c_int {
        // SAFETY: the caller's promise.
        match unsafe { Device::<T>::init(vdev) } {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the core when the last reference is gone.
    unsafe extern "C" fn release(vdev: *mut sys::vfio_device) {
        // SAFETY: the caller's promise.
        unsafe { Device::<T>::release(vdev) }
    }

    /// # Safety
    ///
    /// Called by the core for the first open of a bound device.
    unsafe extern "C" fn open_device(vdev: *mut sys::vfio_device) -> c_int {
        // SAFETY: the caller's promise.
        match unsafe { Self::try_open(vdev) } {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As for [`Self::open_device`].
    unsafe fn try_open(vdev: *mut sys::vfio_device) -> Result {
        // SAFETY: a device of ours.
        let device = unsafe { Device::<T>::from_vdev(vdev) };
        // Enabling powers it too, but `open` comes before that.
        // SAFETY: an open device stays bound.
        let _powered = unsafe { Powered::new(vdev) }?;
        T::open(device)?;
        // SAFETY: the core lets us enable a device in its first open.
        let result = to_result(unsafe { sys::vfio_pci_core_enable(device.core()) });
        if let Err(error) = result {
            T::close(device);
            return Err(error);
        }
        match T::enabled(device) {
            Ok(features) => {
                // SAFETY: this is `ops.open_device`.
                unsafe { device.offer(features) };
                // SAFETY: enabled above.
                unsafe { sys::vfio_pci_core_finish_enable(device.core()) };
                Ok(())
            }
            Err(error) => {
                // SAFETY: enabled above; the device set's lock is held over open.
                unsafe { sys::vfio_pci_core_disable(device.core()) };
                T::close(device);
                Err(error)
            }
        }
    }

    /// # Safety
    ///
    /// Called by the core when the last file of an opened device was closed.
    unsafe extern "C" fn close_device(vdev: *mut sys::vfio_device) {
        // SAFETY: a device of ours.
        let device = unsafe { Device::<T>::from_vdev(vdev) };
        T::closing(device);
        // SAFETY: opened by `open_device`.
        unsafe { sys::vfio_pci_core_close_device(vdev) };
        // SAFETY: this is `ops.close_device`.
        unsafe { device.offer(Features::default()) };
        T::close(device);
    }
}
