// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! When a harvest has had enough reports.
//!
//! Of a suspended function it goes on until the card says that nothing is left. A running one may
//! write as fast as it is read, so one pass over what is tracked is the end; what it wrote meanwhile
//! comes with the next harvest. A card that reports more than there is does not tell the truth.

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
    tracked: u64,
    /// Bytes that may still be reported before it begins from the front.
    left: u64,
    /// Highest address that was reported.
    highest: Option<u64>,
    /// How often a report began below the one before it.
    turns: u32,
}

/// How often a card may begin from the front. It has no reason to, once its function is suspended,
/// but the order of reports is its own affair.
const TURNS: u32 = 1000;

impl Pass {
    /// A pass over `tracked` bytes.
    pub const fn new(tracked: u64) -> Self {
        Self {
            tracked,
            left: tracked,
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
        let turned = match (self.highest, ends) {
            (Some(highest), Some((first, _))) => first <= highest,
            _ => false,
        };
        if let Some((_, last)) = ends {
            self.highest = Some(if turned {
                last
            } else {
                self.highest.map_or(last, |highest| highest.max(last))
            });
        }
        if turned {
            self.turns = self.turns.saturating_add(1);
            self.left = self.tracked;
        }
        let had = self.left;
        self.left = self.left.saturating_sub(bytes);
        match (more, suspended) {
            (false, true) => Next::Complete,
            (false, false) => Next::Enough,
            (true, false) if turned || self.left == 0 => Next::Enough,
            (true, false) => Next::Again,
            (true, true) => {
                if self.turns > TURNS || had == 0 || ends.is_none() {
                    Next::Nonsense
                } else {
                    Next::Again
                }
            }
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
        assert_eq!(
            pass.report(Some((0, 9)), 10, true, false),
            Next::Enough,
            "it turned"
        );

        let mut pass = Pass::new(100);
        assert_eq!(pass.report(Some((0, 99)), 100, true, false), Next::Enough);
        let mut pass = Pass::new(100);
        assert_eq!(pass.report(None, 0, false, false), Next::Enough);
    }

    #[test]
    fn a_suspended_one_is_read_to_the_end() {
        let mut pass = Pass::new(100);
        assert_eq!(pass.report(Some((0, 99)), 100, true, true), Next::Again);
        assert_eq!(pass.report(Some((0, 49)), 50, true, true), Next::Again);
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
        let mut pass = Pass::new(100);
        assert_eq!(pass.report(None, 0, true, true), Next::Nonsense);
        let mut pass = Pass::new(100);
        assert_eq!(pass.report(Some((0, 99)), 100, true, true), Next::Again);
        assert_eq!(
            pass.report(Some((100, 109)), 10, true, true),
            Next::Nonsense
        );
    }
}
