// SPDX-License-Identifier: GPL-2.0-only

//! The unsafe ground of vmfunc_view.ko that `kmod-common/kernel` does not already cover.

pub(crate) mod eventfd;
pub(crate) mod kvm;
pub(crate) mod mm;
pub(crate) mod module;
pub(crate) mod page;
pub(crate) mod probe;
pub(crate) mod registry;
pub(crate) mod vmx;

use crate::{
    common::{
        argument::plain,
        layout::{layout_table, Entry},
    },
    uapi::{VmfuncAttach, VmfuncEventfd, VmfuncQuery, VmfuncVcpu, VmfuncView, VmfuncWindow},
};
use kernel::bindings;

plain! { VmfuncAttach VmfuncView VmfuncWindow VmfuncVcpu VmfuncQuery VmfuncEventfd }

/// Structures whose layout the Rust code relies on, as Rust has it.
pub(crate) const LAYOUT: &[Entry] = layout_table! {
    size c"struct completion" = bindings::completion;
    size c"spinlock_t" = bindings::spinlock_t;
    size c"struct file_operations" = bindings::file_operations;
    offset c"struct file_operations.owner" = bindings::file_operations, owner;
    offset c"struct file_operations.open" = bindings::file_operations, open;
    offset c"struct file_operations.release" = bindings::file_operations, release;
    offset c"struct file_operations.mmap" = bindings::file_operations, mmap;
    offset c"struct file_operations.unlocked_ioctl" = bindings::file_operations, unlocked_ioctl;
    offset c"struct file_operations.compat_ioctl" = bindings::file_operations, compat_ioctl;
    offset c"struct file.private_data" = bindings::file, private_data;
    size c"struct miscdevice" = bindings::miscdevice;
    offset c"struct miscdevice.minor" = bindings::miscdevice, minor;
    offset c"struct miscdevice.name" = bindings::miscdevice, name;
    offset c"struct miscdevice.fops" = bindings::miscdevice, fops;
    offset c"struct miscdevice.mode" = bindings::miscdevice, mode;
    size c"struct vm_area_struct" = bindings::vm_area_struct;
    offset c"struct vm_area_struct.vm_pgoff" = bindings::vm_area_struct, vm_pgoff;
};
