// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `e2e`, proof by peers: Linux's `nvme` driver, ext4, fio and nvme-cli drive the card in L1, on Debian's
//! stock kernel. What they check stands in `tests/peers/`, one script for each subject; here are the machines.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Results;
use crate::kernel::Kind;
use crate::rig::card::Card;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;
use crate::userspace;

/// Serial number of the card.
const SERIAL: &str = "ZSPEERS001";
/// Functions of the scenario `many`.
const FUNCTIONS: usize = 16;
/// Logical block of namespace 1 whose reads meet the fault rules: one rule for each 4 KiB from here.
const FAULTY: u32 = 120_000;
/// What happens to the first read of each; the last is for an admin command, a feature that does not exist.
const FAULTS: [&str; 6] = [
    "stall",
    "drop",
    "status=2/0x81",
    "status=2/0x81,dnr",
    "corrupt=cid",
    "corrupt=phase",
];
const ADMIN_FAULT: &str = "op=get-features,sel=0xc5,nth=1,stall";
/// `nvme` and `ext4` with what they need, by the stock kernel's own list.
const MODULES: [&str; 2] = ["nvme", "ext4"];
/// What runs on a card of two functions, in this order: what leaves a controller as it found it comes first.
const SUBJECTS: [&str; 11] = [
    "identify", "commands", "logs", "features", "verify", "ext4", "timeouts", "resets", "shared",
    "admin", "lm",
];

/// Namespaces 1 (512-byte blocks, memory), 2 (4096-byte blocks, a file) and 3 (shared); the scripts know them.
pub(super) fn scenario(session: &Session, results: &mut Results) -> Result<()> {
    let run = session.cache.run_dir("peers")?;
    let medium = run.path().join("medium");
    let file = format!("file={},size=128M,block=4096", medium.display());
    let mut options = Vec::new();
    for namespace in ["memory=64M", &file, "memory=32M"] {
        options.extend(["--namespace".to_owned(), namespace.to_owned()]);
    }
    for function in ["namespaces=1:2:3", "namespaces=3"] {
        options.extend(["--function".to_owned(), function.to_owned()]);
    }
    let reads = (FAULTY..).step_by(8).zip(FAULTS);
    let reads = reads.map(|(block, fault)| format!("op=read,cdw10={block},nth=1,{fault}"));
    for rule in reads.chain([ADMIN_FAULT.to_owned()]) {
        options.extend(["--fault".to_owned(), format!("function=nvme1,{rule}")]);
    }
    on_a_card(session, results, "peers", run.path(), &options, &SUBJECTS)
}

/// Many functions, each with a namespace of its own.
pub(super) fn many(session: &Session, results: &mut Results) -> Result<()> {
    let run = session.cache.run_dir("peers")?;
    let mut options = vec!["--pollers".to_owned(), "2".to_owned()];
    for n in 1..=FUNCTIONS {
        options.extend(["--namespace".to_owned(), "memory=32M".to_owned()]);
        options.extend(["--function".to_owned(), format!("namespaces={n},queues=2")]);
    }
    on_a_card(
        session,
        results,
        "peers-many",
        run.path(),
        &options,
        &["many"],
    )
}

/// Boots L1 with every function of one card and runs the scripts of `subjects`.
fn on_a_card(
    session: &Session,
    results: &mut Results,
    name: &str,
    dir: &Path,
    options: &[String],
    subjects: &[&str],
) -> Result<()> {
    let programs = userspace::build(session)?;
    let card = Card::start(
        &session.cache,
        &programs.path("zerocard"),
        dir,
        SERIAL,
        options,
    )?;
    let transcript = L1 {
        name,
        kernel: session.kernel(Kind::Stock)?,
        iommu: Iommu::Vtd,
        functions: card.sockets(),
        memory_mib: 1024,
        modules: &MODULES,
        nested: false,
        peers: true,
        overlay: jobs(&session.repo.join("tests/peers"), subjects)?,
        limit: Duration::from_secs(900),
    }
    .run(session.place()?)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    for subject in subjects {
        results.ktap(&transcript, subject);
    }
    results.check("the card ends in peace", card.stop());
    Ok(())
}

/// A job for each script: the constants that it shares with this file, the library, the script.
fn jobs(scripts: &Path, subjects: &[&str]) -> Result<Overlay> {
    let read = |name: &str| {
        let path = scripts.join(format!("{name}.sh"));
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let library = read("lib")?;
    let mut overlay = Overlay::new();
    for subject in subjects {
        let script = read(subject)?;
        overlay = overlay.job(
            subject,
            &format!("SERIAL={SERIAL} FUNCTIONS={FUNCTIONS} FAULTY={FAULTY}\n{library}\n{script}"),
        );
    }
    Ok(overlay)
}
