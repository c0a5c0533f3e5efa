// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sizes for people.

/// 2^n times 4 KiB; the largest number when a card says something absurd.
pub(crate) fn granule(exponent: u8) -> u64 {
    1u64.checked_shl(u32::from(exponent))
        .and_then(|units| units.checked_mul(4096))
        .unwrap_or(u64::MAX)
}

/// Bytes with the largest binary unit that divides them.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = (bytes.trailing_zeros() / 10).min(6);
    format!("{} {}", bytes >> (10 * step), units[step as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_use_the_largest_unit_that_divides() {
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(6 << 20), "6 MiB");
        assert_eq!(bytes(u64::MAX), format!("{} B", u64::MAX));
        assert_eq!(bytes(1 << 63), "8 EiB");
        assert_eq!(granule(0), 4096);
        assert_eq!(granule(51), 1 << 63);
        assert_eq!(granule(52), u64::MAX);
        assert_eq!(granule(200), u64::MAX);
    }
}
