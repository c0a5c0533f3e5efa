// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a round trip costs the guest: exits, VMFUNCs, instructions.

use std::path::Path;

use anyhow::{ensure, Result};
use serde_json::{json, Value};
use zeroshift_bench::report::{Figure, Goal, Spread};
use zeroshift_tests::vmm::{Program, Vm, Work, GATE, GATE_COPY};

use crate::rig::{counts_instructions, each, Attached, PAGE, VIEW, WINDOW};

/// Exits that round trips cause.
pub(crate) const EXITS: Figure = Figure {
    name: "view.exits",
    unit: "exits",
    goal: Goal::AtMost(0.0),
};
/// VMFUNC instructions of a round trip.
pub(crate) const VMFUNCS: Figure = Figure {
    name: "view.vmfuncs_per_round_trip",
    unit: "instructions",
    goal: Goal::AtMost(2.0),
};
/// A call that copies nothing.
pub(crate) const EMPTY: Figure = Figure {
    name: "view.round_trip_instructions",
    unit: "instructions",
    goal: Goal::AtMost(40.0),
};
/// A call that copies, beside an empty one and the copy.
pub(crate) const COPY64: Figure = Figure {
    name: "view.copy64_extra",
    unit: "instructions",
    goal: Goal::AtMost(10.0),
};
/// The same.
pub(crate) const COPY1500: Figure = Figure {
    name: "view.copy1500_extra",
    ..COPY64
};

/// Round trips of [`exits`].
const TRIPS: u64 = 100_000;

/// `VMFUNC` (Intel SDM volume 3, chapter 33).
const VMFUNC: [u8; 3] = [0x0f, 0x01, 0xd4];
/// The one of the view face, which the host cannot read (`docs/interfaces.md`, section 16).
const LEAVE: u64 = 0x117;

/// All exits but those for interrupts of the host and the HLT at the end: so none for VMFUNC, an EPT
/// violation or an EPT misconfiguration.
pub(crate) fn exits(figure: &Figure, module: &Path) -> Result<Value> {
    let mut rig = Attached::new(module)?;
    // What the first round trip touches KVM has to map.
    rig.ticks(Work::Gate, 64)?;
    let before = rig.vm.exits(0)?;
    rig.run(Work::Gate, 64, TRIPS)?;
    let all = rig.vm.exits(0)? - before;
    ensure!(all > 0, "KVM counts no exit, not even that of HLT");
    let value = Spread::of([(all - 1) as f64]);
    Ok(figure.measured(&value, &json!({"trips": TRIPS, "hlt": 1, "all": all})))
}

/// Instructions of a call that is walked through step by step.
pub(crate) fn vmfuncs(figure: &Figure, module: &Path) -> Result<Value> {
    let mut rig = Attached::new(module)?;
    rig.ticks(Work::Gate, 64)?;
    let (trace, end) = rig.vcpu()?.trace(Program::Gate, |r| {
        (r.rbx, r.rcx) = (GATE_COPY, VIEW.into());
        (r.rdi, r.rsi, r.rdx) = (Vm::buffer(0), WINDOW, 64);
    })?;
    ensure!(end.rax == 0, "the gate returned {} to a trace", end.rax);
    let offsets: Vec<u64> = trace
        .iter()
        .filter_map(|at| at.checked_sub(GATE))
        .filter(|offset| *offset < PAGE as u64)
        .collect();
    ensure!(!offsets.is_empty(), "the trace never came to the gate");
    let face = rig.default_face()?;
    let vmfuncs = count_vmfuncs(&offsets, &face)?;
    Ok(figure.measured(&Spread::of([vmfuncs as f64]), &json!({"offsets": offsets})))
}

/// VMFUNCs among the instructions at these offsets of the gate, which end in the default view.
fn count_vmfuncs(offsets: &[u64], default_face: &[u8]) -> Result<usize> {
    let mut inside = false;
    let mut count = 0;
    for offset in offsets {
        // CAST: below 4096.
        let of_default = default_face.get(*offset as usize..);
        let is_vmfunc = match inside {
            false => of_default.is_some_and(|bytes| bytes.starts_with(&VMFUNC)),
            true => *offset == LEAVE,
        };
        if is_vmfunc {
            inside = !inside;
            count += 1;
        }
    }
    ensure!(!inside, "no way out of the view in {offsets:x?}");
    Ok(count)
}

/// A call that copies nothing.
pub(crate) fn empty(figure: &Figure, module: &Path) -> Result<Value> {
    let mut rig = Attached::new(module)?;
    let nothing = rig.ticks(Work::Nothing, 0)?;
    let gate = rig.ticks(Work::Gate, 0)?;
    counts_instructions(nothing)?;
    Ok(figure.measured(
        &Spread::of([each(gate, nothing)]),
        &json!({"nothing": nothing, "gate": gate}),
    ))
}

/// A call that copies 64 bytes.
pub(crate) fn copy64(figure: &Figure, module: &Path) -> Result<Value> {
    copy(figure, module, 64)
}

/// A call that copies 1500 bytes, a network packet's worth.
pub(crate) fn copy1500(figure: &Figure, module: &Path) -> Result<Value> {
    copy(figure, module, 1500)
}

fn copy(figure: &Figure, module: &Path, bytes: usize) -> Result<Value> {
    let mut rig = Attached::new(module)?;
    let nothing = rig.ticks(Work::Nothing, 0)?;
    let empty = rig.ticks(Work::Gate, 0)?;
    let plain = rig.ticks(Work::Copy, bytes)?;
    let gate = rig.ticks(Work::Gate, bytes)?;
    counts_instructions(nothing)?;
    let extra = each(gate, empty) - each(plain, nothing);
    Ok(figure.measured(
        &Spread::of([extra]),
        &json!({"bytes": bytes, "nothing": nothing, "empty": empty, "plain": plain, "gate": gate}),
    ))
}
