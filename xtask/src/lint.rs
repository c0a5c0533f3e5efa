// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Formatting, lints and licence headers. The kernel's own lints run with every module build (CLIPPY=1).

use std::fs;
use std::path::Path;

use anyhow::{bail, Context as _, Result};

use crate::command;
use crate::session::Session;

/// Runs all of them.
pub(crate) fn run(session: &Session) -> Result<()> {
    let files = tracked_files(&session.repo)?;
    let rust: Vec<&String> = files.iter().filter(|f| f.ends_with(".rs")).collect();
    let mut rustfmt = command::command("rustfmt");
    rustfmt
        .current_dir(&session.repo)
        .args(["--check", "--edition", "2021"])
        .args(&rust);
    command::run(
        "checking the format of every Rust file",
        &session.cache.log("rustfmt"),
        rustfmt,
    )?;
    let mut clippy = command::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    clippy.current_dir(&session.repo);
    clippy.args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    command::run("clippy", &session.cache.log("clippy"), clippy)?;
    licences(&session.repo, &files)
}

fn tracked_files(repo: &Path) -> Result<Vec<String>> {
    let mut git = command::command("git");
    git.current_dir(repo).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let names = command::output(git)?;
    Ok(names
        .split('\0')
        .filter(|n| !n.is_empty() && repo.join(n).is_file())
        .map(str::to_owned)
        .collect())
}

/// Every source file says its licence, and every licence that is named has its text in LICENSES/.
fn licences(repo: &Path, files: &[String]) -> Result<()> {
    let mut wrong = Vec::new();
    for file in files.iter().filter(|f| needs_header(f)) {
        let text = fs::read_to_string(repo.join(file)).with_context(|| format!("read {file}"))?;
        let header = text
            .lines()
            .take(3)
            .find_map(|l| l.split_once("SPDX-License-Identifier: "));
        let Some((_, expression)) = header else {
            wrong.push(format!(
                "{file}: no SPDX-License-Identifier in its first lines"
            ));
            continue;
        };
        let expression = expression.trim_end_matches("*/").trim();
        let names = expression
            .split(' ')
            .filter(|w| !matches!(*w, "OR" | "AND" | "WITH"));
        for name in names.map(|n| n.trim_matches(['(', ')'])) {
            if !repo.join(format!("LICENSES/{name}.txt")).is_file() {
                wrong.push(format!("{file}: LICENSES/ has no text of {name}"));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("licence headers:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn needs_header(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    let kinds = [".rs", ".c", ".h", ".S", ".toml", ".config", ".sh"];
    (kinds.iter().any(|k| name.ends_with(k)) || matches!(name, "Kbuild" | "init" | "run"))
        && !matches!(name, "Cargo.lock")
}

#[cfg(test)]
mod tests {
    use super::needs_header;

    #[test]
    fn sources_need_a_header_and_prose_does_not() {
        assert!(
            needs_header("kmod-migdirty/Kbuild")
                && needs_header("a/b.rs")
                && needs_header(".ci/run")
        );
        assert!(!needs_header("README.md") && !needs_header("Cargo.lock"));
    }
}
