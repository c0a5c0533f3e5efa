// SPDX-License-Identifier: GPL-2.0-only

//! The unsafe ground of migdirty.ko that `kmod-common/kernel` does not already cover.
//!
//! Nothing here has state. The rest of the module has no `unsafe` but two promises that only
//! `module.rs` can make, and the word that `global_lock!` wants in `registry.rs`.

pub(crate) mod backend;

use crate::{
    abi,
    common::{
        argument::plain,
        layout::{layout_table, Entry},
    },
    registry,
    uapi::{
        MigdirtyCard, MigdirtyFunctionInfo, MigdirtyIdentity, MigdirtyLogStart, MigdirtyLogSync,
        MigdirtyRange, MigdirtyState, MigdirtyTarget,
    },
};
use kernel::bindings;

plain! {
    MigdirtyCard MigdirtyFunctionInfo MigdirtyIdentity MigdirtyLogStart MigdirtyLogSync
    MigdirtyRange MigdirtyState MigdirtyTarget
}

/// Readies the lists of cards and claims.
///
/// # Safety
///
/// Called once, by module init, before it registers the driver and the device, which are the only
/// users.
pub(crate) unsafe fn init_registry() -> registry::Registry {
    // SAFETY: the caller's promise.
    unsafe {
        registry::CARDS.init();
        registry::CLAIMS.init();
    }
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
    offset c"struct file_operations.mmap" = bindings::file_operations, mmap;
    offset c"struct vm_area_struct.vm_pgoff" = bindings::vm_area_struct, vm_pgoff;
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
    offset c"struct pci_driver.err_handler" = bindings::pci_driver, err_handler;
    offset c"struct pci_driver.driver" = bindings::pci_driver, driver;
    size c"struct pci_error_handlers" = bindings::pci_error_handlers;
    offset c"struct pci_error_handlers.reset_prepare" = bindings::pci_error_handlers, reset_prepare;
    size c"struct migdirty_events" = abi::Events;
    offset c"struct migdirty_events.lost" = abi::Events, lost;
    size c"struct migdirty_range" = abi::Range;
    offset c"struct migdirty_range.iova" = abi::Range, iova;
    offset c"struct migdirty_range.length" = abi::Range, length;
    size c"struct migdirty_format" = abi::Format;
    offset c"struct migdirty_format.version" = abi::Format, version;
    offset c"struct migdirty_format.uuid" = abi::Format, uuid;
    size c"struct migdirty_request" = abi::Request;
    offset c"struct migdirty_request.function" = abi::Request, function;
    offset c"struct migdirty_request.data" = abi::Request, data;
    offset c"struct migdirty_request.size" = abi::Request, size;
    offset c"struct migdirty_request.granule" = abi::Request, granule;
    offset c"struct migdirty_request.format" = abi::Request, format;
    offset c"struct migdirty_request.operation" = abi::Request, operation;
    offset c"struct migdirty_request.result" = abi::Request, result;
    size c"struct migdirty_batch" = abi::Batch;
    offset c"struct migdirty_batch.requests" = abi::Batch, requests;
    offset c"struct migdirty_batch.count" = abi::Batch, count;
    offset c"struct migdirty_batch.pending" = abi::Batch, pending;
    offset c"struct migdirty_batch.complete" = abi::Batch, complete;
    offset c"struct migdirty_batch.context" = abi::Batch, context;
};
