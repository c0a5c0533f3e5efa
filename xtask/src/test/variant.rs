// SPDX-License-Identifier: Apache-2.0 OR MIT

//! VFIO drivers of a card's functions, judged through the uAPI: plain vfio-pci, which tells that the programs are
//! right, and ours.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::{debug, selftests, succeeded, Results};
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

/// Makes `$admin` of the address of the first administrative controller.
const ADMIN: &str = "admin=$(cd /sys/bus/pci/drivers/migdirty; ls -d 0* | head -n 1)";

/// A card with `functions` functions that share a namespace, and more options.
fn card(
    session: &Session,
    dir: &Path,
    serial: &str,
    functions: u32,
    more: &[&str],
) -> Result<Card> {
    let programs = userspace::build(session)?;
    let functions = functions.to_string();
    let options = ["--namespace", "memory=16M", "--functions", &functions];
    let options: Vec<String> = options.iter().chain(more).map(|o| (*o).into()).collect();
    let program = programs.path("zerocard");
    Card::start(&session.cache, &program, dir, serial, &options)
}

/// Level `kernel`: the programs' own layer, on vfio-pci.
pub(super) fn plain(session: &Session, results: &mut Results) -> Result<()> {
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("card")?;
    let card = card(session, run.path(), SERIAL, 1, &[])?;
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

/// What is tried on the stock kernel, which has no IOMMUFD: no character devices, and no reports of a log, so none
/// is offered.
const STOCK_PROGRAMS: [(&str, &str); 2] = [
    (
        "vfio-plain",
        "--access group --function $1 --migratable --no-log",
    ),
    (
        "vfio-migrate",
        "--access group --function $1 --other $2 --only group.idle",
    ),
];

/// Level `stock`: both modules load, functions work and move, both modules unload.
pub(super) fn stock(session: &Session, results: &mut Results) -> Result<()> {
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("card")?;
    let card = card(session, run.path(), SERIAL, 2, &[])?;
    let mut overlay = with_modules(session, Kind::Stock)?.job("load", LOAD);
    for (program, arguments) in STOCK_PROGRAMS {
        let script = format!("{FUNCTIONS}; {program} --driver zeroshift_vfio_pci {arguments}");
        overlay = overlay
            .file(&format!("/zs/bin/{program}"), &programs.path(program))
            .job(program, &script);
    }
    let transcript = L1 {
        name: "stock-variant",
        kernel: session.kernel(Kind::Stock)?,
        iommu: Iommu::Vtd,
        functions: card.sockets(),
        memory_mib: 1024,
        modules: &VFIO,
        nested: false,
        peers: false,
        overlay: overlay.job("unload", UNLOAD),
        limit: Duration::from_secs(900),
    }
    .run(session.place()?)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.check("the modules load", succeeded(&transcript, "load").map(drop));
    for (program, _) in STOCK_PROGRAMS {
        results.ktap(&transcript, program);
    }
    results.check(
        "the modules unload",
        succeeded(&transcript, "unload").map(drop),
    );
    results.check("the card ends in peace", card.stop());
    Ok(())
}

/// An overlay with our modules for a kernel.
fn with_modules(session: &Session, kind: Kind) -> Result<Overlay> {
    let modules = session.modules(kind)?;
    let mut overlay = Overlay::new();
    for name in ["migdirty", "zeroshift_vfio_pci"] {
        overlay = overlay.file(&format!("/zs/{name}.ko"), modules.path(name)?);
    }
    Ok(overlay)
}

/// The programs that judge our driver, and their arguments. `$1` and `$2` are functions of one card, `$3` is one of
/// another, `$4` one of a card that tracks little, `$5` one of a card that refuses, `$6` and `$7` are of one to
/// which writes are late; `$admin` is the administrative controller of the first.
const PROGRAMS: [(&str, &str, &str); 10] = [
    ("vfio-plain", "vfio-plain", "--migratable --function $1"),
    ("vfio-states", "vfio-states", "--function $1"),
    ("vfio-log", "vfio-log", "--function $1"),
    (
        "vfio-log-coarse",
        "vfio-log",
        "--coarse --access cdev --function $4",
    ),
    ("vfio-reset", "vfio-reset", "--function $1"),
    ("vfio-migrate", "vfio-migrate", "--function $1 --other $2"),
    (
        "vfio-migrate-late",
        "vfio-migrate",
        "--access cdev --function $6 --other $7 --only cdev.doorbell_on_its_way",
    ),
    (
        "vfio-stream",
        "vfio-stream",
        "--access cdev --function $1 --other $2 --foreign $3",
    ),
    ("vfio-faults", "vfio-faults", "--function $5"),
    (
        "vfio-lifetime",
        "vfio-lifetime",
        "--function $1 --admin $admin --module /zs/zeroshift_vfio_pci.ko",
    ),
];

/// Level `kernel`: our driver on the test kernel.
pub(super) fn test_kernel(session: &Session, results: &mut Results) -> Result<()> {
    ours(session, results, Kind::Test)
}

/// Level `debug`: the same on the debug kernel, and a scan for leaks.
pub(super) fn debug_kernel(session: &Session, results: &mut Results) -> Result<()> {
    ours(session, results, Kind::Debug)
}

fn ours(session: &Session, results: &mut Results, kind: Kind) -> Result<()> {
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("cards")?;
    let cards = [
        card(session, run.path(), SERIAL, 2, &[])?,
        card(session, run.path(), "ZSVFIO0002", 1, &[])?,
        card(session, run.path(), "ZSVFIO0003", 1, &COARSE)?,
        card(session, run.path(), "ZSVFIO0004", 1, &REFUSALS)?,
        card(session, run.path(), "ZSVFIO0005", 2, &LATE)?,
    ];
    let mut overlay = with_modules(session, kind)?.job("load", LOAD);
    for (job, program, arguments) in PROGRAMS {
        // The debug kernel is slow, and both ways to a device end in the same code of ours.
        let access = match kind == Kind::Debug && !arguments.contains("--access") {
            true => "--access cdev",
            false => "",
        };
        let script = format!(
            "{FUNCTIONS}; {ADMIN}
{program} --driver zeroshift_vfio_pci {arguments} {access}"
        );
        overlay = overlay
            .file(&format!("/zs/bin/{program}"), &programs.path(program))
            .job(job, &script);
    }
    if kind == Kind::Debug {
        overlay = overlay.job("leaks", debug::LEAK_SCAN);
    }
    let transcript = L1 {
        name: &format!("{}-variant", kind.name()),
        kernel: session.kernel(kind)?,
        iommu: Iommu::Vtd,
        functions: cards.iter().flat_map(Card::sockets).collect(),
        memory_mib: 2048,
        modules: &VFIO,
        nested: false,
        peers: false,
        overlay,
        limit: Duration::from_secs(5400),
    }
    .run(session.place()?)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.check("the modules load", succeeded(&transcript, "load").map(drop));
    for (job, ..) in PROGRAMS {
        results.ktap(&transcript, job);
    }
    if kind == Kind::Debug {
        results.check("nothing leaks", succeeded(&transcript, "leaks").map(drop));
    }
    results.check(
        "the cards end in peace",
        cards.into_iter().try_for_each(Card::stop),
    );
    Ok(())
}

/// Level `kernel`: errors of the links of functions and of the card. Not on the debug kernel, whose lockdep is right
/// about the kernel's own `aer_inject`: it takes a spinlock within a raw one.
pub(super) fn link_errors(session: &Session, results: &mut Results) -> Result<()> {
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("card")?;
    let card = card(session, run.path(), SERIAL, 2, &[])?;
    // One way to a device: what follows an error does not depend on it.
    let script = format!(
        "{FUNCTIONS}; {ADMIN}
vfio-aer --driver zeroshift_vfio_pci --access cdev --function $1 --other $2 --admin $admin"
    );
    let overlay = with_modules(session, Kind::Test)?
        .file("/zs/bin/vfio-aer", &programs.path("vfio-aer"))
        .job("load", LOAD)
        .job("vfio-aer", &script)
        .job("unload", UNLOAD);
    let transcript = L1 {
        name: "link-errors",
        kernel: session.kernel(Kind::Test)?,
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
    results.check("the modules load", succeeded(&transcript, "load").map(drop));
    results.ktap(&transcript, "vfio-aer");
    results.check(
        "the modules unload",
        succeeded(&transcript, "unload").map(drop),
    );
    results.check("the card ends in peace", card.stop());
    Ok(())
}

/// A card that cannot track much: few ranges, and no small granules.
const COARSE: [&str; 4] = ["--granules", "64K..2M", "--max-ranges", "4"];

/// A card that refuses, for good, every few Suspends, Resumes, states, starts and stops of logs, and reports.
const REFUSALS: [&str; 12] = [
    "--fault",
    "op=migration-send,sel=0,every=3,status=0/6,dnr",
    "--fault",
    "op=migration-send,sel=1,every=4,status=0/6,dnr",
    "--fault",
    "op=migration-receive,every=3,status=0/6,dnr",
    "--fault",
    // Starts and stops by themselves: together they can fall into step with what is refused.
    "op=track-send,cdw10=65537,every=5,status=0/6,dnr",
    "--fault",
    "op=track-send,cdw10=1,every=4,status=0/6,dnr",
    "--fault",
    "op=track-receive,every=7,status=0/6,dnr",
];

/// A card whose functions get each write of a register later than its administrative controller the order to suspend
/// them and the one for their state.
const LATE: [&str; 4] = [
    "--fault",
    "function=nvme1,late=200ms",
    "--fault",
    "function=nvme2,late=200ms",
];

/// The drivers that the kernel's own tests look at.
const DRIVERS: [&str; 2] = ["vfio-pci", "zeroshift_vfio_pci"];

/// Level `kernel`: the kernel's own tests of VFIO, and that vfio-pci passes the same ones.
pub(super) fn kernel_selftests(session: &Session, results: &mut Results) -> Result<()> {
    let kernel = session.kernel(Kind::Test)?;
    let run = session.cache.run_dir("selftests")?;
    let programs = selftests::build(session, &kernel.tree.dir, run.path())?;
    let card = card(session, run.path(), SERIAL, 1, &[])?;
    let mut overlay = with_modules(session, Kind::Test)?;
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
    results.check("the modules load", succeeded(&transcript, "load").map(drop));
    for driver in DRIVERS {
        let job = format!("give-{driver}");
        results.check(&job, succeeded(&transcript, &job).map(drop));
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

/// Unloads our modules.
const UNLOAD: &str = "set -e; rmmod zeroshift_vfio_pci; rmmod migdirty; ! test -e /dev/migdirty";

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
