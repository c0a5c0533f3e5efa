// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The check. Pages of the ring are filled by reads of the device and by nothing else: this code only looks at them.
//! What each must hold stands in a table elsewhere, so a page that a migration left behind is found. (A page that
//! the processor writes too would be carried over by the processor's own dirty log, and hide what the device's
//! forgot.)

use anyhow::{ensure, Result};

use crate::pattern::{Content, Found, Page, Random};

/// What is read and written in blocks of a page each.
pub(crate) trait Medium {
    /// Reads as many blocks as `pages`, from `block` on.
    fn read(&mut self, block: u64, pages: &mut [Page]) -> Result<()>;
    /// Writes them.
    fn write(&mut self, block: u64, pages: &[Page]) -> Result<()>;
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// First block of the region that is used.
    pub(crate) first: u64,
    /// Its blocks.
    pub(crate) blocks: u64,
    /// Pages that one read fills.
    pub(crate) burst: usize,
    /// Turns until a block is written anew; 0 for never.
    pub(crate) rewrite_every: u64,
    /// Seed of everything random.
    pub(crate) seed: u64,
}

/// A page that was not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    /// Which page of the ring.
    pub(crate) page: usize,
    /// What it must hold.
    pub(crate) expected: Content,
    /// What it holds.
    pub(crate) found: Found,
    /// When: right after the read that was to fill it, or later.
    pub(crate) just_read: bool,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Turns.
    pub(crate) turns: u64,
    /// Pages that were compared with the table.
    pub(crate) checked: u64,
    /// Pages that did not hold what they held once.
    pub(crate) stale: u64,
    /// Pages that a read did not fill with what is on the medium.
    pub(crate) misread: u64,
    /// Reads.
    pub(crate) reads: u64,
    /// Writes.
    pub(crate) writes: u64,
}

/// See the module.
pub(crate) struct Check<'a, M> {
    medium: M,
    plan: Plan,
    ring: &'a mut [Page],
    /// What each page of the ring holds; none after it was found to be stale.
    holds: Vec<Option<Content>>,
    /// How often each block of the region was rewritten.
    generations: Vec<u64>,
    /// What is to be written. Not part of the ring.
    scratch: &'a mut [Page],
    random: Random,
    counts: Counts,
}

impl<'a, M: Medium> Check<'a, M> {
    /// Writes every block of the region once and fills the ring.
    pub(crate) fn prepare(
        medium: M,
        plan: Plan,
        ring: &'a mut [Page],
        scratch: &'a mut [Page],
        stale: &mut dyn FnMut(Stale),
    ) -> Result<Self> {
        let blocks = usize::try_from(plan.blocks)?;
        ensure!(
            plan.burst > 0 && plan.burst <= ring.len() && plan.burst <= blocks,
            "a burst of {} pages fits neither a ring of {} nor a region of {blocks}",
            plan.burst,
            ring.len()
        );
        let mut check = Self {
            medium,
            plan,
            holds: vec![None; ring.len()],
            generations: vec![0; blocks],
            ring,
            scratch,
            random: Random::new(plan.seed),
            counts: Counts::default(),
        };
        let mut at = 0;
        while at < blocks {
            let count = check.scratch.len().min(blocks - at);
            check.write(at, count)?;
            at += count;
        }
        let mut page = 0;
        while page < check.ring.len() {
            let count = plan.burst.min(check.ring.len() - page);
            let at = check.below(blocks - count + 1);
            check.read(page, count, at, stale)?;
            page += count;
        }
        Ok(check)
    }

    /// What was done so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Where the ring is.
    pub(crate) fn ring(&self) -> &[Page] {
        self.ring
    }

    /// Compares some pages with the table, then fills them anew; rewrites a block when it is time.
    pub(crate) fn turn(&mut self, stale: &mut dyn FnMut(Stale)) -> Result<()> {
        self.counts.turns += 1;
        if self.plan.rewrite_every != 0 && self.counts.turns % self.plan.rewrite_every == 0 {
            let at = self.below(self.generations.len());
            if let Some(generation) = self.generations.get_mut(at) {
                *generation += 1;
            }
            self.write(at, 1)?;
        }
        let page = self.below(self.ring.len() - self.plan.burst + 1);
        self.verify(page, self.plan.burst, false, stale);
        let at = self.below(self.generations.len() - self.plan.burst + 1);
        self.read(page, self.plan.burst, at, stale)
    }

    /// Compares every page with the table.
    pub(crate) fn verify_all(&mut self, stale: &mut dyn FnMut(Stale)) {
        self.verify(0, self.ring.len(), false, stale);
    }

    /// Reads the whole region back, through the ring.
    pub(crate) fn read_back(&mut self, stale: &mut dyn FnMut(Stale)) -> Result<()> {
        let mut at = 0;
        while at < self.generations.len() {
            let count = self.ring.len().min(128).min(self.generations.len() - at);
            self.read(0, count, at, stale)?;
            at += count;
        }
        Ok(())
    }

    fn below(&mut self, end: usize) -> usize {
        // CAST: usize is u64 on the one target, and the result is below `end`.
        self.random.below(end as u64) as usize
    }

    /// What block `at` of the region holds.
    fn content(&self, at: usize) -> Content {
        Content {
            block: self.plan.first + at as u64,
            generation: self.generations.get(at).copied().unwrap_or_default(),
        }
    }

    fn write(&mut self, at: usize, count: usize) -> Result<()> {
        for i in 0..count {
            let content = self.content(at + i);
            if let Some(page) = self.scratch.get_mut(i) {
                content.fill(page);
            }
        }
        self.counts.writes += 1;
        let pages = self.scratch.get(..count).unwrap_or_default();
        self.medium.write(self.plan.first + at as u64, pages)
    }

    fn read(
        &mut self,
        page: usize,
        count: usize,
        at: usize,
        stale: &mut dyn FnMut(Stale),
    ) -> Result<()> {
        self.counts.reads += 1;
        let pages = self.ring.get_mut(page..page + count).unwrap_or_default();
        self.medium.read(self.plan.first + at as u64, pages)?;
        for i in 0..count {
            let content = self.content(at + i);
            if let Some(holds) = self.holds.get_mut(page + i) {
                *holds = Some(content);
            }
        }
        self.verify(page, count, true, stale);
        Ok(())
    }

    fn verify(&mut self, page: usize, count: usize, just_read: bool, stale: &mut dyn FnMut(Stale)) {
        let pages = self.holds.iter_mut().zip(self.ring.iter()).enumerate();
        for (page, (holds, bytes)) in pages.skip(page).take(count) {
            let Some(expected) = *holds else { continue };
            self.counts.checked += 1;
            if expected.differs(bytes).is_none() {
                continue;
            }
            // Counted once: it counts again when it was filled anew.
            *holds = None;
            match just_read {
                true => self.counts.misread += 1,
                false => self.counts.stale += 1,
            }
            stale(Stale {
                page,
                expected,
                found: Found::in_page(bytes),
                just_read,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::PAGE;

    const PLAN: Plan = Plan {
        first: 100,
        blocks: 64,
        burst: 4,
        rewrite_every: 3,
        seed: 1,
    };

    /// Memory that loses one write, or does not carry out one read.
    struct Memory {
        pages: Vec<Page>,
        reads: usize,
        lose_read: Option<usize>,
        lose_write: bool,
    }

    impl Memory {
        fn new() -> Self {
            Self {
                pages: vec![[0; PAGE]; 256],
                reads: 0,
                lose_read: None,
                lose_write: false,
            }
        }
    }

    impl Medium for &mut Memory {
        fn read(&mut self, block: u64, pages: &mut [Page]) -> Result<()> {
            self.reads += 1;
            if self.lose_read != Some(self.reads) {
                let from = block as usize;
                pages.copy_from_slice(&self.pages[from..from + pages.len()]);
            }
            Ok(())
        }

        fn write(&mut self, block: u64, pages: &[Page]) -> Result<()> {
            if !self.lose_write {
                let from = block as usize;
                self.pages[from..from + pages.len()].copy_from_slice(pages);
            }
            Ok(())
        }
    }

    fn run(
        memory: &mut Memory,
        between: impl FnOnce(&mut Check<'_, &mut Memory>),
    ) -> (Counts, Vec<Stale>) {
        let (mut ring, mut scratch) = (vec![[0; PAGE]; 32], vec![[0; PAGE]; 8]);
        let mut found = Vec::new();
        let mut note = |s| found.push(s);
        let mut check = Check::prepare(memory, PLAN, &mut ring, &mut scratch, &mut note).unwrap();
        for _ in 0..50 {
            check.turn(&mut note).unwrap();
        }
        between(&mut check);
        check.verify_all(&mut note);
        for _ in 0..50 {
            check.turn(&mut note).unwrap();
        }
        check.verify_all(&mut note);
        check.read_back(&mut note).unwrap();
        (check.counts(), found)
    }

    #[test]
    fn nothing_is_found_where_nothing_is_lost() {
        let mut memory = Memory::new();
        let (counts, found) = run(&mut memory, |_| {});
        assert_eq!(found, []);
        assert_eq!((counts.stale, counts.misread, counts.turns), (0, 0, 100));
        assert!(counts.checked > 32 + 100 * 8 && counts.writes == 64 / 8 + 33);
        // Blocks outside of the region stay as they were.
        let outside = memory.pages[..100].iter().chain(&memory.pages[164..]);
        assert!(outside.flatten().all(|b| *b == 0));
    }

    #[test]
    fn a_page_that_was_left_behind_is_found_once_and_named() {
        let mut old = None;
        let (counts, found) = run(&mut Memory::new(), |check| {
            let earlier = Content {
                block: 120,
                generation: 77,
            };
            earlier.fill(&mut check.ring[9]);
            old = Some((check.holds[9].unwrap(), earlier));
        });
        let (expected, earlier) = old.unwrap();
        let stale = Stale {
            page: 9,
            expected,
            found: Found::Other(earlier),
            just_read: false,
        };
        assert_eq!(found, [stale]);
        assert_eq!((counts.stale, counts.misread), (1, 0));
    }

    #[test]
    fn a_page_is_looked_at_before_it_is_filled_anew() {
        let (mut ring, mut scratch) = (vec![[0; PAGE]; 4], vec![[0; PAGE]; 4]);
        let mut found = Vec::new();
        let mut memory = Memory::new();
        let mut note = |s: Stale| found.push(s.page);
        let mut check =
            Check::prepare(&mut memory, PLAN, &mut ring, &mut scratch, &mut note).unwrap();
        // The burst is the whole ring: the very next turn fills this page.
        check.ring[2][5] ^= 1;
        check.turn(&mut note).unwrap();
        assert_eq!(found, [2]);
    }

    #[test]
    fn a_read_that_does_not_arrive_is_told_apart() {
        let mut memory = Memory::new();
        memory.lose_read = Some(20);
        let (counts, found) = run(&mut memory, |_| {});
        assert_eq!(counts.stale, 0);
        assert_eq!(counts.misread, found.len() as u64);
        assert!(!found.is_empty() && found.iter().all(|s| s.just_read));
    }

    #[test]
    fn lost_writes_are_found_on_the_medium() {
        let mut memory = Memory::new();
        let (counts, _) = run(&mut memory, |check| check.medium.lose_write = true);
        assert!(counts.misread > 0);
    }
}
