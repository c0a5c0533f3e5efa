// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

#![no_std]
//! The ioctl interface of /dev/vmfunc: structures and numbers, once for the module and for tools.
//!
//! A contract with userspace (`docs/interfaces.md`, section 15): fields are added in what is
//! reserved, never moved. `vmfunc.h` is the C face; a test holds the two together.
//!
//! An open file is attached to one VM at most, and everything of it goes when the last reference to
//! the file does. Every structure begins with `argsz`, the size that the caller knows, and `flags`.
//! All ioctls fail with EINVAL (`argsz` too small, unknown flags, reserved fields not zero), E2BIG
//! (`argsz` above [`MAX_ARGSZ`]) and EFAULT; all but [`VMFUNC_ATTACH`] with ENOTCONN before it.

/// Name of the device below `/dev`.
pub const DEVICE_NAME: &str = "vmfunc";

/// Letter of the ioctl numbers.
pub const IOCTL_TYPE: u8 = 0xe7;

/// The largest `argsz`.
pub const MAX_ARGSZ: u32 = 4096;

/// Bytes of the private slot, and what its base is a multiple of: what one entry of the top table
/// maps.
pub const SLOT_SIZE: u64 = 512 << 30;

/// The largest index of a view. Index 0 is the default view.
pub const MAX_VIEWS: u32 = 63;

/// Most windows of one view.
pub const MAX_WINDOWS: u32 = 1024;

/// Most bytes of one window.
pub const MAX_WINDOW: u64 = 64 << 20;

/// Offset of the first window in the slot: below it is the gate's part.
pub const FIRST_WINDOW: u64 = 2 << 20;

/// [`VmfuncWindow::flags`]: the guest may write. Only with [`VMFUNC_WINDOW_OWNED`]: what a guest
/// writes by a window is in no dirty log.
pub const VMFUNC_WINDOW_WRITE: u32 = 1 << 0;
/// [`VmfuncWindow::flags`]: onto memory that the module makes, zeroed, and that mmap of the file
/// gives at [`VmfuncWindow::address`].
pub const VMFUNC_WINDOW_OWNED: u32 = 1 << 1;
/// [`VmfuncWindow::flags`]: onto memory of the file [`VmfuncWindow::fd`], from
/// [`VmfuncWindow::address`] on. Not with the other two.
pub const VMFUNC_WINDOW_FILE: u32 = 1 << 2;

/// [`VmfuncVcpu::flags`]: it was armed at its last entry.
pub const VMFUNC_VCPU_ARMED: u32 = 1 << 0;
/// [`VmfuncVcpu::flags`]: it could not be armed at its last entry, because KVM's tables for it have
/// five levels.
pub const VMFUNC_VCPU_UNABLE: u32 = 1 << 1;

/// [`VmfuncQuery::flags`]: the VM's address space has ended, or nobody else has the VM: none of its vCPUs
/// can enter any more.
pub const VMFUNC_QUERY_ENDED: u32 = 1 << 0;

/// Attaches to a VM. EBADF not a file, EINVAL not a VM of KVM or a bad slot, EBUSY this file or the
/// VM is attached already, EOPNOTSUPP the VM or this machine cannot, or not with this slot, with the
/// remedy in the kernel log, ESRCH the VM's address space has ended, ENOMEM, EINTR a signal came first.
pub const VMFUNC_ATTACH: u32 = iowr::<VmfuncAttach>(0x40);

/// Makes a view and tells its index, which VMFUNC takes in ECX. ENOSPC there are [`MAX_VIEWS`],
/// ENOMEM.
pub const VMFUNC_VIEW_CREATE: u32 = iowr::<VmfuncView>(0x41);

/// Ends a view; its windows end with it. ENOENT there is none.
pub const VMFUNC_VIEW_DESTROY: u32 = iowr::<VmfuncView>(0x42);

/// Opens a window in a view. ENOENT no such view, EEXIST it overlaps another, ENOSPC there are
/// [`MAX_WINDOWS`], EFAULT bad memory, ENOMEM, also beyond the limit of locked memory. With
/// [`VMFUNC_WINDOW_FILE`]: EBADF no file, EACCES not open for reading, EINVAL not memory, or not
/// that long.
pub const VMFUNC_WINDOW_ADD: u32 = iowr::<VmfuncWindow>(0x43);

/// Closes the window that begins at `offset`. When this returns, no processor of the guest reads or
/// writes its memory any more: whoever is inside the view is put into the default view. ENOENT there
/// is none.
pub const VMFUNC_WINDOW_REMOVE: u32 = iowr::<VmfuncWindow>(0x44);

/// Counters of a vCPU. ENOENT there is none, or it has never been prepared.
pub const VMFUNC_GET_VCPU: u32 = iowr::<VmfuncVcpu>(0x45);

/// Views, windows and limits.
pub const VMFUNC_QUERY: u32 = iowr::<VmfuncQuery>(0x46);

/// Sets the eventfd that is signalled when something has changed. EBADF no file, EINVAL not an
/// eventfd.
pub const VMFUNC_SET_EVENTFD: u32 = iowr::<VmfuncEventfd>(0x47);

/// The first window of a view at or behind `offset`. ENOENT no such view, or none from there on.
pub const VMFUNC_GET_WINDOW: u32 = iowr::<VmfuncWindow>(0x48);

/// For [`VMFUNC_ATTACH`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmfuncAttach {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// File descriptor of the VM.
    pub vm_fd: i32,
    /// Out: vCPUs that are prepared.
    pub vcpus: u32,
    /// Guest-physical address of the private slot: a multiple of [`SLOT_SIZE`], not 0.
    pub slot: u64,
}

/// For [`VMFUNC_VIEW_CREATE`] and [`VMFUNC_VIEW_DESTROY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmfuncView {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// Index of the view, 1 to [`MAX_VIEWS`]. Create: in 0, out.
    pub view: u32,
    /// 0.
    pub reserved: u32,
}

/// For [`VMFUNC_WINDOW_ADD`], [`VMFUNC_WINDOW_REMOVE`] and [`VMFUNC_GET_WINDOW`]; the latter two look
/// at `view` and `offset` only, and want 0 elsewhere. [`VMFUNC_GET_WINDOW`] fills in `flags`,
/// `offset`, `length`, and `address` as [`VMFUNC_WINDOW_ADD`] answered it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmfuncWindow {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// `VMFUNC_WINDOW_*`.
    pub flags: u32,
    /// Index of the view.
    pub view: u32,
    /// With [`VMFUNC_WINDOW_FILE`] its file descriptor, else 0.
    pub fd: i32,
    /// Where it begins in the slot, in bytes from its base: a multiple of 4096, from
    /// [`FIRST_WINDOW`].
    pub offset: u64,
    /// Bytes: a multiple of 4096, at most [`MAX_WINDOW`].
    pub length: u64,
    /// In: address of the caller's memory, a multiple of 4096; with [`VMFUNC_WINDOW_FILE`] the offset
    /// in the file, also one; with [`VMFUNC_WINDOW_OWNED`] 0, and out the offset for mmap.
    pub address: u64,
}

/// For [`VMFUNC_GET_VCPU`]. Counters begin at [`VMFUNC_ATTACH`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmfuncVcpu {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// In: 0. Out: `VMFUNC_VCPU_*`.
    pub flags: u32,
    /// Index of the vCPU, in the order in which they were made.
    pub vcpu: u32,
    /// 0.
    pub reserved: u32,
    /// Entries at which "enable VM functions" had to be set, because KVM had written its own value.
    pub arms: u64,
    /// Entries at which KVM had loaded a root of its own.
    pub loads: u64,
    /// Entries at which top entries were copied anew.
    pub resyncs: u64,
    /// Exits in a view whose cause only the default view can get over.
    pub bounces: u64,
    /// Single-context INVEPTs of this vCPU's views.
    pub invepts: u64,
}

/// For [`VMFUNC_QUERY`]; out but for the first two fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmfuncQuery {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// In: 0. Out: `VMFUNC_QUERY_*`.
    pub flags: u32,
    /// vCPUs that are prepared.
    pub vcpus: u32,
    /// Windows of all views.
    pub windows: u32,
    /// A bit for each view that there is, by its index: never bit 0.
    pub views: u64,
    /// [`VmfuncAttach::slot`].
    pub slot: u64,
    /// [`MAX_VIEWS`] of the module.
    pub max_views: u32,
    /// [`MAX_WINDOWS`] of the module.
    pub max_windows: u32,
    /// [`FIRST_WINDOW`] of the module.
    pub first_window: u64,
    /// [`MAX_WINDOW`] of the module.
    pub max_window: u64,
}

/// For [`VMFUNC_SET_EVENTFD`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmfuncEventfd {
    /// Size of the structure as the caller knows it.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// File descriptor of the eventfd; -1 for none any more.
    pub fd: i32,
    /// 0.
    pub reserved: u32,
}

/// `_IOWR(0xE7, number, T)` of `include/uapi/asm-generic/ioctl.h`.
const fn iowr<T>(number: u8) -> u32 {
    const READ_WRITE: u32 = 3;
    // CAST: every structure is far below the 16 KiB that the field can tell.
    let size = core::mem::size_of::<T>() as u32 & 0x3fff;
    (READ_WRITE << 30) | (size << 16) | ((IOCTL_TYPE as u32) << 8) | number as u32
}
