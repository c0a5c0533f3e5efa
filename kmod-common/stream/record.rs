// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Records: which there are, what stands before a value, and the values of `HEADER` and `END`.

use super::bytes::Fields;

/// Bytes of the header part, `HEADER` to `FORMAT`, at most.
pub const MAX_HEADER_PART: usize = 64 << 10;
/// Bytes of the Controller State, over all `STATE` records, at most.
pub const MAX_STATE: u64 = 64 << 20;
/// Bytes of the value of a record that is not mandatory, at most.
pub const MAX_OPTIONAL: u64 = 64 << 10;

/// What a stream begins with, as the value of `HEADER` does.
pub const MAGIC: [u8; 8] = *b"ZSMIGRT1";
/// Major version; a stream with another one is refused.
pub const MAJOR: u16 = 1;
/// Minor version that is written; any is read.
pub const MINOR: u16 = 0;
/// Kind of function: NVMe.
pub const KIND_NVME: u16 = 1;

/// Bytes before each value.
pub const RECORD_HEADER: usize = 16;
/// Bytes of the value of `HEADER`.
pub const HEADER_VALUE: usize = 16;
/// Bytes of the value of `END`.
pub const END_VALUE: usize = 16;

/// Flags bit 0: who does not know the record refuses the stream.
pub const MANDATORY: u32 = 1 << 0;

/// The records of this version, in the order of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Record {
    /// What kind of stream this is.
    Header = 1,
    /// Which function of which card it belongs to.
    Identity = 2,
    /// Registers that a guest has seen.
    Registers = 3,
    /// Format of the Controller State.
    Format = 4,
    /// A part of the Controller State.
    State = 5,
    /// Length and checksum.
    End = 6,
}

impl Record {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Header,
        Self::Identity,
        Self::Registers,
        Self::Format,
        Self::State,
        Self::End,
    ];

    /// Its tag.
    pub const fn tag(self) -> u32 {
        self as u32
    }

    /// The record with `tag`; `None` when this version knows none.
    pub const fn from_tag(tag: u32) -> Option<Self> {
        Some(match tag {
            1 => Self::Header,
            2 => Self::Identity,
            3 => Self::Registers,
            4 => Self::Format,
            5 => Self::State,
            6 => Self::End,
            _ => return None,
        })
    }

    /// Its name in the specification.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "HEADER",
            Self::Identity => "IDENTITY",
            Self::Registers => "REGISTERS",
            Self::Format => "FORMAT",
            Self::State => "STATE",
            Self::End => "END",
        }
    }

    /// The bytes before a value of `size` bytes.
    pub const fn header(self, size: u64) -> [u8; RECORD_HEADER] {
        RecordHeader {
            size,
            flags: MANDATORY,
            tag: self.tag(),
        }
        .encode()
    }
}

/// What stands before a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of the value.
    pub size: u64,
    /// [`MANDATORY`], or 0.
    pub flags: u32,
    /// Which record it is.
    pub tag: u32,
}

impl RecordHeader {
    /// The bytes as they travel.
    pub const fn encode(self) -> [u8; RECORD_HEADER] {
        let [a, b, c, d, e, f, g, h] = self.size.to_le_bytes();
        let [i, j, k, l] = self.flags.to_le_bytes();
        let [m, n, o, p] = self.tag.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Decodes the first bytes of a record; `None` when they are not all there.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            size: fields.u64()?,
            flags: fields.u32()?,
            tag: fields.u32()?,
        })
    }
}

/// The value of `HEADER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor version.
    pub minor: u16,
    /// Kind of function, [`KIND_NVME`].
    pub kind: u16,
}

impl Header {
    /// What this version writes for a function of `kind`.
    pub const fn new(kind: u16) -> Self {
        Self { minor: MINOR, kind }
    }

    /// The value as it travels.
    pub const fn encode(self) -> [u8; HEADER_VALUE] {
        let [a, b, c, d, e, f, g, h] = MAGIC;
        let [i, j] = MAJOR.to_le_bytes();
        let [k, l] = self.minor.to_le_bytes();
        let [m, n] = self.kind.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, 0, 0]
    }

    /// Decodes a value. The kind is taken as it is: the caller knows what it has.
    ///
    /// # Errors
    ///
    /// Offset in the value and what is wrong: another size, magic or major version, reserved bytes
    /// that are not zero.
    pub fn decode(value: &[u8]) -> Result<Self, (usize, &'static str)> {
        const SIZE: (usize, &str) = (0, "wrong size");
        let mut fields = Fields(value);
        if *fields.array::<8>().ok_or(SIZE)? != MAGIC {
            return Err((0, "no migration stream of Zeroshift"));
        }
        if fields.u16().ok_or(SIZE)? != MAJOR {
            return Err((8, "unknown major version"));
        }
        let header = Self {
            minor: fields.u16().ok_or(SIZE)?,
            kind: fields.u16().ok_or(SIZE)?,
        };
        if fields.u16().ok_or(SIZE)? != 0 {
            return Err((14, "reserved bytes are not zero"));
        }
        if !fields.0.is_empty() {
            return Err(SIZE);
        }
        Ok(header)
    }
}
