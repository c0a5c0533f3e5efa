// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Extended-page-table pointers (Intel SDM volume 3, section 27.6.11, table 27-9).

use super::ept::ADDRESS;

/// Bits 5:3: the length of the walk, less one.
const WALK: u64 = 7 << 3;
/// What they are with four levels.
const FOUR_LEVELS: u64 = 3 << 3;

/// An extended-page-table pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Eptp(pub u64);

impl Eptp {
    /// Physical address of its top table.
    pub const fn root(self) -> u64 {
        self.0 & ADDRESS
    }

    /// Whether its top table is the one with entries of 512 GiB.
    pub const fn has_four_levels(self) -> bool {
        self.0 & WALK == FOUR_LEVELS
    }

    /// The same kind of pointer (memory type, levels, accessed and dirty flags: bits 11:0) to
    /// another top table. VMFUNC takes only what VM entry would take (section 27.5.6.3), and KVM's
    /// own pointer was taken.
    pub const fn with_root(self, root: u64) -> Self {
        Self((self.0 & !ADDRESS) | (root & ADDRESS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_are_counted_as_in_the_manual() {
        // Write-back, four levels, accessed and dirty flags; then five levels.
        assert!(Eptp(0x1234_505e).has_four_levels());
        assert!(!Eptp(0x1234_5066).has_four_levels());
        assert_eq!(Eptp(0x1234_505e).root(), 0x1234_5000);
    }

    proptest! {
        #[test]
        fn another_root_changes_nothing_else(eptp in any::<u64>(), root in any::<u64>()) {
            let root = root & ADDRESS;
            let other = Eptp(eptp).with_root(root);
            prop_assert_eq!(other.root(), root);
            prop_assert_eq!(other.0 & !ADDRESS, eptp & !ADDRESS);
            prop_assert_eq!(other.with_root(Eptp(eptp).root()), Eptp(eptp));
        }
    }
}
