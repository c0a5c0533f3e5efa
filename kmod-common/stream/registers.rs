// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! `REGISTERS`: what the guest's driver has read and relies on.

use super::bytes::Fields;
use super::difference::{Difference, Value};

/// Bytes of the value.
pub const SIZE: usize = 16;

/// Registers of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Controller Capabilities (CAP): NVMe Base 2.1, section 3.1.4.1.
    pub cap: u64,
    /// Version (VS).
    pub version: u32,
    /// MSI-X vectors, 1 to 2048.
    pub vectors: u32,
}

/// Fields of CAP that must be equal: name, first bit, bits. Timeouts, security and power fields may
/// differ: a driver reads them again, or they only say what else there is.
const CAP_FIELDS: [(&str, u32, u32); 6] = [
    ("CAP.MQES", 0, 16),
    ("CAP.CQR", 16, 1),
    ("CAP.DSTRD", 32, 4),
    ("CAP.CSS", 37, 8),
    ("CAP.MPSMIN", 48, 4),
    ("CAP.MPSMAX", 52, 4),
];

impl Registers {
    /// The value as it travels.
    pub fn encode(&self) -> [u8; SIZE] {
        let [a, b, c, d, e, f, g, h] = self.cap.to_le_bytes();
        let [i, j, k, l] = self.version.to_le_bytes();
        let [m, n, o, p] = self.vectors.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Decodes a value.
    ///
    /// # Errors
    ///
    /// Offset in the value and what is wrong: another size.
    pub fn decode(value: &[u8]) -> Result<Self, (usize, &'static str)> {
        const SIZE: (usize, &str) = (0, "wrong size");
        let mut fields = Fields(value);
        let registers = Self {
            cap: fields.u64().ok_or(SIZE)?,
            version: fields.u32().ok_or(SIZE)?,
            vectors: fields.u32().ok_or(SIZE)?,
        };
        if !fields.0.is_empty() {
            return Err(SIZE);
        }
        Ok(registers)
    }
}

/// Whether a guest that runs on `theirs` can go on with `mine`.
///
/// # Errors
///
/// The first field that differs.
pub fn compare(mine: &Registers, theirs: &Registers) -> Result<(), Difference<'static>> {
    let field = |cap: u64, first: u32, bits: u32| {
        // Constants of the table above: neither shift leaves 64 bits.
        cap.wrapping_shr(first) & !u64::MAX.wrapping_shl(bits)
    };
    let fields = CAP_FIELDS.iter().map(|&(name, first, bits)| {
        (
            name,
            field(mine.cap, first, bits),
            field(theirs.cap, first, bits),
        )
    });
    let others = [
        ("VS", mine.version, theirs.version),
        ("MSI-X vectors", mine.vectors, theirs.vectors),
    ];
    let others = others.map(|(name, mine, theirs)| (name, u64::from(mine), u64::from(theirs)));
    for (name, mine, theirs) in fields.chain(others) {
        if mine != theirs {
            let (mine, theirs) = match name {
                "MSI-X vectors" => (Value::Number(mine), Value::Number(theirs)),
                _ => (Value::Hex(mine), Value::Hex(theirs)),
            };
            return Err(Difference::new(name, mine, theirs));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_a_driver_relies_on_and_no_others_are_compared() {
        let mine = Registers {
            cap: 0x0123_4567_89ab_cdef,
            version: 0x0002_0100,
            vectors: 17,
        };
        assert_eq!(compare(&mine, &mine), Ok(()));
        // MQES 15:0, CQR 16, DSTRD 35:32, CSS 44:37, MPSMIN 51:48, MPSMAX 55:52.
        let compared: u64 = 0x00ff_1fef_0001_ffff;
        for bit in 0..64 {
            let theirs = Registers {
                cap: mine.cap ^ 1 << bit,
                ..mine
            };
            assert_eq!(
                compare(&mine, &theirs).is_err(),
                compared >> bit & 1 == 1,
                "bit {bit}"
            );
        }
        let theirs = Registers {
            cap: mine.cap ^ 1 << 33,
            ..mine
        };
        assert_eq!(
            compare(&mine, &theirs).unwrap_err().to_string(),
            "CAP.DSTRD is 0x7 here and 0x5 in the stream"
        );
        let theirs = Registers {
            version: 0x0001_0400,
            ..mine
        };
        assert_eq!(
            compare(&mine, &theirs).unwrap_err().to_string(),
            "VS is 0x20100 here and 0x10400 in the stream"
        );
        let theirs = Registers {
            vectors: 33,
            ..mine
        };
        assert_eq!(
            compare(&mine, &theirs).unwrap_err().to_string(),
            "MSI-X vectors is 17 here and 33 in the stream"
        );
    }
}
