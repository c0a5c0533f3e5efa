// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `vmfunc`: the stock kernel on an Intel processor in Bochs.

use std::time::Duration;

use anyhow::{ensure, Result};

use super::{succeeded, Results};
use crate::kernel::Kind;
use crate::rig::bochs::{Bochs, Model};
use crate::rig::console::Job;
use crate::rig::image::Overlay;
use crate::session::Session;
use crate::userspace;

/// The tests of views, after `before`, with the program's `arguments`.
fn views(before: &str, arguments: &str) -> String {
    format!(
        "{{ {before} && insmod /zs/vmfunc_view.ko; }} || exit 1
vmfunc-views {arguments}
code=$?
rmmod vmfunc_view && exit $code"
    )
}

/// Loads KVM's module again, as ours wants it.
const NOT_NESTED: &str = "rmmod kvm_intel && insmod /zs/modules/kvm_intel.ko nested=0";

/// What protected windows stand on, that our modules load there, and the windows.
pub(super) fn bochs(session: &Session, results: &mut Results) -> Result<()> {
    let programs = userspace::build(session)?;
    let modules = session.modules(Kind::Stock)?;
    let transcript = Bochs {
        name: "bochs",
        kernel: session.kernel(Kind::Stock)?,
        model: Model::SkylakeX,
        modules: &["kvm_intel", "msr"],
        overlay: Overlay::new()
            .file("/zs/migdirty.ko", modules.path("migdirty")?)
            .file("/zs/vmfunc_view.ko", modules.path("vmfunc_view")?)
            .file("/zs/bin/vmfunc-views", &programs.path("vmfunc-views"))
            .job("vmx", &[0x48b, 0x491].map(read_msr).join("\n"))
            .job("kvm", "set -e; test -c /dev/kvm; for p in ept nested; do echo $p $(cat /sys/module/kvm_intel/parameters/$p); done")
            .job("migdirty", "set -e; insmod /zs/migdirty.ko; test -c /dev/migdirty; rmmod migdirty")
            .file("/zs/gate_map_test.ko", modules.path("gate_map_test")?)
            .job("gate", "insmod /zs/gate_map_test.ko && rmmod gate_map_test")
            .job("nested", &views("true", ""))
            .job("views", &views(NOT_NESTED, "--module /zs/vmfunc_view.ko")),
        limit: Duration::from_secs(900),
    }
    .run(session.place()?)?;
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
    for job in ["nested", "views"] {
        results.ktap(&transcript, job);
    }
    Ok(())
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
