// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the module vmfunc_view does with an attached VM, behind a trait that tests replace. Errors are
//! the kernel's numbers; `explain.rs` knows what they mean.

use crate::modules;
use crate::sys::vmfunc::{self, Memory};
use anyhow::{anyhow, bail, Result};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use vmfunc_uapi::{VmfuncQuery, VmfuncVcpu, VmfuncWindow};

/// Something with views.
pub(super) trait Views {
    /// Views, as bits, and the slot.
    fn query(&self) -> Result<VmfuncQuery, Errno>;

    /// Makes a view and says its index.
    fn create_view(&self) -> Result<u32, Errno>;

    /// Ends a view.
    fn destroy_view(&self, view: u32) -> Result<(), Errno>;

    /// Opens a window.
    fn add_window(
        &self,
        view: u32,
        offset: u64,
        length: u64,
        memory: Memory<'_>,
    ) -> Result<(), Errno>;

    /// Closes a window.
    fn remove_window(&self, view: u32, offset: u64) -> Result<(), Errno>;

    /// The first window of a view at or behind `offset`.
    fn window(&self, view: u32, offset: u64) -> Result<VmfuncWindow, Errno>;

    /// Counters of a vCPU.
    fn vcpu(&self, index: u32) -> Result<VmfuncVcpu, Errno>;
}

/// All windows of a view, in order.
pub(super) fn windows(views: &dyn Views, view: u32) -> Result<Vec<VmfuncWindow>, Errno> {
    let mut found = Vec::new();
    let mut from = 0;
    loop {
        match views.window(view, from) {
            Ok(window) => {
                from = window.offset.saturating_add(window.length);
                found.push(window);
            }
            // The view has just ended, or has no more.
            Err(Errno::NOENT) => return Ok(found),
            Err(errno) => return Err(errno),
        }
    }
}

/// An open `/dev/vmfunc`.
pub(super) struct Device(OwnedFd);

impl Device {
    /// One that was opened elsewhere.
    pub(super) fn from_fd(file: OwnedFd) -> Self {
        Self(file)
    }

    /// Opens it; `None` when there is none, that is, when the module is not loaded.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        let gone = [Some(Errno::NXIO), Some(Errno::NODEV)];
        match File::options().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(Self(file.into()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // A node that was left behind by hand.
            Err(error) if gone.contains(&Errno::from_io_error(&error)) => Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => bail!(
                "cannot open {}: {error}; run this command as root",
                path.display()
            ),
            Err(error) => bail!("cannot open {}: {error}", path.display()),
        }
    }

    /// Opens it; it has to be there.
    pub(super) fn open_loaded(path: &Path) -> Result<Self> {
        Self::open(path)?.ok_or_else(|| anyhow!("{}", not_loaded(path)))
    }

    /// Attaches it to a VM; how many vCPUs are prepared.
    pub(super) fn attach(&self, vm: BorrowedFd<'_>, slot: u64) -> Result<u32, Errno> {
        vmfunc::attach(&self.0, vm, slot)
    }

    /// Has `event` signalled when something changes.
    pub(super) fn set_event(&self, event: BorrowedFd<'_>) -> Result<(), Errno> {
        vmfunc::set_eventfd(&self.0, event)
    }

    /// The file.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// That the module is not there, and how to load it.
pub(super) fn not_loaded(path: &Path) -> String {
    format!(
        "{} is not there: the module vmfunc_view is not loaded; to load it: {}; in a container pass \
         the device in",
        path.display(),
        modules::load("vmfunc_view")
    )
}

impl Views for Device {
    fn query(&self) -> Result<VmfuncQuery, Errno> {
        vmfunc::query(&self.0)
    }

    fn create_view(&self) -> Result<u32, Errno> {
        vmfunc::create_view(&self.0)
    }

    fn destroy_view(&self, view: u32) -> Result<(), Errno> {
        vmfunc::destroy_view(&self.0, view)
    }

    fn add_window(
        &self,
        view: u32,
        offset: u64,
        length: u64,
        memory: Memory<'_>,
    ) -> Result<(), Errno> {
        vmfunc::add_window(&self.0, view, offset, length, memory)
    }

    fn remove_window(&self, view: u32, offset: u64) -> Result<(), Errno> {
        vmfunc::remove_window(&self.0, view, offset)
    }

    fn window(&self, view: u32, offset: u64) -> Result<VmfuncWindow, Errno> {
        vmfunc::get_window(&self.0, view, offset)
    }

    fn vcpu(&self, index: u32) -> Result<VmfuncVcpu, Errno> {
        vmfunc::get_vcpu(&self.0, index)
    }
}
