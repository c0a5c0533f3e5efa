// SPDX-License-Identifier: GPL-2.0-only

//! The VMX instructions that the module needs, on the current VMCS.
//!
//! A [`Current`] is proof that there is one, and that the thread cannot lose it: only the probe of
//! `kvm_entry` gets one, and it runs in `vmx_vcpu_run` with interrupts off.
//!
//! But a reboot that does not wait for vCPUs takes VMX operation away from under them
//! (`kvm_shutdown`). Then each of these instructions is an invalid opcode, which KVM forgives and so
//! must we: reads give 0, the others do nothing.

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
    /// Guest-physical address.
    GuestPhysical = 0x2400,
    /// Secondary processor-based VM-execution controls.
    SecondaryControls = 0x401e,
    /// VM-exit interruption information.
    ExitInterruption = 0x4404,
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
/// An exception, or an NMI.
pub(crate) const EXCEPTION_OR_NMI: u64 = 0;
/// What [`Field::ExitInterruption`] says of a machine check: valid, a hardware exception, vector 18.
pub(crate) const MACHINE_CHECK: u64 = 1 << 31 | 3 << 8 | 18;
/// The bits of [`Field::ExitInterruption`] that say so.
pub(crate) const INTERRUPTION: u64 = 1 << 31 | 7 << 8 | 0xff;
/// An access that EPT forbids.
pub(crate) const EPT_VIOLATION: u64 = 48;
/// An entry of EPT that cannot be.
pub(crate) const EPT_MISCONFIGURATION: u64 = 49;
/// Bit 2 of an EPT violation's qualification: it was a fetch.
pub(crate) const FETCH: u64 = 1 << 2;

/// An instruction, and an entry for it in the kernel's table of exceptions (`_ASM_EXTABLE`): after
/// one it goes on behind it. 1 is EX_TYPE_DEFAULT.
macro_rules! forgiving {
    ($instruction:literal, $($operands:tt)*) => {
        asm!(
            concat!("2: ", $instruction),
            "3:",
            ".pushsection __ex_table, \"aM\", @progbits, 12",
            ".balign 4",
            ".long 2b - .",
            ".long 3b - .",
            ".long 1",
            ".popsection",
            $($operands)*
        )
    };
}

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
        let mut value = 0u64;
        // SAFETY: a VMCS is current by the type's promise, and every processor with VM functions
        // has these fields. Reads no memory.
        unsafe {
            // CAST: the number that the variant stands for.
            forgiving!("vmread {0}, {1}", inout(reg) value, in(reg) field as u64,
                options(nomem, nostack));
        }
        value
    }

    /// VMWRITE. What is written must be a value with which the guest can be entered.
    pub(crate) fn write(&self, field: Field, value: u64) {
        // SAFETY: as above. A wrong value ends the next VM entry with an error, nothing else.
        unsafe {
            // CAST: the number that the variant stands for.
            forgiving!("vmwrite {0}, {1}", in(reg) field as u64, in(reg) value, options(nostack));
        }
    }

    /// INVEPT of one context: what is cached of the tables below this pointer. Comes after the
    /// stores that changed them.
    pub(crate) fn invept(&self, eptp: u64) {
        let descriptor: [u64; 2] = [eptp, 0];
        // SAFETY: only changes what is cached. Single-context invalidation (type 1) is there: without it
        // nothing is attached.
        unsafe {
            forgiving!("invept {0}, [{1}]", in(reg) 1u64, in(reg) &raw const descriptor,
                options(nostack));
        }
    }
}
