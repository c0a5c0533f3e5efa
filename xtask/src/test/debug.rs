// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `debug`, where a silent mistake becomes a report: the scan for leaks with which its scenarios end, and planted
//! bugs, so that we know a report would be noticed.

use std::time::Duration;

use anyhow::{ensure, Result};

use super::Results;
use crate::kernel::Kind;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;

/// A leak is reported by the second scan that sees it unchanged, if it is older than five seconds when that scan
/// starts. (The one place where time is what is waited for: kmemleak offers no event.)
pub(super) const LEAK_SCAN: &str = "set -e
sleep 6
for i in 1 2 3; do echo scan > /sys/kernel/debug/kmemleak; done
cat /sys/kernel/debug/kmemleak
! grep -q . /sys/kernel/debug/kmemleak";

/// One boot per bug: a report may end the machine.
pub(super) fn planted(session: &Session, results: &mut Results) -> Result<()> {
    let crash = |bug: &str| format!("echo {bug} > /sys/kernel/debug/provoke-crash/DIRECT");
    for (name, module, script, report) in [
        ("a warning", "lkdtm", crash("WARNING"), "lkdtm_WARNING"),
        (
            "a use after free",
            "lkdtm",
            crash("READ_AFTER_FREE"),
            "KASAN: slab-use-after-free in lkdtm_",
        ),
        ("an oops", "lkdtm", crash("EXCEPTION"), "Oops: "),
        (
            "a leak",
            "kmemleak_test",
            LEAK_SCAN.to_owned(),
            "new suspected memory leaks",
        ),
    ] {
        let outcome = plant(session, name, module, &script, report);
        results.check(&format!("{name} is reported and fails the run"), outcome);
    }
    Ok(())
}

fn plant(session: &Session, name: &str, module: &str, script: &str, report: &str) -> Result<()> {
    let transcript = L1 {
        name: &format!("planted-{}", name.replace(' ', "-")),
        kernel: session.kernel(Kind::Debug)?,
        iommu: Iommu::Vtd,
        functions: Vec::new(),
        memory_mib: 1024,
        modules: &[module],
        nested: false,
        peers: false,
        overlay: Overlay::new().job("plant", script),
        limit: Duration::from_secs(600),
    }
    .run(session.place()?)?;
    transcript.check_planted(report)?;
    ensure!(transcript.check().is_err(), "a run with {name} passed");
    Ok(())
}
