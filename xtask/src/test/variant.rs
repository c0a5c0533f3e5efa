// SPDX-License-Identifier: Apache-2.0 OR MIT

//! VFIO drivers of a card's functions, judged through the uAPI: plain vfio-pci, which tells that the programs are
//! right, and ours.

use std::time::Duration;

use anyhow::Result;

use super::Results;
use crate::kernel::Kind;
use crate::rig::card::Card;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;
use crate::userspace;

/// Serial number of the card.
const SERIAL: &str = "ZSVFIO0001";

/// Makes `$1`, `$2`, ... of the addresses of all NVMe I/O controllers.
const FUNCTIONS: &str = "set -- $(cd /sys/bus/pci/devices; for d in *; do [ $(cat $d/class) = 0x010802 ] && echo $d; done)";

/// Level `kernel`: the programs' own layer, on vfio-pci.
pub(super) fn plain(session: &Session, results: &mut Results) -> Result<()> {
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("card")?;
    let options = ["--namespace", "memory=16M", "--functions", "1"].map(str::to_owned);
    let card = Card::start(
        &session.cache,
        &programs.path("zerocard"),
        run.path(),
        SERIAL,
        &options,
    )?;
    let transcript = L1 {
        name: "vfio-plain",
        kernel: session.kernel(Kind::Test)?,
        iommu: Iommu::Vtd,
        functions: card.sockets(),
        memory_mib: 1024,
        modules: &["vfio_iommu_type1", "vfio_pci"],
        nested: false,
        peers: false,
        overlay: Overlay::new()
            .file("/zs/bin/vfio-plain", &programs.path("vfio-plain"))
            .job(
                "vfio-plain",
                &format!("{FUNCTIONS}; vfio-plain --function $1"),
            ),
        limit: Duration::from_secs(600),
    }
    .run(session.place()?)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.ktap(&transcript, "vfio-plain");
    results.check("the card ends in peace", card.stop());
    Ok(())
}
