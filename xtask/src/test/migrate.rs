// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `e2e`: the main job. A guest works on a function that it has for itself, and is moved to another one.

use anyhow::{anyhow, bail, ensure, Error, Result};

use super::{succeeded, Results};
use crate::kernel::Kind;
use crate::rig::card::Fired;
use crate::rig::console::Job;
use crate::rig::l1::Iommu;
use crate::rig::migration::{event, Driver, Move, Ran, Report, Rig, GUEST, MOVE, WITHOUT_BACK_END};
use crate::session::Session;
use crate::ui::Step;

/// What QEMU says of a VFIO device without the migration feature.
const NO_MIGRATION: &str = "migration is not supported in kernel";
/// What it says of one without the logging feature, in a host whose IOMMU does not log either.
const NO_LOG: &str = "VFIO device doesn't support device and IOMMU dirty tracking";
/// What it says when the destination's function does not take the stream.
const NOT_LOADED: &str = "load of migration failed";

/// What our driver says of the stream: QEMU would find out too, but only of a card that looks different to it.
const STRANGE: &str = "migration stream refused: IDENTITY";
/// Moves that come to nothing, before one that does not.
const INTERRUPTIONS: &str = "--interrupt cancel-in-pre-copy --interrupt kill-in-pre-copy \
    --interrupt cancel-at-stop --interrupt kill-at-stop";
/// The destination says when it has the first part of the function's state, and the guest runs until then.
const EARLY: &str = "--capability return-path --capability switchover-ack";

/// The kernel's own vfio-pci: the guest works, and QEMU refuses to move it.
pub(super) fn passthrough(session: &Session, results: &mut Results) -> Result<()> {
    let ran = Rig {
        name: "passthrough",
        driver: Driver::VfioPci,
        moves: vec![
            refusal("container", "", NO_MIGRATION),
            Move {
                name: "iommufd",
                before: "",
                arguments: format!("{GUEST} --iommufd"),
            },
        ],
        ..Rig::default()
    }
    .run(session, &mut show)?;
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
            .and_then(|r| refused(r, NO_MIGRATION)),
    );
    results.check(
        "the same function with iommufd",
        ran.report("iommufd").and_then(|r| worked(&r)),
    );
    results.check("the cards end in peace", ran.cards);
    Ok(())
}

/// The main job, and what is refused without the back end.
pub(super) fn migrate(session: &Session, results: &mut Results) -> Result<()> {
    let ran = Rig {
        moves: vec![
            moved("move", "", GUEST),
            moved("paused", "", &format!("{GUEST} --paused")),
            moved(
                "interrupted",
                "",
                &format!("{GUEST} {INTERRUPTIONS} {EARLY}"),
            ),
            refusal("no-back-end", WITHOUT_BACK_END, NO_MIGRATION),
        ],
        ..Rig::default()
    }
    .run(session, &mut show)?;
    common(&ran, results);
    for (name, outcome) in judge(&ran, "move") {
        results.check(name, outcome);
    }
    for (name, outcome) in judge_still(&ran, "paused") {
        results.check(&format!("stopped before it is moved: {name}"), outcome);
    }
    for (name, outcome) in judge(&ran, "interrupted") {
        results.check(
            &format!("after moves that came to nothing: {name}"),
            outcome,
        );
    }
    results.check(
        "a cancelled move, and a killed destination, leave the guest working where it was",
        ran.report("interrupted").and_then(|r| came_to_nothing(&r)),
    );
    results.check(
        "without the back end, QEMU refuses to move a guest, which goes on",
        ran.report("no-back-end")
            .and_then(|r| refused(&r, NO_MIGRATION).and(worked(&r))),
    );
    results.check("the modules unload", succeeded(&ran.l1, "unload").map(drop));
    results.check("the cards end in peace", ran.cards);
    Ok(())
}

/// The negative control: the card forgets a part of what it wrote, and ring-check has to find out. (fio may, too: a
/// page that it waits for while the guest is moved can be among them.)
pub(super) fn forgetful(session: &Session, results: &mut Results) -> Result<()> {
    // What is written once in a pass and forgotten is stale: so the guest works behind the first one, and the others do
    // not come to an end meanwhile.
    const ONLY_RING_CHECK: &str =
        "--source $(cat /zs/function1) --workload ring-check=3 --behind-first-pass --downtime-limit 1";
    let ran = Rig {
        name: "forgetful-card",
        // Odd: a mark of what is read and one of its completion entry take turns.
        faults: &["function=nvme1,forget=5"],
        moves: vec![moved("move", "", ONLY_RING_CHECK)],
        ..Rig::default()
    }
    .run(session, &mut show)?;
    common(&ran, results);
    results.check("the card forgets pages", forgot(&ran));
    results.check(
        "ring-check finds the pages that a forgetful card leaves behind",
        ran.report("move").and_then(|r| stale(&r)),
    );
    results.check("the cards end in peace", ran.cards);
    Ok(())
}

/// The second function is one of another card: QEMU would take it, so the stream has to be refused.
pub(super) fn stranger(session: &Session, results: &mut Results) -> Result<()> {
    let mut there = refusal("stranger", "", NOT_LOADED);
    there.arguments += " --destination $(cat /zs/function2)";
    let ran = Rig {
        name: "strange-card",
        strange: true,
        moves: vec![there],
        ..Rig::default()
    }
    .run(session, &mut show)?;
    common(&ran, results);
    results.check(
        "a function of another card is refused, and the guest goes on where it was",
        ran.report("stranger")
            .and_then(|r| worked(&r))
            .and_then(|()| said(&ran, STRANGE)),
    );
    results.check("the cards end in peace", ran.cards);
    Ok(())
}

/// A host whose kernel cannot report what a device wrote: Debian's stock one, without IOMMUFD.
pub(super) fn stock_host(session: &Session, results: &mut Results) -> Result<()> {
    let ran = Rig {
        name: "stock-host",
        host: Kind::Stock,
        moves: vec![refusal("no-log", "", NO_LOG)],
        ..Rig::default()
    }
    .run(session, &mut show)?;
    common(&ran, results);
    results.check(
        "without a dirty log, QEMU refuses to move a guest, which goes on",
        ran.report("no-log")
            .and_then(|r| refused(&r, NO_LOG).and(worked(&r))),
    );
    results.check("the modules unload", succeeded(&ran.l1, "unload").map(drop));
    results.check("the cards end in peace", ran.cards);
    Ok(())
}

/// Both ways to the IOMMU, behind both IOMMUs, there and back.
pub(super) fn matrix(session: &Session, results: &mut Results) -> Result<()> {
    for (name, iommu) in [
        ("migrate-vtd", Iommu::Vtd),
        ("migrate-amd-vi", Iommu::AmdVi),
    ] {
        let iommufd = format!("{GUEST} --iommufd");
        let back = "--source $(cat /zs/function2) --destination $(cat /zs/function1) --migrate \
            --workload ring-check=3 --workload fio=1";
        let ran = Rig {
            name,
            iommu,
            moves: vec![
                moved("container", "", GUEST),
                Move {
                    name: "back",
                    before: "",
                    arguments: back.to_owned(),
                },
                moved("iommufd", "", &iommufd),
            ],
            ..Rig::default()
        }
        .run(session, &mut show)?;
        common(&ran, results);
        for each in ["container", "back", "iommufd"] {
            for (what, outcome) in judge(&ran, each) {
                results.check(&format!("{name}, {each}: {what}"), outcome);
            }
        }
        results.check("the cards end in peace", ran.cards);
    }
    Ok(())
}

/// A guest that is moved.
pub(crate) fn moved(name: &'static str, before: &'static str, guest: &str) -> Move {
    Move {
        name,
        before,
        arguments: format!("{guest} {MOVE}"),
    }
}

/// A guest that QEMU refuses to move, and says `text`.
fn refusal(name: &'static str, before: &'static str, text: &str) -> Move {
    Move {
        name,
        before,
        arguments: format!("{GUEST} --expect-refusal \"{text}\""),
    }
}

/// While it runs: what the mover says.
fn show(step: &Step, line: &str) {
    match event(line) {
        Some(event) => step.detail(&event.to_string()),
        None => step.detail(line),
    }
}

/// Everything that a move of a guest at work has to show, each with its name.
pub(crate) fn judge(ran: &Ran, name: &str) -> Vec<(&'static str, Result<()>)> {
    let mut checks = judge_still(ran, name);
    checks.push((
        "the function was busy while it was moved",
        ran.report(name).and_then(|report| busy(&report)),
    ));
    checks
}

/// The same without what only a guest at work can show.
fn judge_still(ran: &Ran, name: &str) -> Vec<(&'static str, Result<()>)> {
    let report = ran.report(name);
    let of = |what: fn(&Report) -> Result<()>| {
        report.as_ref().map_err(|e| anyhow!("{e:#}")).and_then(what)
    };
    vec![
        ("stock QEMU moves the guest with its function", of(went)),
        ("no page that the function wrote is stale", of(intact)),
        (
            "ring-check and fio work before, and go on after",
            of(worked),
        ),
        ("the card suspended, saved and restored it", of(used)),
        (
            "the guest's own driver notices nothing",
            ran.l1.job(name).and_then(unnoticed),
        ),
    ]
}

/// Whether the guest's `nvme` had nothing to mend: it would hide a lost interrupt or a lost queue from its users
/// after 30 s.
fn unnoticed(job: &Job) -> Result<()> {
    const MENDED: [&str; 4] = [
        " timeout, ",
        "controller is down",
        "resetting controller",
        "Removing after probe failure",
    ];
    let said = job
        .lines
        .iter()
        .find(|line| line.contains("nvme nvme") && MENDED.iter().any(|text| line.contains(text)));
    if let Some(line) = said {
        bail!("it said: {line}");
    }
    Ok(())
}

/// Whether the move completed, with the function's state in it.
fn went(report: &Report) -> Result<()> {
    let migration = &report.verdict["migration"];
    let number = |key: &str| migration[key].as_u64().unwrap_or_default();
    ensure!(
        number("device_bytes") > 0 && number("passes") > 0,
        "the migration carried no state of the function: {migration}, {}",
        report.verdict["why"]
    );
    Ok(())
}

/// Whether the back end's own counters say that the card did it.
fn used(report: &Report) -> Result<()> {
    for name in ["suspends", "states_read", "states_written"] {
        ensure!(report.counted(name) > 0, "the back end counted no {name}");
    }
    Ok(())
}

/// Whether every interrupted move left the guest where it was, and at work.
fn came_to_nothing(report: &Report) -> Result<()> {
    worked(report)?;
    let count = report.verdict["interruptions"].as_array().map(Vec::len);
    ensure!(
        count == Some(4),
        "not all came to nothing: {}",
        report.verdict["interruptions"]
    );
    // Two of them when the guest stood still, and the one that went.
    ensure!(
        report.counted("states_read") == 3,
        "the function's state was taken {} times",
        report.counted("states_read")
    );
    Ok(())
}

/// Whether the dirty log had something to do.
fn busy(report: &Report) -> Result<()> {
    let workload = &report.verdict["workloads"]["ring-check"];
    ensure!(
        report.counted("harvests") > 0 && report.counted("dirty_bytes") > 0,
        "the card reported nothing that the function wrote"
    );
    ensure!(
        workload["during"].as_u64() > Some(0),
        "ring-check ended no round during the move: {workload}"
    );
    Ok(())
}

/// Whether ring-check found every page as the function had written it.
fn intact(report: &Report) -> Result<()> {
    let summary = &report.verdict["workloads"]["ring-check"]["summary"];
    ensure!(
        summary["stale"] == 0 && summary["misread"] == 0 && summary["moved"] == 0,
        "ring-check: {summary}"
    );
    Ok(())
}

/// Whether every fault rule of the card decided something: without that, the negative control shows nothing.
fn forgot(ran: &Ran) -> Result<()> {
    ensure!(!ran.faults.is_empty(), "the card has no fault rules");
    for Fired { rule, fired } in &ran.faults {
        ensure!(*fired > 0, "the rule {rule} never fired");
    }
    Ok(())
}

/// Whether ring-check found pages that were left behind, and nothing else was wrong with the move.
fn stale(report: &Report) -> Result<()> {
    went(report)?;
    let workload = &report.verdict["workloads"]["ring-check"];
    let count = workload["summary"]["stale"].as_u64().unwrap_or_default();
    ensure!(count > 0, "ring-check found nothing: {workload}");
    let moved = &workload["summary"]["moved"];
    ensure!(moved == 0, "pages changed their frames: {workload}");
    // A read that was under way at the stop ends afterwards, and when its page was forgotten, it seems to have filled nothing.
    for said in ["stale", "misread"] {
        ensure!(
            report.comes_after(said, "moved"),
            "a page was {said} before the move: the checker is wrong"
        );
    }
    ensure!(report.verdict["pass"] == false, "that passed");
    Ok(())
}

/// What every run has to show around its moves.
pub(crate) fn frame(ran: &Ran) -> Vec<(&'static str, Result<()>)> {
    let bound = succeeded(&ran.l1, "load").and_then(|_| succeeded(&ran.l1, "bind"));
    vec![
        (
            "host and guest boot, and neither kernel reports anything",
            ran.l1.check(),
        ),
        ("the functions get their driver", bound.map(drop)),
    ]
}

/// The same as results, and how the moves went for the reader.
fn common(ran: &Ran, results: &mut Results) {
    for line in ran.reports().flat_map(|report| report.lines()) {
        crate::ui::say(format!("    {line}"));
    }
    for (name, outcome) in frame(ran) {
        results.check(name, outcome);
    }
}

/// Whether L1's kernel said `text`.
fn said(ran: &Ran, text: &str) -> Result<()> {
    ensure!(
        ran.l1.lines.iter().any(|line| line.contains(text)),
        "the host's kernel never said {text:?}\n{}",
        ran.l1.ending()
    );
    Ok(())
}

/// Whether QEMU said `text` when it was asked to move the guest.
fn refused(report: &Report, text: &str) -> Result<()> {
    report.passed()?;
    let said = report.first("refused")?["said"]
        .as_str()
        .unwrap_or_default();
    ensure!(said.contains(text), "QEMU said something else: {said}");
    Ok(())
}

/// Whether the guest's programs did something and found nothing wrong.
fn worked(report: &Report) -> Result<()> {
    report.passed()?;
    for name in ["ring-check", "fio"] {
        let workload = &report.verdict["workloads"][name];
        let number = |key: &str| workload[key].as_u64().unwrap_or_default();
        ensure!(number("best_iops") > 0, "{name} did nothing: {workload}");
    }
    let checked = &report.verdict["workloads"]["ring-check"]["summary"]["checked"];
    ensure!(checked.as_u64() > Some(0), "ring-check checked nothing");
    Ok(())
}
