// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the module migdirty does with a function, behind a trait that tests replace. Errors are the
//! kernel's numbers; `explain.rs` knows what they mean.

use crate::address::Address;
use migdirty_uapi::{MigdirtyFunctionInfo, MigdirtyRange};
use rustix::io::Errno;

/// What a sync brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Synced {
    /// Ranges in ascending order.
    pub(crate) ranges: Vec<MigdirtyRange>,
    /// There is more than the room.
    pub(crate) more: bool,
    /// The function is suspended, and nothing is left in its log.
    pub(crate) complete: bool,
}

/// A controller state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Version of the NVMe Controller State.
    pub(crate) version: u16,
    /// Format of the vendor specific data.
    pub(crate) uuid: [u8; 16],
    /// The state.
    pub(crate) bytes: Vec<u8>,
}

/// Something that handles functions.
pub(crate) trait Backend {
    /// Describes a function.
    fn function(&self, address: Address) -> Result<MigdirtyFunctionInfo, Errno>;

    /// Starts a log and says its granule, in bytes.
    fn log_start(
        &self,
        address: Address,
        ranges: &[MigdirtyRange],
        granule: u64,
    ) -> Result<u64, Errno>;

    /// Reads what was written in `length` bytes from `iova` on.
    fn log_sync(&self, address: Address, iova: u64, length: u64) -> Result<Synced, Errno>;

    /// Ends a log.
    fn log_stop(&self, address: Address) -> Result<(), Errno>;

    /// Suspends a function.
    fn pause(&self, address: Address) -> Result<(), Errno>;

    /// Lets it go on.
    fn resume(&self, address: Address) -> Result<(), Errno>;

    /// Gets its controller state.
    fn save(&self, address: Address) -> Result<State, Errno>;

    /// Sets it.
    fn restore(&self, address: Address, state: &State) -> Result<(), Errno>;

    /// Its identity record.
    fn identity(&self, address: Address) -> Result<Vec<u8>, Errno>;
}
