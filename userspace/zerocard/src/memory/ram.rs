// SPDX-License-Identifier: Apache-2.0 OR MIT

//! RAM files of the VMM, each mapped once however many DMA maps point into it.
//!
//! Owned by `memory`: a VMM maps the same file for every RAM section and, with a virtual IOMMU, for
//! every page the guest maps; a mapping each would exhaust the address space. Files are told apart
//! by device and inode. A mapping goes when its last user goes, so a guest's RAM is not kept alive.
//!
//! A VMM may shrink its own RAM file under us. An access then reaches nothing, and the mapping says
//! so from there on ([`Mapping::revoked`]); a new map of the file gets a new mapping.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::fs::OFlags;

use crate::sys::Mapping;

#[derive(PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    writable: bool,
}

/// The files that are mapped now.
#[derive(Default)]
pub(super) struct RamFiles {
    mappings: HashMap<Identity, Weak<Mapping>>,
    /// Shorter mappings of files that have grown.
    replaced: Vec<Weak<Mapping>>,
}

impl RamFiles {
    /// The mapping of `file`, which reaches at least to `end`. The descriptor is not needed after.
    pub(super) fn open(&mut self, file: &OwnedFd, end: u64) -> io::Result<Arc<Mapping>> {
        let status = rustix::fs::fstat(file)?;
        let mode = rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE;
        let size = u64::try_from(status.st_size).unwrap_or(0);
        if end == 0 || end > size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let identity = Identity {
            device: status.st_dev,
            inode: status.st_ino,
            writable: mode == OFlags::RDWR,
        };
        if let Some(mapping) = self.mappings.get(&identity).and_then(Weak::upgrade) {
            // A file that grew since is mapped anew; maps made before keep the shorter mapping.
            if mapping.len() as u64 >= end && !mapping.revoked() {
                return Ok(mapping);
            }
        }
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mapping = Arc::new(Mapping::new(file.as_fd(), len, identity.writable)?);
        self.mappings.retain(|_, known| known.strong_count() > 0);
        self.replaced.retain(|known| known.strong_count() > 0);
        let known = self.mappings.insert(identity, Arc::downgrade(&mapping));
        self.replaced.extend(known);
        Ok(mapping)
    }

    /// Revokes every mapping that somebody still uses.
    pub(super) fn revoke(&mut self) {
        for mapping in self
            .mappings
            .values()
            .chain(&self.replaced)
            .filter_map(Weak::upgrade)
        {
            mapping.revoke();
        }
    }

    /// Files that somebody still uses.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.mappings
            .values()
            .filter(|known| known.strong_count() > 0)
            .count()
    }
}
