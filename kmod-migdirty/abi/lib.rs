// SPDX-License-Identifier: GPL-2.0-only

//! What migdirty.ko offers to front ends in the kernel: the same as `migdirty_backend.h`.
//!
//! Compiled into both modules by `#[path]`, so it uses nothing but `kernel`. Only layouts and
//! declarations; docs/interfaces.md, section 11, is the contract. Each module compares the sizes
//! and offsets with the header's when it is loaded, and refuses to load when one differs.

use kernel::{
    bindings,
    ffi::{c_int, c_void},
};

/// A function that a card manages, claimed by its one owner. Only ever behind a pointer.
#[repr(C)]
pub(crate) struct Function {
    _opaque: [u8; 0],
}

/// What a front end wants to hear of (`struct migdirty_events`).
#[repr(C)]
pub(crate) struct Events {
    /// The card cannot be relied on any more: it died, or it is about to be reset or to go, which
    /// ends every suspension and every log. Before this returns the owner has to make sure that a
    /// function that is not meant to run cannot touch memory. Once per claim, in process context;
    /// may sleep. Operations in flight have ended with an error, or will without waiting for this.
    /// May come before [`migdirty_claim`] has returned, also when that fails.
    pub(crate) lost: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

/// A range of addresses as the function uses them (`struct migdirty_range`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// First byte.
    pub(crate) iova: u64,
    /// Bytes, not 0. The last byte may be 2^64 - 1.
    pub(crate) length: u64,
}

/// In which form a controller state is (`struct migdirty_format`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Format {
    /// Version of the NVMe Controller State (Identify CNS 20h).
    pub(crate) version: u16,
    /// 0.
    pub(crate) reserved: u16,
    /// 0.
    pub(crate) reserved2: u32,
    /// Of the vendor specific data, zeroes for none.
    pub(crate) uuid: [u8; 16],
}

/// Values of [`Request::operation`] (`enum migdirty_operation`).
pub(crate) mod operation {
    /// Suspend the function; ends when it is quiet.
    pub(crate) const SUSPEND: u32 = 1;
    /// Let it run.
    pub(crate) const RESUME: u32 = 2;
    /// Get its controller state. Format: out; data, size: room in, bytes out.
    pub(crate) const GET_STATE: u32 = 3;
    /// Set its controller state. Format: in; data, size: the whole state.
    pub(crate) const SET_STATE: u32 = 4;
    /// Start a log. Data, size: ranges and their number; granule: in and out.
    pub(crate) const LOG_START: u32 = 5;
    /// End the log.
    pub(crate) const LOG_STOP: u32 = 6;
    /// Take what the card has into kernel memory, for [`super::migdirty_log_take`].
    pub(crate) const LOG_HARVEST: u32 = 7;
    /// The function was reset by its owner.
    pub(crate) const WAS_RESET: u32 = 8;
}

/// One operation on one function (`struct migdirty_request`). Untouched by its owner from submit to
/// complete.
#[repr(C)]
pub(crate) struct Request {
    /// From [`migdirty_claim`].
    pub(crate) function: *mut Function,
    /// Kernel memory.
    pub(crate) data: *mut c_void,
    /// Bytes; of [`operation::LOG_START`] the number of ranges.
    pub(crate) size: u64,
    /// Bytes, a power of two from 4096; 0 for any.
    pub(crate) granule: u64,
    /// See the operations.
    pub(crate) format: Format,
    /// One of [`operation`]'s.
    pub(crate) operation: u32,
    /// Out: 0 or a negative errno.
    pub(crate) result: i32,
}

/// Operations that run at the same time (`struct migdirty_batch`).
#[repr(C)]
pub(crate) struct Batch {
    /// `count` of them.
    pub(crate) requests: *mut Request,
    /// From 1.
    pub(crate) count: u32,
    /// Of migdirty: 0 when submitted.
    pub(crate) pending: u32,
    /// Once, in process context, when every request has ended; then the batch is its owner's.
    pub(crate) complete: Option<unsafe extern "C" fn(batch: *mut Batch)>,
    /// Of the owner.
    pub(crate) context: *mut c_void,
}

/// What [`migdirty_log_take`] calls for each range.
pub(crate) type Dirty = unsafe extern "C" fn(context: *mut c_void, iova: u64, length: u64);

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
    /// ascending, and forgets them. No lock is held over `dirty`. `EINVAL` no log, `EIO` the log is
    /// lost. Sleeps.
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

    /// The format that [`operation::GET_STATE`] will give. Sleeps.
    pub(crate) fn migdirty_format(function: *mut Function, format: *mut Format) -> c_int;
}
