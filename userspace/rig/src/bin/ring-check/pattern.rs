// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a page holds: every byte of it follows from the block that it was read from and from the generation that
//! was written there, so a page tells whose content it is, and nothing else can look like it.

use std::fmt;

use serde_json::{json, Value};

/// Bytes of a page, and of a block of the checked region.
pub(crate) const PAGE: usize = 4096;

/// One page of memory.
pub(crate) type Page = [u8; PAGE];

const WORD: usize = size_of::<u64>();

/// Whose content a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Which 4 KiB block of the device.
    pub(crate) block: u64,
    /// How often the block was rewritten before.
    pub(crate) generation: u64,
}

impl Content {
    /// The page word by word: block, generation, then a body that both seed.
    fn words(self) -> impl Iterator<Item = u64> {
        let mut body = Random::new(self.block ^ self.generation.rotate_left(40));
        [self.block, self.generation]
            .into_iter()
            .chain(std::iter::from_fn(move || Some(body.next())))
            .take(PAGE / WORD)
    }

    /// Writes it to `page`.
    pub(crate) fn fill(self, page: &mut Page) {
        for (to, word) in page.chunks_exact_mut(WORD).zip(self.words()) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Where `page` first differs from it, in bytes.
    pub(crate) fn differs(self, page: &Page) -> Option<usize> {
        let same = |(have, word): (&[u8], u64)| have == word.to_le_bytes();
        let word = page
            .chunks_exact(WORD)
            .zip(self.words())
            .position(|w| !same(w));
        word.map(|n| n * WORD)
    }
}

/// What a page holds that does not hold what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Another content, whole.
    Other(Content),
    /// Only zeroes.
    Zeroes,
    /// No content: it begins like this one, and differs from it at this byte.
    Torn(Content, usize),
}

impl Found {
    /// Looks at `page`.
    pub(crate) fn in_page(page: &Page) -> Self {
        let word = |n: usize| {
            let bytes = page.get(n * WORD..).and_then(|p| p.first_chunk());
            bytes.map_or(0, |b| u64::from_le_bytes(*b))
        };
        let content = Content {
            block: word(0),
            generation: word(1),
        };
        match content.differs(page) {
            None => Self::Other(content),
            Some(_) if page.iter().all(|b| *b == 0) => Self::Zeroes,
            Some(at) => Self::Torn(content, at),
        }
    }

    /// The same for the output.
    pub(crate) fn json(self) -> Value {
        match self {
            Self::Other(content) => content.json(),
            Self::Zeroes => json!("zeroes"),
            Self::Torn(content, at) => json!({"begins_as": content.json(), "torn_at": at}),
        }
    }
}

impl Content {
    /// The same for the output.
    pub(crate) fn json(self) -> Value {
        json!({"block": self.block, "generation": self.generation})
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} generation {}", self.block, self.generation)
    }
}

/// SplitMix64: a sequence that its seed repeats.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Content = Content {
        block: 7,
        generation: 3,
    };

    #[test]
    fn a_page_tells_whose_it_is() {
        let mut page = [0; PAGE];
        assert_eq!(Found::in_page(&page), Found::Zeroes);
        ONE.fill(&mut page);
        assert_eq!(ONE.differs(&page), None);
        assert_eq!(Found::in_page(&page), Found::Other(ONE));
        for other in [(7, 4), (8, 3)] {
            let other = Content {
                block: other.0,
                generation: other.1,
            };
            assert!(other.differs(&page).is_some());
        }
    }

    #[test]
    fn every_byte_counts() {
        let mut page = [0; PAGE];
        ONE.fill(&mut page);
        for at in [0, 8, 2047, PAGE - 1] {
            page[at] ^= 0x10;
            assert_eq!(ONE.differs(&page), Some(at / 8 * 8));
            page[at] ^= 0x10;
        }
        page[PAGE - 1] ^= 1;
        assert_eq!(Found::in_page(&page), Found::Torn(ONE, PAGE - 8));
    }
}
