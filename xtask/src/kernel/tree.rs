// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A kernel build tree that modules can be built against, whoever made it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context as _, Result};

use super::metadata;
use crate::buildroot::BuildRoot;
use crate::cache::{Cache, Key};
use crate::command;

/// What `make -C` is given for modules.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// The release that modules will carry in their version magic.
    pub(crate) release: String,
    /// Built by clang, so modules must be as well.
    pub(crate) llvm: bool,
    /// Identity for the keys of what is built against it.
    pub(crate) id: String,
    /// Host folders that must be visible in the build root.
    pub(crate) folders: Vec<PathBuf>,
}

/// The compiler arguments of make for a kernel that gcc, or clang, has built.
pub(crate) fn compiler_arguments(llvm: bool) -> Vec<&'static str> {
    if llvm {
        vec!["LLVM=1"]
    } else {
        vec!["CC=x86_64-linux-gnu-gcc-14", "HOSTCC=gcc-14"]
    }
}

impl Tree {
    /// A tree that we made in the cache.
    pub(crate) fn own(dir: PathBuf, release: &str, llvm: bool, id: &str) -> Self {
        Self {
            dir,
            release: release.to_owned(),
            llvm,
            id: id.to_owned(),
            folders: Vec::new(),
        }
    }

    /// The user's own tree (`--kdir`), with Rust metadata or without.
    pub(crate) fn of_user(cache: &Cache, root: &BuildRoot, kdir: &Path) -> Result<Self> {
        let dir = kdir
            .canonicalize()
            .with_context(|| format!("open the kernel tree {}", kdir.display()))?;
        let read = |name: &str| fs::read_to_string(dir.join(name));
        let Ok(config) = read(".config") else {
            bail!(
                "{} is no configured kernel tree (it has no .config)\n=> give the folder of installed headers (/lib/modules/<release>/build) or \
                 the O= folder of a finished build",
                dir.display()
            );
        };
        let release = read("include/config/kernel.release")
            .with_context(|| format!("{} was never built\n=> run make there first", dir.display()))?
            .trim()
            .to_owned();
        if !dir.join("rust/libkernel.rmeta").is_file() {
            return metadata::rebuild(cache, root, &dir, &release);
        }
        check_rustc(root, &config, &release)?;
        let id = Key::of([
            ("kdir", dir.as_os_str().as_encoded_bytes()),
            ("config", config.as_bytes()),
        ]);
        Ok(Self {
            folders: folders_of(&dir),
            llvm: config.contains("CONFIG_CC_IS_CLANG=y"),
            release,
            id: id.as_str().to_owned(),
            dir,
        })
    }
}

/// The tree itself and the source that its Makefile includes.
fn folders_of(dir: &Path) -> Vec<PathBuf> {
    let mut folders = vec![dir.to_owned()];
    let makefile = fs::read_to_string(dir.join("Makefile")).unwrap_or_default();
    let source = makefile
        .lines()
        .filter_map(|l| l.trim().strip_prefix("include "))
        .filter_map(|l| Path::new(l.trim()).parent())
        .find(|p| p.is_absolute() && p.is_dir());
    folders.extend(source.map(Path::to_owned));
    folders
}

fn check_rustc(root: &BuildRoot, config: &str, release: &str) -> Result<()> {
    let mut c = root.command("rustc");
    c.arg("--version");
    let ours = command::output(c)?.trim().to_owned();
    let theirs = config
        .lines()
        .find_map(|l| l.strip_prefix("CONFIG_RUSTC_VERSION_TEXT="))
        .map(|v| v.trim_matches('"'))
        .with_context(|| {
            format!("kernel {release} is built without CONFIG_RUST: Rust modules cannot be built for it")
        })?;
    if ours != theirs {
        bail!(
            "wrong compiler for kernel {release}\n   it was built with:  {theirs}\n   the build root has: {ours}\n=> rebuild that kernel with the \
             build root's compiler, or build against the kernels of `cargo xtask kernel`"
        );
    }
    Ok(())
}
