// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sizes and ranges of memory, for people and from people.

use migdirty_uapi::MigdirtyRange;

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
    let step = if bytes == 0 { 0 } else { step };
    format!("{} {}", bytes >> (10 * step), units[step as usize])
}

/// A number, decimal or with 0x hexadecimal, perhaps followed by K, M, G or T (powers of 1024).
pub(crate) fn number(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, unit)) => match unit.to_ascii_uppercase() {
            'K' => (&text[..at], 10),
            'M' => (&text[..at], 20),
            'G' => (&text[..at], 30),
            'T' => (&text[..at], 40),
            _ => (text, 0),
        },
        None => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        None if !digits.starts_with('+') => digits.parse().ok(),
        _ => None,
    };
    number
        .and_then(|number: u64| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("'{text}' is no number such as 4096, 0x1000, 4K or 2G"))
}

/// A power of two from 4096 on.
pub(crate) fn power_of_two(text: &str) -> Result<u64, String> {
    let number = number(text)?;
    if number < 4096 || !number.is_power_of_two() {
        return Err(format!("{number} is no power of two from 4096 on"));
    }
    Ok(number)
}

/// A range of memory, `IOVA+LENGTH`.
pub(crate) fn range(text: &str) -> Result<MigdirtyRange, String> {
    let Some((iova, length)) = text.split_once('+') else {
        return Err("a range has the form IOVA+LENGTH, for example 0x100000+2M".into());
    };
    let range = MigdirtyRange {
        iova: number(iova)?,
        length: number(length)?,
    };
    if range.length == 0 || (range.iova | range.length) % 4096 != 0 {
        return Err("address and length have to be multiples of 4096, and not empty".into());
    }
    if range.iova.checked_add(range.length - 1).is_none() {
        return Err("the range goes beyond the last 64-bit address".into());
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_use_the_largest_unit_that_divides() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(6 << 20), "6 MiB");
        assert_eq!(bytes(u64::MAX), format!("{} B", u64::MAX));
        assert_eq!(bytes(1 << 63), "8 EiB");
        assert_eq!(granule(0), 4096);
        assert_eq!(granule(51), 1 << 63);
        assert_eq!(granule(52), u64::MAX);
        assert_eq!(granule(200), u64::MAX);
    }

    #[test]
    fn numbers_are_read() {
        for (text, value) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("4k", 4096),
            ("2G", 2 << 30),
            ("0x10M", 16 << 20),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(number(text), Ok(value));
        }
        for text in [
            "",
            "K",
            "x",
            "0x",
            "-1",
            "+1",
            "0x+1",
            "1.5K",
            "16777216T",
            "1\u{e9}",
        ] {
            assert!(number(text).is_err(), "{text}");
        }
        assert_eq!(power_of_two("4K"), Ok(4096));
        assert!(power_of_two("2K").is_err() && power_of_two("12K").is_err());
        // The last page that there is.
        let last = range("0xfffffffffffff000+4K").unwrap();
        assert_eq!((last.iova, last.length), (u64::MAX - 4095, 4096));
    }
}
