// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `logic`: what needs no machine but this one.

use anyhow::{ensure, Result};

use super::Results;
use crate::command::{self, Failed};
use crate::ktap;
use crate::session::Session;

/// Random cases of each property in level `soak`; a default run has 256.
const CASES: &str = "20000";

/// `cargo test` of the workspace.
pub(super) fn workspace(session: &Session, results: &mut Results) -> Result<()> {
    cargo_test(session, results, &[])
}

/// The same with many more cases of each property.
pub(super) fn properties(session: &Session, results: &mut Results) -> Result<()> {
    cargo_test(session, results, &[("PROPTEST_CASES", CASES)])
}

fn cargo_test(
    session: &Session,
    results: &mut Results,
    environment: &[(&str, &str)],
) -> Result<()> {
    let log = session.cache.log("cargo-test");
    let mut cargo = command::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&session.repo)
        .envs(environment.iter().copied())
        .args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    let outcome = command::run_and_read("cargo test", &log, cargo);
    let text = match &outcome {
        Ok(text) => text,
        Err(e) => e.downcast_ref::<Failed>().map_or("", |f| f.text.as_str()),
    };
    let counts = ktap::parse_cargo(text);
    results.counted(counts);
    ensure!(
        counts.skipped == 0,
        "{} tests are #[ignore]d: nothing runs them",
        counts.skipped
    );
    // A crate that does not compile counts no test, and must fail all the same.
    match outcome {
        Err(e) if counts.failed > 0 => crate::ui::say(format!("    {e:#}")),
        Err(e) => return Err(e),
        Ok(_) => {}
    }
    Ok(())
}
