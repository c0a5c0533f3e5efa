// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! What was harvested from a card and not handed out yet: a sparse set of pages.
//!
//! Sorted entries, each a run of whole chunks (128 MiB), or one chunk with a bitmap. So a span of
//! terabytes costs one entry, and memory grows with what was written and not with what is tracked:
//! 4 KiB for each chunk in which something is, and 24 bytes for its entry.
//!
//! Nothing is ever lost. When there is no memory for an entry or a bitmap, more pages count as
//! written than were; when there is none to split a run, what was handed out stays in. The storage
//! is the caller's.

use super::span::{Span, PAGE_SHIFT};
use core::ops::DerefMut;

/// Pages of a chunk as a power of two.
const CHUNK_SHIFT: u32 = 15;
/// Words of the bitmap of a chunk.
pub const WORDS: usize = 1 << (CHUNK_SHIFT - 6);
/// The pages of one chunk, from the lowest on.
pub type Bits = [u64; WORDS];

/// A run of chunks that are dirty as a whole, or one chunk with a bitmap.
///
/// # Invariants
///
/// `first <= last`, and they are equal when there is a bitmap.
#[derive(Debug)]
pub struct Entry<B> {
    first: u64,
    last: u64,
    bits: Option<B>,
}

/// Where a record keeps its entries.
pub trait Store {
    /// A bitmap.
    type Bits: DerefMut<Target = Bits>;

    /// The entries.
    fn entries(&self) -> &[Entry<Self::Bits>];

    /// The entries.
    fn entries_mut(&mut self) -> &mut [Entry<Self::Bits>];

    /// Inserts an entry, `at` being at most their number; gives it back when there is no memory.
    fn insert(&mut self, at: usize, entry: Entry<Self::Bits>) -> Result<(), Entry<Self::Bits>>;

    /// Keeps the entries for which `keep` says so, which it is asked in order.
    fn retain(&mut self, keep: impl FnMut(&mut Entry<Self::Bits>) -> bool);

    /// A bitmap of zeroes; `None` when there is no memory.
    fn bits(&mut self) -> Option<Self::Bits>;
}

/// There was no memory for even one entry: what was written is not known any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// A set of pages.
///
/// # Invariants
///
/// The entries ascend, and no two have a chunk in common.
#[derive(Debug)]
pub struct Record<S: Store> {
    store: S,
}

impl<S: Store> Record<S> {
    /// An empty set in a store without entries.
    pub const fn new(store: S) -> Self {
        Self { store }
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.store.entries().is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.store.retain(|_| false);
    }

    /// Every page of which `span` has a byte is dirty.
    ///
    /// # Errors
    ///
    /// [`Lost`], which cannot be when the store has room for one entry.
    pub fn mark(&mut self, span: Span) -> Result<(), Lost> {
        let pages = Pages::around(span);
        for part in pages.parts() {
            match part {
                Part::Whole { first, last } => self.mark_chunks(first, last)?,
                Part::Some { chunk, first, last } => self.mark_pages(chunk, first, last)?,
            }
        }
        Ok(())
    }

    /// Calls `dirty` with the dirty bytes of `span`, ascending and apart from each other, and
    /// forgets them. When it returns `false`, that part and what is behind it stays, and so does the
    /// answer: `false`. A page of which `span` has only a part stays dirty.
    pub fn take(&mut self, span: Span, mut dirty: impl FnMut(Span) -> bool) -> bool {
        let pages = Pages::around(span);
        let mut joined: Option<Span> = None;
        // The first byte that stays.
        let mut stays = None;
        for entry in self.overlapping(pages) {
            let go_on = entry.look(pages, |run| {
                let Some(part) = run.span().overlap(&span) else {
                    return true;
                };
                match &mut joined {
                    Some(before) if before.touches(&part) => *before = before.around(&part),
                    _ => {
                        if let Some(before) = joined.replace(part) {
                            if !dirty(before) {
                                stays = Some(before.first());
                                return false;
                            }
                        }
                    }
                }
                true
            });
            if !go_on {
                break;
            }
        }
        if let (Some(last), None) = (joined, stays) {
            if !dirty(last) {
                stays = Some(last.first());
            }
        }
        let done = match stays {
            None => Some(span),
            Some(first) => first
                .checked_sub(1)
                .and_then(|last| Span::new(span.first(), last)),
        };
        if let Some(whole) = done.and_then(|done| done.round_in(PAGE_SHIFT)) {
            self.forget(Pages::around(whole));
        }
        stays.is_none()
    }

    /// Whether a page of which `span` has a byte is dirty.
    pub fn has(&self, span: Span) -> bool {
        let pages = Pages::around(span);
        let entries = self.overlapping(pages);
        !entries.iter().all(|entry| entry.look(pages, |_| false))
    }

    fn overlapping(&self, pages: Pages) -> &[Entry<S::Bits>] {
        let (begin, end) = self.places(pages.first >> CHUNK_SHIFT, pages.last >> CHUNK_SHIFT);
        self.store.entries().get(begin..end).unwrap_or(&[])
    }

    /// From which entry to which one, not included, they have chunks of `first..=last`.
    fn places(&self, first: u64, last: u64) -> (usize, usize) {
        let entries = self.store.entries();
        (
            entries.partition_point(|entry| entry.last < first),
            entries.partition_point(|entry| entry.first <= last),
        )
    }

    fn mark_pages(&mut self, chunk: u64, first: u32, last: u32) -> Result<(), Lost> {
        let (at, end) = self.places(chunk, chunk);
        if at == end {
            // INVARIANT: one chunk; without a bitmap all of it is dirty, which is not too little.
            let entry = Entry {
                first: chunk,
                last: chunk,
                bits: self.store.bits(),
            };
            self.insert(at, entry)?;
        }
        if let Some(entry) = self.store.entries_mut().get_mut(at) {
            if let Some(bits) = &mut entry.bits {
                set(bits, first, last);
            }
        }
        Ok(())
    }

    fn mark_chunks(&mut self, first: u64, last: u64) -> Result<(), Lost> {
        let (at, end) = self.places(first, last);
        // INVARIANT: `first <= last`, as the parts of pages are.
        let mut run = Entry {
            first,
            last,
            bits: None,
        };
        let covered = self.store.entries().get(at..end).unwrap_or(&[]);
        // INVARIANT: grows over what it takes the place of.
        run.first = covered
            .first()
            .map_or(first, |entry| first.min(entry.first));
        run.last = covered.last().map_or(last, |entry| last.max(entry.last));
        if at == end {
            return self.insert(at, run);
        }
        if let Some(entry) = self.store.entries_mut().get_mut(at) {
            *entry = run;
        }
        let mut index = 0;
        self.store.retain(|_| {
            let keep = index <= at || index >= end;
            index += 1;
            keep
        });
        Ok(())
    }

    /// Inserts an entry whose chunks no other one has; without memory for it a neighbour grows over
    /// it.
    fn insert(&mut self, at: usize, entry: Entry<S::Bits>) -> Result<(), Lost> {
        let Err(entry) = self.store.insert(at, entry) else {
            return Ok(());
        };
        let entries = self.store.entries_mut();
        let neighbour = match at.checked_sub(1) {
            Some(before) => entries.get_mut(before),
            None => entries.first_mut(),
        };
        let neighbour = neighbour.ok_or(Lost)?;
        // INVARIANT: a run; between the two there is no other entry.
        neighbour.first = neighbour.first.min(entry.first);
        neighbour.last = neighbour.last.max(entry.last);
        neighbour.bits = None;
        Ok(())
    }

    /// These pages are not dirty any more.
    fn forget(&mut self, pages: Pages) {
        for part in pages.parts() {
            match part {
                Part::Whole { first, last } => {
                    self.isolate(first);
                    self.isolate(last);
                    // What could not be split stays.
                    self.store
                        .retain(|entry| entry.first < first || entry.last > last);
                }
                Part::Some { chunk, first, last } => {
                    self.isolate(chunk);
                    let (at, _) = self.places(chunk, chunk);
                    let Some(entry) = self.store.entries_mut().get_mut(at) else {
                        continue;
                    };
                    if entry.first != chunk || entry.last != chunk {
                        continue;
                    }
                    if entry.bits.is_none() {
                        let Some(mut bits) = self.store.bits() else {
                            continue;
                        };
                        bits.fill(u64::MAX);
                        if let Some(entry) = self.store.entries_mut().get_mut(at) {
                            entry.bits = Some(bits);
                        }
                    }
                    let Some(entry) = self.store.entries_mut().get_mut(at) else {
                        continue;
                    };
                    let Some(bits) = &mut entry.bits else {
                        continue;
                    };
                    clear(bits, first, last);
                    if bits.iter().all(|word| *word == 0) {
                        self.store.retain(|entry| entry.first != chunk);
                    }
                }
            }
        }
    }

    /// Splits the run that has `chunk`, so that an entry begins and one ends with it. Does nothing
    /// when there is no memory.
    fn isolate(&mut self, chunk: u64) {
        let (at, end) = self.places(chunk, chunk);
        if at == end {
            return;
        }
        let Some(entry) = self.store.entries().get(at) else {
            return;
        };
        let (first, last) = (entry.first, entry.last);
        // INVARIANT (of both): in front of the chunk, and behind it. Only a run has either.
        if last > chunk {
            let behind = Entry {
                first: chunk + 1,
                last,
                bits: None,
            };
            if self.store.insert(at + 1, behind).is_err() {
                return;
            }
            self.cut(at, first, chunk);
        }
        if first < chunk {
            let this = Entry {
                first: chunk,
                last: chunk,
                bits: None,
            };
            if self.store.insert(at + 1, this).is_err() {
                return;
            }
            self.cut(at, first, chunk - 1);
        }
    }

    fn cut(&mut self, at: usize, first: u64, last: u64) {
        if let Some(entry) = self.store.entries_mut().get_mut(at) {
            entry.first = first;
            entry.last = last;
        }
    }
}

impl<B: DerefMut<Target = Bits>> Entry<B> {
    /// Calls `found` with the dirty ones of `pages`, until it returns `false`; says whether it never
    /// did.
    fn look(&self, pages: Pages, mut found: impl FnMut(Pages) -> bool) -> bool {
        let here = Pages {
            first: self.first << CHUNK_SHIFT,
            last: (self.last << CHUNK_SHIFT) | IN_CHUNK,
        };
        let wanted = Pages {
            first: here.first.max(pages.first),
            last: here.last.min(pages.last),
        };
        let Some(bits) = &self.bits else {
            return found(wanted);
        };
        // CAST: below the number of pages of a chunk.
        let (from, to) = (
            (wanted.first & IN_CHUNK) as u32,
            (wanted.last & IN_CHUNK) as u32,
        );
        for (index, word, mask) in words(from, to) {
            let mut left = bits.get(word).copied().unwrap_or(0) & mask;
            while left != 0 {
                let first = left.trailing_zeros();
                let count = (left >> first).trailing_ones();
                let at = here.first + u64::from(index + first);
                let run = Pages {
                    first: at,
                    last: at + u64::from(count - 1),
                };
                if !found(run) {
                    return false;
                }
                left &= !ones(first, first + count - 1);
            }
        }
        true
    }
}

/// Pages from a first to a last one, by number.
#[derive(Clone, Copy, Debug)]
struct Pages {
    first: u64,
    last: u64,
}

/// A part of some pages that one entry can hold.
enum Part {
    /// Chunks.
    Whole { first: u64, last: u64 },
    /// Pages of a chunk, counted in it.
    Some { chunk: u64, first: u32, last: u32 },
}

const IN_CHUNK: u64 = (1 << CHUNK_SHIFT) - 1;

impl Pages {
    const fn around(span: Span) -> Self {
        Self {
            first: span.first() >> PAGE_SHIFT,
            last: span.last() >> PAGE_SHIFT,
        }
    }

    fn span(&self) -> Span {
        let first = self.first << PAGE_SHIFT;
        let last = (self.last << PAGE_SHIFT) | ((1 << PAGE_SHIFT) - 1);
        // Never `None`: the last page is not before the first.
        Span::new(first, last).unwrap_or(Span::ALL)
    }

    fn parts(self) -> impl Iterator<Item = Part> {
        let mut next = Some(self);
        core::iter::from_fn(move || {
            let Pages { first, last } = next?;
            let chunk = first >> CHUNK_SHIFT;
            // The end of what comes now: of one chunk, or of all whole ones.
            let whole = first & IN_CHUNK == 0;
            let end = match last {
                last if whole && last & IN_CHUNK == IN_CHUNK => last,
                last if whole && last >> CHUNK_SHIFT > chunk => (last & !IN_CHUNK) - 1,
                last => last.min(first | IN_CHUNK),
            };
            next = (end < last).then_some(Pages {
                first: end.wrapping_add(1),
                last,
            });
            Some(if whole && end & IN_CHUNK == IN_CHUNK {
                Part::Whole {
                    first: chunk,
                    last: end >> CHUNK_SHIFT,
                }
            } else {
                // CAST: below the number of pages of a chunk.
                Part::Some {
                    chunk,
                    first: (first & IN_CHUNK) as u32,
                    last: (end & IN_CHUNK) as u32,
                }
            })
        })
    }
}

/// The words of a bitmap that have bits of `first..=last`: number of the word's lowest bit, its
/// index, and which of its bits.
fn words(first: u32, last: u32) -> impl Iterator<Item = (u32, usize, u64)> {
    (first / 64..=last / 64).map(move |word| {
        let low = word * 64;
        let mask = ones(first.max(low) - low, last.min(low + 63) - low);
        // CAST: widens.
        (low, word as usize, mask)
    })
}

/// Bits `first..=last` of a word, `last < 64`.
const fn ones(first: u32, last: u32) -> u64 {
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

fn set(bits: &mut Bits, first: u32, last: u32) {
    for (_, word, mask) in words(first, last) {
        if let Some(word) = bits.get_mut(word) {
            *word |= mask;
        }
    }
}

fn clear(bits: &mut Bits, first: u32, last: u32) {
    for (_, word, mask) in words(first, last) {
        if let Some(word) = bits.get_mut(word) {
            *word &= !mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A store that runs out of memory when it is told to.
    #[derive(Debug, Default)]
    struct Heap {
        entries: Vec<Entry<Box<Bits>>>,
        no_entries: bool,
        no_bits: bool,
    }

    impl Store for Heap {
        type Bits = Box<Bits>;

        fn entries(&self) -> &[Entry<Box<Bits>>] {
            &self.entries
        }

        fn entries_mut(&mut self) -> &mut [Entry<Box<Bits>>] {
            &mut self.entries
        }

        fn insert(&mut self, at: usize, entry: Entry<Box<Bits>>) -> Result<(), Entry<Box<Bits>>> {
            // As a vector with room for one.
            if self.no_entries && !self.entries.is_empty() {
                return Err(entry);
            }
            self.entries.insert(at, entry);
            Ok(())
        }

        fn retain(&mut self, keep: impl FnMut(&mut Entry<Box<Bits>>) -> bool) {
            self.entries.retain_mut(keep);
        }

        fn bits(&mut self) -> Option<Box<Bits>> {
            (!self.no_bits).then(|| Box::new([0; WORDS]))
        }
    }

    const CHUNK: u64 = 1 << (CHUNK_SHIFT + PAGE_SHIFT);

    fn record() -> Record<Heap> {
        Record::new(Heap::default())
    }

    fn span(first: u64, last: u64) -> Span {
        Span::new(first, last).unwrap()
    }

    fn taken(record: &mut Record<Heap>, from: Span) -> Vec<Span> {
        let mut spans = vec![];
        let all = record.take(from, |span| {
            spans.push(span);
            true
        });
        assert!(all);
        assert!(spans.windows(2).all(|pair| !pair[0].touches(&pair[1])));
        check(record);
        spans
    }

    fn check(record: &Record<Heap>) {
        for pair in record.store.entries.windows(2) {
            assert!(pair[0].last < pair[1].first);
        }
        for entry in &record.store.entries {
            assert!(
                entry.first == entry.last || (entry.first < entry.last && entry.bits.is_none())
            );
        }
    }

    #[test]
    fn what_was_marked_is_handed_out_once() {
        let mut record = record();
        assert!(record.is_empty());
        for page in [
            span(0x5000, 0x5fff),
            span(0x7001, 0x7001),
            span(0x6fff, 0x6fff),
        ] {
            record.mark(page).unwrap();
        }
        record.mark(span(0x9000, 0x9fff)).unwrap();
        assert!(record.has(span(0x9fff, 0xffff)));
        assert!(!record.has(span(0xa000, 0xffff)));
        assert_eq!(
            taken(&mut record, Span::ALL),
            [span(0x5000, 0x7fff), span(0x9000, 0x9fff)]
        );
        assert_eq!(taken(&mut record, Span::ALL), []);
        assert!(record.is_empty());
    }

    #[test]
    fn a_part_of_a_page_is_handed_out_and_stays() {
        let mut record = record();
        record.mark(span(0x5000, 0x6fff)).unwrap();
        assert_eq!(
            taken(&mut record, span(0x5800, 0x67ff)),
            [span(0x5800, 0x67ff)]
        );
        assert_eq!(taken(&mut record, Span::ALL), [span(0x5000, 0x6fff)]);
    }

    #[test]
    fn what_is_refused_stays() {
        let mut record = record();
        for page in 0..9 {
            record.mark(span(page * 0x2000, page * 0x2000)).unwrap();
        }
        let mut count = 0;
        let all = record.take(Span::ALL, |_| {
            count += 1;
            count <= 4
        });
        assert!(!all);
        assert_eq!(count, 5);
        let left = taken(&mut record, Span::ALL);
        assert_eq!((left.len(), left[0]), (5, span(0x8000, 0x8fff)));
        record.mark(span(0, 0)).unwrap();
        assert!(!record.take(Span::ALL, |_| false));
        assert_eq!(taken(&mut record, Span::ALL), [span(0, 0xfff)]);
    }

    #[test]
    fn terabytes_are_one_entry() {
        let mut record = record();
        record.mark(span(0x1000, (1 << 50) + 0xfff)).unwrap();
        // The first chunk without its first page, whole chunks, one page.
        assert_eq!(record.store.entries.len(), 3);
        let middle = span(1 << 40, (1 << 40) + 0xfff);
        assert_eq!(taken(&mut record, middle), [middle]);
        assert_eq!(
            taken(&mut record, Span::ALL),
            [
                span(0x1000, (1 << 40) - 1),
                span((1 << 40) + 0x1000, (1 << 50) + 0xfff)
            ]
        );
        record.mark(Span::ALL).unwrap();
        assert_eq!(record.store.entries.len(), 1);
        let most = span(CHUNK, u64::MAX - CHUNK);
        assert_eq!(taken(&mut record, most), [most]);
        let rest = [span(0, CHUNK - 1), span(u64::MAX - CHUNK + 1, u64::MAX)];
        assert_eq!(taken(&mut record, Span::ALL), rest);
    }

    #[test]
    fn a_run_takes_the_place_of_what_it_covers() {
        let mut record = record();
        for chunk in 0..10 {
            record.mark(span(chunk * CHUNK, chunk * CHUNK)).unwrap();
        }
        record.mark(span(2 * CHUNK, 8 * CHUNK - 1)).unwrap();
        assert_eq!(record.store.entries.len(), 5);
        record.mark(span(4 * CHUNK, 9 * CHUNK - 1)).unwrap();
        assert_eq!(record.store.entries.len(), 4);
        check(&record);
        assert_eq!(
            taken(&mut record, Span::ALL),
            [
                span(0, 0xfff),
                span(CHUNK, CHUNK + 0xfff),
                span(2 * CHUNK, 9 * CHUNK + 0xfff),
            ]
        );
    }

    #[test]
    fn without_memory_there_is_more_and_never_less() {
        let mut record = record();
        record.store.no_bits = true;
        record.mark(span(0x5000, 0x5fff)).unwrap();
        assert_eq!(taken(&mut record, span(0, CHUNK)), [span(0, CHUNK - 1)]);

        record.mark(span(0x5000, 0x5fff)).unwrap();
        assert_eq!(
            taken(&mut record, span(0x5000, 0x5fff)),
            [span(0x5000, 0x5fff)]
        );
        assert!(record.has(span(0x5000, 0x5fff)), "no memory to forget it");
        record.clear();

        record.store.no_bits = false;
        record.mark(span(3 * CHUNK, 3 * CHUNK)).unwrap();
        record.store.no_entries = true;
        record.mark(span(9 * CHUNK, 9 * CHUNK)).unwrap();
        record.mark(span(CHUNK, CHUNK)).unwrap();
        assert_eq!(taken(&mut record, Span::ALL), [span(CHUNK, 10 * CHUNK - 1)]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Mark(Span),
        Take(Span),
        Memory { entries: bool, bits: bool },
    }

    /// Addresses around the ends of a few chunks, so that many meet.
    fn spans() -> impl Strategy<Value = Span> {
        let near = |chunks: std::ops::Range<u64>| {
            (chunks, 0u64..8, 0u64..0x1000).prop_map(|(chunk, page, byte)| {
                (chunk * CHUNK + page * 0x1000 + byte).saturating_sub(0x3800)
            })
        };
        (near(0..6), near(0..6)).prop_map(|(a, b)| span(a.min(b), a.max(b)))
    }

    fn steps(memory: bool) -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => spans().prop_map(Step::Mark),
            3 => spans().prop_map(Step::Take),
            u32::from(memory) => (any::<bool>(), any::<bool>())
                .prop_map(|(entries, bits)| Step::Memory { entries, bits }),
        ];
        prop::collection::vec(step, 1..40)
    }

    /// Runs the steps beside a plain set of pages; `exact`: the record has nothing else.
    fn agrees(steps: Vec<Step>, exact: bool) -> Result<(), TestCaseError> {
        // Only the pages near the ends of chunks are looked at: 16 around each.
        let watched: Vec<u64> = (0..7u64)
            .flat_map(|chunk| (chunk << CHUNK_SHIFT).saturating_sub(8)..(chunk << CHUNK_SHIFT) + 8)
            .collect();
        let mut record = record();
        let mut model: BTreeSet<u64> = BTreeSet::new();
        let in_span = |page: u64, span: &Span| {
            span.overlap(
                &Pages {
                    first: page,
                    last: page,
                }
                .span(),
            )
        };
        for step in steps {
            match step {
                Step::Mark(span) => {
                    record.mark(span).unwrap();
                    model.extend(
                        watched
                            .iter()
                            .filter(|page| in_span(**page, &span).is_some()),
                    );
                }
                Step::Take(span) => {
                    let spans = taken(&mut record, span);
                    for page in &watched {
                        let Some(part) = in_span(*page, &span) else {
                            continue;
                        };
                        let reported = spans.iter().any(|span| span.overlap(&part) == Some(part));
                        let dirty = model.contains(page);
                        prop_assert!(reported || !dirty, "page {page:#x} is lost");
                        prop_assert!(!exact || reported == dirty, "page {page:#x} is not dirty");
                        if part.bytes() == 1 << PAGE_SHIFT {
                            model.remove(page);
                        }
                    }
                    prop_assert!(spans.iter().all(|part| part.overlap(&span) == Some(*part)));
                }
                Step::Memory { entries, bits } => {
                    record.store.no_entries = entries;
                    record.store.no_bits = bits;
                }
            }
            check(&record);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(steps in steps(false)) {
            agrees(steps, true)?;
        }

        #[test]
        fn loses_nothing_without_memory(steps in steps(true)) {
            agrees(steps, false)?;
        }
    }
}
