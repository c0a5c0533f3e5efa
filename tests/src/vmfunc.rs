// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/vmfunc` as the test programs use it.

use crate::sys::{ioctl_with, Plain};
use crate::vfio::memory::Memory;
use rustix::io::Result;
use std::fs::File;
use std::mem::size_of;
use std::path::Path;
use vmfunc_uapi::{
    VmfuncAttach, VmfuncEventfd, VmfuncQuery, VmfuncVcpu, VmfuncView, VmfuncWindow, DEVICE_NAME,
    VMFUNC_ATTACH, VMFUNC_GET_VCPU, VMFUNC_GET_WINDOW, VMFUNC_QUERY, VMFUNC_SET_EVENTFD,
    VMFUNC_VIEW_CREATE, VMFUNC_VIEW_DESTROY, VMFUNC_WINDOW_ADD, VMFUNC_WINDOW_FILE,
    VMFUNC_WINDOW_OWNED, VMFUNC_WINDOW_REMOVE, VMFUNC_WINDOW_WRITE,
};

/// The module.
pub const MODULE: &str = "vmfunc_view";

/// Bytes of the gate's page, which is at the start of the file.
pub const GATE_SIZE: usize = 4096;

/// Whether the device is there.
pub fn exists() -> bool {
    Path::new("/dev").join(DEVICE_NAME).exists()
}

/// `argsz` of a structure.
pub fn size<T>() -> u32 {
    // CAST: less than a page.
    size_of::<T>() as u32
}

/// An attachment with nothing out of the ordinary.
pub fn attachment(vm: i32, slot: u64) -> VmfuncAttach {
    VmfuncAttach {
        argsz: size::<VmfuncAttach>(),
        flags: 0,
        vm_fd: vm,
        vcpus: 0,
        slot,
    }
}

/// A view by its number.
pub fn view(view: u32) -> VmfuncView {
    VmfuncView {
        argsz: size::<VmfuncView>(),
        flags: 0,
        view,
        reserved: 0,
    }
}

/// A window with nothing in it.
pub fn window(view: u32, offset: u64) -> VmfuncWindow {
    VmfuncWindow {
        argsz: size::<VmfuncWindow>(),
        flags: 0,
        view,
        fd: 0,
        offset,
        length: 0,
        address: 0,
    }
}

/// A question about a vCPU.
pub fn vcpu(vcpu: u32) -> VmfuncVcpu {
    VmfuncVcpu {
        argsz: size::<VmfuncVcpu>(),
        flags: 0,
        vcpu,
        reserved: 0,
        arms: 0,
        loads: 0,
        resyncs: 0,
        bounces: 0,
        invepts: 0,
    }
}

/// A question about all of it.
pub fn query() -> VmfuncQuery {
    VmfuncQuery {
        argsz: size::<VmfuncQuery>(),
        ..Default::default()
    }
}

/// An eventfd by its number.
pub fn eventfd(fd: i32) -> VmfuncEventfd {
    VmfuncEventfd {
        argsz: size::<VmfuncEventfd>(),
        fd,
        ..Default::default()
    }
}

/// An open file.
#[derive(Debug)]
pub struct Vmfunc(File);

impl Vmfunc {
    /// Opens one more.
    pub fn open() -> std::io::Result<Self> {
        let path = Path::new("/dev").join(DEVICE_NAME);
        File::options().read(true).write(true).open(path).map(Self)
    }

    /// Any ioctl.
    pub fn call<T: Plain>(&self, number: u32, argument: &mut T) -> Result<()> {
        ioctl_with(&self.0, number, argument)
    }

    /// Attaches to a VM, and tells how many vCPUs are prepared.
    pub fn attach(&self, vm: i32, slot: u64) -> Result<u32> {
        let mut argument = attachment(vm, slot);
        self.call(VMFUNC_ATTACH, &mut argument)?;
        Ok(argument.vcpus)
    }

    /// Makes a view.
    pub fn create_view(&self) -> Result<u32> {
        let mut argument = view(0);
        self.call(VMFUNC_VIEW_CREATE, &mut argument)?;
        Ok(argument.view)
    }

    /// Ends a view.
    pub fn destroy_view(&self, index: u32) -> Result<()> {
        self.call(VMFUNC_VIEW_DESTROY, &mut view(index))
    }

    /// Opens a window onto memory of this process, for reading.
    pub fn add_window(&self, view: u32, offset: u64, memory: &Memory) -> Result<()> {
        let mut argument = VmfuncWindow {
            length: memory.length() as u64,
            address: memory.address(),
            ..window(view, offset)
        };
        self.call(VMFUNC_WINDOW_ADD, &mut argument)
    }

    /// Opens a window onto memory of a file, for reading.
    pub fn add_file(&self, view: u32, offset: u64, fd: i32, from: u64, length: u64) -> Result<()> {
        let mut argument = VmfuncWindow {
            flags: VMFUNC_WINDOW_FILE,
            fd,
            length,
            address: from,
            ..window(view, offset)
        };
        self.call(VMFUNC_WINDOW_ADD, &mut argument)
    }

    /// Opens a window onto memory of the module, for reading and writing, and gives that memory.
    pub fn add_owned(&self, view: u32, offset: u64, length: usize) -> Result<Memory> {
        self.owned(VMFUNC_WINDOW_WRITE, view, offset, length)
    }

    /// The same, which the guest can only read.
    pub fn add_owned_read_only(&self, view: u32, offset: u64, length: usize) -> Result<Memory> {
        self.owned(0, view, offset, length)
    }

    fn owned(&self, flags: u32, view: u32, offset: u64, length: usize) -> Result<Memory> {
        let mut argument = VmfuncWindow {
            flags: VMFUNC_WINDOW_OWNED | flags,
            length: length as u64,
            ..window(view, offset)
        };
        self.call(VMFUNC_WINDOW_ADD, &mut argument)?;
        Memory::of_file(&self.0, argument.address, length, true)
    }

    /// Closes a window.
    pub fn remove_window(&self, view: u32, offset: u64) -> Result<()> {
        self.call(VMFUNC_WINDOW_REMOVE, &mut window(view, offset))
    }

    /// The first window of a view at or behind an offset.
    pub fn window_from(&self, view: u32, offset: u64) -> Result<VmfuncWindow> {
        let mut argument = window(view, offset);
        self.call(VMFUNC_GET_WINDOW, &mut argument)?;
        Ok(argument)
    }

    /// Views, windows and limits.
    pub fn query(&self) -> Result<VmfuncQuery> {
        let mut argument = query();
        self.call(VMFUNC_QUERY, &mut argument)?;
        Ok(argument)
    }

    /// Sets the eventfd that tells of changes, or with -1 none.
    pub fn set_eventfd(&self, fd: i32) -> Result<()> {
        self.call(VMFUNC_SET_EVENTFD, &mut eventfd(fd))
    }

    /// Counters of a vCPU.
    pub fn counters(&self, index: u32) -> Result<VmfuncVcpu> {
        let mut argument = vcpu(index);
        self.call(VMFUNC_GET_VCPU, &mut argument)?;
        Ok(argument)
    }

    /// The default face of the gate. It keeps the file open.
    pub fn gate(&self) -> Result<Memory> {
        Memory::of_file(&self.0, 0, GATE_SIZE, false)
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}
