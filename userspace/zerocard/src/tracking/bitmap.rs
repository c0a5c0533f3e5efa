// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A sparse bitmap that one thread sets while another takes bits out, without a lock.
//!
//! Owned by one range of a dirty log. Level 0 has a bit per granule; each level above has a bit per
//! word of the level below, up to a top of one cache line, so that taking costs in proportion to
//! what is set. The memory comes zeroed from the kernel and is not touched before it is needed: a
//! span of many TiB costs address space. It must never report a granule that was not set, nor lose
//! one that was.
//!
//! # Who may do what at the same time
//!
//! One thread sets, one takes; they exclude others of their own kind, but not each other. (A second
//! setter could see a word that the first has filled but not yet flagged above, and return before
//! the taker can find its own bit.)
//!
//! # Why nothing is lost
//!
//! The rule: outside the calls that are under way, a word that is not zero has its bit set in the
//! level above ("is flagged"). The setter fills a word, then flags it if it was zero. The taker
//! empties a word, then clears its flag, then *looks at the word again*, and flags it again when it
//! is not zero. Filling, emptying, flagging and clearing are read-modify-write operations, AcqRel,
//! so that those on one word have one order and each sees what came before all earlier ones.
//!
//! - The setter finds the word filled already. It was filled and flagged by an earlier call, and
//!   has not been empty since. So the flag is there, or the taker is between clearing it and its
//!   second look, which finds the word filled.
//! - The setter finds the word empty and flags it before the taker clears the flag: the clearing
//!   comes after the flagging, which came after the filling, so the second look sees the word
//!   filled.
//! - It flags the word after the taker cleared the flag: the flag stays.
//!
//! A flag is a bit of a word too, and the same holds one level up: the setter stops at the first
//! word that was not zero, the taker goes up only from a word that it emptied and that was still
//! empty at the second look. What remains possible is a flag on an empty word (the taker came by
//! between filling and flagging). It costs one look: a taker that follows it clears it.
//!
//! Bits are taken only when they will be reported, so there is nothing to put back when the
//! report is full.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{AllocError, FromZeros};

const BITS: usize = u64::BITS as usize;

/// Levels are stacked until one has no more words than this: a cache line, scanned in one go.
const TOP_WORDS: usize = 8;

/// See the top of the file.
pub(super) struct Bitmap {
    granules: usize,
    bits: Box<[AtomicU64]>,
    /// Level 1 and up. Bit n of a level is for word n of the level below.
    flags: Vec<Box<[AtomicU64]>>,
    /// Words that [`Bitmap::take`] has looked at.
    #[cfg(test)]
    pub(super) visited: std::sync::atomic::AtomicUsize,
}

impl Bitmap {
    /// A bitmap with no granule set. It fails when the kernel has no address space to give.
    pub(super) fn new(granules: usize) -> Result<Self, AllocError> {
        let mut words = granules.div_ceil(BITS);
        let bits = <[AtomicU64]>::new_box_zeroed_with_elems(words)?;
        let mut flags = Vec::new();
        while words > TOP_WORDS {
            words = words.div_ceil(BITS);
            flags.push(<[AtomicU64]>::new_box_zeroed_with_elems(words)?);
        }
        Ok(Self {
            granules,
            bits,
            flags,
            #[cfg(test)]
            visited: Default::default(),
        })
    }

    /// Bytes of level 0 for that many granules; all levels above take a 63rd of it together.
    pub(super) const fn bytes(granules: u64) -> u64 {
        granules.div_ceil(u64::BITS as u64) * size_of::<u64>() as u64
    }

    pub(super) fn granules(&self) -> usize {
        self.granules
    }

    /// Sets the granules from `first` to `last`, inclusive, and says how many were clean. Both are below
    /// [`Bitmap::granules`].
    #[inline]
    pub(super) fn set(&self, first: usize, last: usize) -> u64 {
        debug_assert!(first <= last && last < self.granules);
        let head = u64::MAX << (first % BITS);
        let tail = u64::MAX >> (BITS - 1 - last % BITS);
        let (first, last) = (first / BITS, last / BITS);
        if first == last {
            return self.fill(first, head & tail);
        }
        let mut new = self.fill(first, head) + self.fill(last, tail);
        for word in first + 1..last {
            new += self.fill(word, u64::MAX);
        }
        new
    }

    /// The operation on level 0 happens even if the bits are set already. Guest memory was written
    /// before; a mere look at the bits could overtake those writes, find the bit still set, and
    /// leave the taker to clear it and have the memory read before the new data is there. An
    /// operation with release order cannot: either the taker's comes after it and everybody who
    /// learns of the report sees the data, or it comes before and the bit is set for the next one.
    #[inline]
    fn fill(&self, word: usize, mask: u64) -> u64 {
        let Some(cell) = self.bits.get(word) else {
            return 0;
        };
        let before = cell.fetch_or(mask, Ordering::AcqRel);
        if before == 0 {
            self.flag(word);
        }
        (mask & !before).count_ones().into()
    }

    fn flag(&self, mut index: usize) {
        for level in &self.flags {
            let bit = 1 << (index % BITS);
            index /= BITS;
            if level[index].fetch_or(bit, Ordering::AcqRel) != 0 {
                return;
            }
        }
    }

    /// Takes granules of `window` out, in ascending order, as runs of (first, count). Each costs
    /// one of `runs`. Answers with the first granule in the window that is set and did not fit;
    /// `None` when all that was set before the call is out.
    ///
    /// `out` may see a run before its bits are cleared: read the memory after this returns.
    pub(super) fn take(
        &self,
        window: Range<usize>,
        runs: &mut usize,
        mut out: impl FnMut(usize, usize),
    ) -> Option<usize> {
        // The run that may still grow.
        let mut open: Option<Range<usize>> = None;
        let mut stopped = None;
        let mut next = window.start / BITS;
        while let Some(word) = self.next_flagged(next) {
            let base = word * BITS;
            if base >= window.end {
                break;
            }
            next = word + 1;
            let now = self.look(&self.bits[word]);
            if now == 0 {
                self.unflag(0, word);
                continue;
            }
            let dirty = now & part_of_word(base, &window);
            let goes_on = open
                .as_ref()
                .is_some_and(|run| dirty & 1 != 0 && run.end == base);
            let taken = first_runs(dirty, runs.saturating_add(goes_on.into()));
            if taken != 0 {
                let left = self.bits[word].fetch_and(!taken, Ordering::AcqRel) & !taken;
                if left == 0 {
                    self.unflag(0, word);
                }
            }
            for run in Runs(taken) {
                let run = base + run.start..base + run.end;
                match &mut open {
                    Some(open) if open.end == run.start => open.end = run.end,
                    _ => {
                        *runs -= 1;
                        if let Some(done) = open.replace(run) {
                            out(done.start, done.len());
                        }
                    }
                }
            }
            if taken != dirty {
                stopped = Some(base + first_bit(dirty & !taken));
                break;
            }
        }
        if let Some(done) = open {
            out(done.start, done.len());
        }
        stopped
    }

    /// Whether no granule is set. It takes nothing, but it is a call of the taker.
    pub(super) fn is_clean(&self) -> bool {
        self.take(0..self.granules, &mut 0, |_, _| {}).is_none()
    }

    /// The first word of level 0 from `from` on that is flagged; every word, if nothing is above.
    fn next_flagged(&self, from: usize) -> Option<usize> {
        let Some(top) = self.flags.len().checked_sub(1) else {
            return (from < self.bits.len()).then_some(from);
        };
        // The next bit to look at is bit `index` of `level`.
        let (mut level, mut index) = (0, from);
        let mut came_down = false;
        loop {
            let word = index / BITS;
            let found = self.look(self.flags[level].get(word)?) & (u64::MAX << (index % BITS));
            if found != 0 {
                index = word * BITS + first_bit(found);
                if level == 0 {
                    return Some(index);
                }
                level -= 1;
                index *= BITS;
                came_down = true;
            } else if level == top {
                index = (word + 1) * BITS;
            } else {
                level += 1;
                if came_down {
                    // All of the word was looked at, and it is empty.
                    self.unflag(level, word);
                }
                index = word + 1;
                came_down = false;
            }
        }
    }

    /// Clears the flag of a word that was seen empty: bit `index` of `level`, and upwards from
    /// words that this empties.
    fn unflag(&self, level: usize, mut index: usize) {
        for level in level..self.flags.len() {
            let bit = 1 << (index % BITS);
            let word = &self.flags[level][index / BITS];
            let left = word.fetch_and(!bit, Ordering::AcqRel) & !bit;
            let below = match level.checked_sub(1) {
                Some(below) => &self.flags[below],
                None => &self.bits,
            };
            if self.look(&below[index]) != 0 {
                // Nothing above was cleared: this word counts as never having been empty.
                word.fetch_or(bit, Ordering::AcqRel);
                return;
            }
            if left != 0 {
                return;
            }
            index /= BITS;
        }
    }

    #[inline]
    fn look(&self, word: &AtomicU64) -> u64 {
        #[cfg(test)]
        self.visited.fetch_add(1, Ordering::Relaxed);
        word.load(Ordering::Acquire)
    }
}

/// The bits of the word that starts at granule `base` which lie in the window. The window ends
/// after `base`.
fn part_of_word(base: usize, window: &Range<usize>) -> u64 {
    // Both shifts are below 64: a window that starts in a later word never gets here.
    let head = u64::MAX << (window.start.saturating_sub(base) % BITS);
    let tail = u64::MAX >> (BITS - (window.end - base).min(BITS));
    head & tail
}

/// The number of the lowest bit that is set; `word` is not zero.
fn first_bit(word: u64) -> usize {
    word.trailing_zeros() as usize
}

/// The bits of the lowest `count` runs.
fn first_runs(word: u64, count: usize) -> u64 {
    let mut starts = word & !(word << 1);
    if count >= starts.count_ones() as usize {
        return word;
    }
    for _ in 0..count {
        starts &= starts - 1;
    }
    // At least one start is left: keep what is below it.
    let start = starts & starts.wrapping_neg();
    word & (start - 1)
}

/// The runs of bits in a word, from the lowest.
struct Runs(u64);

impl Iterator for Runs {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if self.0 == 0 {
            return None;
        }
        let start = first_bit(self.0);
        let len = (self.0 >> start).trailing_ones() as usize;
        // The carry runs through the lowest run and clears it.
        self.0 &= self.0.wrapping_add(1 << start);
        Some(start..start + len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(
        bitmap: &Bitmap,
        window: Range<usize>,
        runs: usize,
    ) -> (Vec<(usize, usize)>, Option<usize>) {
        let mut list = Vec::new();
        let mut left = runs;
        let stopped = bitmap.take(window, &mut left, |first, count| list.push((first, count)));
        assert_eq!(left, runs - list.len());
        (list, stopped)
    }

    fn take_all(bitmap: &Bitmap) -> Vec<(usize, usize)> {
        let (list, stopped) = take(bitmap, 0..bitmap.granules(), usize::MAX);
        assert_eq!(stopped, None);
        list
    }

    /// Words that taking everything looks at.
    fn cost(bitmap: &Bitmap) -> usize {
        bitmap.visited.store(0, Ordering::Relaxed);
        take_all(bitmap);
        bitmap.visited.load(Ordering::Relaxed)
    }

    #[test]
    fn runs_within_and_across_words_come_out_merged_and_once() {
        let bitmap = Bitmap::new(1 << 20).unwrap();
        assert!(bitmap.is_clean());
        for (first, last) in [(0, 0), (2, 3), (60, 70), (71, 71), (128, 191), (192, 400)] {
            bitmap.set(first, last);
        }
        bitmap.set((1 << 20) - 1, (1 << 20) - 1);
        assert!(!bitmap.is_clean());
        let expected = [(0, 1), (2, 2), (60, 12), (128, 273), ((1 << 20) - 1, 1)];
        assert_eq!(take_all(&bitmap), expected);
        assert!(bitmap.is_clean());
        assert_eq!(take_all(&bitmap), []);
    }

    #[test]
    fn a_full_bitmap_is_one_run_at_every_size() {
        for granules in [1, 63, 64, 65, 511, 512, 513, 32_767, 32_769, 2_097_153] {
            let bitmap = Bitmap::new(granules).unwrap();
            bitmap.set(0, granules - 1);
            assert_eq!(take_all(&bitmap), [(0, granules)]);
            assert!(bitmap.is_clean(), "{granules}");
        }
    }

    #[test]
    fn what_does_not_fit_stays() {
        for granules in [400, 1 << 20] {
            let bitmap = Bitmap::new(granules).unwrap();
            for first in [1, 3, 5, 64, 130, 132] {
                bitmap.set(first, first);
            }
            // Granules 191 to 193 cross a word: one run, whichever word the room ends in.
            bitmap.set(191, 193);
            let all = 0..granules;
            assert_eq!(take(&bitmap, all.clone(), 0), (vec![], Some(1)));
            assert_eq!(
                take(&bitmap, all.clone(), 2),
                (vec![(1, 1), (3, 1)], Some(5))
            );
            assert_eq!(take(&bitmap, all.clone(), 1), (vec![(5, 1)], Some(64)));
            assert_eq!(
                take(&bitmap, all.clone(), 2),
                (vec![(64, 1), (130, 1)], Some(132))
            );
            assert_eq!(
                take(&bitmap, all.clone(), 2),
                (vec![(132, 1), (191, 3)], None)
            );
            assert_eq!(take(&bitmap, all, 0), (vec![], None));
        }
    }

    #[test]
    fn a_run_goes_on_for_free_only_where_it_ended() {
        let bitmap = Bitmap::new(1 << 16).unwrap();
        bitmap.set(60, 63);
        bitmap.set(66, 66);
        let all = 0..1 << 16;
        assert_eq!(take(&bitmap, all.clone(), 1), (vec![(60, 4)], Some(66)));
        bitmap.set(60, 64);
        assert_eq!(take(&bitmap, all, 1), (vec![(60, 5)], Some(66)));
    }

    #[test]
    fn a_window_bounds_what_is_taken() {
        let bitmap = Bitmap::new(1 << 16).unwrap();
        bitmap.set(0, 1000);
        assert_eq!(take(&bitmap, 10..20, 9), (vec![(10, 10)], None));
        assert_eq!(take(&bitmap, 70..70, 9), (vec![], None));
        assert_eq!(take(&bitmap, 70..64 * 3, 9), (vec![(70, 122)], None));
        assert_eq!(take(&bitmap, 5..1 << 16, 1), (vec![(5, 5)], Some(20)));
        assert_eq!(take_all(&bitmap), [(0, 5), (20, 50), (192, 809)]);
    }

    #[test]
    fn taking_costs_by_what_is_set_and_not_by_the_span() {
        // 64 TiB of 4 KiB granules, and a tenth of it.
        let span = 1 << 34;
        let mut costs = Vec::new();
        for granules in [span / 10, span] {
            let bitmap = Bitmap::new(granules).unwrap();
            let levels = bitmap.flags.len() + 1;
            let clean = cost(&bitmap);
            assert!(clean <= levels + TOP_WORDS, "{clean}");
            for granule in [0, granules / 2, granules - 1] {
                bitmap.set(granule, granule);
            }
            let three = cost(&bitmap);
            // Each: down, two looks at what was emptied, and up to the next.
            assert!(three <= clean + 3 * 4 * levels, "{three}");
            assert!(bitmap.is_clean());
            costs.push((three, levels));
        }
        let more_levels = costs[1].1 - costs[0].1;
        assert!(
            costs[1].0 <= costs[0].0 + TOP_WORDS + 3 * 4 * more_levels,
            "{costs:?}"
        );
    }

    #[test]
    fn a_word_filled_before_the_second_look_stays_flagged() {
        // As if the setter had come between the taker's emptying and its clearing of the flag, at
        // each level.
        let granules = 1 << 22;
        for level in 0..Bitmap::new(granules).unwrap().flags.len() {
            let bitmap = Bitmap::new(granules).unwrap();
            bitmap.set(granules - 1, granules - 1);
            let word = (granules - 1) >> (6 * (level + 1));
            bitmap.unflag(level, word);
            assert_eq!(take_all(&bitmap), [(granules - 1, 1)], "level {level}");
            assert!(bitmap.is_clean());
        }
    }

    #[test]
    fn a_flag_on_an_empty_word_is_cleared_and_hides_nothing() {
        let granules = 1 << 22;
        let clean = cost(&Bitmap::new(granules).unwrap());
        let levels = Bitmap::new(granules).unwrap().flags.len();
        assert!(levels > 1);
        for (level, index) in (0..levels).flat_map(|level| [(level, 0), (level, 7)]) {
            let bitmap = Bitmap::new(granules).unwrap();
            for (up, words) in bitmap.flags[level..].iter().enumerate() {
                words[0].fetch_or(1 << (index >> (6 * up)), Ordering::Relaxed);
            }
            assert!(bitmap.is_clean());
            bitmap.set(granules - 1, granules - 1);
            assert_eq!(take_all(&bitmap), [(granules - 1, 1)], "{level} {index}");
            assert_eq!(cost(&bitmap), clean, "{level} {index}");
        }
    }

    #[test]
    fn the_lowest_runs_of_a_word() {
        assert_eq!(first_runs(0b1101_1010, 0), 0);
        assert_eq!(first_runs(0b1101_1010, 1), 0b10);
        assert_eq!(first_runs(0b1101_1010, 2), 0b1_1010);
        assert_eq!(first_runs(0b1101_1010, 3), 0b1101_1010);
        assert_eq!(first_runs(u64::MAX, 1), u64::MAX);
        assert_eq!(first_runs(0, 0), 0);
        assert!(Runs(u64::MAX).eq(Some(0..64)));
        assert!(Runs(1 << 63 | 0b110).eq([1..3, 63..64]));
    }
}
