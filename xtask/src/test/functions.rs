// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What `migdirty` does with the functions of a card when tools ask for it: `migdirty-functions`, on the test and
//! on the debug kernel.

use std::time::Duration;

use anyhow::Result;

use super::{debug, succeeded, Results};
use crate::kernel::Kind;
use crate::rig::card::Card;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;
use crate::userspace;

/// The program that runs in the machine.
const PROGRAM: &str = "migdirty-functions";
/// Serial number of the card.
const SERIAL: &str = "ZSFUNC0001";
/// The VFIO modules of the kernel: the functions work for a driver in userspace.
const VFIO: [&str; 2] = ["vfio_iommu_type1", "vfio_pci"];

/// Level `kernel`.
pub(super) fn test_kernel(session: &Session, results: &mut Results) -> Result<()> {
    on(session, results, Kind::Test)
}

/// Level `debug`: the same, and a scan for leaks.
pub(super) fn debug_kernel(session: &Session, results: &mut Results) -> Result<()> {
    on(session, results, Kind::Debug)
}

fn on(session: &Session, results: &mut Results, kind: Kind) -> Result<()> {
    let modules = session.modules(kind)?;
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("card")?;
    // The second namespace belongs to nobody.
    let options = [
        "--namespace=memory=16M",
        "--namespace=memory=1M",
        "--function=namespaces=1",
        "--function=namespaces=1",
    ]
    .map(str::to_owned);
    let card = Card::start(
        &session.cache,
        &programs.path("zerocard"),
        run.path(),
        SERIAL,
        &options,
    )?;
    let mut overlay = Overlay::new()
        .file("/zs/migdirty.ko", modules.path("migdirty")?)
        .file(&format!("/zs/bin/{PROGRAM}"), &programs.path(PROGRAM))
        .job(PROGRAM, &format!("{PROGRAM} --module /zs/migdirty.ko"));
    if kind == Kind::Debug {
        overlay = overlay.job("leaks", debug::LEAK_SCAN);
    }
    let transcript = L1 {
        name: &format!("{}-functions", kind.name()),
        kernel: session.kernel(kind)?,
        iommu: Iommu::Vtd,
        functions: card.sockets(),
        memory_mib: 1024,
        modules: &VFIO,
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
    results.check("the card ends in peace", card.stop());
    Ok(())
}
