// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Entries of EPT paging structures (Intel SDM volume 3, section 31.3.2, tables 31-2 to 31-7).

/// Bit 0: reads are allowed.
pub const READ: u64 = 1 << 0;
/// Bit 1: writes are allowed.
pub const WRITE: u64 = 1 << 1;
/// Bit 2: fetches are allowed; with mode-based execute control those from supervisor-mode linear
/// addresses.
pub const EXECUTE: u64 = 1 << 2;
/// Bits 5:3 of a leaf, the memory type: 6, write-back.
pub const WRITE_BACK: u64 = 6 << 3;
/// Bit 6 of a leaf: the guest's PAT is ignored.
pub const IGNORE_PAT: u64 = 1 << 6;
/// Bit 8: accessed.
pub const ACCESSED: u64 = 1 << 8;
/// Bit 9 of a leaf: dirty.
pub const DIRTY: u64 = 1 << 9;
/// Bit 10: with mode-based execute control, fetches from user-mode linear addresses are allowed;
/// without it the processor ignores it.
pub const EXECUTE_USER: u64 = 1 << 10;
/// Bit 63 of a leaf: its violations are exits, never virtualization exceptions.
pub const SUPPRESS_VE: u64 = 1 << 63;
/// Bits 51:12: the address of a table or of a page.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The entry of what is not there: not present, and its violations are exits.
pub const EMPTY: u64 = SUPPRESS_VE;

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// The entry that leads to the table at the physical address `table`, and forbids nothing itself.
/// Accessed is set already, as KVM does it: a processor would set it, and the entry would no longer
/// be what was written.
pub const fn table(table: u64) -> u64 {
    (table & ADDRESS) | READ | WRITE | EXECUTE | ACCESSED | EXECUTE_USER
}

/// The index of the top entry, of four levels, that leads to a guest-physical address.
pub const fn top_index(address: u64) -> usize {
    // CAST: 9 bits.
    (address >> 39 & 511) as usize
}

/// What a page of the private slot is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// The gate: for supervisor code to run and to read. Ring 3 can run it only where the processor
    /// has no mode-based execute control.
    Gate,
    /// A window that is only read.
    ReadOnly,
    /// A window that is read and written.
    ReadWrite,
}

/// The 4 KiB leaf for the page at the physical address `page`.
///
/// Write-back whatever the guest's PAT says, so that it cannot give our memory another type than the
/// host's mapping has. Accessed and dirty are set already: a processor that sets them would log the
/// window's address for KVM, which knows no such page. Never written without being read, which is a
/// misconfiguration.
pub const fn leaf(page: u64, is: Page) -> u64 {
    let allowed = match is {
        Page::Gate => READ | EXECUTE,
        Page::ReadOnly => READ,
        Page::ReadWrite => READ | WRITE,
    };
    (page & ADDRESS) | allowed | WRITE_BACK | IGNORE_PAT | ACCESSED | DIRTY | SUPPRESS_VE
}

/// What the top entry `entry` of KVM's root becomes in a view: the same without fetches, in either
/// mode. What is not present stays so.
pub const fn without_execute(entry: u64) -> u64 {
    entry & !(EXECUTE | EXECUTE_USER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bits as the manual's tables number them.
    #[test]
    fn leaves_are_what_the_manual_says() {
        let bits = |bits: &[u32]| bits.iter().map(|bit| 1u64 << bit).sum::<u64>();
        let common = [4, 5, 6, 8, 9, 63];
        let page = 0x0000_0012_3456_7000;
        assert_eq!(
            leaf(page, Page::ReadOnly),
            page | bits(&common) | bits(&[0])
        );
        assert_eq!(
            leaf(page, Page::ReadWrite),
            page | bits(&common) | bits(&[0, 1])
        );
        assert_eq!(leaf(page, Page::Gate), page | bits(&common) | bits(&[0, 2]));
        assert_eq!(table(page), page | bits(&[0, 1, 2, 8, 10]));
        assert_eq!(EMPTY, bits(&[63]));
    }

    #[test]
    fn a_top_entry_is_half_a_tebibyte() {
        let slots = [
            0,
            (512 << 30) - 1,
            512 << 30,
            (1 << 40) - 1,
            1 << 40,
            (1 << 48) - 1,
        ];
        assert_eq!(slots.map(top_index), [0, 0, 1, 1, 2, 511]);
    }

    proptest! {
        #[test]
        fn a_leaf_keeps_its_address_and_is_never_misconfigured(page in any::<u64>()) {
            for is in [Page::Gate, Page::ReadOnly, Page::ReadWrite] {
                let leaf = leaf(page, is);
                prop_assert_eq!(leaf & ADDRESS, page & ADDRESS);
                // Section 31.3.3.1: written but not read, or run but not read, or a reserved type.
                prop_assert!(leaf & READ != 0);
                prop_assert_eq!(leaf >> 3 & 7, 6);
                prop_assert!(leaf & WRITE == 0 || leaf & EXECUTE == 0);
                prop_assert_eq!(leaf & EXECUTE_USER, 0);
            }
        }

        #[test]
        fn a_view_takes_execute_and_nothing_else(entry in any::<u64>()) {
            let view = without_execute(entry);
            prop_assert_eq!(view & (1 << 2 | 1 << 10), 0);
            prop_assert_eq!(view | entry, entry);
            prop_assert_eq!(entry & !view & !(1 << 2 | 1 << 10), 0);
        }
    }
}
