// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Kernel configuration fragments, and the check that Kconfig kept every line of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{bail, Context as _, Result};

use super::Kind;

/// The fragment of this kind of kernel; a later line replaces an earlier one of the same option.
pub(crate) fn fragment(repo: &Path, kind: Kind) -> Result<String> {
    let names: &[&str] = match kind {
        Kind::Stock => &[],
        Kind::Test => &["test"],
        Kind::Debug => &["test", "debug"],
    };
    let mut text = String::new();
    for name in names {
        let path = repo.join(format!("ci/kernel/{name}.config"));
        text += &fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    }
    Ok(merge(&text))
}

fn merge(text: &str) -> String {
    let mut options: Vec<(&str, &str)> = Vec::new();
    for (name, value) in text
        .lines()
        .filter(|l| l.starts_with("CONFIG_"))
        .filter_map(|l| l.split_once('='))
    {
        options.retain(|(n, _)| *n != name);
        options.push((name, value));
    }
    options.iter().map(|(n, v)| format!("{n}={v}\n")).collect()
}

/// Whether the final configuration has every line of the fragment.
pub(crate) fn check(fragment: &str, config: &str) -> Result<()> {
    let have: BTreeSet<&str> = config.lines().collect();
    let lost: Vec<&str> = fragment
        .lines()
        .filter(|l| match l.strip_suffix("=n") {
            Some(name) => {
                have.contains(format!("{name}=y").as_str())
                    || have.contains(format!("{name}=m").as_str())
            }
            None => !have.contains(l),
        })
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    bail!(
        "Kconfig dropped {}\n=> an option was renamed or misses what it depends on: mend ci/kernel/*.config{}",
        lost.join(", "),
        if lost.contains(&"CONFIG_RUST=y") {
            " (CONFIG_RUST goes when rustc, bindgen or rust-src are missing or too old: `make rustavailable` says which)"
        } else {
            ""
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_fragments_win() {
        assert_eq!(
            merge("# c\nCONFIG_A=y\nCONFIG_N=\"x\"\nCONFIG_A=m\n"),
            "CONFIG_N=\"x\"\nCONFIG_A=m\n"
        );
    }

    #[test]
    fn a_dropped_option_is_named() {
        check(
            "CONFIG_A=y\nCONFIG_B=n\n",
            "CONFIG_A=y\n# CONFIG_B is not set\n",
        )
        .unwrap();
        let err = check("CONFIG_A=y\nCONFIG_C=m\n", "CONFIG_A=y\nCONFIG_C=y\n")
            .unwrap_err()
            .to_string();
        assert!(
            err.contains("CONFIG_C=m") && !err.contains("CONFIG_A"),
            "{err}"
        );
        assert!(check("CONFIG_B=n\n", "CONFIG_B=m\n").is_err());
    }
}
