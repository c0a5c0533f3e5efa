// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Views and windows in guests, on an Intel processor in Bochs: the stock kernel (level `vmfunc`), and the debug
//! kernel (level `debug`).

use std::time::Duration;

use anyhow::{ensure, Result};

use super::debug::LEAK_SCAN;
use super::{succeeded, Results};
use crate::kernel::Kind;
use crate::rig::bochs::{Bochs, Model};
use crate::rig::console::Job;
use crate::rig::image::{self, Overlay};
use crate::session::Session;
use crate::userspace;

/// The tests of views, after `before`, with the program's `arguments`.
fn views(before: &str, arguments: &str) -> String {
    format!(
        "{{ {before} && insmod /zs/vmfunc_view.ko; }} || exit 1
vmfunc-views {arguments}
code=$?
{UNLOAD} && exit $code"
    )
}

/// Unloads our module. What the last test left may take a moment to go.
const UNLOAD: &str = "for _ in $(seq 100); do
  [ ! -e /sys/module/vmfunc_view ] || rmmod vmfunc_view 2>/dev/null && break
  usleep 100000
done
[ ! -e /sys/module/vmfunc_view ] || rmmod vmfunc_view";

/// Loads KVM's module again, as ours wants it. Without APICv, as [`tools`]: one of the VMs has them, too.
const NOT_NESTED: &str =
    "rmmod kvm_intel && insmod /zs/modules/kvm_intel.ko nested=0 enable_apicv=0";

/// The tests of the command line with QEMU, which has KVM's interrupt controllers. Without APICv: docs/rigs.md, limits.
fn tools() -> String {
    format!(
        "view-tools --module /zs/vmfunc_view.ko --kvm /zs/modules/kvm_intel.ko --kvm-parameters enable_apicv=0
code=$?
{UNLOAD} && exit $code"
    )
}

/// Somewhere to put memory that is reclaimed, and the groups whose memory that is.
const SWAP: &str = "set -e
echo 128M > /sys/block/zram0/disksize
mkswap /dev/zram0
swapon /dev/zram0
mount -t cgroup2 none /sys/fs/cgroup";

/// What protected windows stand on, that our modules load there, and the windows.
pub(super) fn bochs(session: &Session, results: &mut Results) -> Result<()> {
    let programs = userspace::build(session)?;
    let modules = session.modules(Kind::Stock)?;
    let place = session.place()?;
    let transcript = Bochs {
        name: "bochs",
        kernel: session.kernel(Kind::Stock)?,
        model: Model::SkylakeX,
        cpus: 1,
        modules: &["kvm_intel", "msr", "zram"],
        overlay: Overlay::new()
            .file("/zs/migdirty.ko", modules.path("migdirty")?)
            .file("/zs/vmfunc_view.ko", modules.path("vmfunc_view")?)
            .file("/zs/bin/vmfunc-views", &programs.path("vmfunc-views"))
            .job("vmx", &[0x48b, 0x491].map(read_msr).join("\n"))
            .job("kvm", "set -e; test -c /dev/kvm; for p in ept nested; do echo $p $(cat /sys/module/kvm_intel/parameters/$p); done")
            .job("migdirty", "set -e; insmod /zs/migdirty.ko; test -c /dev/migdirty; rmmod migdirty")
            .file("/zs/gate_map_test.ko", modules.path("gate_map_test")?)
            .job("gate", "insmod /zs/gate_map_test.ko && rmmod gate_map_test")
            .job("swap", SWAP)
            .job("nested", &views("true", ""))
            .job("views", &views(NOT_NESTED, "--module /zs/vmfunc_view.ko"))
            .layer(image::qemu(place.cache, place.root)?)
            .file("/zs/bin/zeroshift", &programs.path("zeroshift"))
            .file("/zs/bin/view-tools", &programs.path("view-tools"))
            .job("tools", &tools()),
        limit: Duration::from_secs(1800),
    }
    .run(place)?;
    results.check("boots, and the kernel reports nothing", transcript.check());
    results.check(
        "the processor has EPT and EPTP switching",
        succeeded(&transcript, "vmx").and_then(has_vmfunc),
    );
    results.check(
        "kvm_intel runs with EPT",
        succeeded(&transcript, "kvm").and_then(has_ept),
    );
    results.check(
        "migdirty loads without a card",
        succeeded(&transcript, "migdirty").map(drop),
    );
    results.check(
        "a guest's kernel can map the gate executable, and falls out of a view into its abort",
        succeeded(&transcript, "gate").map(drop),
    );
    results.check(
        "memory can be swapped out",
        succeeded(&transcript, "swap").map(drop),
    );
    for job in ["nested", "views", "tools"] {
        results.ktap(&transcript, job);
    }
    Ok(())
}

/// The same processor twice: what is taken away on one is in use on the other.
pub(super) fn two_processors(session: &Session, results: &mut Results) -> Result<()> {
    let boot = Boot {
        name: "bochs-two-processors",
        kind: Kind::Stock,
        model: Model::SkylakeX,
        cpus: 2,
        only: &[
            "two_views",
            "memslots",
            "nx_huge_pages",
            "smm",
            "under_use",
            "removal",
            "discarded",
            "halted",
            "close",
            "late",
            "event",
            "attach_while_running",
            "attach_interrupted",
            "threads",
            "rmmod",
            "vm_ends",
            "killed",
        ],
    };
    boot.run(session, results)
}

/// A processor without mode-based execute control and page-modification logging.
pub(super) fn haswell(session: &Session, results: &mut Results) -> Result<()> {
    let boot = Boot {
        name: "bochs-haswell",
        kind: Kind::Stock,
        model: Model::Haswell,
        cpus: 1,
        only: &[
            "_window",
            "two_views",
            "stopped_in_view",
            "no_way",
            "fetch_in_view",
            "ring3",
            "nmis",
            "gate_calls",
            "gate_jump",
            "memslots",
            "dirty_log",
            "discarded",
        ],
    };
    boot.run(session, results)
}

/// Where a silent mistake becomes a report: a wrong order of locks, memory that is used after its end, memory that
/// nobody frees.
pub(super) fn debug_kernel(session: &Session, results: &mut Results) -> Result<()> {
    let boot = Boot {
        name: "bochs-debug",
        kind: Kind::Debug,
        model: Model::SkylakeX,
        cpus: 1,
        only: &[],
    };
    boot.run(session, results)
}

/// A machine that runs tests of views, and nothing else.
struct Boot {
    name: &'static str,
    kind: Kind,
    model: Model,
    cpus: u32,
    /// Tests whose names contain one of these; all, if there are none.
    only: &'static [&'static str],
}

impl Boot {
    fn run(&self, session: &Session, results: &mut Results) -> Result<()> {
        let programs = userspace::build(session)?;
        let modules = session.modules(self.kind)?;
        let mut arguments = "--module /zs/vmfunc_view.ko".to_owned();
        if !self.only.is_empty() {
            arguments += &format!(" --only {}", self.only.join(","));
        }
        let mut overlay = Overlay::new()
            .file("/zs/vmfunc_view.ko", modules.path("vmfunc_view")?)
            .file("/zs/bin/vmfunc-views", &programs.path("vmfunc-views"))
            .job("processors", &format!("test $(nproc) = {}", self.cpus));
        if self.kind == Kind::Debug {
            overlay = overlay.job("swap", SWAP);
        }
        overlay = overlay.job("views", &views(NOT_NESTED, &arguments));
        if self.kind == Kind::Debug {
            overlay = overlay.job("leaks", LEAK_SCAN);
        }
        let transcript = Bochs {
            name: self.name,
            kernel: session.kernel(self.kind)?,
            model: self.model,
            cpus: self.cpus,
            modules: &["kvm_intel"],
            overlay,
            // On the debug kernel all of it takes more than half an hour beside two other machines.
            limit: Duration::from_secs(5400),
        }
        .run(session.place()?)?;
        results.check("boots, and the kernel reports nothing", transcript.check());
        results.check(
            "all processors run",
            succeeded(&transcript, "processors").map(drop),
        );
        results.ktap(&transcript, "views");
        if self.kind == Kind::Debug {
            results.check(
                "memory can be swapped out",
                succeeded(&transcript, "swap").map(drop),
            );
            results.check("nothing leaks", succeeded(&transcript, "leaks").map(drop));
        }
        Ok(())
    }
}

/// A script that prints a model-specific register. (/proc/cpuinfo cannot be asked: it looks for the VM
/// functions in the upper half of IA32_VMX_VMFUNC, which is zero.)
fn read_msr(number: u32) -> String {
    format!("dd if=/dev/cpu/0/msr bs=8 count=1 skip={number} iflag=skip_bytes 2>/dev/null | od -An -t x8")
}

/// IA32_VMX_PROCBASED_CTLS2: bit 32 + 13 allows "enable VM functions". IA32_VMX_VMFUNC: bit 0 is EPTP
/// switching. (Intel SDM volume 3, appendix A.3.3 and A.11.)
fn has_vmfunc(job: &Job) -> Result<()> {
    let mut values = job
        .lines
        .iter()
        .filter_map(|l| u64::from_str_radix(l.trim(), 16).ok());
    let (controls, functions) = (values.next().unwrap_or(0), values.next().unwrap_or(0));
    ensure!(
        controls >> 45 & 1 == 1,
        "VM functions are not allowed: {:?}",
        job.lines
    );
    ensure!(functions & 1 == 1, "no EPTP switching: {:?}", job.lines);
    Ok(())
}

fn has_ept(job: &Job) -> Result<()> {
    ensure!(
        job.lines.iter().any(|l| l == "ept Y"),
        "EPT is off: {:?}",
        job.lines
    );
    Ok(())
}
