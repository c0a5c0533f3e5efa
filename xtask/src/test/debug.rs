// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `debug`: the kselftests again where a silent mistake becomes a report, and planted bugs, so that we
//! know a report would be noticed.

use std::time::Duration;

use anyhow::{ensure, Result};

use super::{hosts, Results};
use crate::kernel::Kind;
use crate::rig::image::Overlay;
use crate::rig::l1::{Iommu, L1};
use crate::session::Session;

/// The first scan only marks what is young; the second reports what is still unreferenced.
const LEAK_SCAN: &str = "set -e
for i in 1 2; do echo scan > /sys/kernel/debug/kmemleak; done
cat /sys/kernel/debug/kmemleak
! grep -q . /sys/kernel/debug/kmemleak";

/// kselftests, then a scan for leaks.
pub(super) fn migdirty(session: &Session, results: &mut Results) -> Result<()> {
    hosts::under_virtme(session, results, Kind::Debug, LEAK_SCAN)
}

/// One boot per bug: a report may end the machine.
pub(super) fn planted(session: &Session, results: &mut Results) -> Result<()> {
    let kernel = session.kernel(Kind::Debug)?;
    for (name, bug, report) in [
        ("a warning", "WARNING", "WARNING: "),
        ("a use after free", "READ_AFTER_FREE", "KASAN: "),
        ("an oops", "EXCEPTION", "Oops: "),
    ] {
        let outcome = (|| {
            let transcript = L1 {
                name: &format!("planted-{}", bug.to_lowercase()),
                kernel,
                iommu: Iommu::Vtd,
                functions: Vec::new(),
                memory_mib: 1024,
                modules: &["lkdtm"],
                nested: false,
                append: "",
                overlay: Overlay::new().job(
                    "plant",
                    &format!("echo {bug} > /sys/kernel/debug/provoke-crash/DIRECT"),
                ),
                limit: Duration::from_secs(300),
            }
            .run(session.place()?)?;
            transcript.check_planted(report)?;
            ensure!(
                transcript.check().is_err(),
                "a run with a planted {bug} passed"
            );
            Ok(())
        })();
        results.check(&format!("{name} is reported and fails the run"), outcome);
    }
    Ok(())
}
