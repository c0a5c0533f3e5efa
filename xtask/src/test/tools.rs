// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line `zeroshift`, with our modules, Linux's `nvme` driver and two cards. What it checks stands in
//! `tests/src/bin/zeroshift-tools/`; here is the machine.

use std::time::Duration;

use anyhow::Result;

use super::{succeeded, Results};
use crate::kernel::Kind;
use crate::rig::card::Card;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;
use crate::userspace;

/// Serial numbers of the cards: the first has two functions, the second one.
const SERIALS: [&str; 2] = ["ZSTOOLS001", "ZSTOOLS002"];

/// What of its own kernel it needs, with what these need.
const KERNEL: [&str; 3] = ["nvme", "vfio_iommu_type1", "vfio_pci"];
/// Our modules, in the order in which they load.
const OURS: [&str; 2] = ["migdirty", "zeroshift_vfio_pci"];

/// Level `kernel`: everything that `zeroshift` can do with a function.
pub(super) fn scenario(session: &Session, results: &mut Results) -> Result<()> {
    let programs = userspace::build(session)?;
    let modules = session.modules(Kind::Test)?;
    let run = session.cache.run_dir("tools")?;
    let mut cards = Vec::new();
    for (serial, functions) in SERIALS.into_iter().zip(["2", "1"]) {
        let options = ["--namespace", "memory=16M", "--functions", functions].map(str::to_owned);
        let program = programs.path("zerocard");
        cards.push(Card::start(
            &session.cache,
            &program,
            run.path(),
            serial,
            &options,
        )?);
    }
    let mut overlay = Overlay::new();
    for name in ["zeroshift", "zeroshift-tools"] {
        overlay = overlay.file(&format!("/zs/bin/{name}"), &programs.path(name));
    }
    let mut load = "set -e; mkdir /tiny; mount -t tmpfs -o size=4k tiny /tiny".to_owned();
    for name in OURS {
        overlay = overlay.file(&format!("/zs/{name}.ko"), modules.path(name)?);
        load += &format!("; insmod /zs/{name}.ko");
    }
    let [serial, other] = SERIALS;
    let transcript = L1 {
        name: "tools",
        kernel: session.kernel(Kind::Test)?,
        iommu: Iommu::Vtd,
        functions: cards.iter().flat_map(Card::sockets).collect(),
        memory_mib: 1024,
        modules: &KERNEL,
        nested: false,
        peers: false,
        overlay: overlay.job("load", &load).job(
            "zeroshift-tools",
            &format!("zeroshift-tools --serial {serial} --other {other} --tiny /tiny"),
        ),
        limit: Duration::from_secs(900),
    }
    .run(session.place()?)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.check("the modules load", succeeded(&transcript, "load").map(drop));
    results.ktap(&transcript, "zeroshift-tools");
    for card in cards {
        results.check("a card ends in peace", card.stop());
    }
    Ok(())
}
