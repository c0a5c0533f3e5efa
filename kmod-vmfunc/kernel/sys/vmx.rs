// SPDX-License-Identifier: GPL-2.0-only

//! The VMX instructions that the module needs, on the current VMCS.
//!
//! A [`Current`] is proof that there is one, and that the thread cannot lose it: only the probes of
//! `kvm_entry` and `kvm_exit` get one, and both run in `vmx_vcpu_run` with interrupts off.

use core::{arch::asm, marker::PhantomData};

/// Fields of a VMCS (Intel SDM volume 3, appendix B).
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum Field {
    /// EPT pointer. VMFUNC writes it.
    EptPointer = 0x201a,
    /// VM-function controls.
    VmFunctionControl = 0x2018,
    /// EPTP-list address.
    EptpListAddress = 0x2024,
    /// Secondary processor-based VM-execution controls.
    SecondaryControls = 0x401e,
    /// Exit reason.
    ExitReason = 0x4402,
    /// Exit qualification.
    ExitQualification = 0x6400,
}

/// Bit 13 of [`Field::SecondaryControls`]: enable VM functions.
pub(crate) const ENABLE_VM_FUNCTIONS: u64 = 1 << 13;
/// Bit 0 of [`Field::VmFunctionControl`]: EPTP switching.
pub(crate) const EPTP_SWITCHING: u64 = 1 << 0;
/// Bits 15:0 of [`Field::ExitReason`]: the basic reason.
pub(crate) const BASIC_REASON: u64 = 0xffff;
/// An access that EPT forbids.
pub(crate) const EPT_VIOLATION: u64 = 48;
/// An entry of EPT that cannot be.
pub(crate) const EPT_MISCONFIGURATION: u64 = 49;
/// Bit 2 of an EPT violation's qualification: it was a fetch.
pub(crate) const FETCH: u64 = 1 << 2;

/// The current VMCS. Stays on its thread.
pub(crate) struct Current {
    _not_send: PhantomData<*mut ()>,
}

impl Current {
    /// # Safety
    ///
    /// A VMCS is current on this CPU, and remains so while this value lives: no interrupts, no
    /// sleep.
    pub(crate) unsafe fn new() -> Self {
        Self {
            _not_send: PhantomData,
        }
    }

    /// VMREAD.
    pub(crate) fn read(&self, field: Field) -> u64 {
        let value: u64;
        // SAFETY: a VMCS is current by the type's promise, and every processor with VM functions
        // has these fields. Reads no memory.
        unsafe {
            // CAST: the number that the variant stands for.
            asm!("vmread {0}, {1}", out(reg) value, in(reg) field as u64,
                options(nomem, nostack));
        }
        value
    }

    /// VMWRITE. What is written must be a value with which the guest can be entered.
    pub(crate) fn write(&self, field: Field, value: u64) {
        // SAFETY: as above. A wrong value ends the next VM entry with an error, nothing else.
        unsafe {
            // CAST: the number that the variant stands for.
            asm!("vmwrite {0}, {1}", in(reg) field as u64, in(reg) value, options(nostack));
        }
    }

    /// INVEPT of one context: what is cached of the tables below this pointer. Comes after the
    /// stores that changed them.
    pub(crate) fn invept(&self, eptp: u64) {
        let descriptor: [u64; 2] = [eptp, 0];
        // SAFETY: the CPU is in VMX operation, or no VMCS were current; single-context invalidation
        // (type 1) is there wherever KVM uses EPT with VM functions.
        unsafe {
            asm!("invept {0}, [{1}]", in(reg) 1u64, in(reg) &raw const descriptor,
                options(nostack));
        }
    }
}
