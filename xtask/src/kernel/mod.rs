// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernels that the rigs boot and that modules are built for.
//!
//! - *stock*: Debian's own image and modules, with the Rust metadata that its headers lack rebuilt;
//! - *test*: the same source with `ci/kernel/test.config`;
//! - *debug*: that plus `ci/kernel/debug.config`, built by clang (KASAN and Rust need it).

mod config;
mod metadata;
mod source;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::buildroot::BuildRoot;
use crate::cache::{Cache, Key, Leftover};
use crate::command;

pub(crate) use tree::{compiler_arguments, Tree};

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Debian's stock kernel, with Rust metadata rebuilt and checked.
    Stock,
    /// The test kernel: small, with IOMMUFD and dirty logging.
    Test,
    /// The test kernel with KASAN, UBSAN, lockdep, kmemleak and fault injection.
    Debug,
}

impl Kind {
    /// Every kernel.
    pub(crate) const ALL: [Self; 3] = [Self::Stock, Self::Test, Self::Debug];

    /// Its name on the command line and in paths.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Test => "test",
            Self::Debug => "debug",
        }
    }
}

/// A kernel that can be booted and built for.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Which one.
    pub(crate) kind: Kind,
    /// Its release, as `uname -r` will say.
    pub(crate) release: String,
    /// What a boot loader loads.
    pub(crate) image: PathBuf,
    /// `lib/modules/<release>` of its own modules, with `modules.dep`.
    pub(crate) modules: PathBuf,
    /// What modules are built against.
    pub(crate) tree: Tree,
}

impl Kernel {
    /// The kernel of this kind, built when it is not there yet.
    pub(crate) fn get(cache: &Cache, root: &BuildRoot, repo: &Path, kind: Kind) -> Result<Self> {
        match kind {
            Kind::Stock => Self::stock(cache, root),
            Kind::Test | Kind::Debug => Self::own(cache, root, repo, kind),
        }
    }

    fn stock(cache: &Cache, root: &BuildRoot) -> Result<Self> {
        let release = root.facts.release.clone();
        let modules = root.path(&format!("usr/lib/modules/{release}"));
        let image = ["vmlinuz", "vmlinuz.unsigned"]
            .map(|n| modules.join(n))
            .into_iter()
            .find(|p| p.is_file())
            .with_context(|| format!("no kernel image in {}", modules.display()))?;
        let headers = format!("/usr/src/linux-headers-{release}");
        let tree = metadata::rebuild(cache, root, &root.path(&headers), &release)?;
        Ok(Self {
            kind: Kind::Stock,
            release,
            image,
            modules,
            tree,
        })
    }

    fn own(cache: &Cache, root: &BuildRoot, repo: &Path, kind: Kind) -> Result<Self> {
        let source = source::unpack(cache, root)?;
        let fragment = config::fragment(repo, kind)?;
        let llvm = kind == Kind::Debug;
        let key = Key::of([
            ("root", root.id.as_bytes()),
            ("release", root.facts.release.as_bytes()),
            // Build trees contain their own path and that of the source.
            ("cache", cache.dir().as_os_str().as_encoded_bytes()),
            ("fragment", fragment.as_bytes()),
            ("llvm", &[u8::from(llvm)]),
            ("recipe", b"1".as_slice()),
        ]);
        let dir = cache.artefact(
            &format!("kernel-{}", kind.name()),
            &key,
            Leftover::Continue,
            |dir| {
                let make = |target: &[&str]| {
                    let mut c = root.command("make");
                    c.args(["-s", "ARCH=x86", "-C"])
                        .arg(&source)
                        .arg(format!("O={}", dir.display()));
                    c.arg(format!("-j{}", jobs()))
                        .args(tree::compiler_arguments(llvm))
                        .args(target);
                    c
                };
                let log = |step: &str| cache.log(&format!("kernel-{}-{step}", kind.name()));
                let fragment_path = dir.join("fragment.config");
                // A new .config makes make look at everything again: keep the one of an interrupted run.
                if fs::read_to_string(&fragment_path).ok().as_deref() != Some(&fragment)
                    || !dir.join(".config").is_file()
                {
                    let mut c = make(&["allnoconfig"]);
                    fs::write(dir.join("wanted.config"), &fragment)?;
                    c.arg(format!(
                        "KCONFIG_ALLCONFIG={}",
                        dir.join("wanted.config").display()
                    ));
                    command::run(
                        &format!("configuring the {} kernel", kind.name()),
                        &log("config"),
                        c,
                    )?;
                    config::check(&fragment, &fs::read_to_string(dir.join(".config"))?)?;
                    fs::rename(dir.join("wanted.config"), &fragment_path)?;
                }
                command::run(
                    &format!("building the {} kernel", kind.name()),
                    &log("build"),
                    make(&["bzImage", "modules"]),
                )?;
                let mut install = make(&["modules_install"]);
                install
                    .arg(format!(
                        "INSTALL_MOD_PATH={}",
                        dir.join("install").display()
                    ))
                    .arg("INSTALL_MOD_STRIP=1");
                command::run(
                    &format!("collecting the modules of the {} kernel", kind.name()),
                    &log("modules"),
                    install,
                )
            },
        )?;
        let release = fs::read_to_string(dir.join("include/config/kernel.release"))?
            .trim()
            .to_owned();
        Ok(Self {
            kind,
            image: dir.join("arch/x86/boot/bzImage"),
            modules: dir.join("install/lib/modules").join(&release),
            tree: Tree::own(dir, &release, llvm, key.as_str()),
            release,
        })
    }
}

/// How many jobs a build may run.
pub(crate) fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
