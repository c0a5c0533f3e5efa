// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rust metadata for a kernel whose headers ship none.
//!
//! Debian's kernel has Rust, but its headers lack the compiled `core`, `kernel` and `bindings` crates that a
//! Rust module is built against. The same compiler makes the same crates from the same source and
//! configuration. "The same" is checked, not hoped: every Rust symbol that the rebuilt crates export must be one
//! that the shipped kernel exports (their names contain a hash of the compiler and the crate).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{bail, Context as _, Result};

use super::{jobs, source, tree, Tree};
use crate::buildroot::BuildRoot;
use crate::cache::{Cache, Key, Leftover};
use crate::command;

const CRATES: [&str; 4] = ["core", "kernel", "bindings", "helpers"];

/// A tree with metadata for the headers in `headers`, of kernel `release`.
pub(crate) fn rebuild(
    cache: &Cache,
    root: &BuildRoot,
    headers: &Path,
    release: &str,
) -> Result<Tree> {
    let read = |name: &str| {
        let path = headers.join(name);
        fs::read(&path).with_context(|| {
            format!(
                "read {} (are the headers of kernel {release} complete?)",
                path.display()
            )
        })
    };
    let (config, symvers) = (read(".config")?, read("Module.symvers")?);
    let config_text = String::from_utf8_lossy(&config).into_owned();
    let symvers_text = String::from_utf8_lossy(&symvers).into_owned();
    let llvm = config_text.contains("CONFIG_CC_IS_CLANG=y");
    if !config_text.contains("CONFIG_RUST=y") {
        bail!("kernel {release} is built without CONFIG_RUST: Rust modules cannot be loaded into it\n=> use a kernel with CONFIG_RUST=y (Debian 13's backports have one)");
    }
    let source = source::unpack(cache, root)?;
    let version = source::version(&source)?;
    if !is_of_version(release, &version) {
        bail!(
            "kernel {release} is not of version {version}, whose source is at hand\n=> install the newest kernel of \
             that series (if that is what it is: cargo xtask clean, and set up again), or build against a tree that \
             has its Rust metadata"
        );
    }
    let key = Key::of([
        ("root", root.id.as_bytes()),
        // Build trees contain their own path and that of the source.
        ("cache", cache.dir().as_os_str().as_encoded_bytes()),
        ("version", version.as_bytes()),
        ("release", release.as_bytes()),
        ("config", &config),
        ("symvers", &symvers),
        ("recipe", b"1".as_slice()),
    ]);
    let dir = cache.artefact("metadata", &key, Leftover::Continue, |dir| {
        fs::write(dir.join(".config"), &config)?;
        let make = |target: &str| {
            let mut c = root.command("make");
            c.args(["-s", "ARCH=x86", "-C"])
                .arg(&source)
                .arg(format!("O={}", dir.display()));
            c.arg(format!("-j{}", jobs()))
                .args(tree::compiler_arguments(llvm));
            c.arg(format!("LOCALVERSION={}", &release[version.len()..]))
                .arg(target);
            c
        };
        let log = |step: &str| cache.log(&format!("metadata-{step}"));
        command::run(
            &format!("configuring for kernel {release}"),
            &log("config"),
            make("olddefconfig"),
        )?;
        check_compilers(
            &config_text,
            &fs::read_to_string(dir.join(".config"))?,
            release,
        )?;
        command::run(
            &format!("rebuilding the Rust metadata of kernel {release}"),
            &log("prepare"),
            make("prepare"),
        )?;
        command::run(
            &format!("preparing to build modules for {release}"),
            &log("modules"),
            make("modules_prepare"),
        )?;
        let made = fs::read_to_string(dir.join("include/config/kernel.release"))?;
        if made.trim() != release {
            bail!(
                "the rebuilt tree calls itself {}, not {release}",
                made.trim()
            );
        }
        let exports = |name: &str| {
            let path = dir.join(format!("rust/exports_{name}_generated.h"));
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let mut all = Vec::new();
        for name in CRATES {
            all.push((name, exports(name)?));
        }
        let checked = check_symbols(&all, &symvers_text, &compilers(&config_text))?;
        fs::write(dir.join("symbols-checked"), format!("{checked}\n"))?;
        Ok(fs::write(dir.join("Module.symvers"), &symvers)?)
    })?;
    Ok(Tree::own(dir, release, llvm, key.as_str()))
}

/// Whether `7.2.12+deb13-amd64` is of version 7.2.12; it is not of 7.2.1.
fn is_of_version(release: &str, version: &str) -> bool {
    let rest = release.strip_prefix(version);
    rest.is_some_and(|r| !r.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
}

/// The compilers that a configuration was made with.
fn compilers(config: &str) -> String {
    [
        "CONFIG_RUSTC_VERSION_TEXT=",
        "CONFIG_BINDGEN_VERSION_TEXT=",
        "CONFIG_CC_VERSION_TEXT=",
    ]
    .iter()
    .filter_map(|k| config.lines().find_map(|l| l.strip_prefix(k)))
    .map(|v| v.trim_matches('"'))
    .collect::<Vec<_>>()
    .join(", ")
}

/// Refuses when the compilers here are not those of the kernel: the symbols would differ, or worse, not differ.
fn check_compilers(theirs: &str, ours: &str, release: &str) -> Result<()> {
    let (theirs, ours) = (compilers(theirs), compilers(ours));
    if theirs != ours {
        bail!("wrong compiler for kernel {release}\n   it was built with:  {theirs}\n   the build root has: {ours}\n=> {}", wrong_compiler_remedy());
    }
    Ok(())
}

fn wrong_compiler_remedy() -> &'static str {
    "remove the cache (cargo xtask clean) and set up again, so that the build root and the kernel come from the same state of the archive"
}

/// Checks that each symbol that the rebuilt crates export is exported by the kernel; gives their number.
fn check_symbols(exports: &[(&str, String)], symvers: &str, compilers: &str) -> Result<usize> {
    let stock: BTreeSet<&str> = symvers
        .lines()
        .filter_map(|l| l.split('\t').nth(1))
        .collect();
    let mut checked = 0;
    for (name, text) in exports {
        let ours: Vec<&str> = text
            .lines()
            .filter_map(|l| {
                l.trim()
                    .strip_prefix("EXPORT_SYMBOL_RUST_GPL(")?
                    .split(')')
                    .next()
            })
            .collect();
        let missing: Vec<&&str> = ours.iter().filter(|s| !stock.contains(**s)).collect();
        if ours.is_empty() || !missing.is_empty() {
            let first = missing.first().map_or("none was exported at all", |s| **s);
            bail!(
                "Rust metadata does not fit the kernel: crate {name}: {} of {} symbols differ, first: {first}\n   compilers of both sides: {compilers}\n=> {}",
                missing.len(),
                ours.len(),
                wrong_compiler_remedy()
            );
        }
        checked += ours.len();
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMVERS: &str =
        "0x0\t_Ra1\tvmlinux\tEXPORT_SYMBOL_GPL\t\n0x0\t_Ra2\tvmlinux\tEXPORT_SYMBOL_GPL\t\n";

    #[test]
    fn equal_symbols_pass_and_are_counted() {
        let exports = [(
            "core",
            "EXPORT_SYMBOL_RUST_GPL(_Ra1);\nEXPORT_SYMBOL_RUST_GPL(_Ra2);\n".to_owned(),
        )];
        assert_eq!(check_symbols(&exports, SYMVERS, "").unwrap(), 2);
    }

    #[test]
    fn one_different_symbol_is_named_with_the_compilers() {
        let exports = [(
            "core",
            "EXPORT_SYMBOL_RUST_GPL(_Ra1);\nEXPORT_SYMBOL_RUST_GPL(_Rb2);\n".to_owned(),
        )];
        let err = check_symbols(&exports, SYMVERS, "rustc 1.85.1")
            .unwrap_err()
            .to_string();
        assert!(
            err.contains("_Rb2") && err.contains("1 of 2") && err.contains("rustc 1.85.1"),
            "{err}"
        );
    }

    #[test]
    fn a_version_is_no_mere_prefix() {
        assert!(is_of_version("7.2.12+deb13-amd64", "7.2.12") && is_of_version("7.2.12", "7.2.12"));
        assert!(!is_of_version("7.2.12+deb13-amd64", "7.2.1") && !is_of_version("7.2.1", "7.2.12"));
    }

    #[test]
    fn no_symbols_at_all_is_no_success() {
        assert!(check_symbols(&[("core", String::new())], SYMVERS, "").is_err());
    }

    #[test]
    fn a_wrong_compiler_names_both() {
        let of = |v: &str| {
            format!("CONFIG_RUSTC_VERSION_TEXT=\"rustc {v}\"\nCONFIG_CC_VERSION_TEXT=\"gcc-14\"\n")
        };
        check_compilers(&of("1.85.1"), &of("1.85.1"), "r").unwrap();
        let err = check_compilers(&of("1.85.1"), &of("1.95.0"), "r")
            .unwrap_err()
            .to_string();
        assert!(
            err.contains("rustc 1.85.1, gcc-14") && err.contains("rustc 1.95.0"),
            "{err}"
        );
    }
}
