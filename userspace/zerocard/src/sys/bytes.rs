// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Copies from, to and between memory that a guest or the kernel changes at the same time.
//!
//! Used by `mapping` alone, which checks the bounds. Every access is volatile, or made by an
//! instruction that the compiler does not look into, so a concurrent change can give any bytes but
//! no undefined behaviour. Aligned words of eight bytes are accessed whole in `load` and `store`.

/// From this many bytes on, the processor's string instructions beat a loop, start-up included.
#[cfg(target_arch = "x86_64")]
const STRING: usize = 256;

/// Copies `to.len()` bytes out of shared memory.
///
/// # Safety
///
/// `from` points to `to.len()` readable bytes.
pub(super) unsafe fn load(from: *const u8, to: &mut [u8]) {
    let head = from.align_offset(8).min(to.len());
    let (first, rest) = to.split_at_mut(head);
    for (i, byte) in first.iter_mut().enumerate() {
        // SAFETY: i < head <= to.len().
        *byte = unsafe { from.add(i).read_volatile() };
    }
    let mut done = head;
    let mut words = rest.chunks_exact_mut(8);
    for word in &mut words {
        // SAFETY: done + 8 <= to.len(), and from + done is 8-byte aligned: head bytes reached an
        // alignment boundary and done grew by eights.
        let value = unsafe { from.add(done).cast::<u64>().read_volatile() };
        word.copy_from_slice(&value.to_ne_bytes());
        done += 8;
    }
    for (i, byte) in words.into_remainder().iter_mut().enumerate() {
        // SAFETY: done + i < to.len().
        *byte = unsafe { from.add(done + i).read_volatile() };
    }
}

/// Copies `from` into shared memory.
///
/// # Safety
///
/// `to` points to `from.len()` writable bytes.
pub(super) unsafe fn store(to: *mut u8, from: &[u8]) {
    let (first, rest) = from.split_at(to.align_offset(8).min(from.len()));
    for (i, byte) in first.iter().enumerate() {
        // SAFETY: i < from.len().
        unsafe { to.add(i).write_volatile(*byte) };
    }
    let mut done = first.len();
    let words = rest.chunks_exact(8);
    let tail = words.remainder();
    for word in words {
        let mut value = [0; 8];
        value.copy_from_slice(word);
        let value = u64::from_ne_bytes(value);
        // SAFETY: done + 8 <= from.len(), and to + done is 8-byte aligned as in load().
        unsafe { to.add(done).cast::<u64>().write_volatile(value) };
        done += 8;
    }
    for (i, byte) in tail.iter().enumerate() {
        // SAFETY: done + i < from.len().
        unsafe { to.add(done + i).write_volatile(*byte) };
    }
}

/// Copies `len` bytes of shared memory to shared memory. When the ranges overlap, the result is
/// some mixture of their bytes.
///
/// # Safety
///
/// `from` points to `len` readable bytes, `to` to `len` writable ones.
pub(super) unsafe fn transfer(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= STRING {
        // SAFETY: reads len bytes at from and writes len bytes at to, as the caller allows. The
        // direction flag is clear (ABI). A page fault in the middle resumes where it was.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") len => _,
                inout("rsi") from => _,
                inout("rdi") to => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    let mut done = 0;
    if from.align_offset(8) == to.align_offset(8) {
        let head = from.align_offset(8).min(len);
        while done < head {
            // SAFETY: done < head <= len.
            unsafe { to.add(done).write_volatile(from.add(done).read_volatile()) };
            done += 1;
        }
        while len - done >= 8 {
            // SAFETY: done + 8 <= len; both are 8-byte aligned as in load().
            unsafe {
                let word = from.add(done).cast::<u64>().read_volatile();
                to.add(done).cast::<u64>().write_volatile(word);
            }
            done += 8;
        }
    }
    while done < len {
        // SAFETY: done < len.
        unsafe { to.add(done).write_volatile(from.add(done).read_volatile()) };
        done += 1;
    }
}

/// Writes `len` zeroes to shared memory.
///
/// # Safety
///
/// `to` points to `len` writable bytes.
pub(super) unsafe fn zero(to: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len >= STRING {
        // SAFETY: writes len bytes at to, as the caller allows; otherwise as in transfer().
        unsafe {
            std::arch::asm!(
                "rep stosb",
                inout("rcx") len => _,
                inout("rdi") to => _,
                in("al") 0_u8,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    let mut done = 0;
    while done < len {
        // SAFETY: done < len, and a word is written only where it is aligned and fits.
        unsafe {
            let at = to.add(done);
            if len - done >= 8 && at.cast::<u64>().is_aligned() {
                at.cast::<u64>().write_volatile(0);
                done += 8;
            } else {
                at.write_volatile(0);
                done += 1;
            }
        }
    }
}
