// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Cards that break: one machine with many, each of which meets its faults while `migdirty` has it. Which cards, and
//! what must become of each, stands in the programs that run in the machine: `migdirty-faults` for the card as such,
//! with a good one beside it, `migdirty-broken-functions` for what is done with functions. Here each is asked which
//! cards it wants.

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

/// A machine with broken cards.
struct Machine {
    /// What its files are called.
    name: &'static str,
    /// The program that runs in it.
    program: &'static str,
    /// Options of `zerocard` for every card.
    options: &'static [&'static str],
    /// Modules of the kernel that it loads first.
    modules: &'static [&'static str],
}

const CARDS: Machine = Machine {
    name: "broken-cards",
    program: "migdirty-faults",
    options: &[],
    modules: &[],
};

/// The functions work for a driver in userspace.
const FUNCTIONS: Machine = Machine {
    name: "broken-functions",
    program: "migdirty-broken-functions",
    options: &["--namespace", "memory=1M", "--functions", "1"],
    modules: &["vfio_iommu_type1", "vfio_pci"],
};

/// Level `kernel`: every card that the program knows.
pub(super) fn test_kernel(session: &Session, results: &mut Results) -> Result<()> {
    on(session, results, Kind::Test, &CARDS, &[])
}

/// Level `debug`: a few of them, for each costs the debug kernel seconds at boot, and a scan for leaks.
pub(super) fn debug_kernel(session: &Session, results: &mut Results) -> Result<()> {
    on(session, results, Kind::Debug, &CARDS, &["--few"])
}

/// Level `kernel`: what is done with functions.
pub(super) fn functions_test_kernel(session: &Session, results: &mut Results) -> Result<()> {
    on(session, results, Kind::Test, &FUNCTIONS, &[])
}

/// Level `debug`: the same, and a scan for leaks.
pub(super) fn functions_debug_kernel(session: &Session, results: &mut Results) -> Result<()> {
    on(session, results, Kind::Debug, &FUNCTIONS, &[])
}

fn on(
    session: &Session,
    results: &mut Results,
    kind: Kind,
    machine: &Machine,
    arguments: &[&str],
) -> Result<()> {
    let program = machine.program;
    let module = session.modules(kind)?;
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("broken")?;
    let cards = start(session, &programs, run.path(), machine, arguments)?;
    let arguments = arguments.join(" ");
    let mut overlay = Overlay::new()
        .file("/zs/migdirty.ko", module.path("migdirty")?)
        .file(&format!("/zs/bin/{program}"), &programs.path(program))
        .job(
            program,
            &format!("{program} {arguments} --module /zs/migdirty.ko"),
        );
    if kind == Kind::Debug {
        overlay = overlay.job("leaks", debug::LEAK_SCAN);
    }
    let transcript = L1 {
        name: &format!("{}-{}", kind.name(), machine.name),
        kernel: session.kernel(kind)?,
        iommu: Iommu::Vtd,
        functions: cards.iter().flat_map(Card::sockets).collect(),
        memory_mib: 1024,
        modules: machine.modules,
        nested: false,
        peers: false,
        overlay,
        limit: Duration::from_secs(1800),
    }
    .run(session.place()?)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.ktap(&transcript, program);
    if kind == Kind::Debug {
        results.check("nothing leaks", succeeded(&transcript, "leaks").map(drop));
    }
    results.check(
        "the cards end in peace",
        cards.into_iter().try_for_each(Card::stop),
    );
    Ok(())
}

/// Starts the cards that the program prints: on each line a serial number and fault rules, if any.
fn start(
    session: &Session,
    programs: &Programs,
    dir: &Path,
    machine: &Machine,
    arguments: &[&str],
) -> Result<Vec<Card>> {
    let mut list = command::command(programs.path(machine.program));
    list.arg("--cards").args(arguments);
    let list = command::output(list)?;
    let mut cards = Vec::new();
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let serial = words.next().unwrap_or_default();
        let mut options: Vec<_> = machine
            .options
            .iter()
            .map(|&word| word.to_owned())
            .collect();
        options.extend(words.flat_map(|rule| ["--fault".to_owned(), rule.to_owned()]));
        cards.push(Card::start(
            &session.cache,
            &programs.path("zerocard"),
            dir,
            serial,
            &options,
        )?);
    }
    ensure!(
        cards.len() > 1,
        "{} wants no cards: {list:?}",
        machine.program
    );
    Ok(cards)
}
