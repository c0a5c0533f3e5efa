// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The Secondary Controller List (Identify CNS 15h): NVMe Base 2.1, section 5.1.13.2.15.
//!
//! Read view only: no card of ours has secondary controllers. Never validates.

use super::bytes;
use super::identify::SIZE;

/// Bytes of an entry, and of the header.
const ENTRY: usize = 32;
/// Entries that the page has room for.
const ENTRIES: usize = SIZE / ENTRY - 1;

/// A secondary controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondaryController {
    /// Secondary Controller Identifier (SCID).
    pub controller: u16,
    /// Primary Controller Identifier (PCID).
    pub primary: u16,
    /// Secondary Controller State (SCS) bit 0: it is online.
    pub online: bool,
    /// Virtual Function Number (VFN), counted from 1; 0 for none.
    pub virtual_function: u16,
}

/// The entries, in ascending order of identifiers; a count above 127 is cut there.
pub fn entries(page: &[u8; SIZE]) -> impl Iterator<Item = SecondaryController> + '_ {
    let count = usize::from(bytes::u8_at(page, 0)).min(ENTRIES);
    (1..=count).map(move |index| {
        let at = index * ENTRY;
        SecondaryController {
            controller: bytes::u16_at(page, at),
            primary: bytes::u16_at(page, at + 2),
            online: bytes::u8_at(page, at + 4) & 1 != 0,
            virtual_function: bytes::u16_at(page, at + 8),
        }
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn entries_have_the_layout_of_the_specification() {
        let mut page = [0xff; SIZE];
        page[0] = 2;
        page[32..48].copy_from_slice(&[2, 1, 4, 3, 1, 0, 0, 0, 6, 5, 8, 7, 10, 9, 0, 0]);
        page[64..80].copy_from_slice(&[3, 1, 4, 3, 0xfe, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        let list: Vec<_> = entries(&page).collect();
        let first = SecondaryController {
            controller: 0x0102,
            primary: 0x0304,
            online: true,
            virtual_function: 0x0506,
        };
        let second = SecondaryController {
            controller: 0x0103,
            online: false,
            virtual_function: 7,
            ..first
        };
        assert_eq!(list, [first, second]);
        page[0] = 0;
        assert_eq!(entries(&page).count(), 0);
        page[0] = 255;
        assert_eq!(entries(&page).count(), 127);
    }
}
