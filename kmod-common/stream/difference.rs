// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! What differs between this function and the one that a stream comes from.

use core::fmt;

/// A field with two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference<'a> {
    /// The field.
    pub field: &'static str,
    /// NSID, for a field of a namespace.
    pub namespace: Option<u32>,
    /// What it is here.
    pub mine: Value<'a>,
    /// What it is in the stream.
    pub theirs: Value<'a>,
}

/// A value that can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Shown in decimal.
    Number(u64),
    /// Shown in hexadecimal.
    Hex(u64),
    /// Text, perhaps padded with spaces.
    Text(&'a [u8]),
    /// Shown as hexadecimal digits.
    Bytes(&'a [u8]),
}

impl<'a> Difference<'a> {
    pub(super) fn new(field: &'static str, mine: Value<'a>, theirs: Value<'a>) -> Self {
        Self {
            field,
            namespace: None,
            mine,
            theirs,
        }
    }
}

impl fmt::Display for Difference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(nsid) = self.namespace {
            write!(f, "namespace {nsid}: ")?;
        }
        write!(
            f,
            "{} is {} here and {} in the stream",
            self.field, self.mine, self.theirs
        )
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Hex(number) => write!(f, "{number:#x}"),
            // Nothing that came from outside may steer a terminal or break a line of a log.
            Self::Text(text) => write!(f, "\"{}\"", text.trim_ascii_end().escape_ascii()),
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}
