// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The order in which a controller is reset, given its queues, and enabled (NVMe Base 2.1, 3.5.1),
//! with a time limit for each wait.
//!
//! The machine reads no register and no clock: whoever drives it brings both and does what the
//! returned [`Action`] says. It ends for every card, also for one that never answers.

/// What the status register (CSTS) and the enable bit (CC.EN) say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The register reads all-ones: nobody answers on the bus.
    pub gone: bool,
    /// CSTS.CFS, the controller met an error that only a reset ends.
    pub fatal: bool,
    /// CSTS.RDY.
    pub ready: bool,
    /// CC.EN.
    pub enabled: bool,
}

/// Why a controller could not be started or stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The registers read all-ones.
    Gone,
    /// CSTS.CFS is set, and a reset did not clear it or a start set it.
    Fatal,
    /// CSTS.RDY did not become 0 in time after CC.EN was cleared.
    DisableTimeout,
    /// CSTS.RDY did not become 1 in time after CC.EN was set.
    EnableTimeout,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Clear CC.EN.
    Disable,
    /// Read the registers again after a short while.
    Wait,
    /// The controller is disabled: write AQA, ASQ and ACQ, then CC with EN set.
    Enable,
    /// The goal is reached.
    Done,
    /// It will not be reached.
    Fail(Failure),
}

/// Where a [`Sequence`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// CC.EN and CSTS.RDY are 0: the controller owns no queue any more.
    Disabled,
    /// Reset, then CC.EN and CSTS.RDY are 1.
    Ready,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Fresh,
    Disabling { since: u64 },
    Enabling { since: u64 },
    Ended(Action),
}

/// One reset, or one reset and start.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    goal: Goal,
    limit_ms: u64,
    step: Step,
}

impl Sequence {
    /// A sequence in which each wait takes `limit_ms` milliseconds at most.
    pub const fn new(goal: Goal, limit_ms: u64) -> Self {
        Self {
            goal,
            limit_ms,
            step: Step::Fresh,
        }
    }

    /// The next thing to do, for a status that was read just now; `now_ms` counts from anywhere,
    /// but never backwards.
    pub fn next(&mut self, status: Status, now_ms: u64) -> Action {
        let action = self.decide(status, now_ms);
        self.step = match (action, self.step) {
            (Action::Disable, _) => Step::Disabling { since: now_ms },
            (Action::Enable, _) => Step::Enabling { since: now_ms },
            (Action::Wait, step) => step,
            (Action::Done | Action::Fail(_), _) => Step::Ended(action),
        };
        action
    }

    fn decide(&self, status: Status, now_ms: u64) -> Action {
        match self.step {
            Step::Ended(action) => action,
            _ if status.gone => Action::Fail(Failure::Gone),
            // A fatal status is no reason to stop here: a reset is the cure that the
            // specification names.
            Step::Fresh if status.enabled || status.ready || status.fatal => Action::Disable,
            Step::Fresh => self.disabled(),
            Step::Disabling { since } => {
                if !status.ready && !status.enabled && !status.fatal {
                    self.disabled()
                } else if self.late(since, now_ms) {
                    Action::Fail(if status.fatal {
                        Failure::Fatal
                    } else {
                        Failure::DisableTimeout
                    })
                } else {
                    Action::Wait
                }
            }
            Step::Enabling { .. } if status.fatal => Action::Fail(Failure::Fatal),
            Step::Enabling { since } => {
                if status.ready && status.enabled {
                    Action::Done
                } else if self.late(since, now_ms) {
                    Action::Fail(Failure::EnableTimeout)
                } else {
                    Action::Wait
                }
            }
        }
    }

    const fn disabled(&self) -> Action {
        match self.goal {
            Goal::Disabled => Action::Done,
            Goal::Ready => Action::Enable,
        }
    }

    const fn late(&self, since: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(since) >= self.limit_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Status = Status {
        gone: false,
        fatal: false,
        ready: false,
        enabled: false,
    };
    const RUNNING: Status = Status {
        ready: true,
        enabled: true,
        ..QUIET
    };

    fn all_statuses() -> impl Iterator<Item = Status> {
        (0..16u8).map(|bits| Status {
            gone: bits & 1 != 0,
            fatal: bits & 2 != 0,
            ready: bits & 4 != 0,
            enabled: bits & 8 != 0,
        })
    }

    #[test]
    fn a_running_controller_is_reset_first() {
        let mut sequence = Sequence::new(Goal::Ready, 100);
        assert_eq!(sequence.next(RUNNING, 0), Action::Disable);
        let stopping = Status {
            ready: true,
            ..QUIET
        };
        assert_eq!(sequence.next(stopping, 99), Action::Wait);
        assert_eq!(sequence.next(QUIET, 100), Action::Enable);
        let starting = Status {
            enabled: true,
            ..QUIET
        };
        assert_eq!(sequence.next(starting, 199), Action::Wait);
        assert_eq!(sequence.next(RUNNING, 200), Action::Done);
        assert_eq!(sequence.next(QUIET, 999), Action::Done, "an end is final");
    }

    #[test]
    fn each_wait_has_its_own_limit() {
        let mut sequence = Sequence::new(Goal::Ready, 100);
        assert_eq!(sequence.next(RUNNING, 0), Action::Disable);
        assert_eq!(
            sequence.next(RUNNING, 100),
            Action::Fail(Failure::DisableTimeout)
        );
        let mut sequence = Sequence::new(Goal::Ready, 100);
        assert_eq!(sequence.next(QUIET, 500), Action::Enable);
        assert_eq!(sequence.next(QUIET, 599), Action::Wait);
        assert_eq!(
            sequence.next(QUIET, 600),
            Action::Fail(Failure::EnableTimeout)
        );
    }

    #[test]
    fn a_fatal_status_gets_one_reset() {
        let fatal = Status {
            fatal: true,
            ..RUNNING
        };
        let mut cured = Sequence::new(Goal::Ready, 100);
        assert_eq!(cured.next(fatal, 0), Action::Disable);
        assert_eq!(cured.next(QUIET, 10), Action::Enable);
        assert_eq!(cured.next(fatal, 20), Action::Fail(Failure::Fatal));

        let stuck = Status {
            fatal: true,
            ..QUIET
        };
        let mut lost = Sequence::new(Goal::Disabled, 100);
        assert_eq!(lost.next(stuck, 0), Action::Disable);
        assert_eq!(lost.next(stuck, 99), Action::Wait);
        assert_eq!(lost.next(stuck, 100), Action::Fail(Failure::Fatal));
    }

    #[test]
    fn stopping_a_stopped_controller_does_nothing() {
        let mut sequence = Sequence::new(Goal::Disabled, 100);
        assert_eq!(sequence.next(QUIET, 0), Action::Done);
    }

    #[test]
    fn a_card_that_is_gone_ends_every_step() {
        let gone = Status {
            gone: true,
            fatal: true,
            ready: true,
            enabled: true,
        };
        for goal in [Goal::Disabled, Goal::Ready] {
            for before in [&[][..], &[RUNNING], &[RUNNING, QUIET]] {
                let mut sequence = Sequence::new(goal, 100);
                let mut last = Action::Wait;
                for status in before {
                    last = sequence.next(*status, 0);
                }
                if last != Action::Done {
                    assert_eq!(sequence.next(gone, 0), Action::Fail(Failure::Gone));
                }
            }
        }
    }

    /// Whatever a card shows, in any order of four different looks, held for ever: the sequence
    /// ends within its two limits, enables only what it saw disabled, and is done only when it is.
    #[test]
    fn every_card_leads_to_an_end() {
        let mut ends = 0;
        for goal in [Goal::Disabled, Goal::Ready] {
            for first in all_statuses() {
                for second in all_statuses() {
                    for third in all_statuses() {
                        let mut sequence = Sequence::new(goal, 10);
                        let (mut now, mut last) = (0, first);
                        let mut waits = 0;
                        let end = loop {
                            last = match now {
                                0 => first,
                                1 => second,
                                2..=12 => third,
                                _ => last,
                            };
                            match sequence.next(last, now) {
                                Action::Enable => {
                                    assert!(!last.ready && !last.enabled && !last.fatal);
                                    assert_eq!(goal, Goal::Ready);
                                }
                                Action::Disable => assert_eq!(now, 0, "one reset only"),
                                Action::Wait => waits += 1,
                                end => break end,
                            }
                            now += 1;
                            assert!(waits <= 20 && now < 40);
                        };
                        if end == Action::Done {
                            let up = goal == Goal::Ready;
                            assert_eq!((last.ready, last.enabled), (up, up));
                            assert!(!last.gone && !last.fatal);
                        }
                        ends += 1;
                    }
                }
            }
        }
        assert_eq!(ends, 2 * 16 * 16 * 16);
    }
}
