// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Benches, in groups. The parts that they measure are not built yet, and this says so.

use std::process::ExitCode;

use anyhow::{bail, Result};

/// Groups that are planned, and what has to be built first.
const PLANNED: [(&str, &str); 3] = [
    ("card", "zerocard's I/O controllers"),
    (
        "migration",
        "the back end's migration commands and the VFIO front end",
    ),
    ("view", "EPT alternate views"),
];

/// Runs a group.
pub(crate) fn run(group: Option<&str>) -> Result<ExitCode> {
    if let Some(name) = group {
        if !PLANNED.iter().any(|(g, _)| *g == name) {
            bail!(
                "no bench group {name}\n=> there are: {}",
                PLANNED.map(|(g, _)| g).join(", ")
            );
        }
    }
    for (name, needs) in PLANNED
        .iter()
        .filter(|(g, _)| group.is_none_or(|w| w == *g))
    {
        eprintln!("{name}: not built yet; it measures {needs}");
    }
    Ok(ExitCode::from(2))
}
