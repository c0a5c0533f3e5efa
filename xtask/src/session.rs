// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One run of xtask: what it has found or made so far, each thing at most once. Two threads that want the same thing wait
//! for each other at its lock in the cache.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, Result};

use crate::buildroot::BuildRoot;
use crate::cache::Cache;
use crate::kernel::{Kernel, Kind};
use crate::machine;
use crate::modules::{self, Modules};
use crate::rig::l1::Place;

/// See the module.
pub(crate) struct Session {
    /// The cache folder.
    pub(crate) cache: Cache,
    /// The checkout.
    pub(crate) repo: PathBuf,
    mirror: Option<String>,
    root: OnceLock<BuildRoot>,
    kernels: [OnceLock<Kernel>; 3],
    modules: [OnceLock<Modules>; 3],
}

impl Session {
    /// A run that has done nothing yet.
    pub(crate) fn new(cache: Cache) -> Result<Self> {
        Self::with_mirror(cache, None)
    }

    /// The same with a mirror that the user named.
    pub(crate) fn with_mirror(cache: Cache, mirror: Option<String>) -> Result<Self> {
        // Of this run, as cargo says: what was known when this was built may have moved, or be another checkout
        // with the same target folder.
        let here = std::env::var_os("CARGO_MANIFEST_DIR");
        let here = here.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let repo = Path::new(&here)
            .parent()
            .context("xtask stands in the checkout")?;
        let repo = repo
            .canonicalize()
            .with_context(|| format!("open the checkout {}", repo.display()))?;
        Ok(Self {
            cache,
            repo,
            mirror,
            root: OnceLock::new(),
            kernels: Default::default(),
            modules: Default::default(),
        })
    }

    /// The build root.
    pub(crate) fn root(&self) -> Result<&BuildRoot> {
        get_or_make(&self.root, || {
            machine::check_root()?;
            BuildRoot::get(&self.cache, &self.repo, self.mirror.as_deref())
        })
    }

    /// A kernel.
    pub(crate) fn kernel(&self, kind: Kind) -> Result<&Kernel> {
        get_or_make(&self.kernels[kind as usize], || {
            Kernel::get(&self.cache, self.root()?, &self.repo, kind)
        })
    }

    /// The modules of a kernel.
    pub(crate) fn modules(&self, kind: Kind) -> Result<Modules> {
        let made = get_or_make(&self.modules[kind as usize], || {
            modules::build(
                &self.cache,
                self.root()?,
                &self.repo,
                &self.kernel(kind)?.tree,
            )
        })?;
        Ok(made.clone())
    }

    /// Where rigs work.
    pub(crate) fn place(&self) -> Result<Place<'_>> {
        Ok(Place {
            cache: &self.cache,
            root: self.root()?,
            repo: &self.repo,
        })
    }
}

fn get_or_make<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if cell.get().is_none() {
        let value = make()?;
        return Ok(cell.get_or_init(|| value));
    }
    cell.get().context("filled above")
}
