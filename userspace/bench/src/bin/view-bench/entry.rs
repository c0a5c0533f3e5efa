// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the module adds to a VM entry: to those of VMs that have no views, and of those that have.
//!
//! The guest executes CPUID, which KVM answers and enters the guest again; the time stamp counter
//! counts both. So the figures are of an exit and an entry, with both probes.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{json, Value};
use zeroshift_bench::report::{Figure, Goal, Spread};
use zeroshift_tests::vmm::{Vm, Work};

use crate::rig::{counts_instructions, each, ticks, unload, Attached};

/// For a VM that nobody is attached to, while another one has views.
pub(crate) const UNATTACHED: Figure = Figure {
    name: "view.entry_unattached",
    unit: "instructions",
    goal: Goal::AtMost(25.0),
};
/// For one that has views, when nothing changed.
pub(crate) const ATTACHED: Figure = Figure {
    name: "view.entry_attached",
    unit: "instructions",
    goal: Goal::AtMost(120.0),
};

/// See [`UNATTACHED`].
pub(crate) fn unattached(figure: &Figure, module: &Path) -> Result<Value> {
    let (nothing, without) = without()?;
    let rig = Attached::new(module)?;
    let with = plain(Work::Exit)?;
    drop(rig);
    line(figure, nothing, without, with)
}

/// See [`ATTACHED`].
pub(crate) fn attached(figure: &Figure, module: &Path) -> Result<Value> {
    let (nothing, without) = without()?;
    let mut rig = Attached::new(module)?;
    // From here on nothing changes: KVM has mapped what the guest touches.
    rig.ticks(Work::Gate, 64)?;
    let with = rig.ticks(Work::Exit, 0)?;
    line(figure, nothing, without, with)
}

fn line(figure: &Figure, nothing: u64, without: u64, with: u64) -> Result<Value> {
    counts_instructions(nothing)?;
    Ok(figure.measured(
        &Spread::of([each(with, without)]),
        &json!({"without_module": without, "with_module": with}),
    ))
}

/// Ticks without the module: of no work, and of exits.
fn without() -> Result<(u64, u64)> {
    unload()?;
    Ok((plain(Work::Nothing)?, plain(Work::Exit)?))
}

/// Ticks of a VM that nobody is attached to.
fn plain(work: Work) -> Result<u64> {
    let (vm, mut vcpus) = Vm::new(1)?;
    let vcpu = vcpus.pop().context("no vCPU")?;
    let (vcpu, ticks) = ticks(vcpu, work, 0)?;
    drop((vcpu, vm));
    Ok(ticks)
}
