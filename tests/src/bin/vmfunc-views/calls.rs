// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What guests ask of the gate, and what has to come of it.

use crate::rig::{pattern, WINDOW};
use anyhow::{ensure, Result};
use kvm_bindings::kvm_regs;
use zeroshift_tests::vmm::{Vm, GATE, GATE_COPY, GATE_EXCHANGE, GATE_LOAD, GATE_STORE};

pub(crate) const DONE: u8 = 0;
const TOO_LONG: u8 = 2;
/// Most bytes of a copy.
pub(crate) const MAX_COPY: u64 = 8191;

/// What a guest asks of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    CopyOut,
    CopyIn,
    TooLong,
    Load,
    Store,
    Exchange,
    ExchangeAnother,
}

pub(crate) const CALLS: [Call; 7] = [
    Call::CopyOut,
    Call::CopyIn,
    Call::TooLong,
    Call::Load,
    Call::Store,
    Call::Exchange,
    Call::ExchangeAnother,
];

/// Bytes that are copied, at an odd offset in both pages.
const BYTES: usize = 3;
const BYTES_AT: usize = 101;
/// Offset of the word in the window.
const WORD_AT: usize = 1024;
/// What is stored there.
const NEW: u64 = 0x8877_6655_4433_2211;

/// A window, and a page of RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    pub(crate) window: Vec<u8>,
    pub(crate) ram: Vec<u8>,
}

impl Pages {
    pub(crate) fn before() -> Self {
        Self {
            window: pattern(1),
            ram: pattern(2),
        }
    }

    fn word(&self) -> u64 {
        let bytes = self.window[WORD_AT..].first_chunk();
        bytes.copied().map_or(0, u64::from_le_bytes)
    }

    /// Whether each byte is as in one or the other.
    pub(crate) fn is_between(&self, one: &Self, other: &Self) -> bool {
        let between = |is: &[u8], one: &[u8], other: &[u8]| {
            let known = one.iter().zip(other);
            is.iter().zip(known).all(|(is, (a, b))| is == a || is == b)
        };
        between(&self.window, &one.window, &other.window)
            && between(&self.ram, &one.ram, &other.ram)
    }
}

impl Call {
    fn entry(self) -> u64 {
        match self {
            Self::CopyOut | Self::CopyIn | Self::TooLong => GATE_COPY,
            Self::Load => GATE_LOAD,
            Self::Store => GATE_STORE,
            Self::Exchange | Self::ExchangeAnother => GATE_EXCHANGE,
        }
    }

    pub(crate) fn set(self, r: &mut kvm_regs) {
        (r.rbx, r.rcx) = (self.entry(), 1);
        let bytes = [Vm::buffer(0), WINDOW].map(|page| page + BYTES_AT as u64);
        let word = WINDOW + WORD_AT as u64;
        let old = Pages::before().word();
        (r.rdi, r.rsi, r.rdx) = match self {
            Self::CopyOut => (bytes[0], bytes[1], BYTES as u64),
            Self::CopyIn => (bytes[1], bytes[0], BYTES as u64),
            Self::TooLong => (bytes[0], bytes[1], MAX_COPY + 1),
            Self::Load => (0, word, 0),
            Self::Store => (0, word, NEW),
            Self::Exchange => (old, word, NEW),
            Self::ExchangeAnother => (old + 1, word, NEW),
        };
    }

    /// AL of a call that nothing interrupts.
    pub(crate) fn answer(self) -> u8 {
        match self {
            Self::TooLong => TOO_LONG,
            _ => DONE,
        }
    }

    /// The pages when it has been done.
    pub(crate) fn after(self) -> Pages {
        let mut pages = Pages::before();
        let bytes = BYTES_AT..BYTES_AT + BYTES;
        match self {
            Self::CopyOut => pages.ram[bytes.clone()].copy_from_slice(&pages.window[bytes]),
            Self::CopyIn => pages.window[bytes.clone()].copy_from_slice(&pages.ram[bytes]),
            Self::Store | Self::Exchange => {
                pages.window[WORD_AT..WORD_AT + 8].copy_from_slice(&NEW.to_le_bytes());
            }
            Self::TooLong | Self::Load | Self::ExchangeAnother => {}
        }
        pages
    }

    /// A call that was done left this in registers.
    pub(crate) fn check_registers(self, r: &kvm_regs) -> Result<()> {
        let old = Pages::before().word();
        let right = match self {
            Self::Load => r.rdx == old,
            Self::Exchange => r.rdi == old && is_zero(r),
            Self::ExchangeAnother => r.rdi == old && !is_zero(r),
            _ => true,
        };
        ensure!(right, "{self:?}: {r:x?}");
        Ok(())
    }

    /// Whether the vCPU is in the view when this instruction comes next.
    pub(crate) fn is_inside(self, address: u64) -> bool {
        let offset = address.wrapping_sub(GATE);
        match self {
            Self::CopyOut | Self::CopyIn => (0x107..=0x117).contains(&offset),
            Self::TooLong => (0x107..=0x124).contains(&offset),
            Self::Load => (0x147..=0x14d).contains(&offset),
            Self::Store => (0x187..=0x18d).contains(&offset),
            Self::Exchange | Self::ExchangeAnother => (0x1c8..=0x1d3).contains(&offset),
        }
    }
}

/// ZF.
pub(crate) fn is_zero(r: &kvm_regs) -> bool {
    r.rflags & 1 << 6 != 0
}
