// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest runs: a few programs without an operating system, and its exception handlers.
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
    /// One call of the gate at RBX, with RDI, RSI, RDX and ECX; registers are as it returns.
    Gate,
    /// HLT. Behind it copies by the gate, R14 bytes from R15 to R13 with the view R12D, and tells by OUT
    /// what it returned. Then all of that again.
    Wait,
    /// Round trips by the gate, R14 bytes each, with the window at R13 in the view R12D; RBX is a
    /// buffer of two pages. RDX = 1: fill the first page with numbers made of R15 and the round,
    /// copy it to the window. Always: copy the window to the second page, compare the two. RBP
    /// rounds, or with 0 until it is asked to stop.
    Rounds,
    /// VMFUNC in RAM, RBP times or with 0 until it is asked to stop, with R14D in EAX and R12D in
    /// ECX. Ends when one raises #UD.
    Switch,
    /// Exits to KVM, by CPUID, RBP times or with 0 until it is asked to stop. An error when there is
    /// not R15 at RBX.
    Exits,
    /// Copies by the gate, RBP times or with 0 until it is asked to stop: R14 bytes from R13 to RBX
    /// with the view R12D, and looks at what came. Each byte is 0 or a *generation*: a number below
    /// 80h that never becomes less. A copy that is aborted is a round as well.
    Sample,
    /// Comes into the view RCX at each offset of the gate's page, from a page of its own that it
    /// exchanges for the gate's right before VMFUNC: R15 is that page, and the last bytes of the page
    /// before it are needed as well. RDI and RSI are what the gate finds there.
    Cheat,
    /// HLT, in any mode.
    Halt,
    /// [`Self::Switch`] from ring 3, RBP times, with 0 in EAX; it ends with OUT.
    Ring3,
    /// One call of the gate from ring 3, with RBX, RDI, RSI, RDX and ECX as in ring 0; it ends with OUT,
    /// registers as the gate returns.
    Ring3Gate,
    /// Some work RBP times. RAX = what the time stamp counter moved by. R13, R15 and R14 are a
    /// destination, a source and a number of bytes, R12D is a view.
    Time(Work),
}

/// What [`Program::Time`] repeats. Each time costs [`AROUND`] instructions besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Nothing,
    /// A call of the gate.
    Gate,
    /// A copy by REP MOVSB.
    Copy,
    /// CPUID, which KVM answers.
    Exit,
}

/// Instructions around each [`Work`]: the registers are loaded, and the times counted.
pub const AROUND: u64 = 6;

/// Where programs say by OUT that they have come to something, when HLT cannot.
pub(super) const PORT: u16 = 0x80;

/// How far from memory, from the gate and from the first window their mappings for ring 3 are.
pub(super) const USER: u64 = 2 << 40;

/// [`Program::Time`] with some work: time stamps on both sides of RBP times it.
macro_rules! timed {
    ($name:literal, $work:literal) => {
        concat!(
            "zs_guest_time_",
            $name,
            ":
            rdtsc
            shl rdx, 32
            or rax, rdx
            push rax
            2:
            mov rdi, r13
            mov rsi, r15
            mov rcx, r14
            mov rdx, r14
            ",
            $work,
            "
            dec rbp
            jnz 2b
            rdtsc
            shl rdx, 32
            or rax, rdx
            pop rdx
            sub rax, rdx
            hlt"
        )
    };
}

/// Where a processor begins in system-management mode after a reset (Intel SDM volume 3, section
/// 33.3: SMBASE + 8000h).
pub(super) const SMM: u64 = 0x3_8000;

global_asm!(
    ".pushsection .rodata.zs_guest, \"a\"",
    ".balign 16",
    ".globl zs_guest_begin, zs_guest_end, zs_guest_nmi, zs_guest_ud, zs_guest_db, zs_guest_mc",
    ".globl zs_guest_add, zs_guest_spin, zs_guest_load, zs_guest_gate, zs_guest_rounds",
    ".globl zs_guest_wait, zs_guest_ring3_gate",
    ".globl zs_guest_switch, zs_guest_exits, zs_guest_sample, zs_guest_ring3",
    ".globl zs_guest_cheat, zs_guest_halt, zs_guest_bp",
    ".globl zs_guest_time_nothing, zs_guest_time_gate, zs_guest_time_copy, zs_guest_time_exit",
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
    "zs_guest_gate:",
    "xor eax, eax",
    "call rbx",
    "hlt",
    //
    "zs_guest_wait:",
    "2:",
    "hlt",
    "mov rdi, r13",
    "mov rsi, r15",
    "mov rdx, r14",
    "mov ecx, r12d",
    "xor eax, eax",
    "movabs r10, {entry}",
    "call r10",
    "out {port}, al",
    "jmp 2b",
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
    "zs_guest_exits:",
    "mov rsi, rbx",
    "30:",
    "xor eax, eax",
    "xor ecx, ecx",
    "cpuid",
    "cmp r15, [rsi]",
    "je 31f",
    "inc qword ptr gs:[{errors}]",
    "31:",
    "inc qword ptr gs:[{rounds}]",
    "cmp qword ptr gs:[{stop}], 0",
    "jne 32f",
    "cmp rbp, gs:[{rounds}]",
    "jne 30b",
    "32:",
    "hlt",
    //
    "zs_guest_sample:",
    // The last generation, and a word of it.
    "xor r9d, r9d",
    "xor r10d, r10d",
    "40:",
    "mov rdi, rbx",
    "mov rsi, r13",
    "mov rdx, r14",
    "mov ecx, r12d",
    "xor eax, eax",
    "movabs r8, {entry}",
    "call r8",
    "test al, al",
    "jz 42f",
    "cmp al, {aborted}",
    "jne 41f",
    "inc qword ptr gs:[{aborts}]",
    "jmp 47f",
    "41:",
    "inc qword ptr gs:[{refusals}]",
    "jmp 47f",
    "42:",
    "mov rsi, rbx",
    "mov rcx, r14",
    "shr rcx, 3",
    "43:",
    "lodsq",
    "cmp rax, r10",
    "je 45f",
    "test rax, rax",
    "jz 45f",
    // Byte by byte, as they were copied.
    "mov r11, rax",
    "mov edx, 8",
    "44:",
    "test al, al",
    "jz 50f",
    "js 49f",
    "cmp al, r9b",
    "jb 49f",
    "movzx r9d, al",
    "jmp 50f",
    "49:",
    "inc qword ptr gs:[{errors}]",
    "mov gs:[{wrong}], r11",
    "50:",
    "shr rax, 8",
    "dec edx",
    "jnz 44b",
    "movabs r10, 0x0101010101010101",
    "imul r10, r9",
    "mov rax, r11",
    "45:",
    "dec rcx",
    "jnz 43b",
    "test rax, rax",
    "jz 46f",
    "mov gs:[{seen}], r9",
    "jmp 47f",
    "46:",
    "inc qword ptr gs:[{blanks}]",
    "47:",
    "inc qword ptr gs:[{rounds}]",
    "cmp qword ptr gs:[{stop}], 0",
    "jne 48f",
    "cmp rbp, gs:[{rounds}]",
    "jne 40b",
    "48:",
    "hlt",
    //
    "zs_guest_cheat:",
    "mov r12, rcx",
    "mov r13, rsi",
    "mov r14, rdi",
    "mov r8d, {cheat_entry}",
    "movabs r9, {gate_entry}",
    "lea r11, [r15 + 3]",
    "xor ebp, ebp",
    "30:",
    // In the middle of an abort is an ADD EBX, EAX.
    "movabs rbx, {cheat}",
    // Somewhere in that page: MOV [R8], R9; JMP to VMFUNC, whose next byte is at the offset.
    "lea eax, [rbp + 2048]",
    "and eax, 0xff0",
    "mov edx, ebp",
    "sub edx, eax",
    "sub edx, 11",
    "lea r10, [rbx + rax]",
    "add rax, r15",
    "mov dword ptr [rax], 0xe908894d",
    "mov [rax + 4], edx",
    "mov word ptr [r15 + rbp - 3], 0x010f",
    "mov byte ptr [r15 + rbp - 1], 0xd4",
    "mov [r8], r11",
    "invlpg [rbx]",
    "mov rdi, r14",
    "mov rsi, r13",
    "mov rcx, r12",
    "xor edx, edx",
    "xor eax, eax",
    "call r10",
    "cmp al, {aborted}",
    "ja 32f",
    "je 31f",
    "inc qword ptr gs:[{rounds}]",
    "jmp 33f",
    "31:",
    "inc qword ptr gs:[{aborts}]",
    "jmp 33f",
    "32:",
    "inc qword ptr gs:[{refusals}]",
    "33:",
    "inc ebp",
    "cmp ebp, 4096",
    "jb 30b",
    "mov [r8], r11",
    "invlpg [rbx]",
    "zs_guest_halt:",
    "hlt",
    //
    "zs_guest_ring3_gate:",
    "movabs rax, {user}",
    "mov r10, rsp",
    "add r10, rax",
    "add rbx, rax",
    "add rdi, rax",
    "add rsi, rax",
    "push {user_data}",
    "push r10",
    "push 0x3002",
    "push {user_code}",
    "lea r10, [rip + 11f]",
    "add r10, rax",
    "push r10",
    "iretq",
    "11:",
    "xor eax, eax",
    "call rbx",
    "out {port}, al",
    "jmp 10f",
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
    "out {port}, al",
    "10:",
    "jmp 10b",
    // Copies RCX bytes by the gate, with the view R8D, again when it was aborted; keeps all but RAX
    // and R10.
    "20:",
    "push rdi",
    "push rsi",
    "push rcx",
    "push rdx",
    "mov rdx, rcx",
    "mov ecx, r8d",
    "movabs r10, {entry}",
    "xor eax, eax",
    "call r10",
    "pop rdx",
    "pop rcx",
    "pop rsi",
    "pop rdi",
    "test al, al",
    "jz 22f",
    "cmp al, {aborted}",
    "jne 21f",
    "inc qword ptr gs:[{aborts}]",
    "jmp 20b",
    "21:",
    "inc qword ptr gs:[{refusals}]",
    "22:",
    "ret",
    //
    timed!("nothing", ""),
    timed!(
        "gate",
        "mov ecx, r12d\nxor eax, eax\nmovabs r10, {entry}\ncall r10"
    ),
    timed!("copy", "rep movsb"),
    timed!("exit", "xor eax, eax\ncpuid"),
    //
    "zs_guest_nmi:",
    "inc qword ptr gs:[{nmis}]",
    "iretq",
    // Goes on behind the instruction, which is VMFUNC: three bytes.
    "zs_guest_ud:",
    "inc qword ptr gs:[{faults}]",
    "add qword ptr [rsp], 3",
    "iretq",
    "zs_guest_db:",
    "inc qword ptr gs:[{debugs}]",
    // A breakpoint is not met again at once: RF.
    "or dword ptr [rsp + 16], 0x10000",
    "iretq",
    "zs_guest_bp:",
    "inc qword ptr gs:[{traps}]",
    "iretq",
    "zs_guest_mc:",
    "inc qword ptr gs:[{checks}]",
    "iretq",
    "zs_guest_end:",
    //
    // System-management mode: 16 bits, data segments from 0 on, no table of interrupts. VMFUNC, whose
    // registers ask for the first view, then back; RSM restores all registers.
    ".balign 16",
    ".globl zs_guest_smm, zs_guest_smm_end",
    ".code16",
    "zs_guest_smm:",
    "mov esi, {smm_idtr}",
    "lidt [esi]",
    "mov esi, {report}",
    "inc dword ptr [esi + {smis}]",
    "xor eax, eax",
    "mov ecx, 1",
    "vmfunc",
    "rsm",
    ".org zs_guest_smm + {smm_ud}",
    "inc dword ptr [esi + {smm_faults}]",
    "mov bp, sp",
    "add word ptr [bp], 3",
    "iret",
    ".org zs_guest_smm + 0x80",
    // Limit and base of the table, which is in front of its entry 6: offset and selector.
    ".word 0x1b",
    ".long {smm_idtr} + 0x10",
    ".org zs_guest_smm + 0x90 + 6 * 4",
    ".word 0x8000 + {smm_ud}",
    ".word 0x3000",
    "zs_guest_smm_end:",
    ".code64",
    ".popsection",
    rounds = const super::Count::Rounds as u32,
    errors = const super::Count::Errors as u32,
    aborts = const super::Count::Aborts as u32,
    refusals = const super::Count::Refusals as u32,
    nmis = const super::Count::Nmis as u32,
    faults = const super::Count::Faults as u32,
    seen = const super::Count::Seen as u32,
    blanks = const super::Count::Blanks as u32,
    wrong = const super::Count::Wrong as u32,
    smis = const super::Count::Smis as u32,
    smm_faults = const super::Count::SmmFaults as u32,
    smm_idtr = const SMM + 0x80,
    smm_ud = const 0x40,
    report = const super::tables::report(0) as u32,
    debugs = const super::Count::Debugs as u32,
    checks = const super::Count::Checks as u32,
    traps = const super::Count::Traps as u32,
    cheat = const super::tables::CHEAT,
    cheat_entry = const super::tables::CHEAT_ENTRY,
    gate_entry = const super::tables::GATE_ENTRY,
    stop = const super::STOP as u32,
    entry = const super::GATE_COPY,
    aborted = const super::ABORTED,
    user_data = const super::USER_DATA,
    user_code = const super::USER_CODE,
    user = const USER,
    port = const PORT,
);

unsafe extern "C" {
    static zs_guest_begin: u8;
    static zs_guest_end: u8;
    static zs_guest_nmi: u8;
    static zs_guest_ud: u8;
    static zs_guest_smm: u8;
    static zs_guest_smm_end: u8;
    static zs_guest_db: u8;
    static zs_guest_mc: u8;
    static zs_guest_bp: u8;
    static zs_guest_cheat: u8;
    static zs_guest_halt: u8;
    static zs_guest_add: u8;
    static zs_guest_spin: u8;
    static zs_guest_load: u8;
    static zs_guest_gate: u8;
    static zs_guest_wait: u8;
    static zs_guest_rounds: u8;
    static zs_guest_switch: u8;
    static zs_guest_exits: u8;
    static zs_guest_sample: u8;
    static zs_guest_ring3: u8;
    static zs_guest_ring3_gate: u8;
    static zs_guest_time_nothing: u8;
    static zs_guest_time_gate: u8;
    static zs_guest_time_copy: u8;
    static zs_guest_time_exit: u8;
}

/// Bytes from the start of the code to one of its labels.
fn offset(label: *const u8) -> u64 {
    // CAST: a small number.
    (label.addr() - (&raw const zs_guest_begin).addr()) as u64
}

/// What is between two labels.
///
/// # Safety
///
/// They enclose initialised, constant bytes of this program.
unsafe fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

impl Program {
    /// Bytes from the start of the code.
    pub(super) fn offset(self) -> u64 {
        offset(match self {
            Self::Add => &raw const zs_guest_add,
            Self::Spin => &raw const zs_guest_spin,
            Self::Load => &raw const zs_guest_load,
            Self::Gate => &raw const zs_guest_gate,
            Self::Wait => &raw const zs_guest_wait,
            Self::Rounds => &raw const zs_guest_rounds,
            Self::Switch => &raw const zs_guest_switch,
            Self::Exits => &raw const zs_guest_exits,
            Self::Sample => &raw const zs_guest_sample,
            Self::Ring3 => &raw const zs_guest_ring3,
            Self::Ring3Gate => &raw const zs_guest_ring3_gate,
            Self::Cheat => &raw const zs_guest_cheat,
            Self::Halt => &raw const zs_guest_halt,
            Self::Time(Work::Nothing) => &raw const zs_guest_time_nothing,
            Self::Time(Work::Gate) => &raw const zs_guest_time_gate,
            Self::Time(Work::Copy) => &raw const zs_guest_time_copy,
            Self::Time(Work::Exit) => &raw const zs_guest_time_exit,
        })
    }
}

/// Vectors with a handler, and bytes from the start of the code to it.
pub(super) fn handlers() -> [(u8, u64); 5] {
    const DEBUG: u8 = 1;
    const NMI: u8 = 2;
    const BREAKPOINT: u8 = 3;
    const INVALID_OPCODE: u8 = 6;
    const MACHINE_CHECK: u8 = 18;
    [
        (DEBUG, offset(&raw const zs_guest_db)),
        (BREAKPOINT, offset(&raw const zs_guest_bp)),
        (MACHINE_CHECK, offset(&raw const zs_guest_mc)),
        (NMI, offset(&raw const zs_guest_nmi)),
        (INVALID_OPCODE, offset(&raw const zs_guest_ud)),
    ]
}

/// The code.
pub(super) fn bytes() -> &'static [u8] {
    // SAFETY: these two do.
    unsafe { between(&raw const zs_guest_begin, &raw const zs_guest_end) }
}

/// The code for system-management mode, which belongs at [`SMM`]. It reports for the first vCPU.
pub(super) fn smm_bytes() -> &'static [u8] {
    // SAFETY: these two do.
    unsafe { between(&raw const zs_guest_smm, &raw const zs_guest_smm_end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_inside() {
        use Program::{
            Add, Exits, Gate, Load, Ring3, Ring3Gate, Rounds, Sample, Spin, Switch, Time, Wait,
        };
        let length = bytes().len() as u64;
        assert!((100..4096).contains(&length), "{length} bytes");
        let timed = [Work::Nothing, Work::Gate, Work::Copy, Work::Exit].map(Time);
        let all = [
            Add, Spin, Load, Gate, Wait, Rounds, Switch, Exits, Sample, Ring3, Ring3Gate,
        ];
        for program in all.into_iter().chain(timed) {
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
