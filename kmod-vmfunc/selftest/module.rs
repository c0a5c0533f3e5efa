// SPDX-License-Identifier: GPL-2.0-only

//! gate_map_test: that the kernel of a guest can map the gate's default face executable, and that
//! whatever falls out of a view into it aborts.
//!
//! Loads when all holds, and refuses to load otherwise. It needs no VMX: no VMFUNC is executed. Not
//! for production: it is there to be loaded and unloaded by tests.

use core::ffi::c_void;
use kernel::{error::to_result, ffi::c_int, page::Page, prelude::*};

#[path = "../kernel/faces.rs"]
mod faces;

extern "C" {
    fn zs_gate_run(page: *mut c_void, offset: usize, result: *mut u32) -> c_int;
}

/// What the abort answers.
const ABORTED: u32 = 1;
/// What `zs_gate_run` leaves for the return stub.
const LEFT: u32 = 0x5a;

struct GateMapTest;

/// What the gate answers to somebody who comes in at `offset`.
fn run(page: &Page, offset: usize) -> Result<u32> {
    let mut result = 0;
    // SAFETY: the page holds the default face, whose code at this offset returns and touches
    // nothing but registers: only its entry stub has a VMFUNC, and nobody comes in there.
    to_result(unsafe { zs_gate_run(page.as_ptr().cast(), offset, &mut result) })?;
    Ok(result)
}

fn test() -> Result {
    let (default, view) = faces::bytes();
    let page = Page::alloc_page(GFP_KERNEL)?;
    // SAFETY: a whole page is read, and nobody else has the new one.
    unsafe { page.write_raw(default.as_ptr(), 0, default.len()) }?;
    // Each place where an instruction of the view face can begin, and some of the rest.
    let inside = faces::INSIDE..=faces::LEAVE;
    let rest = [0x200, 0x800, 0xfef, faces::ABORT];
    for offset in Iterator::chain(inside, rest) {
        let result = run(&page, offset)?;
        if result != ABORTED {
            pr_err!("at {offset:#x} it answers {result} and not {ABORTED}\n");
            return Err(EINVAL);
        }
    }
    let result = run(&page, faces::OUTSIDE)?;
    if result != LEFT {
        pr_err!("the return stub answers {result} and not {LEFT}\n");
        return Err(EINVAL);
    }
    // VMFUNC, in the view face right before the return stub of the other one.
    let last = view.get(faces::LEAVE..faces::OUTSIDE);
    if last != Some([0x0f, 0x01, 0xd4].as_slice()) {
        pr_err!("the view face leaves by {last:x?}\n");
        return Err(EINVAL);
    }
    Ok(())
}

impl kernel::Module for GateMapTest {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        test()?;
        pr_info!("the gate can be mapped and run\n");
        Ok(Self)
    }
}

module! {
    type: GateMapTest,
    name: "gate_map_test",
    authors: ["The Zeroshift authors"],
    description: "Test: an executable mapping of the gate in a guest's kernel",
    license: "GPL v2",
}
