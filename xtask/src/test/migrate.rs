// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `e2e`: the main job. A guest works on a function that it has for itself, and is moved to another one.

use anyhow::{anyhow, ensure, Error, Result};

use super::{succeeded, Results};
use crate::rig::migration::{Driver, Move, Ran, Report, Rig};
use crate::session::Session;

/// What every guest is asked for.
const WORK: &str = "--source $(cat /zs/function1) --workload ring-check=3 --workload fio=1";

/// The kernel's own vfio-pci: the guest works, and QEMU refuses to move it.
pub(super) fn passthrough(session: &Session, results: &mut Results) -> Result<()> {
    const REFUSAL: &str = "migration is not supported in kernel";
    let container = format!("{WORK} --expect-refusal '{REFUSAL}'");
    let iommufd = format!("{WORK} --iommufd");
    let ran = Rig {
        name: "passthrough",
        driver: Driver::VfioPci,
        faults: &[],
        back_end: false,
        moves: &[
            Move {
                name: "container",
                arguments: &container,
            },
            Move {
                name: "iommufd",
                arguments: &iommufd,
            },
        ],
    }
    .run(session)?;
    common(&ran, results);
    let report = ran.report("container");
    let copy = |e: &Error| anyhow!("{e:#}");
    results.check(
        "a guest reads and writes a function by vfio-pci",
        report.as_ref().map_err(copy).and_then(worked),
    );
    results.check(
        "QEMU refuses to move it, and the guest goes on",
        report
            .as_ref()
            .map_err(copy)
            .and_then(|r| refused(r, REFUSAL)),
    );
    results.check(
        "the same function with iommufd",
        ran.report("iommufd").and_then(|r| worked(&r)),
    );
    results.check("the card ends in peace", ran.card);
    Ok(())
}

/// What every run has to show.
fn common(ran: &Ran, results: &mut Results) {
    results.check(
        "host and guest boot, and neither kernel reports anything",
        ran.l1.check(),
    );
    let bound = succeeded(&ran.l1, "load").and_then(|_| succeeded(&ran.l1, "bind"));
    results.check("the functions get their driver", bound.map(drop));
}

/// Whether QEMU said `text` when it was asked to move the guest.
fn refused(report: &Report, text: &str) -> Result<()> {
    report.passed()?;
    let said = report.first("refused")?["said"]
        .as_str()
        .unwrap_or_default();
    ensure!(said.contains(text), "QEMU said something else: {said}");
    eprintln!("    {said}");
    Ok(())
}

/// Whether the guest's programs did something and found nothing wrong. How much they did is shown.
fn worked(report: &Report) -> Result<()> {
    report.passed()?;
    for name in ["ring-check", "fio"] {
        let workload = &report.verdict["workloads"][name];
        let number = |key: &str| workload[key].as_u64().unwrap_or_default();
        ensure!(number("best_iops") > 0, "{name} did nothing: {workload}");
        eprintln!(
            "    {name}: {} rounds, up to {} I/Os per second",
            number("rounds"),
            number("best_iops")
        );
    }
    let checked = &report.verdict["workloads"]["ring-check"]["summary"]["checked"];
    ensure!(checked.as_u64() > Some(0), "ring-check checked nothing");
    Ok(())
}
