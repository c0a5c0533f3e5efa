// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What namespaces are stored in: a file, a block device, or memory.
//!
//! One medium serves any number of controllers at once, so nothing here changes after it was opened
//! but the bytes themselves, and whether they could be brought to safety. Requests to a file go through the ring of the poller that makes them;
//! memory is copied at once. Ranges are checked against the size by the namespace, not here, except
//! that memory never leaves its mapping.

mod file;
mod memory;

pub(crate) use file::{FileMedium, FileOptions};
pub(crate) use memory::MemoryMedium;

use anyhow::{bail, Result};

/// Where the blocks of a namespace are. Shared by all controllers that it is attached to.
pub(crate) enum Medium {
    /// A file or block device.
    File(FileMedium),
    /// Memory of this process, gone with it.
    Memory(MemoryMedium),
}

impl Medium {
    /// Bytes, a multiple of the block size it was opened for.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::File(file) => file.size(),
            Self::Memory(memory) => memory.size(),
        }
    }

    /// Whether writes are refused.
    pub(crate) fn read_only(&self) -> bool {
        match self {
            Self::File(file) => file.read_only(),
            Self::Memory(_) => false,
        }
    }

    /// Whether data that was written may have been lost on its way to stable storage: no flush may
    /// succeed any more.
    pub(crate) fn sync_failed(&self) -> bool {
        match self {
            Self::File(file) => file.sync_failed(),
            Self::Memory(_) => false,
        }
    }

    /// Whether ranges can be zeroed without writing zeroes to them.
    pub(crate) fn can_zero(&self) -> bool {
        match self {
            Self::File(file) => file.can_zero(),
            Self::Memory(_) => true,
        }
    }

    /// Whether storage can be given back; what was, reads as zeroes.
    pub(crate) fn can_deallocate(&self) -> bool {
        match self {
            Self::File(file) => file.can_deallocate(),
            Self::Memory(_) => true,
        }
    }
}

fn check_size(size: u64, block_size: u32) -> Result<()> {
    match size.checked_rem(u64::from(block_size)) {
        None => bail!("blocks of 0 bytes; choose 512 or 4096"),
        Some(_) if size == 0 => bail!("it has no blocks; choose a size above 0"),
        Some(0) => Ok(()),
        Some(rest) => bail!(
            "its {size} bytes are not a whole number of blocks of {block_size}: {rest} are left \
             over; change the size (truncate -s %{block_size} rounds a file up) or the block size"
        ),
    }
}
