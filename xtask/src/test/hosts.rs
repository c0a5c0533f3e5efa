// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `migdirty` in a host with a card: from an initramfs, and on the test kernel as kselftests under virtme-ng. (Not on
//! the debug kernel, on which udev, without which virtme-ng has no console, takes longer than it waits.)

use std::time::Duration;

use anyhow::{ensure, Context as _, Result};
use serde_json::Value;

use super::{debug::LEAK_SCAN, succeeded, Results};
use crate::kernel::Kind;
use crate::rig::card::Card;
use crate::rig::console::{Job, Transcript};
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::rig::virtme::Virtme;
use crate::session::Session;
use crate::userspace::{self, Programs};

/// Serial number of the card that these scenarios use.
const SERIAL: &str = "ZSTEST0001";
/// How often the module is loaded, used and unloaded.
const ROUNDS: u32 = 100;

/// Level `stock`.
pub(super) fn stock(session: &Session, results: &mut Results) -> Result<()> {
    in_initramfs(session, results, Kind::Stock, Iommu::Vtd, ROUNDS)
}

/// Level `soak`: the rounds of level `stock`, a thousand times.
pub(super) fn soak(session: &Session, results: &mut Results) -> Result<()> {
    in_initramfs(session, results, Kind::Stock, Iommu::Vtd, 1000)
}

/// Level `kernel`, AMD-Vi.
pub(super) fn amd_vi(session: &Session, results: &mut Results) -> Result<()> {
    in_initramfs(session, results, Kind::Test, Iommu::AmdVi, 1)
}

/// Level `debug`: kselftests, then a scan for leaks.
pub(super) fn debug_kernel(session: &Session, results: &mut Results) -> Result<()> {
    in_initramfs(session, results, Kind::Debug, Iommu::Vtd, ROUNDS)
}

fn in_initramfs(
    session: &Session,
    results: &mut Results,
    kind: Kind,
    iommu: Iommu,
    rounds: u32,
) -> Result<()> {
    let kernel = session.kernel(kind)?;
    let module = session.modules(kind)?;
    let programs = userspace::build(session)?;
    let sockets = session.cache.run_dir("card")?;
    let card = Card::start(
        &session.cache,
        &programs.path("zerocard"),
        sockets.path(),
        SERIAL,
        &[],
    )?;
    let name = format!(
        "{}-{}",
        kind.name(),
        if iommu == Iommu::Vtd { "vtd" } else { "amd-vi" }
    );
    let mut overlay = jobs(Overlay::new(), &programs, module.path("migdirty")?, rounds);
    if kind == Kind::Debug {
        overlay = overlay.job("leaks", LEAK_SCAN);
    }
    let transcript = L1 {
        name: &name,
        kernel,
        iommu,
        functions: vec![card.socket("admin")?.to_owned()],
        memory_mib: 1024,
        modules: &[],
        nested: false,
        peers: false,
        overlay,
        limit: Duration::from_secs(1000 + 5 * u64::from(rounds)),
    }
    .run(session.place()?)?;
    judge(results, &transcript, kind);
    if kind == Kind::Debug {
        results.check("nothing leaks", succeeded(&transcript, "leaks").map(drop));
    }
    results.check("the card ends in peace", card.stop());
    Ok(())
}

/// The jobs of a host: load, list, selftest, rounds, and that the interrupt and the IOMMU are real.
fn jobs(overlay: Overlay, programs: &Programs, module: &std::path::Path, rounds: u32) -> Overlay {
    overlay
        .file("/zs/migdirty.ko", module)
        .file("/zs/bin/zeroshift", &programs.path("zeroshift"))
        .file("/zs/bin/migdirty-card", &programs.path("migdirty-card"))
        .job(
            "load",
            "set -e; insmod /zs/migdirty.ko; ls -l /dev/migdirty",
        )
        .job("list", "set -e; zeroshift list; zeroshift list --json")
        .job("doctor", "zeroshift doctor; zeroshift doctor --json; true")
        .job(
            "behind-iommu",
            "set -e; for d in /sys/bus/pci/drivers/migdirty/0*; do readlink $d/iommu_group; done",
        )
        .job("migdirty-card", &selftest("/zs/migdirty.ko", rounds))
        .job(
            "unload",
            "set -e; insmod /zs/migdirty.ko; rmmod migdirty; ! test -e /dev/migdirty",
        )
}

fn selftest(module: &str, rounds: u32) -> String {
    format!("migdirty-card --expect-serial {SERIAL} --module {module} --rounds {rounds}")
}

/// Level `kernel`, kselftests under virtme-ng.
pub(super) fn test_kernel(session: &Session, results: &mut Results) -> Result<()> {
    let kind = Kind::Test;
    let kernel = session.kernel(kind)?;
    let module = session
        .modules(kind)?
        .path("migdirty")?
        .display()
        .to_string();
    let programs = userspace::build(session)?;
    let sockets = session.cache.run_dir("card")?;
    let card = Card::start(
        &session.cache,
        &programs.path("zerocard"),
        sockets.path(),
        SERIAL,
        &[],
    )?;
    let bin = programs.path("").display().to_string();
    let jobs = vec![
        (
            "load",
            format!("set -e; insmod {module}; ls -l /dev/migdirty"),
        ),
        (
            "list",
            format!("set -e; {bin}/zeroshift list; {bin}/zeroshift list --json"),
        ),
        (
            "doctor",
            format!("{bin}/zeroshift doctor; {bin}/zeroshift doctor --json; true"),
        ),
        (
            "behind-iommu",
            "set -e; for d in /sys/bus/pci/drivers/migdirty/0*; do readlink $d/iommu_group; done"
                .to_owned(),
        ),
        (
            "migdirty-card",
            format!("{bin}/{}", selftest(&module, ROUNDS)),
        ),
        (
            "unload",
            format!("set -e; insmod {module}; rmmod migdirty; ! test -e /dev/migdirty"),
        ),
    ];
    let transcript = Virtme {
        name: &format!("{}-virtme", kind.name()),
        kernel,
        functions: vec![card.socket("admin")?.to_owned()],
        memory_mib: 2048,
        jobs,
        limit: Duration::from_secs(1500),
    }
    .run(session.place()?)?;
    judge(results, &transcript, kind);
    results.check("the card ends in peace", card.stop());
    Ok(())
}

fn judge(results: &mut Results, transcript: &Transcript, kind: Kind) {
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.check("the module loads", succeeded(transcript, "load").map(drop));
    results.check(
        "zeroshift list shows the card",
        succeeded(transcript, "list").and_then(|job| card_is_listed(job, SERIAL)),
    );
    results.check(
        "zeroshift doctor tells whether this kernel can log",
        succeeded(transcript, "doctor").and_then(|job| can_log(job, kind != Kind::Stock)),
    );
    results.check(
        "the card is behind the IOMMU",
        succeeded(transcript, "behind-iommu").and_then(in_a_group),
    );
    results.ktap(transcript, "migdirty-card");
    results.check(
        "the module loads and unloads once more",
        succeeded(transcript, "unload").map(drop),
    );
}

fn in_a_group(job: &Job) -> Result<()> {
    ensure!(
        job.lines.iter().any(|l| l.contains("iommu_groups/")),
        "no function of migdirty has an IOMMU group: {:?}",
        job.lines
    );
    Ok(())
}

/// Whether `zeroshift doctor --json` says of the kernel that it can log, or that it cannot.
fn can_log(job: &Job, can: bool) -> Result<()> {
    let doctor = object(job)?;
    let checks = doctor["checks"].as_array().context("no array \"checks\"")?;
    let kernel = checks.iter().find(|check| check["name"] == "kernel");
    let state = &kernel.context("no check \"kernel\"")?["state"];
    let want = if can { "ok" } else { "missing" };
    ensure!(state == want, "the kernel is {state}, not {want}");
    Ok(())
}

/// The JSON object that a job printed.
fn object(job: &Job) -> Result<Value> {
    let json = job
        .lines
        .iter()
        .find(|l| l.starts_with('{'))
        .context("no JSON object was printed")?;
    serde_json::from_str(json).with_context(|| format!("parse {json}"))
}

/// Whether `zeroshift list --json` shows the card `serial` alive, its Identify page read by interrupt.
pub(super) fn card_is_listed(job: &Job, serial: &str) -> Result<()> {
    let list = object(job)?;
    let cards = list["cards"].as_array().context("no array \"cards\"")?;
    let card = cards
        .iter()
        .find(|c| c["serial"] == serial)
        .with_context(|| format!("no card {serial} in {list}"))?;
    for (field, want) in [("driver", "migdirty"), ("state", "live")] {
        ensure!(
            card[field] == want,
            "{field} is {}, not {want}",
            card[field]
        );
    }
    for counter in ["commands", "interrupts"] {
        ensure!(
            card[counter].as_u64().is_some_and(|n| n > 0),
            "{counter} is {}: Identify was not read by interrupt",
            card[counter]
        );
    }
    ensure!(card["failures"] == 0, "failures is {}", card["failures"]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(json: &str) -> Result<()> {
        card_is_listed(
            &Job {
                lines: vec!["a table".into(), json.into()],
                ..Job::default()
            },
            "S1",
        )
    }

    #[test]
    fn doctor_has_to_say_what_the_kernel_can() {
        let job = |text: &str| Job {
            lines: vec!["ok  kernel".into(), text.into()],
            ..Job::default()
        };
        let says = |state: &str| {
            job(&format!(
                r#"{{"checks":[{{"name":"kernel","state":"{state}"}}]}}"#
            ))
        };
        can_log(&says("ok"), true).unwrap();
        can_log(&says("missing"), false).unwrap();
        assert!(can_log(&says("missing"), true).is_err());
        assert!(can_log(&says("unknown"), false).is_err());
        assert!(can_log(&job(r#"{"checks":[]}"#), true).is_err());
    }

    #[test]
    fn only_a_live_card_that_took_interrupts_counts() {
        let card = |state: &str, interrupts: u32| {
            format!(
                r#"{{"cards":[{{"serial":"S1","driver":"migdirty","state":"{state}","commands":1,"failures":0,"interrupts":{interrupts}}}]}}"#
            )
        };
        listed(&card("live", 1)).unwrap();
        assert!(listed(&card("live", 0)).is_err());
        assert!(listed(&card("dead", 1)).is_err());
        assert!(listed(r#"{"cards":[]}"#).is_err());
        assert!(listed("").is_err());
    }
}
