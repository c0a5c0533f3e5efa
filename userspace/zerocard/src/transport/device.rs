// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a transport needs of a PCI function.
//!
//! The seam between transport and card: implemented by `pci::Function`, and by a recorder in tests.
//! Offsets and indices that come through it have been checked against the sizes it gives.

use std::io;
use std::os::fd::OwnedFd;

use crate::memory::MapRequest;

/// A region of a function that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// Base address register 0.
    Bar0,
    /// Configuration space.
    Config,
}

/// Ends a client's connection from outside of its session.
pub(crate) struct Closer(pub(super) OwnedFd);

impl Closer {
    /// Closes it. Says whether it was open.
    pub(crate) fn close(&self) -> bool {
        rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both).is_ok()
    }
}

/// What a client does to an interrupt vector.
#[derive(Debug)]
pub(crate) enum VectorAction {
    /// Gives it an eventfd that does not block, or takes it away.
    Assign(Option<OwnedFd>),
    /// Signals the eventfd without the device.
    Trigger,
    /// Holds events back.
    Mask,
    /// Lets events through, those held back first.
    Unmask,
}

/// A function that can be served. It has locks of its own: others work with it while a client is
/// connected.
pub(crate) trait Device: Send + Sync {
    /// Size of a region in bytes.
    fn region_size(&self, region: Region) -> u64;

    /// Number of MSI-X vectors.
    fn vectors(&self) -> u16;

    /// Reads a region; the range lies within it.
    fn read(&self, region: Region, offset: usize, data: &mut [u8]);

    /// Writes a region; the range lies within it.
    fn write(&self, region: Region, offset: usize, data: &[u8]);

    /// Maps guest memory.
    fn map(&self, request: MapRequest, file: Option<&OwnedFd>) -> io::Result<()>;

    /// Unmaps guest memory. When it returns, nothing accesses the range any more.
    fn unmap(&self, iova: u64, size: u64);

    /// Unmaps all guest memory.
    fn unmap_all(&self);

    /// Acts on a vector; the index is below [`Device::vectors`].
    fn vector(&self, index: u16, action: VectorAction);

    /// Resets the function. Maps and eventfds stay.
    fn reset(&self);

    /// A client has come. `closer` ends its connection from another thread.
    fn connect(&self, closer: Closer);

    /// The client is gone: resets the function and lets go of everything that was the client's.
    fn disconnect(&self);
}
