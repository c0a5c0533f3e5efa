// SPDX-License-Identifier: GPL-2.0-only

//! What happens to a processor that begins at an offset of a face: all paths, with what is known of
//! its registers on each.
//!
//! Whatever is not written down here is wrong: an instruction that is not known, memory by another
//! one than the few that may, a jump out of the page, a place that comes twice.

use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register, RflagsBits,
};

pub(crate) type Page = [u8; 4096];

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    Default,
    View,
}

/// What is known of a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// It is not above that.
    pub(crate) most: u64,
    /// Its low 32 bits are not above that.
    pub(crate) low_most: u32,
    /// Its low 8 bits.
    pub(crate) byte: Option<u8>,
}

impl Value {
    pub(crate) const ANY: Self = Self::low_at_most(u32::MAX);
    pub(crate) const ZERO: Self = Self {
        most: 0,
        low_most: 0,
        byte: Some(0),
    };

    /// The upper half can be anything.
    pub(crate) const fn low_at_most(low_most: u32) -> Self {
        Self {
            most: u64::MAX,
            low_most,
            byte: if low_most == 0 { Some(0) } else { None },
        }
    }

    /// As an instruction of 32 bits writes it.
    fn low(self) -> Self {
        Self {
            most: u64::from(self.low_most).min(self.most),
            ..self
        }
    }

    fn at_most(self, most: u64) -> Self {
        let most = self.most.min(most);
        // CAST: it fits, or is cut to what always holds.
        let low_most = self.low_most.min(most.min(u64::from(u32::MAX)) as u32);
        Self {
            most,
            low_most,
            ..self
        }
    }
}

/// Registers by their numbers, RAX to R15.
pub(crate) type Registers = [Value; 16];

pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
const RSP: usize = 4;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

/// An instruction that reaches for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// MOVSB, this often at most.
    Copy(u64),
    /// At RSI, to RDX: 8 bytes, or 4 where a prefix was skipped.
    Load(usize),
    /// At RSI, from RDX.
    Store(usize),
    /// CMPXCHG at RSI, from RDX; whether it is locked.
    Exchange(usize, bool),
}

/// How a path ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// VMFUNC.
    Vmfunc,
    /// RET, with the stack as it was.
    Return,
    /// RET, with another stack.
    Astray,
    /// #UD or #BP.
    Fault,
    /// That must not be.
    Wrong(String),
}

/// A way through a face.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// Where its instructions are.
    pub(crate) offsets: Vec<usize>,
    pub(crate) registers: Registers,
    /// A bit for each register that was written.
    pub(crate) written: u16,
    /// Where flags may have changed.
    pub(crate) flags: Vec<usize>,
    pub(crate) accesses: Vec<Access>,
    pub(crate) end: End,
    /// CLI, and where.
    pub(crate) cli: Option<usize>,
    /// ZF is clear when this register has none of these bits.
    test: Option<(usize, u64)>,
}

impl Path {
    /// Where it ends.
    pub(crate) fn last(&self) -> usize {
        self.offsets.last().copied().unwrap_or_default()
    }

    fn wrong(mut self, why: impl Into<String>) -> Self {
        let at = self.last();
        self.end = End::Wrong(format!("at {at:#x}: {}", why.into()));
        self
    }

    fn ends(mut self, end: End) -> Self {
        let is_astray = end == End::Return && self.written & 1 << RSP != 0;
        self.end = if is_astray { End::Astray } else { end };
        self
    }

    fn note_flags(&mut self, i: &Instruction) {
        if i.rflags_modified() != 0 {
            self.flags.push(self.last());
        }
        if i.rflags_modified() & RflagsBits::ZF != 0 {
            self.test = None;
        }
    }

    fn set(&mut self, register: usize, value: Value) {
        self.registers[register] = value;
        self.written |= 1 << register;
        if self.test.is_some_and(|(r, _)| r == register) {
            self.test = None;
        }
    }
}

/// Every path from `start` on, until it leaves the face.
pub(crate) fn walk(page: &Page, face: Face, start: usize, registers: Registers) -> Vec<Path> {
    let mut done = Vec::new();
    let mut open = vec![(
        start,
        Path {
            offsets: Vec::new(),
            registers,
            written: 0,
            flags: Vec::new(),
            accesses: Vec::new(),
            end: End::Fault,
            cli: None,
            test: None,
        },
    )];
    while let Some((at, mut path)) = open.pop() {
        if path.offsets.contains(&at) {
            path.offsets.push(at);
            done.push(path.wrong("a loop"));
            continue;
        }
        path.offsets.push(at);
        step(page, face, at, path, &mut open, &mut done);
    }
    done
}

/// One instruction.
fn step(
    page: &Page,
    face: Face,
    at: usize,
    mut path: Path,
    open: &mut Vec<(usize, Path)>,
    done: &mut Vec<Path>,
) {
    let mut decoder = Decoder::with_ip(64, &page[at..], at as u64, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if decoder.last_error() == DecoderError::NoMoreBytes {
        return done.push(path.wrong("runs out of the page"));
    }
    let next = instruction.next_ip() as usize;
    match instruction.mnemonic() {
        Mnemonic::INVALID | Mnemonic::Int3 => return done.push(path.ends(End::Fault)),
        Mnemonic::Vmfunc => return done.push(path.ends(End::Vmfunc)),
        Mnemonic::Ret if instruction.code() == Code::Retnq => {
            return done.push(path.ends(End::Return))
        }
        Mnemonic::Jmp | Mnemonic::Je | Mnemonic::Jne | Mnemonic::Loopne => {
            if instruction.op0_kind() != OpKind::NearBranch64 {
                return done.push(path.wrong("an indirect jump"));
            }
            let Some(target) = usize::try_from(instruction.near_branch_target())
                .ok()
                .filter(|to| *to < page.len())
            else {
                return done.push(path.wrong("jumps out of the page"));
            };
            if instruction.mnemonic() == Mnemonic::Loopne {
                path.set(RCX, Value::ANY);
            }
            open.push((target, path.clone()));
            if instruction.mnemonic() == Mnemonic::Jmp {
                return;
            }
            if let (Mnemonic::Jne, Some((register, mask))) = (instruction.mnemonic(), path.test) {
                // A mask that is the complement of 2^n - 1: what has none of it is below 2^n.
                if (!mask).wrapping_add(1).is_power_of_two() {
                    path.registers[register] = path.registers[register].at_most(!mask);
                }
            }
        }
        _ => match execute(face, &instruction, &mut path) {
            Ok(()) => {}
            Err(why) => return done.push(path.wrong(why)),
        },
    }
    if next >= page.len() {
        return done.push(path.wrong("runs out of the page"));
    }
    open.push((next, path));
}

/// One that neither jumps nor ends.
fn execute(face: Face, i: &Instruction, path: &mut Path) -> Result<(), String> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(i);
    if !info.used_memory().is_empty() && !matches!(i.mnemonic(), Mnemonic::Nop) {
        return memory(face, i, path);
    }
    path.note_flags(i);
    let value = |path: &Path, operand| -> Result<Value, String> {
        Ok(path.registers[number(i.op_register(operand))?])
    };
    match i.code() {
        Code::Nopd
        | Code::Nopw
        | Code::Nopq
        | Code::Nop_rm16
        | Code::Nop_rm32
        | Code::Nop_rm64
        | Code::Endbr64
        | Code::Reservednop_rm32_r32_0F1E
        | Code::Sahf
        | Code::Stc
        | Code::Cld => {}
        Code::Cli => path.cli = Some(path.last()),
        Code::Xchg_r64_RAX | Code::Xchg_r32_EAX => {
            let (a, b) = (value(path, 0)?, value(path, 1)?);
            let is_low = i.code() == Code::Xchg_r32_EAX;
            let cut = |v: Value| if is_low { v.low() } else { v };
            path.set(number(i.op0_register())?, cut(b));
            path.set(number(i.op1_register())?, cut(a));
        }
        Code::Mov_rm32_r32 => {
            let from = value(path, 1)?.low();
            path.set(number(i.op0_register())?, from);
        }
        Code::Mov_r8_imm8 => {
            let register = i.op0_register();
            let old = value(path, 0)?;
            let byte = match register {
                Register::AL | Register::CL => Some(i.immediate8()),
                _ => return Err("another byte".into()),
            };
            path.set(
                number(register)?,
                Value {
                    byte,
                    ..Value::low_at_most(old.low_most | 0xff)
                },
            );
        }
        Code::Test_RAX_imm32 => {
            let mask = i.immediate(1);
            path.test = Some((RAX, mask));
        }
        Code::Test_EAX_imm32 => {}
        // Of what is below 2^31 nothing is left.
        Code::Sar_rm32_imm8 if i.op0_register() == Register::ECX && i.immediate8() == 31 => {
            let to = match path.registers[RCX].low_most < 1 << 31 {
                true => Value::ZERO,
                false => Value::ANY.low(),
            };
            path.set(RCX, to);
        }
        // What skipped prefixes make of others: whatever they write is unknown.
        Code::Add_rm8_r8 | Code::Add_r8_rm8 | Code::Add_rm32_r32 => {
            for used in info.used_registers() {
                if writes(used.access()) {
                    path.set(number(used.register())?, Value::ANY);
                }
            }
        }
        code => return Err(format!("{code:?}")),
    }
    Ok(())
}

/// One that reaches for memory: only in the view, only what a call is for.
fn memory(face: Face, i: &Instruction, path: &mut Path) -> Result<(), String> {
    if face == Face::Default {
        return Err(format!("memory by {:?}", i.code()));
    }
    if i.code() == Code::Movsb_m8_m8 {
        let often = match i.has_rep_prefix() {
            true => path.registers[RCX].most,
            false => 1,
        };
        path.accesses.push(Access::Copy(often));
        path.set(RSI, Value::ANY);
        path.set(RDI, Value::ANY);
        if i.has_rep_prefix() {
            path.set(RCX, Value::ZERO);
        }
        return Ok(());
    }
    let is_plain = i.memory_base() == Register::RSI
        && i.memory_index() == Register::None
        && i.memory_displacement64() == 0
        && i.memory_segment() == Register::DS;
    if !is_plain {
        return Err(format!("memory elsewhere by {:?}", i.code()));
    }
    path.note_flags(i);
    let is_load = matches!(i.code(), Code::Mov_r64_rm64 | Code::Mov_r32_rm32);
    let register = if is_load {
        i.op0_register()
    } else {
        i.op1_register()
    };
    if number(register)? != RDX {
        return Err(format!("memory and {register:?}"));
    }
    let bytes = register.size();
    path.accesses.push(match i.code() {
        Code::Mov_r64_rm64 | Code::Mov_r32_rm32 => Access::Load(bytes),
        Code::Mov_rm64_r64 | Code::Mov_rm32_r32 => Access::Store(bytes),
        Code::Cmpxchg_rm64_r64 | Code::Cmpxchg_rm32_r32 => {
            Access::Exchange(bytes, i.has_lock_prefix())
        }
        code => return Err(format!("memory by {code:?}")),
    });
    match path.accesses.last() {
        Some(Access::Load(_)) => path.set(RDX, Value::ANY),
        Some(Access::Exchange(..)) => path.set(RAX, Value::ANY),
        _ => {}
    }
    Ok(())
}

fn writes(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
    )
}

/// Which of the 16 a register is part of.
fn number(register: Register) -> Result<usize, String> {
    let full = register.full_register();
    match full.is_gpr64() {
        true => Ok(full.number()),
        false => Err(format!("register {register:?}")),
    }
}
