// SPDX-License-Identifier: Apache-2.0 OR MIT

//! SIGBUS: a VMM that shrinks its RAM file must not end the process that serves other VMs.
//!
//! Every [`Mapping`](super::Mapping) of a file is registered in a table of fixed size. An access to a page
//! that is gone raises SIGBUS on the accessing thread; the handler finds the mapping by the address,
//! replaces all of it by private zeroes, marks it revoked and returns, so that the access is
//! repeated and succeeds. Whoever accessed asks afterwards whether the mapping was revoked. A SIGBUS
//! for any other reason gets the default action.
//!
//! The handler takes no lock and allocates nothing: it reads atomics and makes system calls.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::atomic::{fence, AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;

use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::Signal;

/// Mappings of files that can exist at once in the process: more than the RAM files that the clients
/// of all functions may have together, so that none takes another's.
const CAPACITY: usize = 8192;

/// One mapping, or none (`len` 0).
///
/// Written only by who claimed it, by making `generation` odd; read by handlers on any thread at any
/// time, which take what they read only when `generation` was even and stayed the same.
struct Entry {
    generation: AtomicU64,
    used: AtomicBool,
    base: AtomicUsize,
    len: AtomicUsize,
    revoked: AtomicBool,
}

static TABLE: [Entry; CAPACITY] = [const {
    Entry {
        generation: AtomicU64::new(0),
        used: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        revoked: AtomicBool::new(false),
    }
}; CAPACITY];

impl Entry {
    /// Changes the range. Only by who holds `used`.
    fn set(&self, base: usize, len: usize) {
        // Odd first, then the range, then even: the fence keeps the range's stores after the first,
        // the release keeps them before the second.
        self.generation.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The range, `None` while it changes.
    fn get(&self) -> Option<(usize, usize)> {
        let before = self.generation.load(Ordering::Acquire);
        let range = (
            self.base.load(Ordering::Relaxed),
            self.len.load(Ordering::Relaxed),
        );
        fence(Ordering::Acquire);
        let after = self.generation.load(Ordering::Relaxed);
        (before % 2 == 0 && before == after).then_some(range)
    }
}

/// A place in the table, given back when it is dropped.
///
/// Invariant: the entry is this value's alone, and its range is a mapping of the process or empty.
pub(super) struct Registration(&'static Entry);

impl Registration {
    /// Takes a place, without a range yet.
    pub(super) fn new() -> io::Result<Self> {
        let free = |entry: &&Entry| !entry.used.swap(true, Ordering::Acquire);
        let entry = TABLE.iter().find(free).ok_or_else(|| {
            io::Error::other(format!(
                "{CAPACITY} memory mappings exist already, the most that one process can have; \
                 serve fewer virtual machines with each process"
            ))
        })?;
        entry.revoked.store(false, Ordering::Relaxed);
        Ok(Self(entry))
    }

    /// Makes the handler know the mapping.
    ///
    /// # Safety
    ///
    /// The `len` bytes at `base` are a mapping that belongs to the caller alone, is only accessed
    /// with volatile or atomic accesses and stays until it is withdrawn.
    pub(super) unsafe fn publish(&self, base: usize, len: usize) {
        self.0.set(base, len);
    }

    /// Makes the handler forget the mapping.
    pub(super) fn withdraw(&self) {
        self.0.set(0, 0);
    }

    /// See [`Mapping::revoke`](super::Mapping::revoke).
    pub(super) fn revoke(&self) {
        let (base, len) = (
            self.0.base.load(Ordering::Relaxed),
            self.0.len.load(Ordering::Relaxed),
        );
        // Nobody may access it, so that the kernel, too, fails instead of taking zeroes for data.
        let nothing = ProtFlags::empty();
        // SAFETY: the range is a mapping of our holder's, by publish().
        if len != 0 && unsafe { replace(self.0, base, len, nothing) }.is_err() {
            // Nobody could promise any more that the guest's memory is left alone.
            tracing::error!("no memory to detach a mapping of {len} bytes");
            std::process::abort();
        }
    }

    /// See [`Mapping::revoked`](super::Mapping::revoked).
    pub(super) fn revoked(&self) -> bool {
        // Data read before this call must not be younger than the answer.
        fence(Ordering::Acquire);
        self.0.revoked.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.withdraw();
        self.0.used.store(false, Ordering::Release);
    }
}

/// Puts private zeroes with this protection in place of a mapping.
///
/// # Safety
///
/// The range is the mapping of `entry`, and it stays one during the call.
unsafe fn replace(
    entry: &Entry,
    base: usize,
    len: usize,
    protection: ProtFlags,
) -> rustix::io::Result<()> {
    // Before the zeroes can be seen: who reads zeroes and asks then, has to learn it.
    entry.revoked.store(true, Ordering::SeqCst);
    // No reserve: it is to work for any size of VM.
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    let base = ptr::with_exposed_provenance_mut::<c_void>(base);
    // SAFETY: only a mapping of ours is replaced, and no reference points into it. Accesses by other
    // threads are volatile or atomic: they see the old or the new bytes, and the range is never
    // free, because the kernel replaces it in one step.
    unsafe { rustix::mm::mmap_anonymous(base, len, protection, flags) }.map(drop)
}

/// Installs the handler, once for the process. Mappings work without it, but then a SIGBUS kills.
pub(crate) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let flags = SA_SIGINFO | SA_ONSTACK;
            set_action(handle as *const () as usize, flags).map_err(|error| {
                // As a number: io::Error cannot be cloned.
                error.raw_os_error().unwrap_or(0)
            })
        })
        .map_err(io::Error::from_raw_os_error)
}

/// The handler.
///
/// Async-signal-safe: `find` and `replace` use atomics and raw system calls, nothing else. It runs
/// on the thread whose access failed, between two of our instructions, so `errno` is not in use.
extern "C" fn handle(_signal: c_int, info: *const SignalInfo, _context: *mut c_void) {
    // SAFETY: with SA_SIGINFO, the kernel passes a valid siginfo_t.
    let (code, address) = unsafe { ((*info).code, (*info).address) };
    // Positive: the kernel says that an access failed. Else another process sent the signal, and
    // the address means nothing.
    if code > 0 {
        if let Some((entry, base, len)) = find(address) {
            // Writable also where the mapping was not: the access may be any.
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: the thread is inside an access to `address`, so it borrows a live Mapping that
            // has this address, and that stays until the access ends, after this handler. Mappings
            // do not overlap, and an entry never outlives its mapping, so this is its entry.
            //
            // Should another thread be here for the same mapping, or have been, zeroes are replaced
            // by zeroes; only what the card wrote into a mapping that is lost anyway, is lost. It was
            // not revoke()d: nobody does that during an access.
            if unsafe { replace(entry, base, len, protection) }.is_ok() {
                return;
            }
        }
    }
    // Default action: the repeated access, or the signal when it came from outside, ends the process.
    if set_action(SIG_DFL, 0).is_err() || code <= 0 {
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::BUS);
    }
}

/// The entry whose mapping has the address.
///
/// Entries that change at this moment are passed over: the one of a mapping that is being accessed
/// does not change, it was published before the mapping was handed out and is cleared by its drop.
fn find(address: usize) -> Option<(&'static Entry, usize, usize)> {
    TABLE.iter().find_map(|entry| {
        let (base, len) = entry.get()?;
        (address.checked_sub(base)? < len).then_some((entry, base, len))
    })
}

// From the Linux ABI (asm-generic/signal.h, asm-generic/siginfo.h) and the C libraries' common
// struct sigaction for these architectures.
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
compile_error!("the layout of struct sigaction has not been checked for this architecture");

const SA_SIGINFO: c_int = 0x4;
const SA_ONSTACK: c_int = 0x0800_0000;
const SIG_DFL: usize = 0;

#[repr(C)]
struct SignalAction {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

#[repr(C)]
struct SignalInfo {
    signal: c_int,
    error: c_int,
    code: c_int,
    address: usize,
}

extern "C" {
    fn sigaction(signal: c_int, new: *const SignalAction, old: *mut SignalAction) -> c_int;
}

fn set_action(handler: usize, flags: c_int) -> io::Result<()> {
    let action = SignalAction {
        handler,
        mask: [0; 16],
        flags,
        restorer: 0,
    };
    // SAFETY: the structure has the C library's layout, and handler is SIG_DFL or a function with
    // the signature that SA_SIGINFO asks for.
    if unsafe { sigaction(Signal::BUS.as_raw(), &action, ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
