// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `logic`: what needs no machine but this one.

use anyhow::Result;

use super::Results;
use crate::command;
use crate::ktap;
use crate::session::Session;

/// `cargo test` of the workspace.
pub(super) fn workspace(session: &Session, results: &mut Results) -> Result<()> {
    let log = session.cache.log("cargo-test");
    let mut cargo = command::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&session.repo)
        .args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    let outcome = command::run("cargo test", &log, cargo);
    let counts = ktap::parse_cargo(&std::fs::read_to_string(&log)?);
    results.counted(counts);
    // A crate that does not compile counts no test, and must fail all the same.
    if counts.failed == 0 {
        outcome?;
    } else if let Err(e) = outcome {
        eprintln!("    {e:#}");
    }
    Ok(())
}
