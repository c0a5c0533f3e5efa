// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Makes a stream. Gives out the bytes around the Controller State; the state itself stays where the
//! caller has it.

use super::bytes::Output;
use super::crc::Crc32;
use super::format::{self, Format};
use super::record::{
    Header, Record, END_VALUE, HEADER_VALUE, MAX_HEADER_PART, MAX_STATE, RECORD_HEADER,
};
use super::registers::{self, Registers};

/// Bytes of `END`, with its record header.
pub const END: usize = RECORD_HEADER + END_VALUE;

/// Bytes of a header part with an identity of `identity` bytes.
pub const fn header_part_size(identity: usize, registers: bool) -> usize {
    const FIXED: usize = 3 * RECORD_HEADER + HEADER_VALUE + format::SIZE;
    let registers = if registers {
        RECORD_HEADER + registers::SIZE
    } else {
        0
    };
    identity.saturating_add(FIXED).saturating_add(registers)
}

/// Writes the header part, `HEADER` to `FORMAT`, into `buffer` and returns its size in bytes; `None`
/// when it does not fit, or is larger than a header part may be. `identity` is a value that
/// [`super::identity::Builder`] made. `kind` is [`super::record::KIND_NVME`].
pub fn header_part(
    buffer: &mut [u8],
    kind: u16,
    identity: &[u8],
    registers: Option<&Registers>,
    format: &Format,
) -> Option<usize> {
    if header_part_size(identity.len(), registers.is_some()) > MAX_HEADER_PART {
        return None;
    }
    let mut output = Output::new(buffer);
    put(&mut output, Record::Header, &Header::new(kind).encode())?;
    put(&mut output, Record::Identity, identity)?;
    if let Some(registers) = registers {
        put(&mut output, Record::Registers, &registers.encode())?;
    }
    put(&mut output, Record::Format, &format.encode())?;
    Some(output.used())
}

fn put(output: &mut Output<'_>, record: Record, value: &[u8]) -> Option<()> {
    output.put(&record.header(value.len() as u64))?;
    output.put(value)
}

/// What comes behind the header part: any number of state parts, then the end.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    crc: Crc32,
    bytes: u64,
}

impl Writer {
    /// Goes on behind a header part, which the caller has written out.
    pub fn new(header_part: &[u8]) -> Self {
        let mut crc = Crc32::new();
        crc.update(header_part);
        Self { crc, bytes: 0 }
    }

    /// What has to be written before `part`, a part of the Controller State; behind it comes `part`
    /// itself. `None` when `part` is empty, or the state gets longer than [`MAX_STATE`].
    pub fn state(&mut self, part: &[u8]) -> Option<[u8; RECORD_HEADER]> {
        let size = part.len() as u64;
        let bytes = self.bytes.checked_add(size)?;
        if size == 0 || bytes > MAX_STATE {
            return None;
        }
        let header = Record::State.header(size);
        self.crc.update(&header);
        self.crc.update(part);
        self.bytes = bytes;
        Some(header)
    }

    /// The end of the stream; `None` without state.
    pub fn end(mut self) -> Option<[u8; END]> {
        if self.bytes == 0 {
            return None;
        }
        let mut bytes = [0; END];
        let mut output = Output::new(&mut bytes);
        let length = self.bytes.to_le_bytes();
        let header = Record::End.header(END_VALUE as u64);
        self.crc.update(&header);
        self.crc.update(&length);
        output.put(&header)?;
        output.put(&length)?;
        output.put(&self.crc.value().to_le_bytes())?;
        Some(bytes)
    }
}
