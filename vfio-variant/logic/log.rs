// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! What a user may ask of a DMA log, checked: the VFIO core checks some of it only.

/// Bytes of the smallest granule, and of the pages that ranges are made of.
pub const PAGE: u64 = 4096;

/// The range `first..=last` as first byte and length; `None` when no log can track it: it is empty
/// (then the core says that it ends before it begins, or wraps around) or not made of pages.
pub fn range(first: u64, last: u64) -> Option<(u64, u64)> {
    let length = last.checked_sub(first)?.checked_add(1)?;
    (first % PAGE == 0 && length % PAGE == 0).then_some((first, length))
}

/// The granule to ask for when the user wishes `page_size`; `None` when that is no size of a page.
pub fn granule(page_size: u64) -> Option<u64> {
    page_size.is_power_of_two().then(|| page_size.max(PAGE))
}

/// First and last byte of a report over `length` bytes from `iova`; `None` when it is over nothing.
pub fn span(iova: u64, length: u64) -> Option<(u64, u64)> {
    Some((iova, iova.checked_add(length.checked_sub(1)?)?))
}

/// The part of `length` bytes from `iova` that lies in a span, as first byte and length; `None` when
/// there is none.
pub fn cut(iova: u64, length: u64, (first, last): (u64, u64)) -> Option<(u64, u64)> {
    let end = iova.saturating_add(length.checked_sub(1)?).min(last);
    let start = iova.max(first);
    Some((start, end.checked_sub(start)?.checked_add(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(range(0, 0xfff), Some((0, 0x1000)));
        assert_eq!(range(0x1000, 0x2fff), Some((0x1000, 0x2000)));
        let last_page = u64::MAX - 0xfff;
        assert_eq!(range(last_page, u64::MAX), Some((last_page, 0x1000)));
        // Of length 0: the core computes `last` as `first - 1`.
        assert_eq!(range(0x1000, 0xfff), None);
        assert_eq!(range(0, u64::MAX), None);
        assert_eq!(range(0x800, 0x17ff), None);
        assert_eq!(range(0x1000, 0x17ff), None);
    }

    #[test]
    fn granules() {
        assert_eq!(granule(0), None);
        assert_eq!(granule(4097), None);
        assert_eq!(granule(1), Some(4096));
        assert_eq!(granule(4096), Some(4096));
        assert_eq!(granule(1 << 63), Some(1 << 63));
    }

    #[test]
    fn spans() {
        assert_eq!(span(5, 0), None);
        assert_eq!(span(5, 1), Some((5, 5)));
        assert_eq!(span(u64::MAX, 1), Some((u64::MAX, u64::MAX)));
        assert_eq!(span(u64::MAX, 2), None);
        assert_eq!(span(0, u64::MAX), Some((0, u64::MAX - 1)));
    }

    #[test]
    fn cuts() {
        let span = (0x1000, 0x2fff);
        assert_eq!(cut(0x1000, 0x2000, span), Some((0x1000, 0x2000)));
        assert_eq!(cut(0, 0x8000, span), Some((0x1000, 0x2000)));
        assert_eq!(cut(0x800, 0x801, span), Some((0x1000, 1)));
        assert_eq!(cut(0x2fff, 9, span), Some((0x2fff, 1)));
        assert_eq!(cut(0x2000, u64::MAX, span), Some((0x2000, 0x1000)));
        for (iova, length) in [(0, 0x1000), (0x3000, 0x1000), (0x1000, 0), (0, 0)] {
            assert_eq!(cut(iova, length, span), None, "{length:#x} at {iova:#x}");
        }
        assert_eq!(cut(u64::MAX, 1, (0, u64::MAX)), Some((u64::MAX, 1)));
        // One more than a length can say.
        assert_eq!(cut(0, u64::MAX, (0, u64::MAX)), Some((0, u64::MAX)));
    }
}
