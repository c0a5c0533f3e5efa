// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Building the kernel modules against a kernel tree, with the kernel's own lints as errors.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::buildroot::{BuildRoot, Network};
use crate::cache::Cache;
use crate::command;
use crate::kernel::{self, Tree};

/// The modules that this checkout builds: folder and object, each after those whose symbols it needs.
const MODULES: [(&str, &str); 4] = [
    ("kmod-migdirty", "migdirty.ko"),
    ("vfio-variant", "zeroshift_vfio_pci.ko"),
    ("kmod-vmfunc", "vmfunc_view.ko"),
    ("kmod-vmfunc", "gate_map_test.ko"),
];

/// Built modules of one kernel.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    files: Vec<PathBuf>,
}

impl Modules {
    /// Path of the module `name` (without `.ko`).
    pub(crate) fn path(&self, name: &str) -> Result<&Path> {
        self.files
            .iter()
            .find(|f| f.file_stem().is_some_and(|s| s == name))
            .map(PathBuf::as_path)
            .with_context(|| format!("no module {name} is built"))
    }

    /// All of them.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// Builds every module for `tree`; what is up to date stays.
pub(crate) fn build(cache: &Cache, root: &BuildRoot, repo: &Path, tree: &Tree) -> Result<Modules> {
    // Two checkouts with one cache must not share objects: make compares times, not contents.
    let checkout = crate::cache::Key::of([
        ("repo", repo.as_os_str().as_encoded_bytes()),
        ("tree", tree.id.as_bytes()),
    ]);
    let name = format!("modules-{}", checkout.as_str());
    let _lock = cache.lock(&name)?;
    let mut files: Vec<PathBuf> = Vec::new();
    for (folder, object) in MODULES {
        let out = cache.dir().join(&name).join(folder);
        fs::create_dir_all(&out)?;
        let shown: Vec<&Path> = tree.folders.iter().map(PathBuf::as_path).collect();
        let mut make = root.command_with("make", &shown, Network::None);
        make.args(["-s", "ARCH=x86", "-C"]).arg(&tree.dir);
        make.arg(format!("M={}", repo.join(folder).display()))
            .arg(format!("MO={}", out.display()));
        make.arg(format!("-j{}", kernel::jobs()))
            .args(kernel::compiler_arguments(tree.llvm));
        let symbols: Vec<String> = files
            .iter()
            .map(|file| file.with_file_name("Module.symvers").display().to_string())
            .collect();
        make.arg(format!("KBUILD_EXTRA_SYMBOLS={}", symbols.join(" ")));
        make.args([
            "CLIPPY=1",
            "KRUSTFLAGS=-Dwarnings",
            "KCFLAGS=-Werror",
            "modules",
        ]);
        command::run(
            &format!("building {object} for {}", tree.release),
            &cache.log(&format!("{object}-{}", tree.release)),
            make,
        )?;
        files.push(out.join(object));
    }
    Ok(Modules { files })
}
