// SPDX-License-Identifier: GPL-2.0-only

//! Both faces in one page: what a processor executes of a call, where there is no VMX. VMFUNC is a
//! NOP of the same length, and windows are memory like any other.

use crate::faces;

const INT3: u8 = 0xcc;
const VMFUNC: [u8; 3] = [0x0f, 0x01, 0xd4];
const NOP: [u8; 3] = [0x0f, 0x1f, 0x00];

/// Writes the page.
pub(crate) fn build(page: &mut [u8; 4096]) {
    let (default, view) = faces::bytes();
    for (to, (default, view)) in page.iter_mut().zip(Iterator::zip(default.iter(), view)) {
        *to = if *view == INT3 { *default } else { *view };
    }
    for at in 0..page.len() {
        if let Some(code) = page.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            if *code == VMFUNC {
                *code = NOP;
            }
        }
    }
}
