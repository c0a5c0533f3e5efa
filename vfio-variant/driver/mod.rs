// SPDX-License-Identifier: GPL-2.0-only

//! The driver: what an NVMe function does beyond plain VFIO. No `unsafe` in this folder.
//!
//! | file | has |
//! |---|---|
//! | `bind.rs` | binding, opening and closing a function; whether it has a back end |
//! | `states.rs` | the migration state and its arcs |
//! | `save.rs`, `resume.rs` | the data files |
//! | `dirty.rs` | the DMA log |
//! | `reset.rs` | what a reset, or the loss of the card, does |
//!
//! # Who owns what
//!
//! The VFIO core owns the device and with it [`Function`]; that owns `Migration`, which from open to
//! close owns the claim, to which it listens. The claim has a reference back, so close has to take
//! it out. A data file belongs to its `struct file`; `Migration` has a reference as long as the
//! state has the file, and makes it dead then. A file never points to the device.
//!
//! # Locks, outermost first
//!
//! 1. Those of the callers of open, close and resets: the device lock (over errors of the link within
//!    `pci_bus_sem`), VFIO's device set lock and memory lock. Page faults wait for the last one.
//! 2. `Migration::log`, or `Migration::inner`; never both. Held while the card works, never over an
//!    access to user memory. Dropping a claim waits for `lost`, which takes `inner`: so never under
//!    `inner`.
//! 3. `SaveFile::image`, `ResumeFile::stream`: for a moment.
//!
//! `SaveFile::reader` and `ResumeFile::writer` are held over accesses to user memory, with the locks
//! of (3) inside of them; the device never takes them.

mod bind;
mod dirty;
mod reset;
mod resume;
mod save;
mod states;

pub(crate) use bind::Function;

/// Shows what `core` can show, which the kernel's own formatting does not take as it is.
struct Shown<'a, T>(&'a T);

impl<T: core::fmt::Display> kernel::fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        self.0.fmt(f)
    }
}
