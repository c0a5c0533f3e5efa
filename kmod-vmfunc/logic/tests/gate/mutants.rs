// SPDX-License-Identifier: GPL-2.0-only

//! Gates that are wrong, each by a byte or two: the checker sees it.

use super::{faces, judge};

/// The face, where, what instead, and of what the checker speaks.
const MUTANTS: &[(bool, usize, &[u8], &str)] = &[
    // The view face.
    (true, 0x0, &[0xc3], "returns inside the view"),
    (true, 0xfff, &[0x90], "runs out of the page"),
    (true, 0x11a, &[0xc3], "returns inside the view"),
    (true, 0x110, &[0x90, 0x90], "Copy(ffffffffffffffff)"),
    (true, 0x110, &[0x74], "Copy(ffffffffffffffff)"),
    (true, 0x10c, &[0xc0], "Copy(3fff)"),
    (true, 0x111, &[0x90], "Fault"),
    (true, 0x111, &[0xfe], "a loop"),
    (true, 0x114, &[0x90], "VMFUNC with"),
    (true, 0x115, &[0x90, 0xa4], "VMFUNC with"),
    (true, 0x115, &[0xf3, 0xaa], "memory"),
    (true, 0x117, &[0x0f, 0x01, 0xc1], "Vmcall"),
    (true, 0x121, &[0x90, 0x90, 0x90], "VMFUNC with"),
    (true, 0x149, &[0x17], "memory elsewhere"),
    (true, 0x14a, &[0x0f, 0x30, 0x90], "Wrmsr"),
    (true, 0x147, &[0x40], "Load(4)"),
    (true, 0x148, &[0x89], "Store(8)"),
    // A second REP MOVSB, and a jump to a VMFUNC that is known.
    (
        true,
        0x190,
        &[0xf3, 0xa4, 0xeb, 0xf9],
        "Copy(ffffffffffffffff)",
    ),
    (true, 0x189, &[0x06], "memory and RAX"),
    (true, 0x1ca, &[0x48], "Exchange(8, false)"),
    (true, 0x1cf, &[0x31, 0xc9], "Xor"),
    (true, 0x1cf, &[0xf8, 0xf8], "Clc"),
    (true, 0x1d1, &[0x90, 0x90], "VMFUNC with"),
    (true, 0x200, &[0xff, 0xe0], "an indirect jump"),
    (true, 0x200, &[0xeb, 0xfe], "a loop"),
    (
        true,
        0x200,
        &[0xe9, 0x00, 0x10, 0x00, 0x00],
        "jumps out of the page",
    ),
    (true, 0x200, &[0x0f, 0x01, 0xd4], "VMFUNC at 0x200"),
    (true, 0x200, &[0xfa], "CLI"),
    // The default face.
    (false, 0x3d, &[0x00], "AL is"),
    (false, 0x107, &[0xc3], "fallen out"),
    (false, 0x110, &[0x92], "fallen out"),
    (false, 0x110, &[0xf9], "fallen out"),
    (false, 0x117, &[0x90, 0x90, 0x90], "fallen out"),
    (false, 0x11a, &[0x90], "the return stub"),
    (false, 0x128, &[0x00], "the return stub"),
    (false, 0x1c4, &[0x90], "ZF is not clear"),
    (false, 0x1d7, &[0x0f, 0x01, 0xd4], "VMFUNC before 0x1da"),
    (false, 0x300, &[0x88, 0x00], "memory by"),
    (false, 0x300, &[0xcc], "slide"),
    (false, 0x300, &[0xc2, 0x08, 0x00], "Retnq_imm16"),
];

#[test]
fn are_seen() {
    for (is_view, at, code, why) in MUTANTS {
        let (default, view) = faces::bytes();
        let (mut default, mut view) = (*default, *view);
        let face = if *is_view { &mut view } else { &mut default };
        face[*at..at + code.len()].copy_from_slice(code);
        let name = format!("{code:02x?} at {at:#x}, view face: {is_view}");
        match judge(&default, &view) {
            Ok(()) => panic!("not seen: {name}"),
            Err(said) => assert!(said.contains(why), "{name}: {said}"),
        }
    }
}
