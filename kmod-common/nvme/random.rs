// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Seeded noise for the fuzz tests of this folder: the same run each time, on stable Rust.
//!
//! Tests only. Owned by the test that makes it; never a source of secrets.

/// An xorshift generator.
pub(crate) struct Random(u64);

impl Random {
    /// A generator that always gives the same numbers for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Fills `bytes` with noise, in half of the calls mostly zeroes, so that counts and lengths
    /// come out small enough to get past the first check.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        let sparse = self.next() & 1 == 0;
        for byte in bytes {
            let noise = self.next();
            *byte = if sparse && noise & 0x700 != 0 {
                0
            } else {
                noise as u8
            };
        }
    }

    /// Changes up to four bytes of `bytes`.
    pub(crate) fn damage(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len().max(1));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = self.next() as u8;
            }
        }
    }
}
