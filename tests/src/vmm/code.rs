// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest runs: a few programs without an operating system, and its two exception handlers.
//!
//! A program begins with the registers that [`super::Vcpu::start`] was given and ends with HLT. GS
//! points to the vCPU's report, whose numbers are [`super::Count`]. The code is copied to the
//! guest, so it reaches its own labels relative to RIP only.

use std::arch::global_asm;

/// What a vCPU can run. Registers that are not named mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// RAX = RDI + RSI.
    Add,
    /// Counts rounds, RBP of them or with 0 until it is asked to stop.
    Spin,
    /// RAX = the 64 bits at RDI.
    Load,
    /// One call of the gate: RDI, RSI, RCX and R8D go to it, EAX is what it returns.
    Copy,
    /// Round trips by the gate, R14 bytes each, with the window at R13 in the view R12D; RBX is a
    /// buffer of two pages. RDX = 1: fill the first page with numbers made of R15 and the round,
    /// copy it to the window. Always: copy the window to the second page, compare the two. RBP
    /// rounds, or with 0 until it is asked to stop.
    Rounds,
    /// VMFUNC in RAM, RBP times or with 0 until it is asked to stop, with R14D in EAX and R12D in
    /// ECX. Ends when one raises #UD.
    Switch,
    /// The same from ring 3, RBP times, with 0 in EAX; it ends with OUT to [`RING3_PORT`].
    Ring3,
}

/// Where [`Program::Ring3`] reports its end.
pub const RING3_PORT: u16 = 0x80;

/// How far from the code its mapping for ring 3 is.
pub(super) const USER: u64 = 2 << 40;

global_asm!(
    ".pushsection .rodata.zs_guest, \"a\"",
    ".balign 16",
    ".globl zs_guest_begin, zs_guest_end, zs_guest_nmi, zs_guest_ud",
    ".globl zs_guest_add, zs_guest_spin, zs_guest_load, zs_guest_copy, zs_guest_rounds",
    ".globl zs_guest_switch, zs_guest_ring3",
    "zs_guest_begin:",
    //
    "zs_guest_add:",
    "lea rax, [rdi + rsi]",
    "hlt",
    //
    "zs_guest_spin:",
    "inc qword ptr gs:[{rounds}]",
    "cmp qword ptr gs:[{stop}], 0",
    "jne 12f",
    "cmp rbp, gs:[{rounds}]",
    "jne zs_guest_spin",
    "12:",
    "hlt",
    //
    "zs_guest_load:",
    "mov rax, [rdi]",
    "hlt",
    //
    "zs_guest_copy:",
    "movabs rax, {entry}",
    "call rax",
    "hlt",
    //
    "zs_guest_rounds:",
    "2:",
    "test edx, edx",
    "jz 4f",
    "mov rdi, rbx",
    "mov rcx, r14",
    "shr rcx, 3",
    "mov rax, gs:[{rounds}]",
    "imul rax, r15",
    "3:",
    "mov [rdi], rax",
    "add rax, r15",
    "add rdi, 8",
    "dec rcx",
    "jnz 3b",
    "mov rdi, r13",
    "mov rsi, rbx",
    "mov rcx, r14",
    "mov r8d, r12d",
    "call 20f",
    "4:",
    // Nothing of the round before is left where the data goes.
    "lea rdi, [rbx + 4096]",
    "mov rcx, r14",
    "shr rcx, 3",
    "mov rax, -1",
    "rep stosq",
    "lea rdi, [rbx + 4096]",
    "mov rsi, r13",
    "mov rcx, r14",
    "mov r8d, r12d",
    "call 20f",
    "mov rsi, rbx",
    "lea rdi, [rbx + 4096]",
    "mov rcx, r14",
    "shr rcx, 3",
    "repe cmpsq",
    "je 5f",
    "inc qword ptr gs:[{errors}]",
    "5:",
    "inc qword ptr gs:[{rounds}]",
    "cmp qword ptr gs:[{stop}], 0",
    "jne 6f",
    "cmp rbp, gs:[{rounds}]",
    "jne 2b",
    "6:",
    "hlt",
    //
    "zs_guest_switch:",
    "7:",
    "mov eax, r14d",
    "mov ecx, r12d",
    "vmfunc",
    "cmp qword ptr gs:[{faults}], 0",
    "jne 8f",
    "inc qword ptr gs:[{rounds}]",
    "cmp qword ptr gs:[{stop}], 0",
    "jne 8f",
    "cmp rbp, gs:[{rounds}]",
    "jne 7b",
    "8:",
    "hlt",
    //
    "zs_guest_ring3:",
    "mov rax, rsp",
    "push {user_data}",
    "push rax",
    // IOPL 3, so that OUT is allowed.
    "push 0x3002",
    "push {user_code}",
    "lea rax, [rip + 9f]",
    "movabs rdx, {user}",
    "add rax, rdx",
    "push rax",
    "iretq",
    "9:",
    "xor eax, eax",
    "mov ecx, r12d",
    "vmfunc",
    "dec rbp",
    "jnz 9b",
    "out {ring3_port}, al",
    "10:",
    "jmp 10b",
    // Copies by the gate, again when it was aborted; keeps all but RAX, R10 and R11.
    "20:",
    "push rdi",
    "push rsi",
    "push rcx",
    "movabs rax, {entry}",
    "call rax",
    "pop rcx",
    "pop rsi",
    "pop rdi",
    "test eax, eax",
    "jz 22f",
    "cmp eax, {aborted}",
    "jne 21f",
    "inc qword ptr gs:[{aborts}]",
    "jmp 20b",
    "21:",
    "inc qword ptr gs:[{refusals}]",
    "22:",
    "ret",
    //
    "zs_guest_nmi:",
    "inc qword ptr gs:[{nmis}]",
    "iretq",
    // Goes on behind the instruction, which is VMFUNC: three bytes.
    "zs_guest_ud:",
    "inc qword ptr gs:[{faults}]",
    "add qword ptr [rsp], 3",
    "iretq",
    "zs_guest_end:",
    ".popsection",
    rounds = const super::Count::Rounds as u32,
    errors = const super::Count::Errors as u32,
    aborts = const super::Count::Aborts as u32,
    refusals = const super::Count::Refusals as u32,
    nmis = const super::Count::Nmis as u32,
    faults = const super::Count::Faults as u32,
    stop = const super::STOP as u32,
    entry = const super::GATE_ENTRY,
    aborted = const super::ABORTED,
    user_data = const super::USER_DATA,
    user_code = const super::USER_CODE,
    user = const USER,
    ring3_port = const RING3_PORT,
);

unsafe extern "C" {
    static zs_guest_begin: u8;
    static zs_guest_end: u8;
    static zs_guest_nmi: u8;
    static zs_guest_ud: u8;
    static zs_guest_add: u8;
    static zs_guest_spin: u8;
    static zs_guest_load: u8;
    static zs_guest_copy: u8;
    static zs_guest_rounds: u8;
    static zs_guest_switch: u8;
    static zs_guest_ring3: u8;
}

/// Bytes from the start of the code to one of its labels.
fn offset(label: *const u8) -> u64 {
    // CAST: a small number.
    (label.addr() - (&raw const zs_guest_begin).addr()) as u64
}

impl Program {
    /// Bytes from the start of the code.
    pub(super) fn offset(self) -> u64 {
        offset(match self {
            Self::Add => &raw const zs_guest_add,
            Self::Spin => &raw const zs_guest_spin,
            Self::Load => &raw const zs_guest_load,
            Self::Copy => &raw const zs_guest_copy,
            Self::Rounds => &raw const zs_guest_rounds,
            Self::Switch => &raw const zs_guest_switch,
            Self::Ring3 => &raw const zs_guest_ring3,
        })
    }
}

/// Vectors with a handler, and bytes from the start of the code to it.
pub(super) fn handlers() -> [(u8, u64); 2] {
    const NMI: u8 = 2;
    const INVALID_OPCODE: u8 = 6;
    [
        (NMI, offset(&raw const zs_guest_nmi)),
        (INVALID_OPCODE, offset(&raw const zs_guest_ud)),
    ]
}

/// The code.
pub(super) fn bytes() -> &'static [u8] {
    // CAST: a few hundred bytes.
    let length = offset(&raw const zs_guest_end) as usize;
    // SAFETY: the two labels enclose initialised, constant bytes of this program.
    unsafe { std::slice::from_raw_parts(&raw const zs_guest_begin, length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_inside() {
        use Program::{Add, Copy, Load, Ring3, Rounds, Spin, Switch};
        let length = bytes().len() as u64;
        assert!((100..4096).contains(&length), "{length} bytes");
        for program in [Add, Spin, Load, Copy, Rounds, Switch, Ring3] {
            assert!(program.offset() < length, "{program:?}");
        }
        for (vector, offset) in handlers() {
            assert!(offset > 0 && offset < length, "handler {vector}");
        }
    }

    /// `VMFUNC` is 0F 01 D4 (Intel SDM volume 3, chapter 33), so the handler's 3 is right.
    #[test]
    fn vmfunc_has_three_bytes() {
        let code = bytes();
        assert_eq!(
            code.windows(3).filter(|w| *w == [0x0f, 0x01, 0xd4]).count(),
            2
        );
    }
}
