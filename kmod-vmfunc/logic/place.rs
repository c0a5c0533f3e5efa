// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Where a window may stand in the private slot, and by which entries its pages are reached.

use core::ops::Range;

/// Bytes that a leaf maps.
pub const PAGE: u64 = 4096;
/// Bytes that a last-level table maps.
pub const TABLE_SPAN: u64 = 2 << 20;

/// Why a window cannot stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Not whole pages, nothing, or too much.
    Size,
    /// Below the windows' part of the slot, or beyond its end.
    Place,
}

/// The pages of a window in the slot, by number from the slot's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first.
    pub first: u64,
    /// How many; not 0.
    pub count: u64,
}

impl Place {
    /// The window of `length` bytes at `offset`, when windows begin at `lowest`, are at most `most`
    /// bytes long, and the slot has `slot` bytes.
    pub const fn new(
        offset: u64,
        length: u64,
        lowest: u64,
        most: u64,
        slot: u64,
    ) -> Result<Self, Bad> {
        if length == 0 || length > most || length % PAGE != 0 {
            return Err(Bad::Size);
        }
        let Some(end) = offset.checked_add(length) else {
            return Err(Bad::Place);
        };
        if offset % PAGE != 0 || offset < lowest || end > slot {
            return Err(Bad::Place);
        }
        Ok(Self {
            first: offset / PAGE,
            count: length / PAGE,
        })
    }

    /// Whether a page belongs to both.
    pub const fn overlaps(&self, other: &Self) -> bool {
        // Both lie in a slot of 2^27 pages, so nothing wraps.
        self.first < other.first + other.count && other.first < self.first + self.count
    }

    /// Its parts that one last-level table each maps: the table's number from the slot's base, and
    /// its entries.
    pub fn parts(&self) -> impl Iterator<Item = (u64, Range<usize>)> {
        const PER_TABLE: u64 = TABLE_SPAN / PAGE;
        let (first, end) = (self.first, self.first.saturating_add(self.count));
        (first / PER_TABLE..end.div_ceil(PER_TABLE)).map(move |table| {
            let base = table.saturating_mul(PER_TABLE);
            let from = first.saturating_sub(base);
            let to = end.saturating_sub(base).min(PER_TABLE);
            // CAST: at most 512.
            (table, from as usize..to as usize)
        })
    }
}

/// The indexes that lead to last-level table `table`: in the table of 1 GiB entries and in that of
/// 2 MiB entries.
pub const fn path(table: u64) -> [usize; 2] {
    // CAST: 9 bits each.
    [(table >> 9 & 511) as usize, (table & 511) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLOT: u64 = 512 << 30;
    const MOST: u64 = 64 << 20;

    fn place(offset: u64, length: u64) -> Result<Place, Bad> {
        Place::new(offset, length, TABLE_SPAN, MOST, SLOT)
    }

    #[test]
    fn limits() {
        assert_eq!(
            place(2 << 20, 4096),
            Ok(Place {
                first: 512,
                count: 1
            })
        );
        assert_eq!(place((2 << 20) - 4096, 4096), Err(Bad::Place));
        assert_eq!(place(2 << 20, 0), Err(Bad::Size));
        assert_eq!(place(2 << 20, 4095), Err(Bad::Size));
        assert_eq!(place(2 << 20, MOST + 4096), Err(Bad::Size));
        assert_eq!(place((2 << 20) + 1, 4096), Err(Bad::Place));
        assert!(place(SLOT - 4096, 4096).is_ok());
        assert_eq!(place(SLOT - 4096, 8192), Err(Bad::Place));
        assert_eq!(place(u64::MAX - 4095, 8192), Err(Bad::Place));
    }

    #[test]
    fn paths() {
        assert_eq!(path(0), [0, 0]);
        assert_eq!(path(1), [0, 1]);
        assert_eq!(path(SLOT / TABLE_SPAN - 1), [511, 511]);
    }

    #[test]
    fn parts_are_cut_where_tables_end() {
        let parts = |first, count| Place { first, count }.parts().collect::<Vec<_>>();
        assert_eq!(parts(512, 1), [(1, 0..1)]);
        assert_eq!(parts(1023, 1), [(1, 511..512)]);
        assert_eq!(parts(1023, 2), [(1, 511..512), (2, 0..1)]);
        assert_eq!(
            parts(600, 1500),
            [(1, 88..512), (2, 0..512), (3, 0..512), (4, 0..52)]
        );
    }

    proptest! {
        #[test]
        fn overlap_is_a_common_page(
            a in 512u64..1024, an in 1u64..64, b in 512u64..1024, bn in 1u64..64,
        ) {
            let x = Place { first: a, count: an };
            let y = Place { first: b, count: bn };
            let common = (a..a + an).any(|page| (b..b + bn).contains(&page));
            prop_assert_eq!(x.overlaps(&y), common);
            prop_assert_eq!(y.overlaps(&x), common);
        }

        #[test]
        fn a_path_leads_to_one_table(table in 0..SLOT / TABLE_SPAN) {
            let [a, b] = path(table).map(|index| index as u64);
            prop_assert_eq!((a << 9) | b, table);
        }

        #[test]
        fn parts_are_the_pages_in_order(first in 512..SLOT / PAGE, count in 1u64..5000) {
            let place = Place { first, count };
            let pages = place.parts().flat_map(|(table, entries)| {
                entries.map(move |entry| table * 512 + entry as u64)
            });
            prop_assert!(pages.eq(first..first + count));
            for (_, entries) in place.parts() {
                prop_assert!(entries.start < entries.end && entries.end <= 512);
            }
        }
    }
}
