// SPDX-License-Identifier: GPL-2.0-only

//! The unsafe ground of migdirty.ko that `kmod-common/kernel` does not already cover.
//!
//! Nothing here has state. The rest of the module has no `unsafe` but two promises that only
//! `module.rs` can make, and the word that `global_lock!` wants in `registry.rs`.

use crate::{
    common::layout::{layout_table, Entry},
    registry,
    uapi::MigdirtyCard,
};
use kernel::{
    bindings,
    transmute::{AsBytes, FromBytes},
};

// SAFETY: integers and arrays of integers; every pattern of bits is a value.
unsafe impl FromBytes for MigdirtyCard {}

// SAFETY: no padding (`uapi/tests/header.rs` adds the fields up), so every byte is initialised.
unsafe impl AsBytes for MigdirtyCard {}

/// Readies the list of cards.
///
/// # Safety
///
/// Called once, by module init, before it registers the driver and the device, which are the only
/// users.
pub(crate) unsafe fn init_registry() -> registry::Registry {
    // SAFETY: the caller's promise.
    unsafe { registry::CARDS.init() };
    registry::Registry
}

/// Structures whose layout the Rust code relies on, as Rust has it.
pub(crate) const LAYOUT: &[Entry] = layout_table! {
    size c"struct completion" = bindings::completion;
    size c"spinlock_t" = bindings::spinlock_t;
    size c"struct file_operations" = bindings::file_operations;
    offset c"struct file_operations.owner" = bindings::file_operations, owner;
    offset c"struct file_operations.open" = bindings::file_operations, open;
    offset c"struct file_operations.release" = bindings::file_operations, release;
    offset c"struct file_operations.unlocked_ioctl" = bindings::file_operations, unlocked_ioctl;
    offset c"struct file_operations.compat_ioctl" = bindings::file_operations, compat_ioctl;
    offset c"struct file.private_data" = bindings::file, private_data;
    size c"struct miscdevice" = bindings::miscdevice;
    offset c"struct miscdevice.minor" = bindings::miscdevice, minor;
    offset c"struct miscdevice.name" = bindings::miscdevice, name;
    offset c"struct miscdevice.fops" = bindings::miscdevice, fops;
    offset c"struct miscdevice.mode" = bindings::miscdevice, mode;
    size c"struct pci_dev" = bindings::pci_dev;
    offset c"struct pci_dev.dev" = bindings::pci_dev, dev;
    size c"struct pci_driver" = bindings::pci_driver;
    offset c"struct pci_driver.shutdown" = bindings::pci_driver, shutdown;
    offset c"struct pci_driver.driver" = bindings::pci_driver, driver;
};
