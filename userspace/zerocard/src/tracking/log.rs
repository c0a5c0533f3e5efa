// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The dirty log of one function: which granules of the tracked ranges it has written.
//!
//! Owned by the function while it is tracked. The function marks under its own lock, so there is
//! one marker at a time; a harvest may run beside it on any thread and never makes it wait. Ranges
//! come from a host and are checked here. The log must never lose a mark.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::bitmap::Bitmap;

/// The smallest granule, 4 KiB, as a power of two.
const MIN_SHIFT: u8 = 12;
/// The largest granule, 2 MiB.
const MAX_SHIFT: u8 = 21;

/// A range to track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// First byte; a multiple of the granule.
    pub(crate) start: u64,
    /// Length in granules. The range may end at 2^64.
    pub(crate) granules: u32,
}

/// What a log may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of bitmap: one bit per granule. It is address space; memory is used where a function
    /// writes.
    pub(crate) bitmap_bytes: u64,
}

impl Default for Limits {
    /// 1 GiB of bitmap: 32 TiB of guest memory at 4 KiB.
    fn default() -> Self {
        Self {
            bitmap_bytes: 1 << 30,
        }
    }
}

/// Why a log could not be started. Nothing is left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartError {
    /// The granule is not between 4 KiB and 2 MiB.
    Granule,
    /// There is no range.
    NoRanges,
    /// The range with this number has no granules, does not start on a granule, or goes past 2^64.
    Range(usize),
    /// The ranges with these numbers overlap.
    Overlap(usize, usize),
    /// The bitmaps would exceed the limit, or there is no memory for them.
    NotEnoughResources {
        /// The smallest granule, as a power of two, with which the same bytes can be tracked.
        granule_shift: Option<u8>,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granule => f.write_str("the granule is not between 4 KiB and 2 MiB"),
            Self::NoRanges => f.write_str("there is no range to track"),
            Self::Range(index) => {
                write!(f, "range {index} is empty, unaligned, or goes past 2^64")
            }
            Self::Overlap(one, other) => write!(f, "ranges {one} and {other} overlap"),
            Self::NotEnoughResources { granule_shift } => {
                f.write_str("not enough memory for the bitmaps")?;
                match granule_shift {
                    Some(shift) => write!(f, "; a granule of {} bytes fits", 1u64 << shift),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for StartError {}

struct Tracked {
    first: u64,
    /// Inclusive: a range may end at 2^64.
    last: u64,
    bitmap: Bitmap,
}

/// Where the next harvest starts, so that a busy low range does not starve the ones above.
#[derive(Clone, Copy, Default)]
struct Cursor {
    range: usize,
    granule: usize,
}

/// See the top of the file.
pub(crate) struct DirtyLog {
    /// Sorted by address, at least one, apart from each other.
    ranges: Box<[Tracked]>,
    shift: u8,
    /// The range of the last mark. A wrong value costs a search.
    hint: AtomicUsize,
    /// Harvests exclude each other with it. Marking does not take it.
    cursor: Mutex<Cursor>,
}

impl DirtyLog {
    /// Starts a log in which nothing is dirty, with a granule of `1 << granule_shift` bytes.
    pub(crate) fn start(
        ranges: &[Range],
        granule_shift: u8,
        limits: Limits,
    ) -> Result<Self, StartError> {
        let spans = check(ranges, granule_shift)?;
        let bytes = |shift: u8| -> u64 {
            // No overflow: a span is at most 2^53 bytes, and a list of them fits in memory.
            let granules = ranges
                .iter()
                .map(|range| (u64::from(range.granules) << granule_shift).div_ceil(1 << shift));
            granules.map(Bitmap::bytes).fold(0, u64::saturating_add)
        };
        let refused = |from: u8| StartError::NotEnoughResources {
            granule_shift: (from..=MAX_SHIFT).find(|&shift| bytes(shift) <= limits.bitmap_bytes),
        };
        if bytes(granule_shift) > limits.bitmap_bytes {
            return Err(refused(granule_shift));
        }
        let mut tracked = Vec::with_capacity(spans.len());
        for span in spans {
            let bitmap =
                Bitmap::new(span.granules as usize).map_err(|_| refused(granule_shift + 1))?;
            tracked.push(Tracked {
                first: span.first,
                last: span.last,
                bitmap,
            });
        }
        Ok(Self {
            ranges: tracked.into(),
            shift: granule_shift,
            hint: AtomicUsize::new(0),
            cursor: Mutex::default(),
        })
    }

    /// Bytes of a granule.
    pub(crate) fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// Ranges that are tracked.
    pub(crate) fn descriptors(&self) -> usize {
        self.ranges.len()
    }

    /// Marks `len` bytes from `iova` as written, and says how many granules were clean before. What
    /// is not tracked is ignored.
    ///
    /// Call it after the write: after the store, or after the kernel has reported it done. One
    /// marker at a time.
    #[inline]
    pub(crate) fn mark(&self, iova: u64, len: u64) -> u64 {
        let Some(rest) = len.checked_sub(1) else {
            return 0;
        };
        let last = iova.saturating_add(rest);
        match self.ranges.get(self.hint.load(Ordering::Relaxed)) {
            Some(range) if range.first <= iova && last <= range.last => {
                self.record(range, iova, last)
            }
            _ => self.mark_elsewhere(iova, last),
        }
    }

    #[cold]
    fn mark_elsewhere(&self, iova: u64, last: u64) -> u64 {
        let mut new = 0;
        let from = self.ranges.partition_point(|range| range.last < iova);
        for (index, range) in self.ranges.iter().enumerate().skip(from) {
            if range.first > last {
                break;
            }
            new += self.record(range, iova.max(range.first), last.min(range.last));
            self.hint.store(index, Ordering::Relaxed);
        }
        new
    }

    /// `first` and `last` lie in the range.
    #[inline]
    fn record(&self, range: &Tracked, first: u64, last: u64) -> u64 {
        let granule = |address: u64| ((address - range.first) >> self.shift) as usize;
        range.bitmap.set(granule(first), granule(last))
    }

    /// Takes dirty granules out of the log as at most `max_descriptors` runs (SADDR, LEN in
    /// granules), and says whether there is more (MTR). A run stays in one range.
    ///
    /// The runs ascend from where the last harvest ran out of room, and go round once. `false`
    /// means that every mark made before the call is out; marks made meanwhile may be left. Who
    /// reports a function as suspended (SUSP) has to look at that before this call, not after.
    pub(crate) fn harvest(&self, max_descriptors: usize, out: &mut impl FnMut(u64, u32)) -> bool {
        let mut cursor = self.cursor.lock();
        let start = *cursor;
        let mut left = max_descriptors;
        for step in 0..=self.ranges.len() {
            let index = (start.range + step) % self.ranges.len();
            let range = &self.ranges[index];
            let window = if step == 0 {
                start.granule..range.bitmap.granules()
            } else if index == start.range {
                0..start.granule
            } else {
                0..range.bitmap.granules()
            };
            let stopped = range.bitmap.take(window, &mut left, |first, count| {
                // Both are at most the granules of a range, which are 32 bits wide.
                out(range.first + ((first as u64) << self.shift), count as u32);
            });
            if let Some(granule) = stopped {
                *cursor = Cursor {
                    range: index,
                    granule,
                };
                return true;
            }
        }
        *cursor = Cursor::default();
        false
    }

    /// Whether nothing is dirty. Like a harvest, it may miss marks made meanwhile.
    pub(crate) fn is_clean(&self) -> bool {
        let _cursor = self.cursor.lock();
        self.ranges.iter().all(|range| range.bitmap.is_clean())
    }
}

/// A range that was checked.
struct Span {
    first: u64,
    last: u64,
    granules: u32,
    /// Its number in the request.
    index: usize,
}

/// The ranges in order of address.
fn check(ranges: &[Range], granule_shift: u8) -> Result<Vec<Span>, StartError> {
    if !(MIN_SHIFT..=MAX_SHIFT).contains(&granule_shift) {
        return Err(StartError::Granule);
    }
    if ranges.is_empty() {
        return Err(StartError::NoRanges);
    }
    let granule = 1u64 << granule_shift;
    let mut spans = Vec::with_capacity(ranges.len());
    for (index, range) in ranges.iter().enumerate() {
        let last = (u64::from(range.granules) << granule_shift)
            .checked_sub(1)
            .and_then(|rest| range.start.checked_add(rest))
            .filter(|_| range.start % granule == 0)
            .ok_or(StartError::Range(index))?;
        spans.push(Span {
            first: range.start,
            last,
            granules: range.granules,
            index,
        });
    }
    spans.sort_unstable_by_key(|span| span.first);
    for pair in spans.windows(2) {
        if pair[1].first <= pair[0].last {
            let (one, other) = (pair[0].index, pair[1].index);
            return Err(StartError::Overlap(one.min(other), one.max(other)));
        }
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB4: u64 = 4096;

    fn range(start: u64, granules: u32) -> Range {
        Range { start, granules }
    }

    fn log(ranges: &[Range]) -> DirtyLog {
        DirtyLog::start(ranges, 12, Limits::default()).unwrap()
    }

    fn refusal(ranges: &[Range], shift: u8, bitmap_bytes: u64) -> StartError {
        match DirtyLog::start(ranges, shift, Limits { bitmap_bytes }) {
            Ok(_) => panic!("started"),
            Err(error) => error,
        }
    }

    fn harvest(log: &DirtyLog, max: usize) -> (Vec<(u64, u32)>, bool) {
        let mut list = Vec::new();
        let more = log.harvest(max, &mut |start, count| list.push((start, count)));
        (list, more)
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        let refused = |ranges: &[Range], shift| refusal(ranges, shift, u64::MAX);
        assert_eq!(refused(&[range(0, 1)], 11), StartError::Granule);
        assert_eq!(refused(&[range(0, 1)], 22), StartError::Granule);
        assert_eq!(refused(&[], 12), StartError::NoRanges);
        let good = range(0, 1);
        assert_eq!(refused(&[good, range(KIB4, 0)], 12), StartError::Range(1));
        assert_eq!(refused(&[good, range(0x1800, 1)], 12), StartError::Range(1));
        assert_eq!(refused(&[range(KIB4, 1)], 13), StartError::Range(0));
        let top = 0u64.wrapping_sub(2 * KIB4);
        assert_eq!(refused(&[range(top, 3)], 12), StartError::Range(0));
        // The lengths fit 32 bits of granules, the end does not fit 64 bits of bytes.
        assert_eq!(
            refused(&[range(1 << 63, u32::MAX), range(top, u32::MAX)], 12),
            StartError::Range(1)
        );
        let list = [range(8 * KIB4, 4), range(0, 1), range(11 * KIB4, 1)];
        assert_eq!(refused(&list, 12), StartError::Overlap(0, 2));
        let list = [range(8 * KIB4, 4), range(8 * KIB4, 4)];
        assert_eq!(refused(&list, 12), StartError::Overlap(0, 1));
    }

    #[test]
    fn a_log_that_is_too_big_says_which_granule_would_do() {
        // 2^20 granules are 128 KiB of bits.
        let list = [range(0, 1 << 19), range(1 << 40, 1 << 19)];
        assert!(DirtyLog::start(
            &list,
            12,
            Limits {
                bitmap_bytes: 128 << 10
            }
        )
        .is_ok());
        let refused = |bitmap_bytes| match refusal(&list, 12, bitmap_bytes) {
            StartError::NotEnoughResources { granule_shift } => granule_shift,
            error => panic!("{error}"),
        };
        assert_eq!(refused((128 << 10) - 1), Some(13));
        assert_eq!(refused(64 << 10), Some(13));
        assert_eq!(refused((64 << 10) - 1), Some(14));
        assert_eq!(refused(256), Some(21));
        assert_eq!(refused(255), None);
        // The default takes 32 TiB at 4 KiB.
        let limit = Limits::default().bitmap_bytes;
        let list: Vec<_> = (0..4).map(|n| range(n << 45, 1 << 31)).collect();
        assert!(DirtyLog::start(&list, 12, Limits::default()).is_ok());
        let list: Vec<_> = (0..4).map(|n| range(n << 45, (1 << 31) + 1)).collect();
        let granule_shift = Some(13);
        assert_eq!(
            refusal(&list, 12, limit),
            StartError::NotEnoughResources { granule_shift }
        );
    }

    #[test]
    fn marks_outside_of_the_ranges_are_ignored() {
        let log = log(&[range(16 * KIB4, 4), range(2 * KIB4, 4)]);
        assert_eq!((log.granule(), log.descriptors()), (KIB4, 2));
        log.mark(0, 2 * KIB4);
        log.mark(6 * KIB4, 10 * KIB4);
        log.mark(20 * KIB4, u64::MAX);
        log.mark(16 * KIB4, 0);
        assert!(log.is_clean());
        assert_eq!(harvest(&log, 9), (vec![], false));
        // A byte on either side of an edge, and across both ranges.
        log.mark(2 * KIB4 - 1, 2);
        log.mark(20 * KIB4 - 1, 2);
        assert_eq!(
            harvest(&log, 9),
            (vec![(2 * KIB4, 1), (19 * KIB4, 1)], false)
        );
        log.mark(5 * KIB4 + 4095, 10 * KIB4 + 2);
        assert_eq!(
            harvest(&log, 9),
            (vec![(5 * KIB4, 1), (16 * KIB4, 1)], false)
        );
    }

    #[test]
    fn neighbours_are_reported_apart() {
        let log = log(&[range(0, 4), range(4 * KIB4, 4)]);
        log.mark(0, u64::MAX);
        assert!(!log.is_clean());
        assert_eq!(harvest(&log, 9), (vec![(0, 4), (4 * KIB4, 4)], false));
        log.mark(3 * KIB4, 2 * KIB4);
        assert_eq!(
            harvest(&log, 9),
            (vec![(3 * KIB4, 1), (4 * KIB4, 1)], false)
        );
    }

    #[test]
    fn a_range_may_end_with_the_address_space() {
        let start = 0u64.wrapping_sub(2 << 21);
        let log = DirtyLog::start(&[range(start, 2)], 21, Limits::default()).unwrap();
        log.mark(u64::MAX, 1);
        assert_eq!(harvest(&log, 9), (vec![(start + (1 << 21), 1)], false));
        // More than there is ends at the end.
        log.mark(start, u64::MAX);
        assert_eq!(harvest(&log, 9), (vec![(start, 2)], false));
        log.mark(0, u64::MAX);
        assert_eq!(harvest(&log, 9), (vec![(start, 2)], false));
    }

    #[test]
    fn the_longest_range_there_is() {
        let log = log(&[range(1 << 50, u32::MAX)]);
        let last = (1 << 50) + (u64::from(u32::MAX) - 1) * KIB4;
        log.mark(last, KIB4);
        log.mark(1 << 50, 1);
        assert_eq!(harvest(&log, 1), (vec![(1 << 50, 1)], true));
        assert_eq!(harvest(&log, 1), (vec![(last, 1)], false));
    }

    #[test]
    fn a_busy_low_range_does_not_starve_a_high_one() {
        let log = log(&[range(0, 1024), range(1 << 30, 1024)]);
        let high = (1 << 30) + 77 * KIB4;
        log.mark(high, 1);
        let mut reported = Vec::new();
        for _ in 0..6 {
            for granule in [0, 2, 4] {
                log.mark(granule * KIB4, KIB4);
            }
            let (list, more) = harvest(&log, 1);
            assert!(more);
            reported.extend(list.iter().map(|run| run.0));
        }
        assert_eq!(reported, [0, 2 * KIB4, 4 * KIB4, high, 0, 2 * KIB4]);
        // What is left comes out from there, once around.
        let rest = vec![(4 * KIB4, 1), (0, 1)];
        assert_eq!(harvest(&log, 9), (rest, false));
        assert_eq!(harvest(&log, 9), (vec![], false));
    }

    #[test]
    fn without_room_nothing_is_taken() {
        let log = log(&[range(0, 1024)]);
        assert_eq!(harvest(&log, 0), (vec![], false));
        log.mark(5 * KIB4, 1);
        assert_eq!(harvest(&log, 0), (vec![], true));
        assert_eq!(harvest(&log, 1), (vec![(5 * KIB4, 1)], false));
    }
}
