// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where a window goes when nobody says.

use vmfunc_uapi::{FIRST_WINDOW, SLOT_SIZE};

/// What one table of last-level entries maps: windows at multiples of it have room behind them, unless
/// they are exactly as long, so who runs over the end of one does not come out in the next.
const STEP: u64 = 2 << 20;

/// The first free multiple of [`STEP`] with room for `length` bytes between `windows`, which are
/// beginnings and lengths in order. None when there is none.
pub(super) fn free(windows: impl IntoIterator<Item = (u64, u64)>, length: u64) -> Option<u64> {
    let mut at = FIRST_WINDOW;
    for (begin, taken) in windows {
        if at.checked_add(length)? <= begin {
            break;
        }
        let end = begin.checked_add(taken)?.checked_next_multiple_of(STEP)?;
        at = at.max(end);
    }
    (at.checked_add(length)? <= SLOT_SIZE).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gap_that_is_large_enough_is_taken() {
        const M: u64 = 1 << 20;
        assert_eq!(free([], 4096), Some(2 * M));
        assert_eq!(free([(2 * M, 4096)], 4096), Some(4 * M));
        assert_eq!(free([(4 * M, 4096)], 2 * M), Some(2 * M));
        assert_eq!(free([(4 * M, 4096)], 2 * M + 4096), Some(6 * M));
        assert_eq!(free([(2 * M, 2 * M), (6 * M, 4096)], 2 * M), Some(4 * M));
        assert_eq!(free([(2 * M, 3 * M), (6 * M, 4096)], 2 * M), Some(8 * M));
        // The end of the slot.
        let rest = SLOT_SIZE - 2 * M;
        assert_eq!(free([], rest), Some(2 * M));
        assert_eq!(free([], rest + 4096), None);
        assert_eq!(free([(2 * M, rest)], 4096), None);
        assert_eq!(free([(2 * M, rest - 4096)], 4096), None);
        // What a module says that lies.
        assert_eq!(free([(u64::MAX, 1)], u64::MAX), None);
        assert_eq!(free([(2 * M, u64::MAX)], 4096), None);
    }
}
