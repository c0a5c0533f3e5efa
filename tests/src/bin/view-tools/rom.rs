// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the guest of QEMU runs instead of firmware: 16-bit code that tries VMFUNC(0, 1), from view 0 to
//! view 1, again and again, and says what came of it on the first serial port whenever that
//! changes.
//!
//! It runs from the ROM, which cannot be executed in a view: each VMFUNC that succeeds is bounced back,
//! to the instruction behind it.

use std::arch::global_asm;

/// VMFUNC raises #UD: it is not allowed, or there is no such view.
pub(crate) const REFUSED: u8 = b'u';
/// VMFUNC went into the view.
pub(crate) const SWITCHED: u8 = b'v';

/// The ROM ends at 4 GiB, and its last 64 KiB are below 1 MiB, too.
const SIZE: usize = 64 << 10;
/// Where a processor begins.
const RESET: usize = 0xfff0;

global_asm!(
    ".pushsection .rodata.zs_rom, \"a\"",
    ".code16",
    ".globl zs_rom_begin, zs_rom_end",
    "zs_rom_begin:",
    "xor ax, ax",
    "mov ds, ax",
    "mov ss, ax",
    "mov sp, 0x7000",
    // Vector 6, #UD, has offset and segment of the handler, which begins behind this CALL.
    "call 5f",
    "mov bl, {refused}",
    "push bp",
    "mov bp, sp",
    // It goes on behind the instruction, which has three bytes.
    "add word ptr ss:[bp + 2], 3",
    "pop bp",
    "iret",
    "5:",
    "pop word ptr ds:[0x18]",
    "mov word ptr ds:[0x1a], 0xf000",
    "xor bh, bh",
    "2:",
    "mov bl, {switched}",
    "xor eax, eax",
    "mov ecx, 1",
    "vmfunc",
    "cmp bl, bh",
    "je 3f",
    "mov bh, bl",
    "mov al, bl",
    "mov dx, 0x3f8",
    "out dx, al",
    "3:",
    "mov cx, 2000",
    "4:",
    "loop 4b",
    "jmp 2b",
    "zs_rom_end:",
    ".code64",
    ".popsection",
    switched = const SWITCHED as i32,
    refused = const REFUSED as i32,
);

unsafe extern "C" {
    static zs_rom_begin: u8;
    static zs_rom_end: u8;
}

/// The whole ROM.
pub(crate) fn image() -> Vec<u8> {
    // HLT, for what runs astray.
    let mut rom = vec![0xf4; SIZE];
    let code = code();
    rom[..code.len()].copy_from_slice(code);
    // JMP to the beginning: the distance counts from the next instruction, modulo 64 KiB.
    rom[RESET..RESET + 3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    rom
}

fn code() -> &'static [u8] {
    let (begin, end) = (&raw const zs_rom_begin, &raw const zs_rom_end);
    // SAFETY: the two labels enclose initialised, constant bytes of this program.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `VMFUNC` is 0F 01 D4, and a jump with a 16-bit distance E9 (Intel SDM volume 2 and 3).
    #[test]
    fn the_code_is_what_it_says() {
        let rom = image();
        assert_eq!(rom.len(), SIZE);
        assert_eq!(
            rom.windows(3).filter(|w| *w == [0x0f, 0x01, 0xd4]).count(),
            1
        );
        let distance = u16::from_le_bytes([rom[RESET + 1], rom[RESET + 2]]);
        assert_eq!((RESET as u16).wrapping_add(3).wrapping_add(distance), 0);
        // XOR AX, AX in 16-bit code.
        assert_eq!(rom[..2], [0x31, 0xc0]);
        assert!(code().len() < 0x100);
    }
}
