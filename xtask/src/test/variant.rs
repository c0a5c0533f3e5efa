// SPDX-License-Identifier: Apache-2.0 OR MIT

//! VFIO drivers of a card's functions, judged through the uAPI: plain vfio-pci, which tells that the programs are
//! right, and ours.

use std::time::Duration;

use anyhow::Result;

use super::{selftests, Results};
use crate::kernel::Kind;
use crate::rig::card::Card;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;
use crate::userspace;

/// Serial number of the card.
const SERIAL: &str = "ZSVFIO0001";

/// The VFIO modules of the kernel that every driver needs, and vfio-pci itself.
const VFIO: [&str; 2] = ["vfio_iommu_type1", "vfio_pci"];

/// Makes `$1`, `$2`, ... of the addresses of all NVMe I/O controllers.
const FUNCTIONS: &str = "set -- $(cd /sys/bus/pci/devices; for d in *; do [ $(cat $d/class) = 0x010802 ] && echo $d; done)";

/// A card with `functions` functions that share a namespace.
fn card(session: &Session, dir: &std::path::Path, functions: u32) -> Result<Card> {
    let programs = userspace::build(session)?;
    let functions = functions.to_string();
    let options = ["--namespace", "memory=16M", "--functions", &functions].map(str::to_owned);
    let program = programs.path("zerocard");
    Card::start(&session.cache, &program, dir, SERIAL, &options)
}

/// Level `kernel`: the programs' own layer, on vfio-pci.
pub(super) fn plain(session: &Session, results: &mut Results) -> Result<()> {
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("card")?;
    let card = card(session, run.path(), 1)?;
    let transcript = L1 {
        name: "vfio-plain",
        kernel: session.kernel(Kind::Test)?,
        iommu: Iommu::Vtd,
        functions: card.sockets(),
        memory_mib: 1024,
        modules: &VFIO,
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

/// The drivers that the kernel's own tests look at.
const DRIVERS: [&str; 2] = ["vfio-pci", "zeroshift_vfio_pci"];

/// Level `kernel`: the kernel's own tests of VFIO, and that vfio-pci passes the same ones.
pub(super) fn kernel_selftests(session: &Session, results: &mut Results) -> Result<()> {
    let kernel = session.kernel(Kind::Test)?;
    let modules = session.modules(Kind::Test)?;
    let run = session.cache.run_dir("selftests")?;
    let programs = selftests::build(session, &kernel.tree.dir, run.path())?;
    let card = card(session, run.path(), 1)?;
    let mut overlay = Overlay::new();
    for name in ["migdirty", "zeroshift_vfio_pci"] {
        overlay = overlay.file(&format!("/zs/{name}.ko"), modules.path(name)?);
    }
    for (name, path) in selftests::TESTS.iter().zip(&programs) {
        overlay = overlay.file(&format!("/zs/bin/{name}"), path);
    }
    overlay = overlay.job("load", LOAD);
    for driver in DRIVERS {
        overlay = overlay.job(&format!("give-{driver}"), &give(driver));
        for name in selftests::TESTS {
            let script = format!("{FUNCTIONS}; {name} $1 2>&1");
            overlay = overlay.job(&format!("{driver}-{name}"), &script);
        }
    }
    let transcript = L1 {
        name: "vfio-selftests",
        kernel,
        iommu: Iommu::Vtd,
        functions: card.sockets(),
        memory_mib: 2048,
        modules: &VFIO,
        nested: false,
        peers: false,
        overlay,
        limit: Duration::from_secs(900),
    }
    .run(session.place()?)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.check(
        "the modules load",
        super::succeeded(&transcript, "load").map(drop),
    );
    for driver in DRIVERS {
        let job = format!("give-{driver}");
        results.check(&job, super::succeeded(&transcript, &job).map(drop));
        for name in selftests::TESTS {
            results.ktap(&transcript, &format!("{driver}-{name}"));
        }
    }
    results.check("the card ends in peace", card.stop());
    Ok(())
}

/// Loads our modules and sets huge pages aside, which some tests map. (Those of 1 GiB would take a machine of 6 GiB.)
const LOAD: &str = "set -e
echo 8 > /proc/sys/vm/nr_hugepages
insmod /zs/migdirty.ko
insmod /zs/zeroshift_vfio_pci.ko";

/// Gives the first function to `driver`.
fn give(driver: &str) -> String {
    format!(
        "set -e; {FUNCTIONS}
device=/sys/bus/pci/devices/$1
[ ! -e $device/driver ] || echo $1 > $device/driver/unbind
echo {driver} > $device/driver_override
echo $1 > /sys/bus/pci/drivers_probe
test -e /sys/bus/pci/drivers/{driver}/$1"
    )
}
