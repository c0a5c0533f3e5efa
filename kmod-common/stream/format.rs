// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! `FORMAT`: in which format the Controller State is, in terms that hold on every card.
//!
//! An index (CSVI, CSUUIDI) means something to one card only, so the stream carries what it stands
//! for: NVMe Base 2.1, Identify CNS 20h, Supported Controller State Formats.

use super::bytes::Fields;

/// Bytes of the value.
pub const SIZE: usize = 24;

/// A format of Controller State.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Version of the NVMe Controller State data structure.
    pub version: u16,
    /// UUID of the vendor specific data, as CNS 20h lists it; zeroes for none.
    pub uuid: [u8; 16],
}

impl Format {
    /// The value as it travels.
    pub fn encode(&self) -> [u8; SIZE] {
        let [a, b] = self.version.to_le_bytes();
        let [c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r] = self.uuid;
        [
            a, b, 0, 0, 0, 0, 0, 0, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r,
        ]
    }

    /// Decodes a value.
    ///
    /// # Errors
    ///
    /// Offset in the value and what is wrong: another size, reserved bytes that are not zero.
    pub fn decode(value: &[u8]) -> Result<Self, (usize, &'static str)> {
        const SIZE: (usize, &str) = (0, "wrong size");
        let mut fields = Fields(value);
        let version = fields.u16().ok_or(SIZE)?;
        if *fields.array::<6>().ok_or(SIZE)? != [0; 6] {
            return Err((2, "reserved bytes are not zero"));
        }
        let uuid = *fields.array().ok_or(SIZE)?;
        if !fields.0.is_empty() {
            return Err(SIZE);
        }
        Ok(Self { version, uuid })
    }
}
