// SPDX-License-Identifier: GPL-2.0-only

//! Interrupts of this processor, off for the few instructions of a call of the gate: by CLI itself,
//! because nothing in between asks the kernel whether they are.

use crate::gate::Interrupts;
use core::arch::asm;

/// They are as before when it goes.
pub(crate) struct Off {
    flags: u64,
}

impl Interrupts for Off {
    #[inline(always)]
    fn off() -> Self {
        let flags;
        // SAFETY: the kernel may turn interrupts off, and `drop` undoes it.
        unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags, options(preserves_flags)) };
        Self { flags }
    }
}

impl Drop for Off {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the flags are those of `off`, which ran in the same function of the kernel.
        unsafe { asm!("push {}", "popfq", in(reg) self.flags) };
    }
}
