// SPDX-License-Identifier: GPL-2.0-only

//! The code of the gate: two contents of one guest-physical page, one for the default view and one
//! for every other. Interface, layout and reasons: `docs/interfaces.md`, section 16.
//!
//! The two faces are written side by side, because VMFUNC goes from one to the other at the same
//! address. Registers and encodings are chosen so that no byte begins an instruction that does
//! something else; `logic/tests/gate/` proves it of every byte. It also holds the bytes: whoever
//! changes one makes a new [`VERSION`].

/// Of the gate. In byte 6 of the default face, whose upper half is 4.
pub(crate) const VERSION: u8 = 1;

/// Where the guest calls it to copy.
pub(crate) const COPY: usize = 0x100;
/// Where it calls it to load 8 bytes.
pub(crate) const LOAD: usize = 0x140;
/// Where it calls it to store 8 bytes.
pub(crate) const STORE: usize = 0x180;
/// Where it calls it to compare and exchange 8 bytes.
pub(crate) const EXCHANGE: usize = 0x1c0;

/// Most bytes of one copy.
pub(crate) const MAX_COPY: usize = 8191;

/// AL: done.
pub(crate) const DONE: u8 = 0;
/// AL: the guest left the view in between.
pub(crate) const ABORTED: u8 = 1;
/// AL: more than [`MAX_COPY`] bytes.
pub(crate) const TOO_LONG: u8 = 2;

// `.org` goes forward only, so code that does not end where the other face expects it does not
// assemble. VMFUNC has three bytes, and so has the abort.
core::arch::global_asm!(
    r#"
    .pushsection .rodata.zs_gate, "a", @progbits
    .globl zs_gate_default, zs_gate_view
    .hidden zs_gate_default, zs_gate_view
    .balign 4096
    /* The default face. Whoever falls out of a view slides down to the next abort. Nothing on that
       way changes flags, because ZF tells whether an exchange was made. */
    .macro zs_gate_abort offset
    .org zs_gate_default + \offset, 0x90
    mov al, {ABORTED}
    ret
    .endm
    .macro zs_gate_last
    zs_gate_abort ((. - zs_gate_default) / 64 * 64 + 60)
    int3
    .endm
zs_gate_default:
    jmp 1f
    .byte 'G', 'A', 'G', 'E', 0x40 + {VERSION}, 0xcc
1:
    .rept {COPY} / 64
    zs_gate_last
    .endr

    /* RDI: to, RSI: from, RDX: bytes. */
    endbr64
    vmfunc
    zs_gate_abort 0x117
    ret
    zs_gate_abort 0x124
    mov al, {TOO_LONG}
    ret
    zs_gate_last

    /* RSI: from; RDX is the value. */
    endbr64
    vmfunc
    zs_gate_abort 0x14d
    ret
    zs_gate_last

    /* RSI: to, RDX: value. */
    endbr64
    vmfunc
    zs_gate_abort 0x18d
    ret
    zs_gate_last

    /* RSI: where, RDI: the expected and then the found value, RDX: the new one. AH is 0, as EAX
       is, so ZF is clear behind SAHF. */
    endbr64
    sahf
    vmfunc
    zs_gate_abort 0x1d3
    ret
    .rept (4096 - {EXCHANGE}) / 64
    zs_gate_last
    .endr
    .purgem zs_gate_abort
    .purgem zs_gate_last

    /* The view face. Who comes from VMFUNC has EAX = 0 and ECX below 512, and both must be 0 to
       leave. */
zs_gate_view:
    .org zs_gate_view + {COPY} + 7, 0xcc
    xchg rax, rdx
    test rax, ~{MAX_COPY}
    cld
    jnz 2f
    xchg rax, rcx
    xchg eax, edx
    rep movsb
    .org zs_gate_view + 0x117, 0xcc
    vmfunc
    .org zs_gate_view + 0x120, 0xcc
2:
    xchg eax, edx
    sar ecx, 31
    .org zs_gate_view + 0x124, 0xcc
    vmfunc

    .org zs_gate_view + {LOAD} + 7, 0xcc
    mov rdx, [rsi]
    sar ecx, 31
    .org zs_gate_view + 0x14d, 0xcc
    vmfunc

    .org zs_gate_view + {STORE} + 7, 0xcc
    mov [rsi], rdx
    sar ecx, 31
    .org zs_gate_view + 0x18d, 0xcc
    vmfunc

    /* Behind CMPXCHG only what leaves flags alone. */
    .org zs_gate_view + {EXCHANGE} + 8, 0xcc
    xchg rax, rdi
    lock cmpxchg [rsi], rdx
    mov ecx, edi
    xchg rax, rdi
    .org zs_gate_view + 0x1d3, 0xcc
    vmfunc
    .org zs_gate_view + 4096, 0xcc
    .popsection
    "#,
    VERSION = const VERSION,
    COPY = const COPY,
    LOAD = const LOAD,
    STORE = const STORE,
    EXCHANGE = const EXCHANGE,
    MAX_COPY = const MAX_COPY,
    ABORTED = const ABORTED,
    TOO_LONG = const TOO_LONG,
);

extern "C" {
    static zs_gate_default: [u8; 4096];
    static zs_gate_view: [u8; 4096];
}

/// The default face and the view face.
pub(crate) fn bytes() -> (&'static [u8; 4096], &'static [u8; 4096]) {
    // SAFETY: both are 4096 constant bytes.
    unsafe { (&zs_gate_default, &zs_gate_view) }
}
