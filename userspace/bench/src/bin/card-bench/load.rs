// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is to be transferred: random blocks of a file, the same ones for the card and for raw
//! io_uring.

use crate::controller::DATA;
use crate::sys::Direction;

/// Bytes of an I/O.
pub(crate) const BLOCK: u32 = 4096;

/// Where in RAM the data goes to or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffers {
    /// Each slot has one buffer, as with fio.
    PerSlot,
    /// The buffers of this many bytes of RAM, one after the other.
    Rotating(u64),
}

/// A number of I/Os.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) direction: Direction,
    /// I/Os in flight.
    pub(crate) depth: u16,
    buffers: Buffers,
    /// Blocks of the file.
    blocks: u64,
    left: u64,
    random: u64,
    rotation: u64,
}

/// One I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// Bytes from the start of the file.
    pub(crate) offset: u64,
    /// Offset in RAM.
    pub(crate) address: u64,
}

impl Load {
    /// `ios` random blocks of a file of `bytes`. Loads of one seed are the same.
    pub(crate) fn new(
        direction: Direction,
        depth: u16,
        ios: u64,
        bytes: u64,
        buffers: Buffers,
        seed: u64,
    ) -> Self {
        Self {
            direction,
            depth,
            buffers,
            blocks: (bytes / u64::from(BLOCK)).max(1),
            left: ios,
            // xorshift stays at zero.
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            rotation: 0,
        }
    }

    /// Whether every I/O was handed out.
    pub(crate) fn is_over(&self) -> bool {
        self.left == 0
    }

    /// The next I/O, to be done in this slot.
    pub(crate) fn next(&mut self, slot: u16) -> Option<Transfer> {
        self.left = self.left.checked_sub(1)?;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let block = u64::from(BLOCK);
        let buffer = match self.buffers {
            Buffers::PerSlot => slot.into(),
            Buffers::Rotating(bytes) => {
                self.rotation += 1;
                self.rotation % (bytes / block).max(1)
            }
        };
        Some(Transfer {
            offset: (self.random >> 8) % self.blocks * block,
            address: DATA + buffer * block,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_repeatable_and_stays_inside() {
        let new = |seed| {
            Load::new(
                Direction::Read,
                4,
                1000,
                40_960,
                Buffers::Rotating(8192),
                seed,
            )
        };
        let all =
            |mut load: Load| -> Vec<Transfer> { (0..).map_while(|i| load.next(i % 4)).collect() };
        let transfers = all(new(7));
        assert_eq!(transfers.len(), 1000);
        assert_eq!(transfers, all(new(7)));
        assert_ne!(transfers, all(new(8)));
        for block in 0..10 {
            let here = transfers.iter().filter(|t| t.offset == block * 4096);
            assert!((50..200).contains(&here.count()), "block {block}");
        }
        for buffer in [DATA, DATA + 4096] {
            let here = transfers.iter().filter(|t| t.address == buffer);
            assert_eq!(here.count(), 500);
        }
    }
}
