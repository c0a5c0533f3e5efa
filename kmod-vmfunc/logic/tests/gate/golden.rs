// SPDX-License-Identifier: GPL-2.0-only

//! The bytes of version 1. Guests compare them, so they never change: other ones are another
//! version. Encodings are those of the Intel SDM, volume 2.

use super::{faces, walk::Page};

/// `MOV AL, 1` (B0 ib), `RET` (C3), `INT3` (CC).
const ABORT: [u8; 4] = [0xb0, 0x01, 0xc3, 0xcc];
/// `ENDBR64` (F3 0F 1E FA), `VMFUNC` (NP 0F 01 D4).
const ENTRY: [u8; 7] = [0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x01, 0xd4];

fn put(page: &mut Page, at: usize, code: &[u8]) {
    page[at..at + code.len()].copy_from_slice(code);
}

fn default_face() -> Page {
    // NOP.
    let mut page = [0x90; 4096];
    for end in (64..=page.len()).step_by(64) {
        put(&mut page, end - 4, &ABORT);
    }
    // JMP +6.
    put(&mut page, 0, b"\xeb\x06GAGEA\xcc");
    put(&mut page, 0x100, &ENTRY);
    put(&mut page, 0x117, &[0xb0, 0x01, 0xc3, 0xc3]);
    put(&mut page, 0x124, &[0xb0, 0x01, 0xc3, 0xb0, 0x02, 0xc3]);
    put(&mut page, 0x140, &ENTRY);
    put(&mut page, 0x14d, &[0xb0, 0x01, 0xc3, 0xc3]);
    put(&mut page, 0x180, &ENTRY);
    put(&mut page, 0x18d, &[0xb0, 0x01, 0xc3, 0xc3]);
    // SAHF between.
    put(
        &mut page,
        0x1c0,
        &[0xf3, 0x0f, 0x1e, 0xfa, 0x9e, 0x0f, 0x01, 0xd4],
    );
    put(&mut page, 0x1d3, &[0xb0, 0x01, 0xc3, 0xc3]);
    page
}

fn view_face() -> Page {
    // INT3.
    let mut page = [0xcc; 4096];
    let copy: [&[u8]; 8] = [
        &[0x48, 0x92],                         // XCHG RAX, RDX
        &[0x48, 0xa9, 0x00, 0xe0, 0xff, 0xff], // TEST RAX, -8192
        &[0xfc],                               // CLD
        &[0x75, 0x0e],                         // JNZ +14
        &[0x48, 0x91],                         // XCHG RAX, RCX
        &[0x92],                               // XCHG EAX, EDX
        &[0xf3, 0xa4],                         // REP MOVSB
        &[0x0f, 0x01, 0xd4],                   // VMFUNC
    ];
    put(&mut page, 0x107, &copy.concat());
    // XCHG EAX, EDX; SAR ECX, 31.
    put(
        &mut page,
        0x120,
        &[0x92, 0xc1, 0xf9, 0x1f, 0x0f, 0x01, 0xd4],
    );
    // MOV RDX, [RSI]; SAR ECX, 31.
    put(
        &mut page,
        0x147,
        &[0x48, 0x8b, 0x16, 0xc1, 0xf9, 0x1f, 0x0f, 0x01, 0xd4],
    );
    // MOV [RSI], RDX; SAR ECX, 31.
    put(
        &mut page,
        0x187,
        &[0x48, 0x89, 0x16, 0xc1, 0xf9, 0x1f, 0x0f, 0x01, 0xd4],
    );
    let exchange: [&[u8]; 5] = [
        &[0x48, 0x97],                   // XCHG RAX, RDI
        &[0xf0, 0x48, 0x0f, 0xb1, 0x16], // LOCK CMPXCHG [RSI], RDX
        &[0x89, 0xf9],                   // MOV ECX, EDI
        &[0x48, 0x97],                   // XCHG RAX, RDI
        &[0x0f, 0x01, 0xd4],             // VMFUNC
    ];
    put(&mut page, 0x1c8, &exchange.concat());
    page
}

#[test]
fn version_1() {
    let (default, view) = faces::bytes();
    assert_eq!(faces::VERSION, 1);
    for (face, bytes, wanted) in [
        ("default", default, default_face()),
        ("view", view, view_face()),
    ] {
        for (at, (is, wanted)) in bytes.iter().zip(wanted).enumerate() {
            assert_eq!(*is, wanted, "{face} face, byte {at:#x}");
        }
    }
}
