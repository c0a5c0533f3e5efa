// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! A stream that lies in memory in several pieces.

/// The bytes from `position` on that lie together; empty when it is at or behind the end.
pub fn rest<'a>(pieces: &[&'a [u8]], position: u64) -> &'a [u8] {
    let mut left = position;
    for piece in pieces {
        // CAST: widens.
        let size = piece.len() as u64;
        if left < size {
            return usize::try_from(left)
                .ok()
                .and_then(|left| piece.get(left..))
                .unwrap_or(&[]);
        }
        left = left.saturating_sub(size);
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::rest;

    #[test]
    fn pieces_are_read_through() {
        let pieces: [&[u8]; 4] = [b"abc", b"", b"d", b"efgh"];
        for step in 1..=9 {
            let mut read = Vec::new();
            loop {
                let rest = rest(&pieces, read.len() as u64);
                if rest.is_empty() {
                    break;
                }
                read.extend_from_slice(&rest[..rest.len().min(step)]);
            }
            assert_eq!(read, b"abcdefgh", "in steps of {step}");
        }
        assert_eq!(rest(&pieces, 2), b"c");
        assert_eq!(rest(&pieces, 3), b"d");
        assert_eq!(rest(&pieces, 8), b"");
        assert_eq!(rest(&pieces, u64::MAX), b"");
        assert_eq!(rest(&[], 0), b"");
    }
}
