// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Migration streams as the tests take them apart, change them, and put them together again:
//! `docs/interfaces.md`, section 13. Written from there and from nothing else.

use anyhow::{ensure, Context as _, Result};

/// A record of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Bit 0: mandatory.
    pub flags: u32,
    /// What it is.
    pub tag: u32,
    /// Its value.
    pub value: Vec<u8>,
}

/// Tags of the records that there are.
pub mod tag {
    /// Magic, versions, kind of function.
    pub const HEADER: u32 = 1;
    /// What the destination has to be.
    pub const IDENTITY: u32 = 2;
    /// Registers that do not change.
    pub const REGISTERS: u32 = 3;
    /// Format of the state.
    pub const FORMAT: u32 = 4;
    /// A part of the state.
    pub const STATE: u32 = 5;
    /// The end.
    pub const END: u32 = 6;
}

/// Bytes in front of a value.
pub const RECORD_HEADER: usize = 16;

/// CRC-32 as in Ethernet and zip, bit by bit.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = match crc & 1 {
                0 => crc >> 1,
                _ => crc >> 1 ^ 0xedb8_8320,
            };
        }
    }
    !crc
}

/// Takes a whole stream apart.
pub fn parse(mut bytes: &[u8]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes
            .split_at_checked(RECORD_HEADER)
            .context("a record is cut off")?;
        let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let size = usize::try_from(u64::from_le_bytes(head[..8].try_into().unwrap()))?;
        let (value, rest) = rest
            .split_at_checked(size)
            .with_context(|| format!("a value of {size} bytes is cut off"))?;
        records.push(Record {
            flags: u32_at(8),
            tag: u32_at(12),
            value: value.to_vec(),
        });
        bytes = rest;
    }
    Ok(records)
}

/// Puts records together as they are.
pub fn join(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend_from_slice(&(record.value.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&record.flags.to_le_bytes());
        bytes.extend_from_slice(&record.tag.to_le_bytes());
        bytes.extend_from_slice(&record.value);
    }
    bytes
}

/// Puts records together, and makes the counts and checksums of `END` records right.
pub fn seal(records: &[Record]) -> Vec<u8> {
    let mut records = records.to_vec();
    let states = records.iter().filter(|r| r.tag == tag::STATE);
    let total: usize = states.map(|r| r.value.len()).sum();
    for i in 0..records.len() {
        if records[i].tag != tag::END || records[i].value.len() < 12 {
            continue;
        }
        records[i].value[..8].copy_from_slice(&(total as u64).to_le_bytes());
        let before = join(&records[..=i]);
        let covered = before.len() - records[i].value.len() + 8;
        let crc = crc32(&before[..covered]);
        records[i].value[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    join(&records)
}

/// A stream is as the document says, as far as that can be told without the function.
pub fn check(bytes: &[u8]) -> Result<Vec<Record>> {
    let records = parse(bytes)?;
    let tags: Vec<u32> = records.iter().map(|r| r.tag).collect();
    let [tag::HEADER, tag::IDENTITY, tag::REGISTERS, tag::FORMAT, states @ .., tag::END] =
        tags.as_slice()
    else {
        anyhow::bail!("the records are {tags:?}");
    };
    ensure!(
        !states.is_empty() && states.iter().all(|t| *t == tag::STATE),
        "the records are {tags:?}"
    );
    ensure!(
        records.iter().all(|r| r.flags == 1),
        "a record is not mandatory"
    );
    let header = &records[0].value;
    let expected = [0x5a, 0x53, 0x4d, 0x49, 0x47, 0x52, 0x54, 0x31, 1, 0];
    ensure!(
        header.starts_with(&expected) && header.len() == 16 && header[12..] == [1, 0, 0, 0],
        "the header is {header:x?}"
    );
    ensure!(records[2].value.len() == 16, "registers");
    ensure!(records[3].value.len() == 24, "format");
    ensure!(records[records.len() - 1].value.len() == 16, "end");
    ensure!(seal(&records) == bytes, "count or checksum is wrong");
    let parts: Vec<_> = records[..4].to_vec();
    let length = join(&parts).len();
    ensure!(length <= 65536, "the header part has {length} bytes");
    Ok(records)
}

/// Bytes of the header part of a stream.
pub fn header_part(records: &[Record]) -> usize {
    let parts = records.iter().take_while(|r| r.tag != tag::STATE);
    parts.map(|r| RECORD_HEADER + r.value.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_has_the_value_that_everybody_gives() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn streams_come_apart_and_together() {
        let records = [
            Record {
                flags: 1,
                tag: tag::STATE,
                value: vec![1, 2, 3],
            },
            Record {
                flags: 1,
                tag: tag::END,
                value: vec![0; 16],
            },
        ];
        let bytes = seal(&records);
        assert_eq!(
            bytes[..16],
            [3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]
        );
        assert_eq!(bytes[35..43], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[43..47], crc32(&bytes[..43]).to_le_bytes());
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed[0], records[0]);
        assert_eq!(seal(&parsed), bytes);
        assert!(parse(&bytes[..20]).is_err() && parse(&bytes[..10]).is_err());
    }
}
