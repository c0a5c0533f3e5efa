// SPDX-License-Identifier: GPL-2.0-only

//! gate_map_test: that the kernel of a guest can map the gate's default face executable, that whatever
//! falls out of a view into it aborts, that this kernel's calls of the gate do what they should, and that
//! they are aborted where the processor knows no VMFUNC.
//!
//! Loads when all holds, and refuses to load otherwise. It needs no VMX, nor views: VMFUNC has to be an
//! invalid opcode. Not
//! for production: it is there to be loaded and unloaded by tests.

use core::{arch::asm, ffi::c_void};
use gate::Gate;
use kernel::{page::Page, prelude::*};

#[path = "../kernel/faces.rs"]
// The checker wants more of it.
#[allow(dead_code)]
mod faces;
#[path = "../guest/gate.rs"]
// Tests of it want more.
#[allow(dead_code)]
mod gate;
#[path = "../guest/irq.rs"]
mod irq;
mod one_face;

extern "C" {
    fn zs_exec_map(page: *mut c_void) -> *mut u8;
    fn zs_exec_unmap(address: *mut u8);
    fn zs_gate_trap(gate: *const u8) -> *mut c_void;
    fn zs_gate_untrap(trap: *mut c_void);
    fn zs_gate_run(address: *const u8, eax: u32) -> u32;
}

/// The gate or what stands for it, as code.
struct Code {
    address: *mut u8,
    _page: Page,
}

impl Code {
    fn new(bytes: &[u8; 4096]) -> Result<Self> {
        let page = Page::alloc_page(GFP_KERNEL)?;
        // SAFETY: a whole page is read, and nobody else has the new one.
        unsafe { page.write_raw(bytes.as_ptr(), 0, bytes.len()) }?;
        // SAFETY: it is a page, and stays one for longer than the mapping.
        let address = unsafe { zs_exec_map(page.as_ptr().cast()) };
        if address.is_null() {
            return Err(ENOMEM);
        }
        Ok(Self {
            address,
            _page: page,
        })
    }

    fn bytes(&self) -> &[u8; 4096] {
        // SAFETY: a page that nobody writes is mapped there.
        unsafe { &*self.address.cast() }
    }

    /// EAX after code at `offset`, which began with it.
    ///
    /// # Safety
    ///
    /// That code returns, and touches nothing but registers that a call may change.
    unsafe fn run(&self, offset: usize, eax: u32) -> u32 {
        // SAFETY: by the caller.
        unsafe { zs_gate_run(self.address.wrapping_add(offset), eax) }
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: it was mapped, and nobody runs there any more.
        unsafe { zs_exec_unmap(self.address) };
    }
}

/// What a test found. An error says what it is about.
fn ensure(right: bool, what: &str) -> Result {
    match right {
        true => Ok(()),
        false => {
            pr_err!("wrong: {what}\n");
            Err(EINVAL)
        }
    }
}

/// The default face is what a guest expects, and aborts wherever the view face has code.
fn slides() -> Result {
    const NOP: u8 = 0x90;
    const INT3: u8 = 0xcc;
    /// What the return stub finds.
    const LEFT: u32 = 0x5a;
    /// Where the view face's VMFUNC of a copy leads back.
    const RETURN: usize = 0x11a;
    let (default, view) = faces::bytes();
    let code = Code::new(default)?;
    ensure(gate::check(code.bytes()).is_ok(), "the default face")?;
    let other = Code::new(view)?;
    ensure(gate::check(other.bytes()).is_err(), "another page")?;
    for (offset, (default, view)) in Iterator::zip(default.iter(), view).enumerate() {
        if *default != NOP || *view == INT3 {
            continue;
        }
        // SAFETY: the slide there ends in the abort.
        let result = unsafe { code.run(offset, LEFT) };
        if result != u32::from(faces::ABORTED) {
            pr_err!("at {offset:#x} it answers {result}\n");
            return Err(EINVAL);
        }
    }
    // SAFETY: it returns at once.
    let result = unsafe { code.run(RETURN, LEFT) };
    ensure(result == LEFT, "the return stub")
}

fn are_interrupts_on() -> bool {
    const IF: u64 = 1 << 9;
    let flags: u64;
    // SAFETY: it only reads.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags & IF != 0
}

/// Every operation, by both faces in one page.
fn calls() -> Result {
    const BYTES: usize = 3 * gate::AT_ONCE + 5;
    let mut face = KBox::new([0u8; 4096], GFP_KERNEL)?;
    one_face::build(&mut face);
    let code = Code::new(&face)?;
    // SAFETY: as far as a call goes it is the gate; it is mapped until the end of this function.
    let gate = unsafe { Gate::<irq::Off>::new(code.address) };
    let mut from = KVec::from_elem(0u8, BYTES, GFP_KERNEL)?;
    for (i, byte) in from.iter_mut().enumerate() {
        // CAST: cut.
        *byte = (i % 251) as u8;
    }
    let mut to = KVec::from_elem(0u8, BYTES, GFP_KERNEL)?;
    let mut word = 7u64;
    let at = &raw mut word;
    // SAFETY: there are no views, and no windows: memory of this function alone.
    unsafe {
        ensure(gate.round_trip(1) == Ok(()), "an empty call")?;
        let copied = gate.copy(1, to.as_mut_ptr(), from.as_ptr(), BYTES);
        ensure(copied == Ok(()) && to[..] == from[..], "a copy")?;
        ensure(gate.load(1, at) == Ok(7), "a load")?;
        ensure(gate.store(1, at, 8) == Ok(()), "a store")?;
        let refused = gate.compare_exchange(1, at, 7, 9);
        ensure(refused == Ok(Err(8)), "an exchange of another word")?;
        let exchanged = gate.compare_exchange(1, at, 8, 9);
        ensure(exchanged == Ok(Ok(8)), "an exchange")?;
        ensure(gate.load(1, at) == Ok(9), "the word in the end")?;
    }
    ensure(are_interrupts_on(), "interrupts")
}

/// What becomes of VMFUNC where there is none. Needs a processor that is not in a view.
struct Trap(*mut c_void);

impl Trap {
    fn new(code: &Code) -> Result<Self> {
        // SAFETY: the code stays mapped for longer.
        let trap = unsafe { zs_gate_trap(code.address) };
        match trap.is_null() {
            true => Err(ENOMEM),
            false => Ok(Self(trap)),
        }
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        // SAFETY: it is one, and nobody calls the gate any more.
        unsafe { zs_gate_untrap(self.0) };
    }
}

/// The gate itself, where VMFUNC is an invalid opcode: every call is aborted.
fn no_vmfunc() -> Result {
    let (default, _) = faces::bytes();
    let code = Code::new(default)?;
    let _trap = Trap::new(&code)?;
    // SAFETY: it is the gate, mapped until the end of this function.
    let gate = unsafe { Gate::<irq::Off>::new(code.address) };
    let mut word = 7u64;
    let at = &raw mut word;
    // SAFETY: nobody comes into a view; and if, the word is in memory.
    unsafe {
        let aborted = Err(gate::Aborted);
        ensure(
            gate.round_trip(1) == aborted,
            "an empty call without VMFUNC",
        )?;
        ensure(gate.load(1, at) == Err(gate::Aborted), "a load without it")?;
        ensure(gate.store(1, at, 8) == aborted, "a store without it")?;
        let exchanged = gate.compare_exchange(1, at, 7, 8);
        ensure(exchanged == Err(gate::Aborted), "an exchange without it")?;
        ensure(at.read() == 7, "the word without it")?;
    }
    ensure(are_interrupts_on(), "interrupts without it")
}

struct GateMapTest;

impl kernel::Module for GateMapTest {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        slides()?;
        calls()?;
        no_vmfunc()?;
        pr_info!("the gate can be mapped and called\n");
        Ok(Self)
    }
}

module! {
    type: GateMapTest,
    name: "gate_map_test",
    authors: ["The Zeroshift authors"],
    description: "Test: the gate in a guest's kernel",
    license: "GPL v2",
}
