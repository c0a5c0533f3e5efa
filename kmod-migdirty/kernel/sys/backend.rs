// SPDX-License-Identifier: GPL-2.0-only

//! The C face of the back end: what front ends in the kernel call (`abi/`).
//!
//! A front end is trusted to keep the contract of docs/interfaces.md, section 11: pointers are what
//! they should be, a handle is used until it is released and not after, and a batch is left alone
//! until it is complete. What it can get wrong without breaking that is checked.

use crate::{
    abi::{operation, Batch, Dirty, Events, Format, Function as Handle, Range, Request},
    errno::not_supported,
    function::Function,
    identity, locate,
    logic::span::Span,
    operations::MAX_RANGES,
    state::Read,
};
use core::{
    ptr, slice,
    sync::atomic::{AtomicU32, Ordering},
};
use kernel::{
    bindings,
    ffi::{c_int, c_void},
    pci,
    prelude::*,
    sync::{Arc, ArcBorrow},
};

/// The most operations of a batch.
const MAX_BATCH: u32 = 1024;

/// How many ranges are taken at a time to be handed out; they take less than 1 KiB of stack.
const HANDFUL: usize = 32;

/// Whom to tell that a card is lost.
///
/// # Invariants
///
/// `events` and `context` are those of a claim that is not released, and `events` is valid.
#[derive(Clone, Copy)]
pub(crate) struct FrontEnd {
    events: *const Events,
    context: *mut c_void,
}

// SAFETY: a front end is told in whatever context, and knows it.
unsafe impl Send for FrontEnd {}

impl FrontEnd {
    /// Tells it. Sleeps.
    pub(crate) fn tell(self) {
        // SAFETY: valid by the type invariant.
        if let Some(lost) = unsafe { (*self.events).lost } {
            // SAFETY: the context belongs to these events, and the claim is not released before
            // this returns (`Function::release` waits).
            unsafe { lost(self.context) }
        }
    }
}

/// An operation that waits for its turn.
///
/// # Invariants
///
/// Both are valid, `request` belongs to `batch`, and `batch` was submitted and is not complete.
pub(crate) struct QueuedRequest {
    batch: *mut Batch,
    request: *mut Request,
}

// SAFETY: a batch belongs to the module until it is complete, on whichever thread.
unsafe impl Send for QueuedRequest {}

impl QueuedRequest {
    /// Carries it out, and completes its batch if it is the last one.
    pub(crate) fn perform(self, function: &Function) {
        // SAFETY: valid by the type invariant, and this is the only one that uses this request.
        let request = unsafe { &mut *self.request };
        request.result = match perform(function, request) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        };
        // SAFETY: valid by the type invariant; from the submission on `pending` is only used like
        // this.
        let pending = unsafe { AtomicU32::from_ptr(&raw mut (*self.batch).pending) };
        // The last one sees the results of all others.
        if pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: valid by the type invariant: it was not complete until now.
            if let Some(complete) = unsafe { (*self.batch).complete } {
                // SAFETY: the batch is its owner's again, and this was the last use.
                unsafe { complete(self.batch) }
            }
        }
    }
}

fn perform(function: &Function, request: &mut Request) -> Result {
    let length = usize::try_from(request.size).map_err(|_| EINVAL)?;
    match request.operation {
        operation::SUSPEND => function.suspend(),
        operation::RESUME => function.resume(),
        operation::WAS_RESET => function.was_reset(),
        operation::LOG_STOP => function.log_stop(),
        operation::LOG_HARVEST => {
            let harvested = function.log_harvest()?;
            if harvested.ran {
                // Its owner believes that it has everything, and must not.
                return Err(EIO);
            }
            Ok(())
        }
        operation::LOG_START => {
            if request.data.is_null() || length == 0 || length > MAX_RANGES {
                return Err(EINVAL);
            }
            // SAFETY: the front end says that `data` is so many ranges.
            let ranges = unsafe { slice::from_raw_parts(request.data.cast::<Range>(), length) };
            let mut wanted = KVVec::with_capacity(length, GFP_KERNEL)?;
            for range in ranges {
                let span = Span::of_length(range.iova, range.length).ok_or(EINVAL)?;
                wanted.push(span, GFP_KERNEL)?;
            }
            request.granule = function.log_start(wanted, request.granule)?;
            Ok(())
        }
        operation::GET_STATE => {
            // SAFETY: the front end says that `data` is kernel memory of `size` bytes.
            let room = unsafe { bytes(request.data, length) }?;
            let (read, format) = function.get_state(room)?;
            request.format = Format {
                version: crate::card::STATE_VERSION,
                uuid: format.uuid,
                ..Format::default()
            };
            let (size, result) = match read {
                Read::Whole(size) => (size, Ok(())),
                Read::Needs(size) => (size, Err(ENOSPC)),
            };
            // CAST: widens.
            request.size = size as u64;
            result
        }
        operation::SET_STATE => {
            // SAFETY: as above.
            let state = unsafe { bytes(request.data, length) }?;
            function.set_state(state, request.format.version, request.format.uuid)
        }
        _ => Err(EINVAL),
    }
}

/// The memory at `data`; no byte of it for null.
///
/// # Safety
///
/// `data` is null, or `length` bytes that nobody else uses as long as this does.
unsafe fn bytes<'a>(data: *mut c_void, length: usize) -> Result<&'a mut [u8]> {
    if data.is_null() {
        return if length == 0 {
            Ok(&mut [])
        } else {
            Err(EINVAL)
        };
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { slice::from_raw_parts_mut(data.cast(), length) })
}

fn result_of(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// # Safety
///
/// `pdev` is bound to the caller's driver until the release. `events` and `context` are valid until
/// it has returned. `function` is valid for a write.
#[no_mangle]
unsafe extern "C" fn migdirty_claim(
    pdev: *mut bindings::pci_dev,
    events: *const Events,
    context: *mut c_void,
    function: *mut *mut Handle,
) -> c_int {
    // SAFETY: `pci::Device` is transparent over `struct pci_dev`, and the caller's promise.
    let pdev = unsafe { &*pdev.cast::<pci::Device>() };
    // INVARIANT: the caller's promise.
    let front_end = FrontEnd { events, context };
    match claim(pdev, front_end) {
        Ok(claimed) => {
            // SAFETY: the caller's promise.
            unsafe { *function = claimed.into_raw().cast_mut().cast() };
            0
        }
        Err(error) => error.to_errno(),
    }
}

fn claim(pdev: &pci::Device, front_end: FrontEnd) -> Result<Arc<Function>> {
    let function = locate::function_of(pdev)?;
    if !function.card().can_migrate() {
        return Err(not_supported());
    }
    function.claim(front_end)?;
    // Behind the claim: a card that dies from here on tells, one that died before may not, and only
    // those that it knows.
    if !function.card().is_live() || !function.card().holds(&function) {
        function.release();
        return Err(ENODEV);
    }
    Ok(function)
}

/// # Safety
///
/// `function` comes from `migdirty_claim`, and no operation of it is under way.
#[no_mangle]
unsafe extern "C" fn migdirty_release(function: *mut Handle) {
    // SAFETY: the claim has made this of an `Arc`, and this is the one that takes it back.
    let function = unsafe { Arc::from_raw(function.cast_const().cast::<Function>()) };
    function.release();
}

/// # Safety
///
/// `batch` is valid, and so are its requests with their functions and memory until it is complete.
#[no_mangle]
unsafe extern "C" fn migdirty_submit(batch: *mut Batch) -> c_int {
    // SAFETY: the caller's promise.
    result_of(unsafe { submit(batch) })
}

/// # Safety
///
/// As for `migdirty_submit`.
unsafe fn submit(raw: *mut Batch) -> Result {
    // SAFETY: the caller's promise; nothing was enqueued yet, so nobody else uses it.
    let batch = unsafe { raw.as_mut() }.ok_or(EINVAL)?;
    let (count, requests) = (batch.count, batch.requests);
    if count == 0
        || count > MAX_BATCH
        || requests.is_null()
        || batch.complete.is_none()
        || batch.pending != 0
    {
        return Err(EINVAL);
    }
    // CAST: widens.
    let length = count as usize;
    // SAFETY: the caller's promise, and nobody else uses them yet.
    let all = unsafe { slice::from_raw_parts(requests, length) };
    for (index, request) in all.iter().enumerate() {
        let known = (operation::SUSPEND..=operation::WAS_RESET).contains(&request.operation);
        let before = all.get(..index).unwrap_or(&[]);
        let again = before
            .iter()
            .any(|other| ptr::eq(other.function, request.function));
        if !known || request.function.is_null() || again {
            return Err(EINVAL);
        }
    }
    for (index, request) in all.iter().enumerate() {
        // SAFETY: the caller's promise.
        let reserved = unsafe { borrow(request.function) }.reserve(request.operation);
        if let Err(error) = reserved {
            for request in all.get(..index).unwrap_or(&[]) {
                // SAFETY: the caller's promise.
                unsafe { borrow(request.function) }.unreserve();
            }
            return Err(error);
        }
    }
    batch.pending = count;
    for index in 0..length {
        // SAFETY: within the array. Not through `all`: the requests before it may be under way, and
        // the batch is still there, because this one is pending.
        let request = unsafe { requests.add(index) };
        // SAFETY: this request is not under way yet.
        let function = unsafe { borrow((*request).function) };
        // INVARIANT: valid as the caller promised, and pending.
        Function::enqueue(
            &function.into(),
            QueuedRequest {
                batch: raw,
                request,
            },
        );
    }
    Ok(())
}

/// # Safety
///
/// `function` comes from `migdirty_claim` and is not released before the result is gone.
unsafe fn borrow<'a>(function: *mut Handle) -> ArcBorrow<'a, Function> {
    // SAFETY: the claim has made this of an `Arc`, which lives until the release.
    unsafe { ArcBorrow::from_raw(function.cast_const().cast::<Function>()) }
}

/// # Safety
///
/// `function` comes from `migdirty_claim`; `dirty` may be called with `context`.
#[no_mangle]
unsafe extern "C" fn migdirty_log_take(
    function: *mut Handle,
    first: u64,
    last: u64,
    dirty: Option<Dirty>,
    context: *mut c_void,
) -> c_int {
    let (Some(span), Some(dirty)) = (Span::new(first, last), dirty) else {
        return EINVAL.to_errno();
    };
    // SAFETY: the caller's promise.
    let function = unsafe { borrow(function) };
    let taken = take_by_handfuls(&function, span, |span| {
        // The length of all addresses does not fit; it goes in two parts.
        let parts = match span.bytes_less_one().checked_add(1) {
            Some(length) => [(span.first(), length), (0, 0)],
            None => [(0, 1 << 63), (1 << 63, 1 << 63)],
        };
        for (iova, length) in parts {
            if length != 0 {
                // SAFETY: the caller's promise.
                unsafe { dirty(context, iova, length) };
            }
        }
    });
    result_of(taken)
}

/// As [`Function::log_take`], to somebody who may take as long as he likes, with no lock held: what
/// he does may wait for a page fault, that for a reset, and that for an operation of this function.
fn take_by_handfuls(function: &Function, span: Span, mut dirty: impl FnMut(Span)) -> Result {
    let mut rest = Some(span);
    while let Some(span) = rest {
        let mut handful = [None; HANDFUL];
        let mut places = handful.iter_mut();
        let all = function.log_take(span, |part| {
            let place = places.next();
            let has_place = place.is_some();
            if let Some(place) = place {
                *place = Some(part);
            }
            has_place
        })?;
        rest = None;
        for part in handful.into_iter().flatten() {
            if !all {
                let next = part.last().checked_add(1);
                rest = next.and_then(|next| Span::new(next, span.last()));
            }
            dirty(part);
        }
    }
    Ok(())
}

/// # Safety
///
/// `function` comes from `migdirty_claim`; `buffer` has `room` bytes.
#[no_mangle]
unsafe extern "C" fn migdirty_identity(
    function: *mut Handle,
    buffer: *mut c_void,
    room: usize,
) -> isize {
    // SAFETY: the caller's promise.
    let (function, buffer) = unsafe { (borrow(function), bytes(buffer, room)) };
    let record = buffer.and_then(|buffer| {
        let record = identity::of(&function)?;
        let place = buffer.get_mut(..record.len()).ok_or(ENOSPC)?;
        place.copy_from_slice(&record);
        Ok(record.len())
    });
    match record {
        // CAST: at most 64 KiB.
        Ok(length) => length as isize,
        // CAST: widens.
        Err(error) => error.to_errno() as isize,
    }
}

/// # Safety
///
/// `function` comes from `migdirty_claim`; `format` is valid for a write.
#[no_mangle]
unsafe extern "C" fn migdirty_format(function: *mut Handle, format: *mut Format) -> c_int {
    // SAFETY: the caller's promise.
    let function = unsafe { borrow(function) };
    match function.card().state_format() {
        Ok(known) => {
            let known = Format {
                version: crate::card::STATE_VERSION,
                uuid: known.uuid,
                ..Format::default()
            };
            // SAFETY: the caller's promise.
            unsafe { *format = known };
            0
        }
        Err(error) => error.to_errno(),
    }
}
