// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! CRC-32 as Ethernet (IEEE 802.3) and zip have it: polynomial 04C11DB7h, reflected, begun with and
//! inverted by all ones.
//!
//! It runs while a guest is stopped, so it takes eight bytes at a time ("slicing by 8").

/// The polynomial, reflected.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// `TABLES[n][byte]`: what `byte` with `n` zero bytes behind it does to the register.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 0 {
                value >> 1
            } else {
                value >> 1 ^ POLYNOMIAL
            };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u32 = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// A checksum that is being computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crc32(u32);

impl Default for Crc32 {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32 {
    /// Of no bytes.
    pub const fn new() -> Self {
        Self(u32::MAX)
    }

    /// Goes on with `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut register = self.0;
        let mut rest = bytes;
        while let Some((chunk, behind)) = rest.split_first_chunk::<8>() {
            let [a, b, c, d, e, f, g, h] = *chunk;
            let [i, j, k, l] = (register ^ u32::from_le_bytes([a, b, c, d])).to_le_bytes();
            // A byte is always inside a table of 256.
            register = TABLES[7][usize::from(i)]
                ^ TABLES[6][usize::from(j)]
                ^ TABLES[5][usize::from(k)]
                ^ TABLES[4][usize::from(l)]
                ^ TABLES[3][usize::from(e)]
                ^ TABLES[2][usize::from(f)]
                ^ TABLES[1][usize::from(g)]
                ^ TABLES[0][usize::from(h)];
            rest = behind;
        }
        for byte in rest {
            let [low, ..] = register.to_le_bytes();
            register = register >> 8 ^ TABLES[0][usize::from(low ^ byte)];
        }
        self.0 = register;
    }

    /// The checksum of all that came.
    pub const fn value(self) -> u32 {
        !self.0
    }
}

/// The checksum of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc32::new();
    crc.update(bytes);
    crc.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One bit at a time, straight from the definition.
    fn slow(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                sum >> 1 ^ if sum & 1 == 0 { 0 } else { 0xedb8_8320 }
            })
        })
    }

    #[test]
    fn known_values() {
        assert_eq!(crc32(b""), 0);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(&[0; 32]), 0x190a_55ad);
        assert_eq!(crc32(&[0xff; 32]), 0xff6c_ab0b);
    }

    #[test]
    fn any_pieces_give_the_sum_of_the_definition() {
        let bytes: Vec<u8> = (0u32..100).map(|n| (n * 37 + 11) as u8).collect();
        for length in 0..bytes.len() {
            let bytes = &bytes[..length];
            for middle in 0..=length {
                let mut crc = Crc32::new();
                crc.update(&bytes[..middle]);
                crc.update(&bytes[middle..]);
                assert_eq!(crc.value(), slow(bytes), "{middle} of {length}");
            }
        }
    }
}
