// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel source that Debian ships for the stock kernel, unpacked once and never built in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::buildroot::BuildRoot;
use crate::cache::{Cache, Key, Leftover};
use crate::command;

/// The unpacked source of the build root's kernel series.
pub(crate) fn unpack(cache: &Cache, root: &BuildRoot) -> Result<PathBuf> {
    let series = &root.facts.series;
    let key = Key::of([
        ("root", root.id.as_bytes()),
        ("release", root.facts.release.as_bytes()),
    ]);
    let dir = cache.artefact("source", &key, Leftover::Remove, |dir| {
        let mut tar = root.command("tar");
        tar.arg("-C").arg(dir).args(["--strip-components=1", "-xf"]);
        tar.arg(format!("/usr/src/linux-source-{series}.tar.xz"));
        command::run(
            &format!("unpacking the source of Linux {series}"),
            &cache.log("source"),
            tar,
        )
    })?;
    Ok(dir)
}

/// The version of a source tree, such as `7.2.12`.
pub(crate) fn version(source: &Path) -> Result<String> {
    let path = source.join("Makefile");
    let makefile = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    parse_version(&makefile).with_context(|| format!("no version in {}", path.display()))
}

fn parse_version(makefile: &str) -> Option<String> {
    let get = |name: &str| {
        makefile
            .lines()
            .filter_map(|l| l.split_once('='))
            .find(|(k, _)| k.trim() == name)
            .map(|(_, v)| v.trim().to_owned())
    };
    Some(format!(
        "{}.{}.{}{}",
        get("VERSION")?,
        get("PATCHLEVEL")?,
        get("SUBLEVEL")?,
        get("EXTRAVERSION")?
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_is_read_from_the_makefile() {
        let makefile = "VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 12\nEXTRAVERSION =\nNAME = x\n";
        assert_eq!(super::parse_version(makefile).as_deref(), Some("7.2.12"));
        assert_eq!(super::parse_version("VERSION = 7\n"), None);
    }
}
