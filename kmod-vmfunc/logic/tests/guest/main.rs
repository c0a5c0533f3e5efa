// SPDX-License-Identifier: GPL-2.0-only

//! How a guest calls the gate, with both faces in one executable page of this process: what each
//! operation does, and what it makes of calls that are aborted at any of their instructions.

#[path = "../../../kernel/faces.rs"]
#[allow(dead_code)]
mod faces;
#[path = "../../../guest/gate.rs"]
mod gate;
#[path = "../../../selftest/one_face.rs"]
mod one_face;
mod page;

use gate::{check, Aborted, Gate, Interrupts, Unknown, AT_ONCE, TRIES};
use page::Executable;
use std::cell::Cell;

thread_local! {
    static OFF: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Counts.
struct Off;

impl Interrupts for Off {
    fn off() -> Self {
        assert!(!OFF.replace(true), "off twice");
        CALLS.set(CALLS.get() + 1);
        Self
    }
}

impl Drop for Off {
    fn drop(&mut self) {
        assert!(OFF.replace(false), "on twice");
    }
}

/// Where an interruption comes: before the instruction at this offset, this often.
#[derive(Clone, Copy, Debug)]
struct Interrupted {
    at: usize,
    times: u32,
}

/// The page, and the gate in it.
struct Rig {
    page: Executable,
    gate: Gate<Off>,
}

impl Rig {
    fn new(interrupted: Option<Interrupted>) -> Self {
        let mut code = [0; 4096];
        one_face::build(&mut code);
        if let Some(Interrupted { at, times }) = interrupted {
            interrupt(&mut code, at, times);
        }
        let page = Executable::new(&code);
        // SAFETY: the page is the gate as far as a call of it goes, and lives as long.
        let gate = unsafe { Gate::new(page.start()) };
        CALLS.set(0);
        Self { page, gate }
    }

    /// Calls so far.
    fn calls(&self) -> usize {
        CALLS.get()
    }

    /// Interruptions that are still to come.
    fn left(&self) -> u32 {
        u32::from_le_bytes(self.page.read(COUNTER))
    }
}

const COUNTER: usize = 0x900;

/// Puts a call of code at `at` that aborts as often as the counter says. The rest of the 64 bytes moves
/// up.
fn interrupt(code: &mut [u8; 4096], at: usize, times: u32) {
    const HOOK: usize = 0x800;
    const CALL: usize = 5;
    let end = at / 64 * 64 + 60;
    code.copy_within(at..end - CALL, at + CALL);
    code[at] = 0xe8;
    let distance = (HOOK - (at + CALL)) as u32;
    code[at + 1..at + CALL].copy_from_slice(&distance.to_le_bytes());
    #[rustfmt::skip]
    let hook = [
        0x9c,                               // pushfq
        0xff, 0x0d, 0xf9, 0, 0, 0,          // dec dword ptr [rip + 0xf9]
        0x78, 0x09,                         // js +9
        0x9d,                               // popfq
        0x48, 0x8d, 0x64, 0x24, 0x08,       // lea rsp, [rsp + 8]
        0xb0, 0x01,                         // mov al, 1
        0xc3,                               // ret
        0x9d,                               // popfq
        0xc3,                               // ret
    ];
    assert_eq!(HOOK + 7 + 0xf9, COUNTER);
    code[HOOK..HOOK + hook.len()].copy_from_slice(&hook);
    code[COUNTER..COUNTER + 4].copy_from_slice(&times.to_le_bytes());
}

/// Offsets of the instructions of each operation in the view, and of the VMFUNC at their end.
const COPY: [usize; 8] = [0x107, 0x109, 0x10f, 0x110, 0x112, 0x114, 0x115, 0x117];
const LOAD: [usize; 3] = [0x147, 0x14a, 0x14d];
const STORE: [usize; 3] = [0x187, 0x18a, 0x18d];
const EXCHANGE: [usize; 5] = [0x1c8, 0x1ca, 0x1cf, 0x1d1, 0x1d3];

fn some_bytes(length: usize) -> Vec<u8> {
    // CAST: cut.
    (0..length).map(|i| (i * 31 + i / 256) as u8).collect()
}

#[test]
fn copies() {
    let rig = Rig::new(None);
    for length in [
        1,
        8,
        64,
        AT_ONCE - 1,
        AT_ONCE,
        AT_ONCE + 1,
        5 * AT_ONCE + 77,
    ] {
        let from = some_bytes(length);
        let mut to = vec![0; length + 1];
        CALLS.set(0);
        // SAFETY: both are as long.
        let done = unsafe { rig.gate.copy(1, to.as_mut_ptr(), from.as_ptr(), length) };
        assert_eq!(done, Ok(()));
        assert_eq!(
            (&to[..length], to[length]),
            (&from[..], 0),
            "{length} bytes"
        );
        assert_eq!(rig.calls(), length.div_ceil(AT_ONCE), "{length} bytes");
    }
}

#[test]
fn an_empty_round_trip_is_one_call() {
    let rig = Rig::new(None);
    // SAFETY: nothing is touched.
    assert_eq!(unsafe { rig.gate.round_trip(1) }, Ok(()));
    assert_eq!(rig.calls(), 1);
}

#[test]
fn words() {
    let rig = Rig::new(None);
    let mut word = 0x1122_3344_5566_7788;
    let at = &raw mut word;
    // SAFETY: it is an aligned word.
    unsafe {
        assert_eq!(rig.gate.load(1, at), Ok(0x1122_3344_5566_7788));
        assert_eq!(rig.gate.store(1, at, u64::MAX - 1), Ok(()));
        assert_eq!(rig.gate.load(1, at), Ok(u64::MAX - 1));
        assert_eq!(
            rig.gate.compare_exchange(1, at, 5, 6),
            Ok(Err(u64::MAX - 1))
        );
        assert_eq!(rig.gate.load(1, at), Ok(u64::MAX - 1));
        let exchanged = rig.gate.compare_exchange(1, at, u64::MAX - 1, 0);
        assert_eq!(exchanged, Ok(Ok(u64::MAX - 1)));
        assert_eq!(rig.gate.compare_exchange(1, at, 1, 0), Ok(Err(0)));
    }
    assert_eq!(word, 0);
}

/// Some interruptions, as long as there are fewer than tries, are not to be noticed.
#[test]
fn interrupted_at_every_instruction() {
    for times in [1, TRIES - 1] {
        // CAST: 16.
        let rig = |at| {
            Rig::new(Some(Interrupted {
                at,
                times: times as u32,
            }))
        };
        for at in COPY {
            let rig = rig(at);
            let (from, mut to) = (some_bytes(100), [0; 100]);
            // SAFETY: both are as long.
            let done = unsafe { rig.gate.copy(1, to.as_mut_ptr(), from.as_ptr(), 100) };
            assert_eq!((done, &to[..]), (Ok(()), &from[..]), "at {at:#x}");
            assert_eq!(rig.calls(), times + 1, "at {at:#x}");
        }
        for at in LOAD {
            let rig = rig(at);
            // SAFETY: an aligned word.
            assert_eq!(unsafe { rig.gate.load(1, &77) }, Ok(77), "at {at:#x}");
            assert_eq!(rig.calls(), times + 1, "at {at:#x}");
        }
        for at in STORE {
            let rig = rig(at);
            let mut word = 0;
            // SAFETY: an aligned word.
            let done = unsafe { rig.gate.store(1, &mut word, 78) };
            assert_eq!((done, word), (Ok(()), 78), "at {at:#x}");
            assert_eq!(rig.calls(), times + 1, "at {at:#x}");
        }
    }
}

/// An exchange is made once, and its caller knows, wherever it is aborted.
#[test]
fn exchange_is_made_once() {
    for at in EXCHANGE {
        for times in [1, 100] {
            let rig = Rig::new(Some(Interrupted { at, times }));
            let is_behind = at > 0x1ca;
            let always = times > 1;
            let mut word = 5;
            // SAFETY: an aligned word.
            let answer = unsafe { rig.gate.compare_exchange(1, &mut word, 5, 6) };
            let (wanted, becomes, calls) = match (is_behind, always) {
                (true, _) => (Ok(Ok(5)), 6, 1),
                (false, false) => (Ok(Ok(5)), 6, 2),
                (false, true) => (Err(Aborted), 5, TRIES),
            };
            let what = format!("at {at:#x}, {times} times");
            assert_eq!((answer, word), (wanted, becomes), "{what}");
            assert_eq!(rig.calls(), calls, "{what}");

            let rig = Rig::new(Some(Interrupted { at, times }));
            word = 6;
            // SAFETY: an aligned word.
            let answer = unsafe { rig.gate.compare_exchange(1, &mut word, 5, 7) };
            let wanted = if always { Err(Aborted) } else { Ok(Err(6)) };
            assert_eq!((answer, word), (wanted, 6), "another word, {what}");
        }
    }
}

/// What is always aborted ends, with interrupts on.
#[test]
fn tries_end() {
    const TIMES: u32 = 1000;
    for (entry, at) in [(0, COPY[0]), (1, LOAD[0]), (2, STORE[0])] {
        let rig = Rig::new(Some(Interrupted { at, times: TIMES }));
        let mut word = 1;
        // SAFETY: an aligned word.
        let done = unsafe {
            match entry {
                0 => rig
                    .gate
                    .copy(1, (&raw mut word).cast(), (&raw const word).cast(), 8),
                1 => rig.gate.load(1, &word).map(drop),
                _ => rig.gate.store(1, &mut word, 1),
            }
        };
        assert_eq!(done, Err(Aborted), "{at:#x}");
        // CAST: 16.
        assert_eq!(rig.left(), TIMES - TRIES as u32, "{at:#x}");
        assert!(!OFF.get());
    }
}

#[test]
fn only_this_gate_is_known() {
    let (default, view) = faces::bytes();
    assert_eq!(check(default), Ok(()));
    for at in 0..default.len() {
        let mut other = *default;
        other[at] ^= 1;
        let version = match at {
            2..6 => None,
            6 => Some(faces::VERSION ^ 1),
            _ => Some(faces::VERSION),
        };
        assert_eq!(check(&other), Err(Unknown { version }), "byte {at:#x}");
    }
    for other in [view, &[0; 4096], &[0xff; 4096]] {
        assert_eq!(check(other), Err(Unknown { version: None }));
    }
}
