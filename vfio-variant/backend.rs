// SPDX-License-Identifier: GPL-2.0-only

//! migdirty, the back end, as safe Rust: a function that is claimed, and what it can be told.
//!
//! docs/interfaces.md, section 11, is the contract; `kmod-migdirty/abi` has the declarations. Each
//! call waits for the card, uninterruptibly: migdirty's command limit bounds it. This is, beside
//! `vfio/`, the only place with `unsafe` in this module. Must never be called with a lock that
//! [`Listener::lost`] takes where section 11 says that a call waits for it: that is [`Claim`]'s drop.

use crate::common::{
    layout::{layout_table, Entry},
    wait::Completion,
};
use core::{marker::PhantomData, mem::MaybeUninit, ptr::NonNull};
use kernel::{
    bindings,
    error::to_result,
    ffi::c_void,
    pci,
    prelude::*,
    sync::{aref::ARef, Arc},
};
use pin_init::stack_pin_init;

#[path = "../kmod-migdirty/abi/lib.rs"]
#[allow(dead_code)]
mod abi;

use abi::{operation, Batch, Events, Request};
pub(crate) use abi::{Format, Range};

/// Bytes of a controller state, at most.
const MAX_STATE: usize = 64 << 20;

/// How often a state may grow while it is being got.
const TRIES: u32 = 4;

/// Structures whose layout this file relies on, as Rust has it.
pub(crate) const LAYOUT: &[Entry] = layout_table! {
    size c"struct migdirty_events" = Events;
    size c"struct migdirty_range" = Range;
    offset c"struct migdirty_range.length" = Range, length;
    size c"struct migdirty_format" = Format;
    offset c"struct migdirty_format.uuid" = Format, uuid;
    size c"struct migdirty_request" = Request;
    offset c"struct migdirty_request.function" = Request, function;
    offset c"struct migdirty_request.data" = Request, data;
    offset c"struct migdirty_request.size" = Request, size;
    offset c"struct migdirty_request.granule" = Request, granule;
    offset c"struct migdirty_request.format" = Request, format;
    offset c"struct migdirty_request.operation" = Request, operation;
    offset c"struct migdirty_request.result" = Request, result;
    size c"struct migdirty_batch" = Batch;
    offset c"struct migdirty_batch.requests" = Batch, requests;
    offset c"struct migdirty_batch.count" = Batch, count;
    offset c"struct migdirty_batch.pending" = Batch, pending;
    offset c"struct migdirty_batch.complete" = Batch, complete;
    offset c"struct migdirty_batch.context" = Batch, context;
};

/// Who wants to hear of a claimed function.
pub(crate) trait Listener: Send + Sync + 'static {
    /// The card cannot be relied on any more. Before this returns, a function that is not meant to
    /// run must have been kept from memory. May sleep; must not drop the claim.
    fn lost(&self);
}

/// A function whose owner we are. Dropping it gives it back, which waits until [`Listener::lost`]
/// does not run, and ends its log and suspension.
///
/// # Invariants
///
/// `function` is claimed with `_listener` as context.
pub(crate) struct Claim<L: Listener> {
    function: NonNull<abi::Function>,
    _listener: Arc<L>,
    // Migdirty reads the device's configuration space while it is claimed.
    _pdev: ARef<pci::Device>,
}

// SAFETY: migdirty takes calls from any thread.
unsafe impl<L: Listener> Send for Claim<L> {}

// SAFETY: migdirty takes calls from several threads at a time.
unsafe impl<L: Listener> Sync for Claim<L> {}

impl<L: Listener> Drop for Claim<L> {
    fn drop(&mut self) {
        // SAFETY: claimed by the type invariant. A call that is in flight borrows the claim.
        unsafe { abi::migdirty_release(self.function.as_ptr()) };
    }
}

/// The callbacks of a kind of listener.
struct Table<L>(PhantomData<L>);

impl<L: Listener> Table<L> {
    // A reference, because migdirty keeps it.
    const EVENTS: &'static Events = &Events {
        lost: Some(Self::lost),
    };

    /// # Safety
    ///
    /// Called by migdirty between claim and release with the context of the claim.
    unsafe extern "C" fn lost(context: *mut c_void) {
        // SAFETY: the context is the listener, which the claim keeps until release has returned.
        unsafe { &*context.cast::<L>() }.lost();
    }
}

impl<L: Listener> Claim<L> {
    /// Claims `pdev`, which is bound to this driver and stays so.
    ///
    /// `ENODEV` no card manages it, `EBUSY` it has an owner, `EOPNOTSUPP` its card cannot.
    pub(crate) fn new(pdev: &pci::Device, listener: Arc<L>) -> Result<Self> {
        let mut function = MaybeUninit::uninit();
        // SAFETY: `pci::Device` is transparent over `struct pci_dev`; events and listener outlive
        // the claim, and `function` is a live local.
        to_result(unsafe {
            abi::migdirty_claim(
                core::ptr::from_ref(pdev).cast_mut().cast(),
                Table::<L>::EVENTS,
                Arc::as_ptr(&listener).cast_mut().cast(),
                function.as_mut_ptr(),
            )
        })?;
        // SAFETY: set when the call succeeds.
        let function = NonNull::new(unsafe { function.assume_init() }).ok_or(ENODEV)?;
        // INVARIANT: claimed.
        Ok(Self {
            function,
            _listener: listener,
            _pdev: pdev.into(),
        })
    }

    /// A request for this function, with nothing in it.
    fn request(&self, operation: u32) -> Request {
        Request {
            function: self.function.as_ptr(),
            data: core::ptr::null_mut(),
            size: 0,
            granule: 0,
            format: Format::default(),
            operation,
            result: 0,
        }
    }

    /// Carries `request` out. An error is that of its submission.
    ///
    /// # Safety
    ///
    /// `data` and `size` are what the operation wants, and the memory is nobody else's until this
    /// returns.
    unsafe fn execute(&self, request: &mut Request) -> Result {
        stack_pin_init!(let done = Completion::new());
        let mut batch = Batch {
            requests: request,
            count: 1,
            pending: 0,
            complete: Some(complete),
            context: core::ptr::from_ref(&*done).cast_mut().cast(),
        };
        // SAFETY: batch, request and completion stay where they are until the wait is over, and
        // the rest is the caller's promise.
        to_result(unsafe { abi::migdirty_submit(&raw mut batch) })?;
        done.wait();
        Ok(())
    }

    /// Carries an operation without data out.
    fn simple(&self, operation: u32) -> Result {
        let mut request = self.request(operation);
        // SAFETY: the operation has no data.
        unsafe { self.execute(&mut request) }?;
        to_result(request.result)
    }

    /// Suspends the function; returns when it is quiet. `ETIMEDOUT`: it goes on.
    pub(crate) fn suspend(&self) -> Result {
        self.simple(operation::SUSPEND).map_err(known_to_users)
    }

    /// Lets the function run. After an error it may run as well.
    pub(crate) fn resume(&self) -> Result {
        self.simple(operation::RESUME).map_err(known_to_users)
    }

    /// Tells that the function was reset.
    pub(crate) fn was_reset(&self) -> Result {
        self.simple(operation::WAS_RESET)
    }

    /// Gets the controller state of the suspended function, of which `hint` bytes are expected,
    /// and its format. `EFBIG` when it has more than 64 MiB.
    pub(crate) fn get_state(&self, hint: usize) -> Result<(KVVec<u8>, Format)> {
        let mut room = hint.clamp(4096, MAX_STATE);
        for _ in 0..TRIES {
            let mut state = KVVec::from_elem(0, room, GFP_KERNEL_ACCOUNT)?;
            let mut request = self.request(operation::GET_STATE);
            request.data = state.as_mut_ptr().cast();
            // CAST: widens.
            request.size = room as u64;
            // SAFETY: `data` has `size` bytes, and is ours.
            unsafe { self.execute(&mut request) }?;
            let size = usize::try_from(request.size)?;
            if request.result == ENOSPC.to_errno() && size > room {
                if size > MAX_STATE {
                    return Err(EFBIG);
                }
                room = size;
                continue;
            }
            to_result(request.result)?;
            if size > room {
                return Err(EIO);
            }
            state.truncate(size);
            return Ok((state, request.format));
        }
        Err(EIO)
    }

    /// Sets the controller state of the suspended, disabled function. `EINVAL`: the card refused
    /// it; `EOPNOTSUPP`: it does not know the format.
    pub(crate) fn set_state(&self, state: &[u8], format: Format) -> Result {
        let mut request = self.request(operation::SET_STATE);
        // Migdirty only reads it.
        request.data = state.as_ptr().cast_mut().cast();
        // CAST: widens.
        request.size = state.len() as u64;
        request.format = format;
        // SAFETY: `data` has `size` bytes.
        unsafe { self.execute(&mut request) }?;
        to_result(request.result)
    }

    /// Starts a log of `ranges` with the wished granule, in bytes; returns that in use. `EALREADY`
    /// when there is one.
    pub(crate) fn log_start(&self, ranges: &[Range], granule: u64) -> Result<u64> {
        let mut request = self.request(operation::LOG_START);
        // Migdirty only reads it.
        request.data = ranges.as_ptr().cast_mut().cast();
        // CAST: widens.
        request.size = ranges.len() as u64;
        request.granule = granule;
        // SAFETY: `data` has `size` ranges.
        unsafe { self.execute(&mut request) }?;
        to_result(request.result)?;
        Ok(request.granule)
    }

    /// Ends the log, if there is one.
    pub(crate) fn log_stop(&self) -> Result {
        self.simple(operation::LOG_STOP)
    }

    /// Takes what the card has into kernel memory, for [`Self::log_take`].
    pub(crate) fn log_harvest(&self) -> Result {
        self.simple(operation::LOG_HARVEST)
    }

    /// Hands what was harvested of `first..=last` to `dirty`, as first byte and length, ascending,
    /// and forgets it. `EINVAL` no log, `EIO` it is lost.
    pub(crate) fn log_take<F: FnMut(u64, u64)>(
        &self,
        first: u64,
        last: u64,
        mut dirty: F,
    ) -> Result {
        // SAFETY: claimed by the type invariant; `dirty` outlives the call, and is what `call`
        // wants.
        to_result(unsafe {
            abi::migdirty_log_take(
                self.function.as_ptr(),
                first,
                last,
                Some(call::<F>),
                (&raw mut dirty).cast(),
            )
        })
    }

    /// The value of the identity record, of at most `room` bytes.
    pub(crate) fn identity(&self, room: usize) -> Result<KVVec<u8>> {
        let mut identity = KVVec::from_elem(0, room, GFP_KERNEL_ACCOUNT)?;
        // SAFETY: claimed by the type invariant; the buffer has `room` bytes.
        let size = unsafe {
            abi::migdirty_identity(self.function.as_ptr(), identity.as_mut_ptr().cast(), room)
        };
        if size < 0 {
            return Err(Error::from_errno(i32::try_from(size)?));
        }
        identity.truncate(usize::try_from(size)?);
        Ok(identity)
    }

    /// The format that [`Self::get_state`] will give.
    pub(crate) fn format(&self) -> Result<Format> {
        let mut format = Format::default();
        // SAFETY: claimed by the type invariant; `format` is a live local.
        to_result(unsafe { abi::migdirty_format(self.function.as_ptr(), &mut format) })?;
        Ok(format)
    }
}

/// Users of VFIO know `EIO`; that nobody knows what the function does they learn from its state.
fn known_to_users(error: Error) -> Error {
    // CAST: the constant is 131.
    match error.to_errno() == -(bindings::ENOTRECOVERABLE as i32) {
        true => EIO,
        false => error,
    }
}

/// # Safety
///
/// Called by migdirty for a batch whose context is a completion.
unsafe extern "C" fn complete(batch: *mut Batch) {
    // SAFETY: the waiter keeps batch and completion until it is completed.
    unsafe { &*(*batch).context.cast::<Completion>() }.complete();
}

/// # Safety
///
/// Called by migdirty with a context that is an `F` that nobody else uses.
unsafe extern "C" fn call<F: FnMut(u64, u64)>(context: *mut c_void, iova: u64, length: u64) {
    // SAFETY: the caller's promise.
    unsafe { (*context.cast::<F>())(iova, length) }
}
