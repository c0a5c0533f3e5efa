// SPDX-License-Identifier: GPL-2.0-only

//! How the kernel of a guest calls the gate: `docs/interfaces.md`, section 16.
//!
//! It needs nothing of that kernel but what [`Interrupts`] does, so tests run it without one.

use crate::faces;
use core::{arch::asm, marker::PhantomData};

/// Holds off this processor's interrupts while it lives. In a view each would abort the call.
pub(crate) trait Interrupts {
    /// From now on.
    fn off() -> Self;
}

/// How often a call is made until it is not aborted. What takes a processor out of a view is rare;
/// an address that leads nowhere does it always, and must not hang the guest.
pub(crate) const TRIES: usize = 16;

/// Bytes of a long copy between which interrupts come in.
pub(crate) const AT_ONCE: usize = 4096;
const _: () = assert!(AT_ONCE <= faces::MAX_COPY);

/// Each of [`TRIES`] calls was aborted: there is no such window, or nothing may be written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Aborted;

/// A page that is not the gate that this file calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// Its version, when it is one.
    pub(crate) version: Option<u8>,
}

/// Whether a page is the default face that this file calls.
pub(crate) fn check(page: &[u8; 4096]) -> Result<(), Unknown> {
    let (known, _) = faces::bytes();
    if page == known {
        return Ok(());
    }
    let version = match page {
        [_, _, b'G', b'A', b'G', b'E', version, ..] => Some(version & 0xf),
        _ => None,
    };
    Err(Unknown { version })
}

/// An address as the gate takes it.
fn number<T>(pointer: *mut T) -> u64 {
    // CAST: both have 64 bits.
    pointer.expose_provenance() as u64
}

/// The gate, mapped executable.
pub(crate) struct Gate<I> {
    page: usize,
    interrupts: PhantomData<fn() -> I>,
}

/// What a call leaves in registers.
#[derive(Clone, Copy)]
struct Answer {
    al: u8,
    /// ZF.
    zero: bool,
    rdi: u64,
    rdx: u64,
}

impl Answer {
    fn is_done(&self) -> bool {
        self.al == faces::DONE
    }
}

impl<I: Interrupts> Gate<I> {
    /// The gate at this address.
    ///
    /// # Safety
    ///
    /// [`check`] likes the page, which stays mapped there, executable, while this is in use.
    pub(crate) unsafe fn new(page: *const u8) -> Self {
        Self {
            page: page.addr(),
            interrupts: PhantomData,
        }
    }

    /// One call.
    ///
    /// # Safety
    ///
    /// There is a view of this index, and what is at `entry` may be done with the numbers.
    #[inline(always)]
    unsafe fn call(&self, entry: usize, view: u32, rdi: u64, rsi: u64, rdx: u64) -> Answer {
        let (rax, to, value): (u64, u64, u64);
        let zero: u8;
        let target = self.page.wrapping_add(entry);
        let interrupts = I::off();
        // An indirect call that the kernel does not know is made as it makes its own.
        #[cfg(CONFIG_MITIGATION_RETPOLINE)]
        macro_rules! call {
            () => {
                "call __x86_indirect_thunk_r11"
            };
        }
        #[cfg(not(CONFIG_MITIGATION_RETPOLINE))]
        macro_rules! call {
            () => {
                "call r11"
            };
        }
        // SAFETY: by `new` this is the gate's code, which keeps all registers but those named. What
        // it does to memory is what the caller answers for.
        unsafe {
            asm!(
                call!(),
                "setz {zero}",
                zero = lateout(reg_byte) zero,
                inlateout("r11") target => _,
                inlateout("rax") 0_u64 => rax,
                inlateout("rcx") u64::from(view) => _,
                inlateout("rdx") rdx => value,
                inlateout("rsi") rsi => _,
                inlateout("rdi") rdi => to,
            );
        }
        drop(interrupts);
        let [al, ..] = rax.to_le_bytes();
        Answer {
            al,
            zero: zero != 0,
            rdi: to,
            rdx: value,
        }
    }

    /// Calls until it is done.
    ///
    /// # Safety
    ///
    /// As [`Self::call`], and it may be done more than once.
    unsafe fn repeat(
        &self,
        entry: usize,
        view: u32,
        [rdi, rsi, rdx]: [u64; 3],
    ) -> Result<Answer, Aborted> {
        for _ in 0..TRIES {
            // SAFETY: by the caller.
            let answer = unsafe { self.call(entry, view, rdi, rsi, rdx) };
            if answer.is_done() {
                return Ok(answer);
            }
        }
        Err(Aborted)
    }

    /// Goes into a view and back, and does nothing there.
    ///
    /// # Safety
    ///
    /// There is a view of this index.
    pub(crate) unsafe fn round_trip(&self, view: u32) -> Result<(), Aborted> {
        // SAFETY: by the caller; no byte is copied.
        unsafe { self.copy(view, core::ptr::null_mut(), core::ptr::null(), 0) }
    }

    /// Copies between a window of a view and memory, or two windows. On an error some of it may be
    /// copied. Bytes are copied in no order and each perhaps more than once; what must be seen in one
    /// piece is for [`Self::load`] and [`Self::store`].
    ///
    /// # Safety
    ///
    /// There is a view of this index. In it `bytes` can be read at `from` and written at `to`, are
    /// mapped by this kernel's page tables all the time, and nothing in Rust's memory is expected to
    /// be as it was, or changes meanwhile.
    pub(crate) unsafe fn copy(
        &self,
        view: u32,
        mut to: *mut u8,
        mut from: *const u8,
        mut bytes: usize,
    ) -> Result<(), Aborted> {
        loop {
            let now = bytes.min(AT_ONCE);
            let numbers = [number(to), number(from.cast_mut()), now as u64];
            // SAFETY: by the caller; a copy that is made again is the same copy.
            unsafe { self.repeat(faces::COPY, view, numbers) }?;
            bytes = bytes.saturating_sub(now);
            if bytes == 0 {
                return Ok(());
            }
            to = to.wrapping_add(now);
            from = from.wrapping_add(now);
        }
    }

    /// Loads a word of a window in one piece, before anything behind this is read.
    ///
    /// # Safety
    ///
    /// There is a view of this index, and in it an aligned word at `from`.
    pub(crate) unsafe fn load(&self, view: u32, from: *const u64) -> Result<u64, Aborted> {
        // SAFETY: by the caller; it only reads.
        let answer = unsafe { self.repeat(faces::LOAD, view, [0, number(from.cast_mut()), 0]) }?;
        Ok(answer.rdx)
    }

    /// Stores a word of a window in one piece, after everything before this was written. On an error
    /// it may have happened.
    ///
    /// # Safety
    ///
    /// There is a view of this index, and in it an aligned word at `to` that may be written, more
    /// than once.
    pub(crate) unsafe fn store(&self, view: u32, to: *mut u64, value: u64) -> Result<(), Aborted> {
        let numbers = [0, number(to), value];
        // SAFETY: by the caller.
        unsafe { self.repeat(faces::STORE, view, numbers) }.map(drop)
    }

    /// Exchanges a word of a window when it is `old`, in one piece. `Ok(Err(_))` is the word when it
    /// was another one. On an error it did not happen; it never happens twice.
    ///
    /// # Safety
    ///
    /// As [`Self::store`].
    pub(crate) unsafe fn compare_exchange(
        &self,
        view: u32,
        at: *mut u64,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, Aborted> {
        for _ in 0..TRIES {
            // SAFETY: by the caller.
            let answer = unsafe { self.call(faces::EXCHANGE, view, old, number(at), new) };
            if answer.zero {
                // Whether or not it was aborted behind that.
                return Ok(Ok(old));
            }
            if answer.is_done() {
                return Ok(Err(answer.rdi));
            }
        }
        Err(Aborted)
    }
}
