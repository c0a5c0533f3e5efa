// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Addresses from a first to a last one.
//!
//! Both ends belong to it, so a span may end with the last byte of the address space, and is never
//! empty.

/// Bytes of a page: the unit of what is reported, and the smallest granule of a card.
pub const PAGE: u64 = 1 << PAGE_SHIFT;
/// [`PAGE`] as a power of two.
pub const PAGE_SHIFT: u32 = 12;

/// From `first` to `last`.
///
/// # Invariants
///
/// `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    first: u64,
    last: u64,
}

impl Span {
    /// Every address.
    pub const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// From `first` to `last`; `None` when that is nothing.
    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first > last {
            return None;
        }
        Some(Self { first, last })
    }

    /// `length` bytes from `first` on; `None` for no byte, or when the last one has no address.
    pub const fn of_length(first: u64, length: u64) -> Option<Self> {
        if length == 0 {
            return None;
        }
        match first.checked_add(length - 1) {
            Some(last) => Some(Self { first, last }),
            None => None,
        }
    }

    /// The first address.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The last address.
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Bytes in it, less one: all 2^64 have no number.
    pub const fn bytes_less_one(&self) -> u64 {
        self.last - self.first
    }

    /// Bytes in it; 2^64 - 1 for all 2^64.
    pub const fn bytes(&self) -> u64 {
        self.bytes_less_one().saturating_add(1)
    }

    /// The smallest span around it of whole blocks of 2^`shift` bytes, `shift < 64`.
    pub const fn round_out(&self, shift: u32) -> Self {
        let mask = low_bits(shift);
        // INVARIANT: the first only becomes smaller, the last only larger.
        Self {
            first: self.first & !mask,
            last: self.last | mask,
        }
    }

    /// The largest span in it of whole blocks of 2^`shift` bytes, `shift < 64`.
    pub const fn round_in(&self, shift: u32) -> Option<Self> {
        let mask = low_bits(shift);
        let Some(first) = self.first.checked_add(mask) else {
            return None;
        };
        match self.last.checked_add(1) {
            // Ends at the top, which every block size does.
            None => Self::new(first & !mask, self.last),
            Some(end) => match (end & !mask).checked_sub(1) {
                Some(last) => Self::new(first & !mask, last),
                None => None,
            },
        }
    }

    /// What both have.
    pub fn overlap(&self, other: &Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// Whether `other` begins in it or right behind it, so that both can be one. `other` does not
    /// begin before.
    pub const fn touches(&self, other: &Self) -> bool {
        match self.last.checked_add(1) {
            Some(end) => other.first <= end,
            None => true,
        }
    }

    /// The smallest span around both.
    pub fn around(&self, other: &Self) -> Self {
        // INVARIANT: the first only becomes smaller, the last only larger.
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

const fn low_bits(shift: u32) -> u64 {
    match 1u64.checked_shl(shift) {
        Some(bit) => bit - 1,
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64) -> Span {
        Span::new(first, last).unwrap()
    }

    #[test]
    fn lengths() {
        assert_eq!(Span::of_length(5, 0), None);
        assert_eq!(Span::of_length(5, 1), Some(span(5, 5)));
        assert_eq!(Span::of_length(1, u64::MAX), Some(span(1, u64::MAX)));
        assert_eq!(Span::of_length(2, u64::MAX), None);
        assert_eq!(Span::new(2, 1), None);
        assert_eq!(span(0, u64::MAX).bytes(), u64::MAX);
        assert_eq!(span(1, u64::MAX).bytes(), u64::MAX);
        assert_eq!(span(3, 3).bytes(), 1);
    }

    #[test]
    fn rounding() {
        assert_eq!(span(0x1fff, 0x2000).round_out(12), span(0x1000, 0x2fff));
        assert_eq!(span(1, u64::MAX).round_out(21), span(0, u64::MAX));
        assert_eq!(span(0x1fff, 0x2000).round_in(12), None);
        assert_eq!(
            span(0x1001, 0x3000).round_in(12),
            Some(span(0x2000, 0x2fff))
        );
        assert_eq!(
            span(0x1000, 0x1fff).round_in(12),
            Some(span(0x1000, 0x1fff))
        );
        assert_eq!(span(0, u64::MAX).round_in(12), Some(span(0, u64::MAX)));
        assert_eq!(span(u64::MAX - 1, u64::MAX).round_in(12), None);
        assert_eq!(span(0, 1).round_in(12), None);
    }

    #[test]
    fn neighbours() {
        assert!(span(0, 9).touches(&span(10, 20)));
        assert!(span(0, 9).touches(&span(9, 20)));
        assert!(!span(0, 9).touches(&span(11, 20)));
        assert!(span(0, u64::MAX).touches(&span(1, 1)));
        assert_eq!(span(0, 9).overlap(&span(9, 20)), Some(span(9, 9)));
        assert_eq!(span(0, 9).overlap(&span(10, 20)), None);
        assert_eq!(span(5, 9).around(&span(0, 7)), span(0, 9));
    }
}
