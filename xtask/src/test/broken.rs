// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Cards that break: one machine with many, each of which meets one fault while `migdirty` has it, and a good one
//! beside them. Which cards, and what must become of each, stands in `migdirty-faults`, the program that runs in the
//! machine; here it is asked which ones it wants.

use std::path::Path;
use std::time::Duration;

use anyhow::{ensure, Result};

use super::{debug, succeeded, Results};
use crate::command;
use crate::kernel::Kind;
use crate::rig::card::Card;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;
use crate::userspace::{self, Programs};

/// The program that runs in the machine.
const PROGRAM: &str = "migdirty-faults";

/// Level `kernel`: every card that the program knows.
pub(super) fn test_kernel(session: &Session, results: &mut Results) -> Result<()> {
    on(session, results, Kind::Test, false)
}

/// Level `debug`: a few of them, for each costs the debug kernel seconds at boot, and a scan for leaks.
pub(super) fn debug_kernel(session: &Session, results: &mut Results) -> Result<()> {
    on(session, results, Kind::Debug, true)
}

fn on(session: &Session, results: &mut Results, kind: Kind, few: bool) -> Result<()> {
    let module = session.modules(kind)?;
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("broken")?;
    let cards = start(session, &programs, run.path(), few)?;
    let few = if few { "--few" } else { "" };
    let mut overlay = Overlay::new()
        .file("/zs/migdirty.ko", module.path("migdirty")?)
        .file(&format!("/zs/bin/{PROGRAM}"), &programs.path(PROGRAM))
        .job(
            PROGRAM,
            &format!("{PROGRAM} {few} --module /zs/migdirty.ko"),
        );
    if kind == Kind::Debug {
        overlay = overlay.job("leaks", debug::LEAK_SCAN);
    }
    let transcript = L1 {
        name: &format!("{}-broken-cards", kind.name()),
        kernel: session.kernel(kind)?,
        iommu: Iommu::Vtd,
        functions: cards.iter().flat_map(Card::sockets).collect(),
        memory_mib: 1024,
        modules: &[],
        nested: false,
        peers: false,
        overlay,
        limit: Duration::from_secs(900),
    }
    .run(session.place()?)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.ktap(&transcript, PROGRAM);
    if kind == Kind::Debug {
        results.check("nothing leaks", succeeded(&transcript, "leaks").map(drop));
    }
    results.check(
        "the cards end in peace",
        cards.into_iter().try_for_each(Card::stop),
    );
    Ok(())
}

/// Starts the cards that the program prints: on each line a serial number and, for all but the first, a fault rule.
fn start(session: &Session, programs: &Programs, dir: &Path, few: bool) -> Result<Vec<Card>> {
    let mut list = command::command(programs.path(PROGRAM));
    list.arg("--cards").args(few.then_some("--few"));
    let list = command::output(list)?;
    let mut cards = Vec::new();
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let serial = words.next().unwrap_or_default();
        let rules = words.flat_map(|rule| ["--fault".to_owned(), rule.to_owned()]);
        cards.push(Card::start(
            &session.cache,
            &programs.path("zerocard"),
            dir,
            serial,
            &rules.collect::<Vec<_>>(),
        )?);
    }
    ensure!(cards.len() > 1, "{PROGRAM} wants no cards: {list:?}");
    Ok(cards)
}
