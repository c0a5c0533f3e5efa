// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! When a harvest has had enough reports.
//!
//! Of a suspended function it goes on until the card says that nothing is left. A running one may
//! write as fast as it is read, so as many bytes as are tracked are enough, and so are a few rounds;
//! what is left comes with the next harvest. The order of reports is the card's affair. A card that
//! reports more than there can be does not tell the truth.

use super::span::PAGE;

/// What to do after a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask again.
    Again,
    /// Enough; not everything when the function runs.
    Enough,
    /// Everything: the function is suspended, and nothing is left.
    Complete,
    /// These reports cannot be: the log is lost.
    Nonsense,
}

/// One harvest.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Bytes that may still be reported of a running function.
    left: u64,
    /// Reports that may still come of a suspended one.
    reports: u64,
    /// Highest address that was reported since it began from the front.
    highest: Option<u64>,
    /// How often a report began below the one before it.
    turns: u32,
}

/// How often reports of a running function may begin below the one before. A card that goes through
/// its memory in order has been round then, and round again; one whose order is another gets through
/// a few reports more.
const TURNS: u32 = 16;

/// Reports beyond one for each page that a card may need: of granules that are partly tracked.
const SPARE_REPORTS: u64 = 1024;

impl Pass {
    /// A pass over `tracked` bytes.
    pub const fn new(tracked: u64) -> Self {
        Self {
            left: tracked,
            reports: (tracked / PAGE).saturating_add(SPARE_REPORTS),
            highest: None,
            turns: 0,
        }
    }

    /// After a report of `bytes`, the first and last of them at these addresses (`None`: of no
    /// byte). `more` and `suspended` are MTR and SUSP.
    pub fn report(
        &mut self,
        ends: Option<(u64, u64)>,
        bytes: u64,
        more: bool,
        suspended: bool,
    ) -> Next {
        self.left = self.left.saturating_sub(bytes);
        self.reports = self.reports.saturating_sub(1);
        if let Some((first, last)) = ends {
            match self.highest {
                Some(highest) if first <= highest => {
                    self.turns = self.turns.saturating_add(1);
                    self.highest = Some(last);
                }
                _ => self.highest = Some(last),
            }
        }
        match (more, suspended) {
            (false, true) => Next::Complete,
            (false, false) => Next::Enough,
            // More of what, when this was nothing?
            (true, true) if ends.is_none() || self.reports == 0 => Next::Nonsense,
            (true, false) if ends.is_none() || self.left == 0 || self.turns > TURNS => Next::Enough,
            (true, _) => Next::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_function_gets_one_pass() {
        let mut pass = Pass::new(100);
        assert_eq!(pass.report(Some((0, 39)), 40, true, false), Next::Again);
        assert_eq!(pass.report(Some((40, 79)), 40, true, false), Next::Again);
        assert_eq!(pass.report(Some((0, 9)), 10, true, false), Next::Again);
        assert_eq!(pass.report(Some((0, 9)), 10, true, false), Next::Enough);

        let mut pass = Pass::new(100);
        assert_eq!(pass.report(Some((0, 99)), 100, true, false), Next::Enough);
        let mut pass = Pass::new(100);
        assert_eq!(pass.report(None, 0, false, false), Next::Enough);
        assert_eq!(pass.report(None, 0, true, false), Next::Enough);
    }

    /// It writes the same few pages faster than they are read.
    #[test]
    fn a_running_function_does_not_hold_the_harvest() {
        let mut pass = Pass::new(1 << 40);
        let mut reports = 0;
        while pass.report(Some((0, 9)), 10, true, false) == Next::Again {
            reports += 1;
            assert!(reports < 100);
        }
        // In falling order, too, a card gets through some reports.
        let mut pass = Pass::new(1 << 40);
        for start in (0..10).rev() {
            let ends = Some((start * 10, start * 10 + 9));
            assert_eq!(pass.report(ends, 10, true, false), Next::Again);
        }
    }

    /// Whatever the order of the reports, and however coarse they are.
    #[test]
    fn a_suspended_one_is_read_to_the_end() {
        let mut pass = Pass::new(100);
        assert_eq!(pass.report(Some((0, 99)), 100, true, true), Next::Again);
        assert_eq!(pass.report(Some((0, 4095)), 4096, true, true), Next::Again);
        assert_eq!(pass.report(None, 0, false, true), Next::Complete);

        let mut pass = Pass::new(5000 * PAGE);
        for page in (0..5000).rev() {
            let ends = Some((page * PAGE, page * PAGE + PAGE - 1));
            assert_eq!(pass.report(ends, PAGE, true, true), Next::Again);
        }
        assert_eq!(pass.report(None, 0, false, true), Next::Complete);
    }

    #[test]
    fn a_card_that_never_ends_is_found_out() {
        let mut pass = Pass::new(100);
        let mut rounds = 0;
        while pass.report(Some((0, 9)), 10, true, true) == Next::Again {
            rounds += 1;
            assert!(rounds < 2000);
        }
        assert!(rounds > 1000);
        assert_eq!(pass.report(Some((0, 9)), 10, true, true), Next::Nonsense);
        let mut pass = Pass::new(100);
        assert_eq!(pass.report(None, 0, true, true), Next::Nonsense);
    }
}
