// SPDX-License-Identifier: GPL-2.0-only

//! What a PCI function says of itself in configuration space, whatever driver it has.
//!
//! Reads only, and believes nothing: a function that is gone reads all-ones, and gives `None`.

use super::pci_driver::{as_raw, Address};
use kernel::{bindings, device, pci, sync::aref::ARef, types::NotThreadSafe};

// The structure is only passed through; deep inside it has an array that is empty here.
#[allow(improper_ctypes)]
extern "C" {
    fn zs_pci_physical_function(pdev: *mut bindings::pci_dev) -> *mut bindings::pci_dev;
    fn zs_pci_is_added(pdev: *mut bindings::pci_dev) -> bool;
}

/// No PCI function comes or goes as long as this lives. Not for whoever holds something for which
/// the removal of a function waits, as a driver's callbacks do.
pub(crate) struct Topology(NotThreadSafe);

impl Topology {
    /// Sleeps.
    pub(crate) fn hold() -> Self {
        // SAFETY: no preconditions; sleeps.
        unsafe { bindings::pci_lock_rescan_remove() };
        Self(NotThreadSafe)
    }

    /// Whether the function is still there.
    pub(crate) fn has<Ctx: device::DeviceContext>(&self, pdev: &pci::Device<Ctx>) -> bool {
        // SAFETY: a `pci::Device` is a valid `struct pci_dev`.
        unsafe { zs_pci_is_added(as_raw(pdev)) }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        // SAFETY: held since `hold`, by this thread, as nothing here is `Send`.
        unsafe { bindings::pci_unlock_rescan_remove() };
    }
}

/// The function at an address.
pub(crate) fn function_at(address: Address) -> Option<ARef<pci::Device>> {
    // CAST: the parts of an address.
    let (domain, bus, function) = (
        (address.0 >> 16) as i32,
        u32::from((address.0 >> 8) as u8),
        u32::from(address.0 as u8),
    );
    // SAFETY: no preconditions; sleeps.
    let pdev = unsafe { bindings::pci_get_domain_bus_and_slot(domain, bus, function) };
    let pdev = core::ptr::NonNull::new(pdev)?;
    // SAFETY: `pci::Device` is transparent over `struct pci_dev`, and the call has taken a
    // reference, which is ours now.
    Some(unsafe { ARef::from_raw(pdev.cast()) })
}

/// Its Device Serial Number (PCIe Base 7.9.3); `None` when it has none, or 0.
pub(crate) fn serial_number<Ctx: device::DeviceContext>(pdev: &pci::Device<Ctx>) -> Option<u64> {
    // SAFETY: a `pci::Device` is a valid `struct pci_dev`.
    match unsafe { bindings::pci_get_dsn(as_raw(pdev)) } {
        0 | u64::MAX => None,
        serial => Some(serial),
    }
}

/// Offset of a Designated Vendor-Specific Extended Capability (PCIe Base 7.9.6).
fn dvsec<Ctx: device::DeviceContext>(pdev: &pci::Device<Ctx>, vendor: u16, id: u16) -> Option<u16> {
    // SAFETY: a `pci::Device` is a valid `struct pci_dev`.
    match unsafe { bindings::pci_find_dvsec_capability(as_raw(pdev), vendor, id) } {
        0 => None,
        offset => Some(offset),
    }
}

/// Vendor and id of the DVSEC that carries a function's NVMe controller id (docs/interfaces.md, 1).
const CONTROLLER_DVSEC: (u16, u16) = (0x5a53, 1);

/// Offset of the controller id in it, 2 bytes.
pub(crate) const DVSEC_CONTROLLER_ID: u16 = 10;

/// Where the DVSEC with a function's NVMe controller id is.
pub(crate) fn controller_dvsec<Ctx: device::DeviceContext>(pdev: &pci::Device<Ctx>) -> Option<u16> {
    let (vendor, id) = CONTROLLER_DVSEC;
    dvsec(pdev, vendor, id)
}

/// The dword at `offset`; `None` when there is none, or all-ones.
pub(crate) fn read32<Ctx: device::DeviceContext>(
    pdev: &pci::Device<Ctx>,
    offset: u16,
) -> Option<u32> {
    let mut value = 0;
    // SAFETY: a `pci::Device` is a valid `struct pci_dev`; `value` is a live local.
    let ret =
        unsafe { bindings::pci_read_config_dword(as_raw(pdev), i32::from(offset), &mut value) };
    (ret == 0 && value != u32::MAX).then_some(value)
}

/// Of a virtual function: its physical function, and which one it is, counted from 1 (as VFN does).
///
/// The function is there meanwhile: it is bound to the caller's driver, or [`Topology`] has it.
pub(crate) fn physical_function<Ctx: device::DeviceContext>(
    pdev: &pci::Device<Ctx>,
) -> Option<(ARef<pci::Device>, u16)> {
    // SAFETY: a `pci::Device` is a valid `struct pci_dev`.
    let physical = unsafe { zs_pci_physical_function(as_raw(pdev)) };
    let physical = core::ptr::NonNull::new(physical)?;
    // SAFETY: a virtual function that is there holds a reference to its physical one.
    let physical: &pci::Device = unsafe { physical.cast().as_ref() };
    // SAFETY: as above.
    let number = unsafe { bindings::pci_iov_vf_id(as_raw(pdev)) };
    let number = u16::try_from(number).ok()?.checked_add(1)?;
    Some((physical.into(), number))
}
