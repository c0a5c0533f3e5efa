// SPDX-License-Identifier: Apache-2.0 OR MIT

//! DMA logging of a device.

use super::device::Device;
use rustix::io::Result;
use std::collections::BTreeSet;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
};

/// Size of a page, and of what is reported.
pub const PAGE: u64 = 4096;

/// An address below `vm.mmap_min_addr`.
pub const NOWHERE: u64 = 8;

/// Addresses of pages.
pub type Pages = BTreeSet<u64>;

/// A range of I/O addresses: first one and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

/// A range.
pub const fn range(iova: u64, length: u64) -> Range {
    Range { iova, length }
}

impl Range {
    /// The pages that it overlaps.
    pub fn pages(self) -> impl Iterator<Item = u64> {
        let end = self.iova + self.length;
        // CAST: pages of memory are far fewer.
        (self.iova & !(PAGE - 1)..end).step_by(PAGE as usize)
    }
}

/// The number of words of a bitmap for `length` bytes, a bit for each `page_size`.
pub fn words(length: u64, page_size: u64) -> usize {
    // CAST: 64-bit machines only.
    length.div_ceil(page_size).div_ceil(64) as usize
}

/// The pages that the bits of a report say.
pub fn pages_of(bitmap: &[u64], iova: u64, page_size: u64) -> Pages {
    let mut pages = Pages::new();
    for (i, word) in (0u64..).zip(bitmap) {
        for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
            let start = iova + (i * 64 + bit) * page_size;
            // CAST: as above.
            pages.extend((start..start + page_size).step_by(PAGE as usize));
        }
    }
    pages
}

impl Device {
    /// Starts logging of `ranges` with a wished granule; gives the granule that it has.
    pub fn start_log(&self, page_size: u64, ranges: &[Range]) -> Result<u64> {
        let list: Vec<[u64; 2]> = ranges.iter().map(|r| [r.iova, r.length]).collect();
        // CAST: 64-bit machines only; and at most a few hundred ranges.
        let at = list.as_ptr().expose_provenance() as u64;
        self.start_log_with(page_size, ranges.len() as u32, 0, at)
    }

    /// The same with any fields: `page_size`, `num_ranges`, the reserved one, address of the
    /// ranges.
    pub fn start_log_with(
        &self,
        page_size: u64,
        count: u32,
        reserved: u32,
        ranges: u64,
    ) -> Result<u64> {
        let mut data = [0; 24];
        data[..8].copy_from_slice(&page_size.to_ne_bytes());
        data[8..12].copy_from_slice(&count.to_ne_bytes());
        data[12..16].copy_from_slice(&reserved.to_ne_bytes());
        data[16..].copy_from_slice(&ranges.to_ne_bytes());
        self.set_feature(VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &mut data)?;
        Ok(u64::from_ne_bytes(data[..8].try_into().unwrap()))
    }

    /// Ends logging.
    pub fn stop_log(&self) -> Result<()> {
        self.set_feature(VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, &mut [])
    }

    /// The pages of `range` that were written since they were reported last.
    pub fn report(&self, range: Range) -> Result<Pages> {
        self.report_in(range, PAGE)
    }

    /// The same, reported in units of `page_size`.
    pub fn report_in(&self, range: Range, page_size: u64) -> Result<Pages> {
        let mut bitmap = vec![0; words(range.length, page_size)];
        self.report_into(range, page_size, &mut bitmap)?;
        Ok(pages_of(&bitmap, range.iova, page_size))
    }

    /// The same, ORed into a bitmap of the caller, which is as long as [`words`] says.
    pub fn report_into(&self, range: Range, page_size: u64, bitmap: &mut [u64]) -> Result<()> {
        assert!(
            page_size < PAGE || bitmap.len() >= words(range.length, page_size),
            "a bitmap of {} words for {range:x?}",
            bitmap.len()
        );
        let at = bitmap.as_mut_ptr().expose_provenance() as u64;
        self.report_to(range, page_size, at)
    }

    /// A report to an address where there is no memory.
    pub fn report_to_nowhere(&self, range: Range, page_size: u64) -> Result<()> {
        self.report_to(range, page_size, NOWHERE)
    }

    fn report_to(&self, range: Range, page_size: u64, bitmap: u64) -> Result<()> {
        let mut data = [0; 32];
        let fields = [range.iova, range.length, page_size, bitmap];
        for (place, field) in data.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        self.get_feature(VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &mut data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_a_page() {
        let pages = pages_of(&[1 << 63, 0b11], 0x10_0000, PAGE);
        let expected = [0x13_f000, 0x14_0000, 0x14_1000];
        assert_eq!(pages, Pages::from(expected));
        let pages = pages_of(&[0b10], 0x10_0000, 2 * PAGE);
        assert_eq!(pages, Pages::from([0x10_2000, 0x10_3000]));
        assert_eq!(words(64 * PAGE, PAGE), 1);
        assert_eq!(words(64 * PAGE + 1, PAGE), 2);
    }

    #[test]
    fn a_range_has_the_pages_that_it_overlaps() {
        let pages: Vec<u64> = range(0x1800, 0x1000).pages().collect();
        assert_eq!(pages, [0x1000, 0x2000]);
        assert_eq!(range(0x1000, 0).pages().count(), 0);
    }
}
