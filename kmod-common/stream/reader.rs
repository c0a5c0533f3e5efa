// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Reads a stream in pieces of any size, and keeps nothing of it but a few numbers.
//!
//! Whoever reads keeps the identity and the state, in storage that may run out. What came before an
//! error means nothing: a state is good only when [`Event::End`] has come.

use super::bytes::Fields;
use super::crc::Crc32;
use super::error::{self, Error};
use super::format::{self, Format};
use super::identity;
use super::record::{
    Header, Record, RecordHeader, END_VALUE, HEADER_VALUE, MANDATORY, MAX_HEADER_PART,
    MAX_OPTIONAL, MAX_STATE, RECORD_HEADER,
};
use super::registers::{self, Registers};

/// What a piece of a stream brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// More bytes of the value of `IDENTITY`, for [`identity::View::decode`] once [`Event::Header`]
    /// has come; [`identity::MAX_SIZE`] in all at most.
    Identity(&'a [u8]),
    /// The header part is complete: now the identity can be checked.
    Header(HeaderPart),
    /// More bytes of the Controller State, [`MAX_STATE`] in all at most.
    State(&'a [u8]),
    /// The stream is complete, and its checksum is right.
    End,
}

/// What the header part says, besides the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderPart {
    /// Minor version.
    pub minor: u16,
    /// Kind of function.
    pub kind: u16,
    /// Offset of the value of `IDENTITY` in the stream, in bytes.
    pub identity_at: u64,
    /// `None` in a saved file.
    pub registers: Option<Registers>,
    /// Format of the Controller State.
    pub format: Format,
}

impl HeaderPart {
    /// What [`identity::View::decode`] refused, as an error of the stream.
    pub fn refused(&self, why: &identity::Malformed) -> Error {
        Error {
            record: Some(Record::Identity),
            offset: self.identity_at.saturating_add(why.offset as u64),
            what: why.what,
        }
    }
}

/// Longest value that is looked at as a whole.
const LONGEST: usize = 24;
const _: () = assert!(
    RECORD_HEADER <= LONGEST
        && HEADER_VALUE <= LONGEST
        && registers::SIZE <= LONGEST
        && format::SIZE <= LONGEST
        && END_VALUE <= LONGEST
);

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// What stands before a value.
    Record,
    /// A short value, which is collected.
    Short(Record),
    /// A value that is handed on as it comes: `Identity` or `State`.
    Long(Record),
    /// A value that nobody needs.
    Unknown,
    /// Nothing.
    Nothing,
}

/// A stream that is being read.
///
/// # Invariants
///
/// `filled` is at most `wanted`, which is at most [`LONGEST`].
#[derive(Clone, Debug)]
pub struct Reader {
    next: Next,
    /// Bytes taken so far.
    offset: u64,
    /// Where the record began.
    record_at: u64,
    /// Bytes of a long or unknown value that have not come yet.
    left: u64,
    /// The record header or short value that is being collected.
    short: [u8; LONGEST],
    filled: usize,
    wanted: usize,
    crc: Crc32,
    /// The last known record.
    last: Option<Record>,
    header: Option<Header>,
    identity_at: u64,
    registers: Option<Registers>,
    state_bytes: u64,
    failed: Option<Error>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// Before the first byte.
    pub const fn new() -> Self {
        Self {
            next: Next::Record,
            offset: 0,
            record_at: 0,
            left: 0,
            short: [0; LONGEST],
            filled: 0,
            wanted: RECORD_HEADER,
            crc: Crc32::new(),
            last: None,
            header: None,
            identity_at: 0,
            registers: None,
            state_bytes: 0,
            failed: None,
        }
    }

    /// Goes on with `input`, cuts what it took off its front, and says what came; `None` when all of
    /// `input` was taken and more is needed. To be called until then.
    ///
    /// # Errors
    ///
    /// The stream is refused; every later call says the same.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.advance(input);
        self.failed = result.err();
        result
    }

    /// Bytes of state that came.
    pub const fn state_bytes(&self) -> u64 {
        self.state_bytes
    }

    /// Bytes of the stream that came.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    ///
    /// The stream was refused, or is cut short here.
    pub fn finish(&self) -> Result<(), Error> {
        match (self.failed, self.next) {
            (Some(error), _) => Err(error),
            (None, Next::Nothing) => Ok(()),
            (None, next) => {
                let record = match next {
                    Next::Short(record) | Next::Long(record) => Some(record),
                    _ => None,
                };
                Err(Error {
                    record,
                    offset: self.offset,
                    what: "the stream is cut short",
                })
            }
        }
    }

    fn advance<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        loop {
            match self.next {
                Next::Nothing if input.is_empty() => return Ok(None),
                Next::Nothing => {
                    return Err(self.error(Some(Record::End), self.offset, "bytes behind the end"))
                }
                Next::Record => {
                    if !self.collect(input) {
                        return Ok(None);
                    }
                    self.begin_record()?;
                }
                Next::Short(record) => {
                    if !self.collect(input) {
                        return Ok(None);
                    }
                    if let Some(event) = self.short_value(record)? {
                        return Ok(Some(event));
                    }
                }
                Next::Long(_) | Next::Unknown if self.left == 0 => self.expect_record(),
                Next::Long(_) | Next::Unknown if input.is_empty() => return Ok(None),
                Next::Unknown => {
                    self.take(input, self.left);
                }
                Next::Long(Record::Identity) => {
                    return Ok(Some(Event::Identity(self.take(input, self.left))));
                }
                Next::Long(_) => {
                    let part = self.take(input, self.left);
                    self.state_bytes = self.state_bytes.saturating_add(part.len() as u64);
                    return Ok(Some(Event::State(part)));
                }
            }
        }
    }

    /// Takes up to `limit` bytes that count for the checksum.
    fn take<'a>(&mut self, input: &mut &'a [u8], limit: u64) -> &'a [u8] {
        let part = self.cut(input, limit);
        self.crc.update(part);
        self.left = self.left.saturating_sub(part.len() as u64);
        part
    }

    fn cut<'a>(&mut self, input: &mut &'a [u8], limit: u64) -> &'a [u8] {
        let size = usize::try_from(limit).map_or(input.len(), |limit| limit.min(input.len()));
        let (part, rest) = input.split_at_checked(size).unwrap_or((input, &[]));
        *input = rest;
        self.offset = self.offset.saturating_add(part.len() as u64);
        part
    }

    /// Collects what is `wanted`; whether it is all there.
    fn collect(&mut self, input: &mut &[u8]) -> bool {
        let missing = self.wanted.saturating_sub(self.filled);
        let part = self.cut(input, missing as u64);
        let end = self.filled.saturating_add(part.len());
        if let Some(place) = self.short.get_mut(self.filled..end) {
            place.copy_from_slice(part);
            self.filled = end;
        }
        self.filled == self.wanted
    }

    fn collected(&self) -> &[u8] {
        self.short.get(..self.filled).unwrap_or(&[])
    }

    fn want(&mut self, next: Next, bytes: usize) {
        self.next = next;
        self.filled = 0;
        self.wanted = bytes;
    }

    fn expect_record(&mut self) {
        self.record_at = self.offset;
        self.want(Next::Record, RECORD_HEADER);
    }

    fn error(&self, record: Option<Record>, offset: u64, what: &'static str) -> Error {
        Error {
            record,
            offset,
            what,
        }
    }

    /// An error in the record header, whose fields are at 0, 8 and 12.
    fn bad_record(&self, record: Option<Record>, at: u64, what: &'static str) -> Error {
        self.error(record, self.record_at.saturating_add(at), what)
    }

    fn begin_record(&mut self) -> Result<(), Error> {
        let Some(RecordHeader { size, flags, tag }) = RecordHeader::decode(self.collected()) else {
            return Err(self.bad_record(None, 0, "no record"));
        };
        let mut crc = self.crc;
        crc.update(self.collected());
        self.crc = crc;
        let record = Record::from_tag(tag);
        self.check_place(record, tag, flags)?;
        if self.last < Some(Record::Format) {
            // `offset` is behind the record header, and far below 2^64.
            let end = self.offset.checked_add(size);
            if end.is_none_or(|end| end > MAX_HEADER_PART as u64) {
                return Err(self.bad_record(record, 0, "header part longer than 64 KiB"));
            }
        }
        let Some(record) = record else {
            if size > MAX_OPTIONAL {
                return Err(self.bad_record(None, 0, "record longer than 64 KiB"));
            }
            self.left = size;
            self.next = Next::Unknown;
            return Ok(());
        };
        let fixed = match record {
            Record::Header => Some(HEADER_VALUE),
            Record::Identity | Record::State => None,
            Record::Registers => Some(registers::SIZE),
            Record::Format => Some(format::SIZE),
            Record::End => Some(END_VALUE),
        };
        if let Some(fixed) = fixed {
            if size != fixed as u64 {
                return Err(self.bad_record(Some(record), 0, "wrong size"));
            }
            self.want(Next::Short(record), fixed);
        } else {
            self.check_long(record, size)?;
            self.left = size;
            self.next = Next::Long(record);
        }
        self.last = Some(record);
        Ok(())
    }

    /// Whether this record may stand here.
    fn check_place(&self, record: Option<Record>, tag: u32, flags: u32) -> Result<(), Error> {
        use Record::{End, Format, Header, Identity, Registers, State};
        if flags & !MANDATORY != 0 {
            return Err(self.bad_record(record, 8, "unknown flags"));
        }
        let Some(record) = record else {
            return if self.last.is_none() {
                Err(self.bad_record(None, 12, "no migration stream: HEADER has to come first"))
            } else if tag == 0 {
                // Zeroes that are left over are not taken for an empty record.
                Err(self.bad_record(None, 12, "no record: tag 0"))
            } else if flags & MANDATORY != 0 {
                Err(self.bad_record(None, 12, "unknown record that is mandatory"))
            } else {
                Ok(())
            };
        };
        let in_order = matches!(
            (self.last, record),
            (None, Header)
                | (Some(Header), Identity)
                | (Some(Identity), Registers | Format)
                | (Some(Registers), Format)
                | (Some(Format), State)
                | (Some(State), State | End)
        );
        if !in_order {
            return Err(self.bad_record(Some(record), 12, "record in the wrong place"));
        }
        if flags & MANDATORY == 0 {
            return Err(self.bad_record(Some(record), 8, "record has to be mandatory"));
        }
        Ok(())
    }

    fn check_long(&mut self, record: Record, size: u64) -> Result<(), Error> {
        let what = if record == Record::Identity {
            self.identity_at = self.offset;
            if (identity::MIN_SIZE as u64..=identity::MAX_SIZE as u64).contains(&size) {
                return Ok(());
            }
            "wrong size"
        } else if size == 0 {
            "empty"
        } else {
            let bytes = self.state_bytes.checked_add(size);
            if bytes.is_some_and(|bytes| bytes <= MAX_STATE) {
                return Ok(());
            }
            error::STATE_TOO_LONG
        };
        Err(self.bad_record(Some(record), 0, what))
    }

    fn short_value<'a>(&mut self, record: Record) -> Result<Option<Event<'a>>, Error> {
        let value = self.collected();
        let begin = self.offset.saturating_sub(value.len() as u64);
        let wrong = |(at, what): (usize, &'static str)| Error {
            record: Some(record),
            offset: begin.saturating_add(at as u64),
            what,
        };
        let mut crc = self.crc;
        crc.update(value);
        let event = match record {
            Record::Header => {
                self.header = Some(Header::decode(value).map_err(wrong)?);
                None
            }
            Record::Registers => {
                self.registers = Some(Registers::decode(value).map_err(wrong)?);
                None
            }
            Record::Format => {
                let format = Format::decode(value).map_err(wrong)?;
                // `check_place` has seen to it that there was one.
                let Some(header) = self.header else {
                    return Err(wrong((0, "no HEADER")));
                };
                Some(Event::Header(HeaderPart {
                    minor: header.minor,
                    kind: header.kind,
                    identity_at: self.identity_at,
                    registers: self.registers,
                    format,
                }))
            }
            Record::End => {
                self.check_end(value).map_err(wrong)?;
                self.next = Next::Nothing;
                return Ok(Some(Event::End));
            }
            // These are never collected.
            Record::Identity | Record::State => None,
        };
        self.crc = crc;
        self.expect_record();
        Ok(event)
    }

    fn check_end(&self, value: &[u8]) -> Result<(), (usize, &'static str)> {
        const SIZE: (usize, &str) = (0, "wrong size");
        let mut fields = Fields(value);
        let length = fields.array::<8>().ok_or(SIZE)?;
        if u64::from_le_bytes(*length) != self.state_bytes {
            return Err((0, "not the number of bytes that came"));
        }
        let mut crc = self.crc;
        crc.update(length);
        if fields.u32().ok_or(SIZE)? != crc.value() {
            return Err((8, "wrong checksum"));
        }
        if fields.u32().ok_or(SIZE)? != 0 {
            return Err((12, "reserved bytes are not zero"));
        }
        Ok(())
    }
}
