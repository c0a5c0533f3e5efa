// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! What is wrong with a stream, and where.

use super::record::Record;
use core::fmt;

/// [`Error::what`] of a state beyond [`super::record::MAX_STATE`].
pub const STATE_TOO_LONG: &str = "state longer than 64 MiB";

/// Why a stream is refused. Displayed as, say, `IDENTITY at byte 48: ...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// The record that is being read; `None` for one that this version does not know, and where no
    /// record has begun.
    pub record: Option<Record>,
    /// Offset in the stream of the field that is wrong, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.record.map_or("stream", Record::name);
        write!(f, "{name} at byte {}: {}", self.offset, self.what)
    }
}

impl core::error::Error for Error {}
