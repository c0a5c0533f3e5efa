// SPDX-License-Identifier: GPL-2.0-only

//! The calls of migdirty.ko, for front ends: `migdirty_backend.h` in Rust. The module itself defines
//! them and does not include this file.

use super::{Batch, Dirty, Events, Format, Function};
use kernel::{
    bindings,
    ffi::{c_int, c_void},
};

// The PCI device is only passed through; deep inside it has an array that is empty here.
#[allow(improper_ctypes)]
extern "C" {
    /// Finds the function's card and makes the caller its owner. `ENODEV` no card manages it,
    /// `EBUSY` it has an owner, `EOPNOTSUPP` the card cannot. Sleeps.
    ///
    /// `events` and `context` stay valid until [`migdirty_release`] has returned; the function
    /// stays bound to the caller's driver as long.
    pub(crate) fn migdirty_claim(
        pdev: *mut bindings::pci_dev,
        events: *const Events,
        context: *mut c_void,
        function: *mut *mut Function,
    ) -> c_int;

    /// Gives it back; afterwards the handle is gone. No operation may be in flight. Waits until no
    /// `lost` runs, so not from within it. Sleeps.
    pub(crate) fn migdirty_release(function: *mut Function);

    /// Starts the operations of a batch; 0: `complete` will be called, once. `EINVAL` otherwise.
    /// Does not wait for a card.
    pub(crate) fn migdirty_submit(batch: *mut Batch) -> c_int;

    /// Hands the harvested dirty ranges that overlap `first..=last`, cut to it, to `dirty`,
    /// ascending, and forgets them. `dirty` may fault pages and must not call migdirty. `EINVAL` no
    /// log, `EIO` the log is lost. Sleeps.
    pub(crate) fn migdirty_log_take(
        function: *mut Function,
        first: u64,
        last: u64,
        dirty: Option<Dirty>,
        context: *mut c_void,
    ) -> c_int;

    /// The value of the identity record: its size, or `-ENOSPC`. Sleeps.
    pub(crate) fn migdirty_identity(
        function: *mut Function,
        buffer: *mut c_void,
        room: usize,
    ) -> isize;

    /// The format that [`super::operation::GET_STATE`] will give. Sleeps.
    pub(crate) fn migdirty_format(function: *mut Function, format: *mut Format) -> c_int;
}
