// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device kind offers to whoever migrates its function: suspend, go on, save, load.
//!
//! The administrative controller calls these under the function's lock; the function tells it when
//! the [`Phase`] changes. Nothing here knows what a state looks like.

use std::fmt;

use super::Bus;

/// Where a function stands. Each suspension has a number of its own, so whoever remembers it sees
/// whether it is still the same one: a reset ends a suspension without asking anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It does its work.
    #[default]
    Running,
    /// It begins nothing any more, and finishes what it has begun.
    Suspending(u64),
    /// It is quiet: it neither reads nor writes guest memory.
    Suspended(u64),
}

impl Phase {
    /// Whether a suspension was asked for, complete or not.
    pub(crate) fn is_running(self) -> bool {
        self == Self::Running
    }

    /// The number of a complete suspension.
    pub(crate) fn quiet(self) -> Option<u64> {
        match self {
            Self::Suspended(number) => Some(number),
            _ => None,
        }
    }
}

/// Which parts of a Controller State are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// The NVMe Controller State (CSVI is not 0).
    pub(crate) standard: bool,
    /// The vendor specific data in zerocard's format (CSUUIDI is not 0).
    pub(crate) vendor: bool,
}

/// Why a state was not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) String);

impl Refused {
    /// For a reason in plain words.
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A kind that can be migrated.
pub(crate) trait Migratable {
    /// Begins a suspension, if there is none. What was begun is finished by the poller.
    fn suspend(&mut self, bus: &mut Bus<'_>);

    /// Ends a suspension. Interrupts that the driver may have missed are raised.
    fn go_on(&mut self, bus: &mut Bus<'_>);

    /// The state as a Controller State data structure. Consistent while suspended.
    fn save(&self, parts: Parts, bus: &Bus<'_>) -> Vec<u8>;

    /// Takes over a state: all of it, or nothing. The kind is suspended.
    fn load(&mut self, parts: Parts, state: &[u8], bus: &Bus<'_>) -> Result<(), Refused>;
}
