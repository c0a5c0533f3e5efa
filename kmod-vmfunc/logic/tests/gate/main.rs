// SPDX-License-Identifier: GPL-2.0-only

//! The code of the gate, decoded from every byte of both faces: whoever comes in there, wherever it
//! is, can only copy, reach for one word, leave the view, return, abort or fault.
//!
//! The bytes are those of the module: its source is compiled here as well.

#[path = "../../../kernel/faces.rs"]
// The module wants less of it.
#[allow(dead_code)]
mod faces;
mod golden;
mod mutants;
mod walk;

use std::collections::BTreeSet;
use std::ops::Range;
use walk::{walk, Access, End, Face, Page, Path, Registers, Value, RAX, RCX, RDI, RDX, RSI};

/// An operation of the gate: section 16 of `docs/interfaces.md`.
struct Call {
    entry: usize,
    /// Where the view begins: behind the VMFUNC that leads there.
    inside: usize,
    /// What it may reach for on one path.
    accesses: &'static [Access],
    /// Where the view's VMFUNCs are, and AL behind their return stubs.
    leaves: &'static [(usize, u8)],
}

const CALLS: [Call; 4] = [
    Call {
        entry: faces::COPY,
        inside: 0x107,
        accesses: &[Access::Copy(faces::MAX_COPY as u64)],
        leaves: &[(0x117, faces::DONE), (0x124, faces::TOO_LONG)],
    },
    Call {
        entry: faces::LOAD,
        inside: 0x147,
        accesses: &[Access::Load(8)],
        leaves: &[(0x14d, faces::DONE)],
    },
    Call {
        entry: faces::STORE,
        inside: 0x187,
        accesses: &[Access::Store(8)],
        leaves: &[(0x18d, faces::DONE)],
    },
    Call {
        entry: faces::EXCHANGE,
        inside: 0x1c8,
        accesses: &[Access::Exchange(8, true)],
        leaves: &[(0x1d3, faces::DONE)],
    },
];

/// Who begins here brings a number of bytes along that nothing looks at any more: at a TEST that has
/// lost its prefix, behind it, at its jump, and on the way from there to REP MOVSB.
const UNBOUNDED: [usize; 7] = [0x10a, 0x10f, 0x110, 0x112, 0x113, 0x114, 0x115];

const VMFUNC: usize = 3;

/// Registers that a call may change.
const LOST: u16 = 1 << RAX | 1 << RCX | 1 << RDX | 1 << RSI | 1 << RDI;

fn unknown() -> Registers {
    [Value::ANY; 16]
}

/// Who comes into a view by VMFUNC: EAX is the function and ECX the index in a list of 512 (Intel
/// SDM volume 3, 27.5.6.3), or it would not have come there.
fn arrived() -> Registers {
    let mut registers = unknown();
    registers[RAX] = Value::low_at_most(0);
    registers[RCX] = Value::low_at_most(511);
    registers
}

/// Who comes back by it: EAX and ECX are 0.
fn left() -> Registers {
    let mut registers = unknown();
    registers[RAX] = Value::low_at_most(0);
    registers[RCX] = Value::low_at_most(0);
    registers
}

type Verdict = Result<(), String>;

fn ensure(right: bool, what: impl FnOnce() -> String) -> Verdict {
    match right {
        true => Ok(()),
        false => Err(what()),
    }
}

/// Says where, when it fails.
fn at(what: &str, offset: usize, verdict: Verdict) -> Verdict {
    verdict.map_err(|why| format!("{what} from {offset:#x}: {why}"))
}

/// Everything that is said of the gate.
fn judge(default: &Page, view: &Page) -> Verdict {
    for call in &CALLS {
        at("the call", call.entry, honest(default, view, call))?;
    }
    for offset in 0..view.len() {
        for path in walk(view, Face::View, offset, unknown()) {
            at("view face", offset, anywhere_in_view(&path))?;
        }
    }
    for offset in 0..default.len() {
        for path in walk(default, Face::Default, offset, unknown()) {
            at("default face", offset, anywhere_in_default(&path))?;
            if !is_special(offset) {
                at("slide", offset, aborts(&path))?;
            }
        }
    }
    Ok(())
}

/// Wherever somebody begins in a view: at most one operation, and no way out but VMFUNC where the
/// default face has a return stub.
///
/// What is not so from every byte: that a copy is bounded, which it is not from those of [`UNBOUNDED`],
/// and that VMFUNC is the function 0 with index 0. Who begins there brings RAX and RCX along. He has
/// executed a VMFUNC of his own at the right address, so he is the guest's kernel: it can have the same
/// loop in its own memory, interrupts end it in the abort, and it can execute any VMFUNC anywhere.
fn anywhere_in_view(path: &Path) -> Verdict {
    let start = path.offsets.first();
    let is_bounded = match path.accesses.as_slice() {
        [] | [Access::Load(_) | Access::Store(_) | Access::Exchange(..)] => true,
        [Access::Copy(most)] => {
            *most <= faces::MAX_COPY as u64 || start.is_some_and(|at| UNBOUNDED.contains(at))
        }
        _ => false,
    };
    ensure(is_bounded, || format!("{:x?}", path.accesses))?;
    ensure(path.cli.is_none(), || "CLI".into())?;
    match &path.end {
        End::Fault => Ok(()),
        End::Vmfunc => {
            let known = CALLS.iter().flat_map(|call| call.leaves);
            let mut known = known.map(|(leave, _)| *leave);
            let last = path.last();
            ensure(known.any(|leave| leave == last), || {
                format!("VMFUNC at {last:#x}")
            })
        }
        End::Return | End::Astray => Err("returns inside the view".into()),
        End::Wrong(why) => Err(why.clone()),
    }
}

/// Wherever somebody begins in the default face: nothing but returning, entering, or faulting, and no
/// memory but the return address.
fn anywhere_in_default(path: &Path) -> Verdict {
    // The last byte of ENDBR64. This is the default view: who can come here can execute CLI anywhere.
    let is_endbr = |offset| CALLS.iter().any(|call| call.entry + 3 == offset);
    ensure(path.cli.is_none_or(is_endbr), || "CLI".into())?;
    // The last two bytes of VMFUNC: ADD ESP, EDX. The same is true of it.
    let is_vmfunc = |offset| CALLS.iter().any(|call| call.inside == offset + 2);
    match &path.end {
        End::Fault | End::Return => Ok(()),
        End::Astray => ensure(path.offsets.first().copied().is_some_and(is_vmfunc), || {
            "returns with another stack".into()
        }),
        End::Vmfunc => {
            let last = path.last() + VMFUNC;
            ensure(CALLS.iter().any(|call| call.inside == last), || {
                format!("VMFUNC before {last:#x}")
            })
        }
        End::Wrong(why) => Err(why.clone()),
    }
}

/// Offsets of the default face where nobody falls out of a view, and that are not the slide: the
/// view face has no instruction there that begins, as [`honest`] proves.
fn is_special(offset: usize) -> bool {
    // The jump over the version, and the version.
    const VERSION: Range<usize> = 1..8;
    let stub = |call: &Call| (call.entry..call.inside).contains(&offset);
    let back = |(leave, answer): &(usize, u8)| {
        // What is left of the abort there, then MOV, when there is one, and RET.
        let length = if *answer == 0 { 1 } else { 3 };
        (leave + 1..leave + VMFUNC + length).contains(&offset)
    };
    let call = |call: &Call| stub(call) || call.leaves.iter().any(back);
    // The abort at the end of each 64 bytes: behind its first byte.
    let tail = offset % 64 > 60;
    VERSION.contains(&offset) || tail || CALLS.iter().any(call)
}

/// Down the slide to the abort: AL is 1, and nothing else changes, flags neither.
fn aborts(path: &Path) -> Verdict {
    ensure(path.end == End::Return, || format!("{:?}", path.end))?;
    let al = path.registers[RAX].byte;
    ensure(al == Some(faces::ABORTED), || format!("AL is {al:?}"))?;
    ensure(path.written == 1 << RAX, || {
        format!("registers {:#x}", path.written)
    })?;
    ensure(path.flags.is_empty(), || {
        format!("flags at {:x?}", path.flags)
    })
}

/// What a call does, from its entry to its return, and that an interruption before any of its
/// instructions ends in the abort.
fn honest(default: &Page, view: &Page, call: &Call) -> Verdict {
    let mut caller = unknown();
    caller[RAX] = Value::ZERO;
    for path in walk(default, Face::Default, call.entry, caller) {
        ensure(path.end == End::Vmfunc, || format!("{:?}", path.end))?;
        ensure(path.last() + VMFUNC == call.inside, || {
            format!("enters at {:#x}", path.last() + VMFUNC)
        })?;
        ensure(path.written == 0, || "the stub changes registers".into())?;
        if call.entry == faces::EXCHANGE {
            // SAHF; AH is bits 15:8 of EAX, which is 0.
            ensure(path.flags == [call.entry + 4], || "ZF is not clear".into())?;
        }
    }
    let mut left_by = BTreeSet::new();
    for path in walk(view, Face::View, call.inside, arrived()) {
        inside(default, call, &path)?;
        left_by.insert(path.last());
    }
    for (leave, answer) in call.leaves {
        ensure(left_by.remove(leave), || format!("never at {leave:#x}"))?;
        for path in walk(default, Face::Default, leave + VMFUNC, left()) {
            let al = path.registers[RAX].byte;
            let right = path.end == End::Return
                && al == Some(*answer)
                && path.written & !(1 << RAX) == 0
                && path.flags.is_empty();
            ensure(right, || {
                format!("the return stub: {:?}, AL {al:?}", path.end)
            })?;
        }
    }
    ensure(left_by.is_empty(), || format!("leaves at {left_by:x?}"))
}

/// One path of a call in the view.
fn inside(default: &Page, call: &Call, path: &Path) -> Verdict {
    anywhere_in_view(path)?;
    ensure(path.end == End::Vmfunc, || format!("{:?}", path.end))?;
    let leave = path.last();
    let answer = call.leaves.iter().find(|(at, _)| *at == leave);
    let answer = answer.map(|(_, answer)| *answer);
    // Exactly the default view, by function 0.
    for register in [RAX, RCX] {
        let most = path.registers[register].low_most;
        ensure(most == 0, || format!("VMFUNC with up to {most:#x}"))?;
    }
    let wanted = match answer {
        Some(faces::DONE) => call.accesses,
        Some(_) => &[],
        None => return Err(format!("leaves at {leave:#x}")),
    };
    ensure(path.accesses == wanted, || format!("{:x?}", path.accesses))?;
    ensure(path.written & !LOST == 0, || {
        format!("registers {:#x}", path.written)
    })?;
    if call.entry == faces::EXCHANGE {
        // Only CMPXCHG, which is behind one XCHG, decides what ZF is.
        ensure(path.flags == [call.inside + 2], || {
            format!("flags at {:x?}", path.flags)
        })?;
    }
    for offset in &path.offsets {
        ensure(!is_special(*offset), || format!("{offset:#x} is no slide"))?;
        for fallen in walk(default, Face::Default, *offset, unknown()) {
            at("fallen out", *offset, aborts(&fallen))?;
        }
    }
    Ok(())
}

#[test]
fn every_byte() {
    let (default, view) = faces::bytes();
    judge(default, view).unwrap();
    let is_unbounded = |path: &Path| {
        let most = faces::MAX_COPY as u64;
        matches!(path.accesses.as_slice(), [Access::Copy(often)] if *often > most)
    };
    for at in UNBOUNDED {
        let paths = walk(view, Face::View, at, unknown());
        assert!(paths.iter().any(is_unbounded), "{at:#x} is bounded");
    }
}
