// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ioctls of `/dev/vmfunc`. None of their structures has an address of ours in it.

use super::{ask, Argument};
use rustix::fd::{AsFd, AsRawFd as _, BorrowedFd};
use rustix::io::Errno;
use vmfunc_uapi::{
    VmfuncAttach, VmfuncEventfd, VmfuncQuery, VmfuncVcpu, VmfuncView, VmfuncWindow, VMFUNC_ATTACH,
    VMFUNC_GET_VCPU, VMFUNC_GET_WINDOW, VMFUNC_QUERY, VMFUNC_SET_EVENTFD, VMFUNC_VIEW_CREATE,
    VMFUNC_VIEW_DESTROY, VMFUNC_WINDOW_ADD, VMFUNC_WINDOW_FILE, VMFUNC_WINDOW_OWNED,
    VMFUNC_WINDOW_REMOVE, VMFUNC_WINDOW_WRITE,
};

arguments!(VmfuncAttach VmfuncEventfd VmfuncQuery VmfuncVcpu VmfuncView VmfuncWindow);

/// What a window leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Memory<'a> {
    /// Memory that the module makes, and whether the guest may write it.
    Owned { write: bool },
    /// A file, from this offset on.
    File { file: BorrowedFd<'a>, offset: u64 },
}

/// `VMFUNC_ATTACH`; how many vCPUs are prepared.
pub(crate) fn attach(device: impl AsFd, vm: BorrowedFd<'_>, slot: u64) -> Result<u32, Errno> {
    let mut attach = VmfuncAttach {
        vm_fd: vm.as_raw_fd(),
        slot,
        ..VmfuncAttach::default()
    };
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<VMFUNC_ATTACH, _>(device, &mut attach) }?;
    Ok(attach.vcpus)
}

/// `VMFUNC_VIEW_CREATE`; the view's index.
pub(crate) fn create_view(device: impl AsFd) -> Result<u32, Errno> {
    let mut view = VmfuncView::default();
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<VMFUNC_VIEW_CREATE, _>(device, &mut view) }?;
    Ok(view.view)
}

/// `VMFUNC_VIEW_DESTROY`.
pub(crate) fn destroy_view(device: impl AsFd, view: u32) -> Result<(), Errno> {
    let mut view = VmfuncView {
        view,
        ..VmfuncView::default()
    };
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<VMFUNC_VIEW_DESTROY, _>(device, &mut view) }
}

/// `VMFUNC_WINDOW_ADD`.
pub(crate) fn add_window(
    device: impl AsFd,
    view: u32,
    offset: u64,
    length: u64,
    memory: Memory<'_>,
) -> Result<(), Errno> {
    let mut window = VmfuncWindow {
        view,
        offset,
        length,
        ..VmfuncWindow::default()
    };
    match memory {
        Memory::Owned { write } => {
            window.flags = VMFUNC_WINDOW_OWNED;
            if write {
                window.flags |= VMFUNC_WINDOW_WRITE;
            }
        }
        Memory::File { file, offset } => {
            window.flags = VMFUNC_WINDOW_FILE;
            window.fd = file.as_raw_fd();
            window.address = offset;
        }
    }
    // SAFETY: the module's header pairs this number and structure. Of the caller's memory is only
    // what has none of the flags above: `address` is an offset in the file, or 0.
    unsafe { ask::<VMFUNC_WINDOW_ADD, _>(device, &mut window) }
}

/// `VMFUNC_WINDOW_REMOVE`.
pub(crate) fn remove_window(device: impl AsFd, view: u32, offset: u64) -> Result<(), Errno> {
    let mut window = VmfuncWindow {
        view,
        offset,
        ..VmfuncWindow::default()
    };
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<VMFUNC_WINDOW_REMOVE, _>(device, &mut window) }
}

/// `VMFUNC_GET_WINDOW`: the first window of a view at or behind `offset`.
pub(crate) fn get_window(device: impl AsFd, view: u32, offset: u64) -> Result<VmfuncWindow, Errno> {
    let mut window = VmfuncWindow {
        view,
        offset,
        ..VmfuncWindow::default()
    };
    // SAFETY: the module's header pairs this number and structure; the kernel only tells addresses.
    unsafe { ask::<VMFUNC_GET_WINDOW, _>(device, &mut window) }?;
    Ok(window)
}

/// `VMFUNC_GET_VCPU`.
pub(crate) fn get_vcpu(device: impl AsFd, index: u32) -> Result<VmfuncVcpu, Errno> {
    let mut vcpu = VmfuncVcpu {
        vcpu: index,
        ..VmfuncVcpu::default()
    };
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<VMFUNC_GET_VCPU, _>(device, &mut vcpu) }?;
    Ok(vcpu)
}

/// `VMFUNC_QUERY`.
pub(crate) fn query(device: impl AsFd) -> Result<VmfuncQuery, Errno> {
    let mut query = VmfuncQuery::default();
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<VMFUNC_QUERY, _>(device, &mut query) }?;
    Ok(query)
}

/// `VMFUNC_SET_EVENTFD`.
pub(crate) fn set_eventfd(device: impl AsFd, event: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut eventfd = VmfuncEventfd {
        fd: event.as_raw_fd(),
        ..VmfuncEventfd::default()
    };
    // SAFETY: the module's header pairs this number and structure; no address in it.
    unsafe { ask::<VMFUNC_SET_EVENTFD, _>(device, &mut eventfd) }
}
