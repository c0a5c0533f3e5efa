// SPDX-License-Identifier: Apache-2.0 OR MIT

//! RAM files of the VMM, each mapped once however many DMA maps point into it.
//!
//! Owned by `memory`: a VMM maps the same file for every RAM section and, with a virtual IOMMU, for
//! every page the guest maps; a mapping each would exhaust the address space. Files are told apart
//! by device and inode. A mapping goes when its last user goes, so a guest's RAM is not kept alive.
//!
//! Only files of tmpfs and hugetlbfs (memfds among them) are taken: their pages come from the host's
//! memory. A page of a file on FUSE comes from a process that answers when it likes, and the poller,
//! which serves other VMs too, would wait for it under the function's lock; an overlay can hide such
//! a file, and even asking for its size can wait. Sealing exists for those two filesystems only, and
//! the kernel answers about seals by itself, so that is how they are known.
//!
//! A VMM may shrink its own RAM file under us. An access then reaches nothing, and the mapping says
//! so from there on ([`Mapping::revoked`]); a new map of the file gets a new mapping.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::fs::{FileType, OFlags};

use crate::sys::Mapping;

/// Files that one client may have mapped at once, those that have grown since counted again. A VMM
/// has one for each memory backend.
const MAX_FILES: usize = 64;

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
    ///
    /// The error's text says what is wrong with the file. Its kind is `InvalidInput`, or
    /// `QuotaExceeded` when the client has [`MAX_FILES`].
    pub(super) fn open(&mut self, file: &OwnedFd, end: u64) -> io::Result<Arc<Mapping>> {
        // First: nothing else is safe to ask.
        rustix::fs::fcntl_get_seals(file).map_err(|_| not_memory())?;
        let status = rustix::fs::fstat(file)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(not_memory());
        }
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
        self.mappings.retain(|_, known| known.strong_count() > 0);
        self.replaced.retain(|known| known.strong_count() > 0);
        if self.mappings.len() + self.replaced.len() >= MAX_FILES {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                format!("{MAX_FILES} RAM files are mapped already, the most for one client"),
            ));
        }
        let mapping = Arc::new(Mapping::new(file.as_fd(), len, identity.writable)?);
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

fn not_memory() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "RAM has to be a memfd or a file on tmpfs or hugetlbfs: accesses to any other file may have \
         to wait, for its server or its disk (QEMU: memory-backend-memfd with share=on)",
    )
}
