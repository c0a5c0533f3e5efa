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

/// What protected windows will stand on, and that our modules load there.
pub(super) fn bochs(session: &Session, results: &mut Results) -> Result<()> {
    let transcript = Bochs {
        name: "bochs",
        kernel: session.kernel(Kind::Stock)?,
        model: Model::SkylakeX,
        modules: &["kvm_intel"],
        overlay: Overlay::new()
            .file("/zs/migdirty.ko", session.modules(Kind::Stock)?.path("migdirty")?)
            .job("vmx", "grep -m1 '^vmx flags' /proc/cpuinfo")
            .job("kvm", "set -e; test -c /dev/kvm; for p in ept nested; do echo $p $(cat /sys/module/kvm_intel/parameters/$p); done")
            .job("migdirty", "set -e; insmod /zs/migdirty.ko; test -c /dev/migdirty; rmmod migdirty"),
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
    Ok(())
}

fn has_vmfunc(job: &Job) -> Result<()> {
    for flag in ["ept", "eptp_switching"] {
        ensure!(
            job.lines
                .iter()
                .any(|l| l.split_whitespace().any(|f| f == flag)),
            "no {flag} in {:?}",
            job.lines
        );
    }
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
