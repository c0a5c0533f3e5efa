// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A namespace: a medium, divided into blocks, with the identifiers by which hosts know it.
//!
//! Owned by the card and shared by the controllers that it is attached to: they all see what any of
//! them writes. Immutable; what changes is in the medium.

use crate::backing::Medium;

/// A namespace of the NVM subsystem.
pub(crate) struct Namespace {
    /// NSID, 1 and up.
    pub(crate) id: u32,
    /// Where the data is.
    pub(crate) medium: Medium,
    /// Bytes of a block as a power of two, 9 to 12.
    pub(crate) block_shift: u8,
    /// Size in blocks (NSZE, NCAP).
    pub(crate) blocks: u64,
    /// Namespace Globally Unique Identifier.
    pub(crate) nguid: [u8; 16],
    /// Whether more than one controller may have it (NMIC).
    pub(crate) shared: bool,
}

impl Namespace {
    /// Byte offset and length of blocks, `None` when they are not all inside.
    pub(crate) fn extent(&self, first: u64, blocks: u64) -> Option<(u64, u64)> {
        let end = first.checked_add(blocks)?;
        // blocks << block_shift is the size of the medium, so nothing up to there overflows.
        (end <= self.blocks).then(|| (first << self.block_shift, blocks << self.block_shift))
    }
}
