// SPDX-License-Identifier: GPL-2.0-only

//! Declarations of the VFIO core, made by bindgen from the headers of the kernel that is built for,
//! and what `helpers.c` adds to them.
//!
//! Used by the files of `vfio/` only; nothing here has state. The core's structures move between
//! kernel versions, so [`LAYOUT`] is compared with the C compiler's view when the module loads.

use crate::common::layout::{layout_table, Entry};
use kernel::{
    bindings,
    ffi::{c_int, c_uint},
    transmute::{AsBytes, FromBytes},
};

/// bindgen's output.
#[allow(
    clippy::all,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
#[allow(unknown_lints, unnecessary_transmutes)]
mod generated {
    use kernel::{bindings::*, ffi};
    use pin_init::{MaybeZeroable, Zeroable};
    // SAFETY: as in the kernel's rust/bindings/lib.rs, a transparent wrapper of `Storage`.
    unsafe impl<Storage> Zeroable for __BindgenBitfieldUnit<Storage> where Storage: Zeroable {}
    include!(env!("ZS_VFIO_BINDINGS"));
}
pub(crate) use generated::*;

// The structures are only passed through; deep inside some have an array that is empty here.
#[allow(improper_ctypes)]
extern "C" {
    pub(crate) fn zs_vfio_put_device(vdev: *mut vfio_device);
    pub(crate) fn zs_vfio_pci_read32(
        vdev: *mut vfio_pci_core_device,
        bar: c_uint,
        offset: u64,
        value: *mut u32,
    ) -> c_int;
    pub(crate) fn zs_pm_runtime_get(dev: *mut bindings::device) -> c_int;
    pub(crate) fn zs_pm_runtime_put(dev: *mut bindings::device);
}

// SAFETY: integers; every pattern of bits is a value.
unsafe impl FromBytes for vfio_precopy_info {}

// SAFETY: two u32 and two u64 in this order, so there is no padding.
unsafe impl AsBytes for vfio_precopy_info {}

/// Structures whose layout the Rust code relies on, as Rust has it.
pub(crate) const LAYOUT: &[Entry] = layout_table! {
    size c"struct vfio_device" = vfio_device;
    offset c"struct vfio_device.mig_ops" = vfio_device, mig_ops;
    offset c"struct vfio_device.log_ops" = vfio_device, log_ops;
    offset c"struct vfio_device.migration_flags" = vfio_device, migration_flags;
    offset c"struct vfio_device.precopy_info_v2" = vfio_device, precopy_info_v2;
    offset c"struct vfio_device.dev" = vfio_device, dev;
    offset c"struct vfio_device.device" = vfio_device, device;
    size c"struct vfio_device_ops" = vfio_device_ops;
    offset c"struct vfio_device_ops.match_token_uuid" = vfio_device_ops, match_token_uuid;
    offset c"struct vfio_device_ops.device_feature" = vfio_device_ops, device_feature;
    size c"struct vfio_migration_ops" = vfio_migration_ops;
    size c"struct vfio_log_ops" = vfio_log_ops;
    offset c"struct vfio_log_ops.log_read_and_clear" = vfio_log_ops, log_read_and_clear;
    size c"struct vfio_precopy_info" = vfio_precopy_info;
    size c"struct vfio_pci_core_device" = vfio_pci_core_device;
    offset c"struct vfio_pci_core_device.vdev" = vfio_pci_core_device, vdev;
    offset c"struct vfio_pci_core_device.pdev" = vfio_pci_core_device, pdev;
    offset c"struct vfio_pci_core_device.pci_ops" = vfio_pci_core_device, pci_ops;
    offset c"struct vfio_pci_core_device.memory_lock" = vfio_pci_core_device, memory_lock;
    offset c"struct vfio_pci_core_device.msix_bar" = vfio_pci_core_device, msix_bar;
    offset c"struct vfio_pci_core_device.msix_size" = vfio_pci_core_device, msix_size;
    size c"struct vfio_pci_device_ops" = vfio_pci_device_ops;
    size c"struct rb_root_cached" = bindings::rb_root_cached;
    size c"wait_queue_head_t" = bindings::wait_queue_head_t;
    size c"struct interval_tree_node" = bindings::interval_tree_node;
    offset c"struct interval_tree_node.start" = bindings::interval_tree_node, start;
    offset c"struct interval_tree_node.last" = bindings::interval_tree_node, last;
    size c"struct file_operations" = bindings::file_operations;
    offset c"struct file_operations.owner" = bindings::file_operations, owner;
    offset c"struct file_operations.read" = bindings::file_operations, read;
    offset c"struct file_operations.write" = bindings::file_operations, write;
    offset c"struct file_operations.poll" = bindings::file_operations, poll;
    offset c"struct file_operations.unlocked_ioctl" = bindings::file_operations, unlocked_ioctl;
    offset c"struct file_operations.compat_ioctl" = bindings::file_operations, compat_ioctl;
    offset c"struct file_operations.release" = bindings::file_operations, release;
    offset c"struct file.private_data" = bindings::file, private_data;
    offset c"struct file.f_inode" = bindings::file, f_inode;
    size c"struct completion" = bindings::completion;
    size c"spinlock_t" = bindings::spinlock_t;
    size c"struct pci_dev" = bindings::pci_dev;
    offset c"struct pci_dev.dev" = bindings::pci_dev, dev;
    size c"struct pci_device_id" = bindings::pci_device_id;
    offset c"struct pci_device_id.override_only" = bindings::pci_device_id, override_only;
    size c"struct pci_error_handlers" = bindings::pci_error_handlers;
    offset c"struct pci_error_handlers.error_detected" =
        bindings::pci_error_handlers, error_detected;
    offset c"struct pci_error_handlers.reset_done" = bindings::pci_error_handlers, reset_done;
    size c"struct pci_driver" = bindings::pci_driver;
    offset c"struct pci_driver.id_table" = bindings::pci_driver, id_table;
    offset c"struct pci_driver.probe" = bindings::pci_driver, probe;
    offset c"struct pci_driver.remove" = bindings::pci_driver, remove;
    offset c"struct pci_driver.err_handler" = bindings::pci_driver, err_handler;
    offset c"struct pci_driver.driver_managed_dma" = bindings::pci_driver, driver_managed_dma;
};
