// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A dirty log beside what the function was told to write: nothing may be missing, and nothing may be
//! too much but what shares a granule with a page that was written.

use super::log::{Pages, Range, PAGE};
use super::nvme::Nvme;
use anyhow::{ensure, Result};

/// What the log of a function has to know.
#[derive(Debug)]
pub struct Ledger {
    tracked: Vec<Range>,
    granule: u64,
    /// Written and not reported yet.
    pending: Pages,
    /// Reported, or near enough to a reported page to be allowed once more.
    allowed: Pages,
}

impl Ledger {
    /// Starts logging of `ranges`; what the function wrote before does not count.
    pub fn start(nvme: &mut Nvme<'_>, page_size: u64, ranges: &[Range]) -> Result<Self> {
        let granule = nvme.device.start_log(page_size, ranges)?;
        ensure!(
            granule.is_power_of_two() && granule >= PAGE,
            "the granule is {granule:#x}"
        );
        nvme.take_written();
        Ok(Self {
            tracked: ranges.to_vec(),
            granule,
            pending: Pages::new(),
            allowed: Pages::new(),
        })
    }

    /// The granule that the device has.
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Takes note of what the function wrote.
    pub fn note(&mut self, nvme: &mut Nvme<'_>) {
        let tracked = |page: &u64| self.tracked.iter().any(|range| holds(*range, *page));
        let written: Vec<u64> = nvme.take_written().into_iter().filter(tracked).collect();
        self.pending.extend(written);
    }

    /// Everything that is tracked counts as written, once.
    pub fn all_dirty(&mut self) {
        let pages = self.tracked.iter().flat_map(|range| range.pages());
        self.pending.extend(pages);
    }

    /// Reports a range and compares; gives what was reported.
    pub fn report(&mut self, nvme: &mut Nvme<'_>, range: Range) -> Result<Pages> {
        self.note(nvme);
        let reported = nvme.device.report(range)?;
        self.compare(range, &reported)?;
        Ok(reported)
    }

    /// Compares a report of `range`, which was taken after the last note.
    pub fn compare(&mut self, range: Range, reported: &Pages) -> Result<()> {
        let here: Pages = self
            .pending
            .iter()
            .copied()
            .filter(|page| holds(range, *page))
            .collect();
        let missing: Vec<_> = here.difference(reported).collect();
        ensure!(
            missing.is_empty(),
            "written and not reported in {range:x?}: {} pages, {:x?}",
            missing.len(),
            first(&missing)
        );
        // A granule that was written is dirty as a whole; parts of it may be reported at different
        // times.
        let near = |page: u64, written: &u64| written.abs_diff(page) < self.granule;
        let excess: Vec<u64> = reported
            .iter()
            .copied()
            .filter(|page| !holds(range, *page) || !self.explained(*page, near))
            .collect();
        ensure!(
            excess.is_empty(),
            "reported in {range:x?} and not written: {} pages, {:x?}",
            excess.len(),
            first(&excess)
        );
        if self.granule > PAGE {
            self.allowed.extend(here.iter().copied());
        }
        self.pending.retain(|page| !holds(range, *page));
        Ok(())
    }

    fn explained(&self, page: u64, near: impl Fn(u64, &u64) -> bool) -> bool {
        let from = page.saturating_sub(self.granule);
        let to = page.saturating_add(self.granule);
        let mut around = self
            .pending
            .range(from..to)
            .chain(self.allowed.range(from..to));
        around.any(|written| near(page, written))
    }

    /// Reports everything that is tracked, and then there is nothing more.
    pub fn settle(&mut self, nvme: &mut Nvme<'_>) -> Result<()> {
        for range in self.tracked.clone() {
            self.report(nvme, range)?;
        }
        self.allowed.clear();
        for range in self.tracked.clone() {
            let again = nvme.device.report(range)?;
            ensure!(
                again.is_empty(),
                "reported again in {range:x?}: {:x?}",
                first(&again.into_iter().collect::<Vec<_>>())
            );
        }
        Ok(())
    }

    /// Pages that were written and not reported.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

fn holds(range: Range, page: u64) -> bool {
    page + PAGE > range.iova && page < range.iova + range.length
}

/// Enough to see what is wrong.
fn first<T>(pages: &[T]) -> &[T] {
    &pages[..pages.len().min(8)]
}

#[cfg(test)]
mod tests {
    use super::super::log::range;
    use super::*;

    const RANGE: Range = range(0x10_0000, 0x10_0000);

    fn ledger(granule: u64, pending: &[u64]) -> Ledger {
        Ledger {
            tracked: vec![RANGE],
            granule,
            pending: pending.iter().copied().collect(),
            allowed: Pages::new(),
        }
    }

    fn verdict(granule: u64, pending: &[u64], reported: &[u64]) -> Result<()> {
        ledger(granule, pending).compare(RANGE, &reported.iter().copied().collect())
    }

    #[test]
    fn what_was_written_is_to_be_reported_and_nothing_else() {
        verdict(PAGE, &[0x10_1000, 0x10_3000], &[0x10_1000, 0x10_3000]).unwrap();
        assert!(verdict(PAGE, &[0x10_1000, 0x10_3000], &[0x10_1000]).is_err());
        assert!(verdict(PAGE, &[0x10_1000], &[0x10_1000, 0x10_2000]).is_err());
        assert!(verdict(PAGE, &[], &[0x10_2000]).is_err());
    }

    #[test]
    fn a_granule_may_be_reported_as_a_whole() {
        let whole: Vec<u64> = range(0x10_4000, 0x4000).pages().collect();
        verdict(0x4000, &[0x10_5000], &whole).unwrap();
        verdict(0x4000, &[0x10_5000], &[0x10_5000]).unwrap();
        assert!(verdict(0x4000, &[0x10_5000], &[0x10_5000, 0x10_9000]).is_err());
        assert!(verdict(0x4000, &[0x10_5000], &[0x10_4000]).is_err());
    }

    #[test]
    fn a_report_of_a_part_leaves_the_rest() {
        let mut ledger = ledger(PAGE, &[0x10_1000, 0x10_8000]);
        let part = range(0x10_0000, 0x4000);
        ledger.compare(part, &Pages::from([0x10_1000])).unwrap();
        assert_eq!(ledger.pending(), 1);
        ledger.compare(RANGE, &Pages::from([0x10_8000])).unwrap();
        assert!(ledger.compare(RANGE, &Pages::from([0x10_8000])).is_err());
    }
}
