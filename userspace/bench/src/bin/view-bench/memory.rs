// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `view.pages_per_vcpu`: tables that the module makes for a vCPU, beside one for each view.

use std::path::Path;

use anyhow::{ensure, Context as _, Result};
use serde_json::{json, Value};
use zeroshift_bench::report::{Figure, Goal, Spread};
use zeroshift_tests::vmfunc::Vmfunc;
use zeroshift_tests::vmm::{Vm, GATE};

use crate::rig::Loaded;
use crate::trace::Trace;

/// The figure.
pub(crate) const PAGES: Figure = Figure {
    name: "view.pages_per_vcpu",
    unit: "pages beside one for each view",
    goal: Goal::AtMost(2.0),
};

/// vCPUs of the smaller and of the larger VM.
const VCPUS: [u64; 2] = [1, 8];
/// Views of both.
const VIEWS: u64 = 4;

/// What the kernel hands out while a VM is attached and gets its views.
pub(crate) fn pages(figure: &Figure, module: &Path) -> Result<Value> {
    let _module = Loaded::new(module)?;
    let mut taken = Vec::new();
    for count in VCPUS {
        let (vm, vcpus) = Vm::new(count)?;
        let file = Vmfunc::open()?;
        let trace = Trace::of_allocations()?;
        file.attach(vm.raw_fd(), GATE)
            .context("cannot attach (the kernel log says why)")?;
        for _ in 0..VIEWS {
            file.create_view()?;
        }
        taken.push(trace.end()?);
        drop((vcpus, vm));
    }
    let [small, large] = taken.as_slice() else {
        anyhow::bail!("not two VMs");
    };
    ensure!(small.tables > 0, "the trace shows no table");
    // CAST: a few.
    let more = (large.tables as f64 - small.tables as f64) / (VCPUS[1] - VCPUS[0]) as f64;
    Ok(figure.measured(
        &Spread::of([more - VIEWS as f64]),
        &json!({"vcpus": VCPUS, "views": VIEWS, "tables": taken.iter().map(|t| t.tables).collect::<Vec<_>>(),
            "all": taken.iter().map(|t| t.all).collect::<Vec<_>>()}),
    ))
}
