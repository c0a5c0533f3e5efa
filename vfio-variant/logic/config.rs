// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Which part of a read of configuration space is to be hidden.

/// Of a read of `length` bytes at `position`, the part that lies in the `size` bytes at `hidden`: its
/// offset in the read, and its length. `None` when there is none.
pub fn overlap(position: u64, length: usize, hidden: u16, size: u8) -> Option<(usize, usize)> {
    let (hidden, length) = (u64::from(hidden), u64::try_from(length).ok()?);
    let first = position.max(hidden);
    let end = position
        .saturating_add(length)
        .min(hidden.saturating_add(u64::from(size)));
    let count = end.checked_sub(first).filter(|count| *count > 0)?;
    let offset = first.checked_sub(position)?;
    Some((usize::try_from(offset).ok()?, usize::try_from(count).ok()?))
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn every_read_of_a_small_space() {
        let hidden = 10u16..13;
        for position in 0..20u16 {
            for length in 0..20u16 {
                let bytes = position..position + length;
                let inside: Vec<usize> = bytes
                    .enumerate()
                    .filter(|(_, at)| hidden.contains(at))
                    .map(|(offset, _)| offset)
                    .collect();
                let expected = inside.first().map(|first| (*first, inside.len()));
                assert_eq!(
                    overlap(position.into(), length.into(), hidden.start, 3),
                    expected,
                    "{position} {length}"
                );
            }
        }
    }

    #[test]
    fn positions_and_lengths_from_outside() {
        assert_eq!(overlap(0, usize::MAX, 10, 2), Some((10, 2)));
        assert_eq!(overlap(u64::MAX, usize::MAX, 10, 2), None);
        assert_eq!(overlap(0, usize::MAX, u16::MAX, 2), Some((65535, 2)));
        assert_eq!(overlap(10, 2, 10, 0), None);
    }
}
