// SPDX-License-Identifier: GPL-2.0-only

//! The code of the gate: two contents of one guest-physical page, one for the default view and one
//! for every other. Interface and reasons: `docs/interfaces.md`, section 16.
//!
//! The two faces are written side by side, because VMFUNC goes from one to the other at the same
//! address.

/// Where the guest calls it.
pub(crate) const ENTRY: usize = 0x100;
/// Where the guest is when VMFUNC has brought it into the view: behind the entry stub.
pub(crate) const INSIDE: usize = 0x10f;
/// The VMFUNC that brings it back.
pub(crate) const LEAVE: usize = 0x140;
/// Where it then is: behind a VMFUNC, which has three bytes.
pub(crate) const OUTSIDE: usize = LEAVE + 3;
/// Where all that fell out of a view ends.
pub(crate) const ABORT: usize = 0xff0;

// `.org` goes forward only, so code that does not end where the other face expects it does not
// assemble.
core::arch::global_asm!(
    r#"
    .pushsection .rodata.zs_gate, "a", @progbits
    .balign 4096
zs_gate_default:
    /* Whoever falls out of a view in mid-gate lands in this slide, and aborts. */
    .fill {ENTRY}, 1, 0x90
    endbr64
    mov r10, rcx
    mov ecx, r8d
    xor eax, eax
    vmfunc
    .org zs_gate_default + {INSIDE}, 0x90
    .org zs_gate_default + {LEAVE}, 0x90
    /* Not to be taken for done: the slide goes on behind the return stub. */
    jmp 1f
    .org zs_gate_default + {OUTSIDE}, 0x90
    mov eax, r11d
    ret
1:
    .org zs_gate_default + {ABORT}, 0x90
    mov eax, 1
    cld
    ret
    .org zs_gate_default + 4096, 0xcc

zs_gate_within:
    .org zs_gate_within + {INSIDE}, 0xcc
    cld
    mov r11d, 2
    cmp r10, 4096
    ja 2f
    mov rcx, r10
    rep movsb
    xor r11d, r11d
2:
    xor ecx, ecx
    xor eax, eax
    .org zs_gate_within + {LEAVE}, 0x90
    vmfunc
    .org zs_gate_within + 4096, 0xcc
    .popsection
    "#,
    ENTRY = const ENTRY,
    INSIDE = const INSIDE,
    LEAVE = const LEAVE,
    OUTSIDE = const OUTSIDE,
    ABORT = const ABORT,
);

extern "C" {
    static zs_gate_default: [u8; 4096];
    static zs_gate_within: [u8; 4096];
}

/// The default face and the view face.
pub(crate) fn bytes() -> (&'static [u8; 4096], &'static [u8; 4096]) {
    // SAFETY: both are 4096 constant bytes.
    unsafe { (&zs_gate_default, &zs_gate_within) }
}
