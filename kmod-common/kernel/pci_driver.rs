// SPDX-License-Identifier: GPL-2.0-only

//! What `kernel::pci` of 7.2 does not offer a driver: callbacks for shutdown and reset, the way back
//! from `enable_device_mem` and `set_master`, and a device's full address.
//!
//! The driver owns the device while it is bound; nothing here keeps one bound. Must never be
//! called for a device that another driver has.

use core::marker::PhantomData;
use kernel::{
    bindings, device,
    device::{Bound, Core},
    devres,
    dma::{Device as _, DmaMask},
    driver::{DriverLayout, RegistrationOps},
    fmt, pci,
    prelude::*,
    sync::aref::ARef,
    types::Opaque,
};

// The structure is only passed through; deep inside it has an array that is empty here.
#[allow(improper_ctypes)]
extern "C" {
    fn zs_pci_domain(pdev: *mut bindings::pci_dev) -> u32;
}

/// `pci::Device` is a transparent `struct pci_dev`, but keeps its pointer to itself.
pub(crate) fn as_raw<Ctx: device::DeviceContext>(
    pdev: &pci::Device<Ctx>,
) -> *mut bindings::pci_dev {
    core::ptr::from_ref(pdev).cast_mut().cast()
}

/// A [`pci::Driver`] that wants to know of reboot, power-off, kexec, and of resets by others.
pub(crate) trait Driver: pci::Driver {
    /// The machine goes down. The device is still bound; `unbind` will not follow.
    fn shutdown(pdev: &pci::Device<Core<'_>>);

    /// Somebody is going to reset the function (sysfs, or the recovery of another one on its bus).
    fn before_reset(pdev: &pci::Device<Core<'_>>);

    /// The kernel lost the way to the function (AER, DPC) and is going to reset what lies on it, or
    /// has just done so, or has given it up. May be called several times.
    fn cut_off(pdev: &pci::Device<Core<'_>>);
}

/// [`pci::Adapter`] plus the callbacks of [`Driver`].
pub(crate) struct Adapter<T: Driver>(PhantomData<T>);

// SAFETY: the same types and the same offset as `pci::Adapter`, for which they are right.
unsafe impl<T: Driver + 'static> DriverLayout for Adapter<T> {
    type DriverType = bindings::pci_driver;
    type DriverData<'bound> = T::Data<'bound>;
    const DEVICE_DRIVER_OFFSET: usize = core::mem::offset_of!(Self::DriverType, driver);
}

// SAFETY: registration and deregistration are those of `pci::Adapter`.
unsafe impl<T: Driver + 'static> RegistrationOps for Adapter<T> {
    unsafe fn register(
        pdrv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: not registered yet, so nobody else looks at the structure. The call below sets
        // its own fields one by one and leaves these two alone.
        unsafe {
            (*pdrv.get()).shutdown = Some(Self::shutdown);
            (*pdrv.get()).err_handler = &Self::ERROR_HANDLERS;
        }
        // SAFETY: the caller's promises are the same.
        unsafe { pci::Adapter::<T>::register(pdrv, name, module) }
    }

    unsafe fn unregister(pdrv: &Opaque<Self::DriverType>) {
        // SAFETY: the caller's promises are the same.
        unsafe { pci::Adapter::<T>::unregister(pdrv) }
    }
}

impl<T: Driver> Adapter<T> {
    const ERROR_HANDLERS: bindings::pci_error_handlers = bindings::pci_error_handlers {
        error_detected: Some(Self::error_detected),
        mmio_enabled: None,
        slot_reset: Some(Self::slot_reset),
        reset_prepare: Some(Self::reset_prepare),
        reset_done: None,
        resume: None,
        cor_error_detected: None,
    };

    /// # Safety
    ///
    /// Called by the PCI core, with the device lock held, for a device that is bound to the driver.
    unsafe extern "C" fn reset_prepare(pdev: *mut bindings::pci_dev) {
        // SAFETY: `pci::Device` is transparent over `struct pci_dev`; the device lock makes it
        // `Core`, and it is valid for the call.
        T::before_reset(unsafe { &*pdev.cast::<pci::Device<Core<'_>>>() })
    }

    /// # Safety
    ///
    /// Called by the PCI core, with the device lock held, for a device that is bound to the driver.
    unsafe extern "C" fn error_detected(
        pdev: *mut bindings::pci_dev,
        state: bindings::pci_channel_state_t,
    ) -> bindings::pci_ers_result_t {
        if state == bindings::pci_channel_io_normal {
            // The error was of one transaction. If it hit a command, that will be late.
            return bindings::pci_ers_result_PCI_ERS_RESULT_CAN_RECOVER;
        }
        // SAFETY: as for `reset_prepare`.
        T::cut_off(unsafe { &*pdev.cast::<pci::Device<Core<'_>>>() });
        match state {
            bindings::pci_channel_io_frozen => bindings::pci_ers_result_PCI_ERS_RESULT_NEED_RESET,
            _ => bindings::pci_ers_result_PCI_ERS_RESULT_DISCONNECT,
        }
    }

    /// # Safety
    ///
    /// Called by the PCI core, with the device lock held, for a device that is bound to the driver.
    unsafe extern "C" fn slot_reset(pdev: *mut bindings::pci_dev) -> bindings::pci_ers_result_t {
        // SAFETY: as for `reset_prepare`.
        let device = unsafe { &*pdev.cast::<pci::Device<Core<'_>>>() };
        // When somebody else on the bus has asked for the reset, nobody told before it.
        T::cut_off(device);
        // Nobody else gives it its BARs back, without which it cannot be bound again.
        // SAFETY: `pdev` is valid, and the lock is held.
        unsafe { bindings::pci_restore_state(pdev) };
        clear_master(device);
        bindings::pci_ers_result_PCI_ERS_RESULT_RECOVERED
    }

    /// # Safety
    ///
    /// Called by the PCI core, with the device lock held, for a device that is bound to the driver.
    unsafe extern "C" fn shutdown(pdev: *mut bindings::pci_dev) {
        // SAFETY: `pci::Device` is transparent over `struct pci_dev`; the device lock makes it
        // `Core`, and it is valid for the call.
        T::shutdown(unsafe { &*pdev.cast::<pci::Device<Core<'_>>>() })
    }
}

/// Where a function is: `domain << 16 | bus << 8 | device << 3 | function`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address(pub(crate) u32);

impl Address {
    /// The address of `pdev`; `None` when its domain needs more than 16 bits, as those that Linux
    /// makes up for Intel VMD do.
    pub(crate) fn of<Ctx: device::DeviceContext>(pdev: &pci::Device<Ctx>) -> Option<Self> {
        let pdev = as_raw(pdev);
        // SAFETY: a `pci::Device` is a valid `struct pci_dev`, whose bus does not go before it.
        let domain = unsafe { zs_pci_domain(pdev) };
        // SAFETY: as above.
        let function = unsafe { bindings::pci_dev_id(pdev) };
        let domain = u16::try_from(domain).ok()?;
        Some(Self((u32::from(domain) << 16) | u32::from(function)))
    }
}

/// `domain:bus:device.function` in hexadecimal, as sysfs has it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.0 >> 16,
            (self.0 >> 8) & 0xff,
            (self.0 >> 3) & 0x1f,
            self.0 & 7,
        )
    }
}

/// Takes an enabled device back when it is dropped.
///
/// # Invariants
///
/// `pci_enable_device_mem` succeeded for the device once.
struct Enabled(ARef<pci::Device>);

impl Drop for Enabled {
    fn drop(&mut self) {
        // SAFETY: enabled by the type invariant; a reference is held.
        unsafe { bindings::pci_disable_device(as_raw(&*self.0)) }
    }
}

/// Enables memory access, until everything that is acquired after this is released at unbind.
pub(crate) fn enable_memory(pdev: &pci::Device<Core<'_>>) -> Result {
    pdev.enable_device_mem()?;
    let normal: &pci::Device = pdev;
    // INVARIANT: enabled just now. (On an error the guard is dropped, which takes it back.)
    devres::register(pdev.as_ref(), Enabled(normal.into()), GFP_KERNEL)
}

/// Says that the device can address 64 bits. Before any DMA memory is allocated for it.
pub(crate) fn set_dma_mask_64(pdev: &pci::Device<Core<'_>>) -> Result {
    // SAFETY: `Core` is given to one callback at a time, and the caller has not allocated any.
    unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>()) }
}

/// The command register; `None` when it cannot be read.
fn command(pdev: *mut bindings::pci_dev) -> Option<u16> {
    let mut command = 0;
    // CAST: the constant is 4.
    let offset = bindings::PCI_COMMAND as i32;
    // SAFETY: callers pass a valid `struct pci_dev`; `command` is a live local.
    let ret = unsafe { bindings::pci_read_config_word(pdev, offset, &mut command) };
    (ret == 0 && command != u16::MAX).then_some(command)
}

/// Stops the device from reading and writing memory and from sending interrupts, and waits for
/// what is under way. Says whether it could until now. Callable in any context.
///
/// Only for whoever knows that the device is bound to this driver.
pub(crate) fn clear_master<Ctx: device::DeviceContext>(pdev: &pci::Device<Ctx>) -> bool {
    let pdev = as_raw(pdev);
    let before = command(pdev);
    // SAFETY: a `pci::Device` is a valid `struct pci_dev`.
    unsafe { bindings::pci_clear_master(pdev) };
    // The answer to a read pushes the device's earlier writes in front of it.
    command(pdev);
    // CAST: the constant is 4.
    before.is_some_and(|bits| bits & bindings::PCI_COMMAND_MASTER as u16 != 0)
}

/// Lets the device read and write memory and send interrupts. Callable in any context.
///
/// Only for whoever knows that the device is bound to this driver.
pub(crate) fn set_master<Ctx: device::DeviceContext>(pdev: &pci::Device<Ctx>) {
    // SAFETY: a `pci::Device` is a valid `struct pci_dev`.
    unsafe { bindings::pci_set_master(as_raw(pdev)) }
}

/// Whether configuration space reads all-ones: the device was pulled out.
pub(crate) fn is_gone(pdev: &pci::Device<Bound>) -> bool {
    let mut vendor = 0;
    // SAFETY: a `pci::Device` is a valid `struct pci_dev`; `vendor` is a live local.
    let ret = unsafe {
        bindings::pci_read_config_word(
            as_raw(pdev),
            // CAST: the constant is 0.
            bindings::PCI_VENDOR_ID as i32,
            &mut vendor,
        )
    };
    ret != 0 || vendor == u16::MAX
}
