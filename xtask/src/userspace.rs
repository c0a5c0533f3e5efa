// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Building the userspace programs, statically linked, so that the same files run here, in an initramfs, and
//! under virtme-ng.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Result};

use crate::command;
use crate::session::Session;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The built programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Path of the program `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The programs that people run.
    pub(crate) fn all(&self) -> Vec<PathBuf> {
        ["zeroshift", "zerocard"].map(|p| self.path(p)).to_vec()
    }
}

/// Builds the programs of the workspace; cargo leaves alone what is up to date.
pub(crate) fn build(session: &Session) -> Result<Programs> {
    let dir = session.repo.join("target/static");
    let mut cargo: Command =
        command::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&session.repo);
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&dir);
    cargo.args([
        "--package",
        "zeroshift",
        "--package",
        "zerocard",
        "--package",
        "zeroshift-bench",
        "--package",
        "zeroshift-rig",
        "--package",
        "zeroshift-tests",
    ]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command::run("building userspace", &session.cache.log("userspace"), cargo)?;
    let programs = Programs {
        dir: dir.join(TARGET).join("release"),
    };
    for program in programs.all() {
        check_static(&program)?;
    }
    Ok(programs)
}

/// A dynamic program would fail in the initramfs with nothing but "not found".
fn check_static(program: &Path) -> Result<()> {
    let bytes = std::fs::read(program)?;
    if bytes.windows(15).any(|w| w == b"/lib64/ld-linux") {
        bail!(
            "{} is dynamically linked\n=> the C library's static archive is missing: apt-get install libc6-dev",
            program.display()
        );
    }
    Ok(())
}
