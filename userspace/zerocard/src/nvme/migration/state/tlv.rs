// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Records of the vendor specific controller state: u32 type, u32 length, value, zeroes up to a
//! dword.
//!
//! Pure. The reader is total: any bytes give records or an error, and no length is trusted.

use crate::pci::Refused;

/// Bit 31 of a type: who does not know the record must not load the state.
pub(super) const MANDATORY: u32 = 1 << 31;

/// Bytes before the value.
pub(super) const HEADER: usize = 8;

/// Appends a record.
pub(super) fn put(out: &mut Vec<u8>, kind: u32, value: &[u8]) {
    out.extend(kind.to_le_bytes());
    // Everything that is put here has a bound far below 4 GiB.
    out.extend((value.len() as u32).to_le_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The records of `bytes`, in order. Ends with the first error.
pub(super) fn records(bytes: &[u8]) -> Records<'_> {
    Records { rest: bytes }
}

pub(super) struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(u32, &'a [u8]), Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.split();
        if record.is_none() {
            self.rest = &[];
        }
        Some(record.ok_or_else(|| Refused::new("a record is cut short")))
    }
}

impl<'a> Records<'a> {
    fn split(&mut self) -> Option<(u32, &'a [u8])> {
        let (kind, rest) = self.rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        let (value, rest) = rest.split_at_checked(len)?;
        let padding = len.checked_next_multiple_of(4)? - len;
        self.rest = rest.get(padding..)?;
        Some((u32::from_le_bytes(*kind), value))
    }
}

/// The fields of a value, in order.
pub(super) struct Fields<'a> {
    /// What the record is called, for errors.
    name: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(name: &'static str, value: &'a [u8]) -> Self {
        Self { name, rest: value }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let Some((bytes, rest)) = self.rest.split_first_chunk() else {
            return Err(Refused(format!("the {} record is too short", self.name)));
        };
        self.rest = rest;
        Ok(*bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Refused> {
        Ok(u8::from_le_bytes(self.bytes()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, Refused> {
        Ok(u16::from_le_bytes(self.bytes()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refused> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Refused> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// Whether everything was taken out.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All fields were taken out.
    pub(super) fn end(self) -> Result<(), Refused> {
        if !self.rest.is_empty() {
            return Err(Refused(format!("the {} record is too long", self.name)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_padded_to_dwords_and_come_back() {
        let mut bytes = Vec::new();
        put(&mut bytes, 0x8000_0102, &[1, 2, 3, 4, 5]);
        put(&mut bytes, 7, &[]);
        assert_eq!(
            bytes,
            [2, 1, 0, 0x80, 5, 0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]
        );
        let list: Result<Vec<_>, _> = records(&bytes).collect();
        assert_eq!(
            list.unwrap(),
            [(0x8000_0102, &[1, 2, 3, 4, 5][..]), (7, &[][..])]
        );
        for end in (1..16).chain(17..24) {
            assert!(
                records(&bytes[..end]).any(|record| record.is_err()),
                "{end}"
            );
        }
        bytes[4..8].fill(0xff);
        assert_eq!(records(&bytes).count(), 1, "an error is the last item");
    }

    #[test]
    fn fields_end_exactly_where_the_value_does() {
        let mut fields = Fields::new("test", &[1, 2, 0, 3, 0, 0, 0]);
        assert_eq!((fields.u8(), fields.u16()), (Ok(1), Ok(2)));
        assert!(fields.u64().is_err());
        assert_eq!(fields.u32(), Ok(3));
        assert!(fields.is_empty() && fields.end().is_ok());
        assert!(Fields::new("test", &[0]).end().is_err());
    }
}
