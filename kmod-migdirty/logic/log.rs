// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The log of one function: what its owner wants, what the card does, and what to send it next.
//!
//! A card neither starts nor stops tracking while the function is suspended (Track Send: Controller
//! Suspended, 39h), but the owner may ask for it at any time. So both wait until the function runs
//! again. What it writes between that moment and the start of the tracking nobody sees; that is why
//! a log that had to wait begins with everything dirty.
//!
//! Whether the function is suspended is what the card said last. Somebody else may have reset the
//! function since, and an order without an answer leaves nobody knowing; so a log that waits does not
//! rely on it ([`Log::doubt`]): the card is asked, and its refusal says that it is suspended.
//!
//! For the same reason, whoever suspends a function whose log waits marks everything once.
//!
//! The machine sends nothing. Whoever drives it does what [`Log::next`] says while there is
//! something to do, and tells it how that ended.

/// What the card does for the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tracking {
    /// Nothing.
    Off,
    /// The log that is wanted.
    On,
    /// Something else: a log that is not wanted any more, or nobody knows.
    Stale,
}

/// What is known of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Motion {
    Runs,
    Suspended,
    /// One of the two.
    Unknown,
}

/// What the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Log {
        /// It was promised before the card tracked anything.
        waited: bool,
    },
    /// The log was lost, and nobody has stopped it or started it anew.
    Lost,
}

/// The log of a function, and whether the function is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    motion: Motion,
    tracking: Tracking,
    wish: Wish,
    /// A start was refused because the card tracks something already, and it was told to stop.
    cleared: bool,
}

/// What to send the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, now.
    Nothing,
    /// Track Send, stop. Then [`Log::stopped`].
    Stop,
    /// Track Send, start. Then [`Log::started`].
    Start,
}

/// How a Track Send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The card did it.
    Done,
    /// Controller Suspended.
    Suspended,
    /// Invalid Controller Identifier: of a stop, nothing is tracked; of a start, something is.
    WrongTarget,
    /// The card refused it for another reason, or it was not sent.
    Failed,
    /// The card did not say how it ended, so nobody knows whether it tracks.
    Unknown,
}

/// What a harvest has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harvest {
    /// There is no log.
    NoLog,
    /// It is lost.
    Lost,
    /// The log waits for the function to run; as long as it is suspended nothing is written.
    Waits,
    /// Ask the card.
    Receive,
}

impl Log {
    /// Of a function that runs and is not tracked, as far as is known.
    pub const fn new() -> Self {
        Self {
            motion: Motion::Runs,
            tracking: Tracking::Off,
            wish: Wish::Nothing,
            cleared: false,
        }
    }

    /// Whether the function is suspended, as far as is known.
    pub const fn is_suspended(&self) -> bool {
        matches!(self.motion, Motion::Suspended)
    }

    /// Whether the function is not known to run.
    pub const fn may_be_suspended(&self) -> bool {
        !matches!(self.motion, Motion::Runs)
    }

    /// Whether there is a log, lost ones included.
    pub const fn is_wanted(&self) -> bool {
        !matches!(self.wish, Wish::Nothing)
    }

    /// Whether there is a log that is lost.
    pub const fn is_lost(&self) -> bool {
        matches!(self.wish, Wish::Lost)
    }

    /// Whether the card tracks what is wanted.
    pub const fn is_tracked(&self) -> bool {
        matches!(self.tracking, Tracking::On)
    }

    /// Whether there is a log that is not lost, and the card does not track it yet.
    pub const fn is_promised(&self) -> bool {
        matches!(self.wish, Wish::Log { .. }) && !self.is_tracked()
    }

    /// Whether the log was promised before the card tracked anything.
    pub const fn has_waited(&self) -> bool {
        matches!(self.wish, Wish::Log { waited: true })
    }

    /// Whether the card may hold descriptors for the function.
    pub const fn holds_descriptors(&self) -> bool {
        !matches!(self.tracking, Tracking::Off)
    }

    /// The card confirmed that the function is suspended.
    pub fn suspend(&mut self) {
        self.motion = Motion::Suspended;
    }

    /// The function runs: resumed, or reset.
    pub fn run(&mut self) {
        self.motion = Motion::Runs;
    }

    /// Nobody knows whether the function is suspended, or what was known may be old.
    pub fn doubt(&mut self) {
        self.motion = Motion::Unknown;
        if self.is_promised() {
            self.wish = Wish::Log { waited: true };
        }
    }

    /// The owner asks for a log. `false` when there is one.
    #[must_use]
    pub fn start(&mut self) -> bool {
        if matches!(self.wish, Wish::Log { .. }) {
            return false;
        }
        self.wish = Wish::Log {
            waited: self.may_be_suspended(),
        };
        self.outdate();
        true
    }

    /// The owner does not want a log any more.
    pub fn stop(&mut self) {
        self.wish = Wish::Nothing;
        self.outdate();
    }

    /// What was written is not known any more.
    pub fn lose(&mut self) {
        if self.is_wanted() {
            self.wish = Wish::Lost;
        }
        self.outdate();
    }

    /// The card was reset, or is gone: every suspension and every log has ended.
    pub fn card_lost(&mut self) {
        self.lose();
        self.motion = Motion::Runs;
        self.tracking = Tracking::Off;
    }

    /// What to send next.
    pub const fn next(&self) -> Step {
        if self.is_suspended() {
            return Step::Nothing;
        }
        match (self.tracking, self.wish) {
            (Tracking::Stale, _) => Step::Stop,
            (Tracking::Off, Wish::Log { .. }) => Step::Start,
            _ => Step::Nothing,
        }
    }

    /// How the stop ended. `false` when it failed for good.
    #[must_use]
    pub fn stopped(&mut self, sent: Sent) -> bool {
        match sent {
            Sent::Done | Sent::WrongTarget => self.tracking = Tracking::Off,
            Sent::Suspended => self.found_suspended(),
            Sent::Failed | Sent::Unknown => return false,
        }
        true
    }

    /// How the start ended. `Some(true)`: the log runs, and everything in it is dirty;
    /// `Some(false)`: no special case. `None`: it failed for good, and the owner has no log, or a
    /// lost one if it was promised one before.
    #[must_use]
    pub fn started(&mut self, sent: Sent) -> Option<bool> {
        let waited = matches!(self.wish, Wish::Log { waited: true });
        match sent {
            Sent::Done => {
                self.tracking = Tracking::On;
                self.cleared = false;
                Some(waited)
            }
            Sent::Suspended => {
                self.found_suspended();
                Some(false)
            }
            Sent::WrongTarget if !self.cleared => {
                self.cleared = true;
                self.tracking = Tracking::Stale;
                Some(false)
            }
            Sent::WrongTarget | Sent::Failed | Sent::Unknown => {
                self.cleared = false;
                if sent == Sent::Unknown {
                    self.tracking = Tracking::Stale;
                }
                self.wish = if waited { Wish::Lost } else { Wish::Nothing };
                None
            }
        }
    }

    /// What a harvest has to do.
    pub const fn harvest(&self) -> Harvest {
        match (self.wish, self.tracking) {
            (Wish::Nothing, _) => Harvest::NoLog,
            (Wish::Lost, _) => Harvest::Lost,
            (Wish::Log { .. }, Tracking::On) => Harvest::Receive,
            (Wish::Log { .. }, _) => Harvest::Waits,
        }
    }

    /// The card says that the function is suspended, which was not known.
    fn found_suspended(&mut self) {
        self.motion = Motion::Suspended;
        if let Wish::Log { waited } = &mut self.wish {
            *waited = true;
        }
    }

    fn outdate(&mut self) {
        if self.tracking == Tracking::On {
            self.tracking = Tracking::Stale;
        }
        self.cleared = false;
    }
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// What a card does, and what was written while a log was wanted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    struct Card {
        suspended: bool,
        tracks: bool,
        /// Something was written since the owner asked for the log, and the card did not see it.
        unseen: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Event {
        Suspend,
        Resume,
        Reset,
        /// By somebody else: nobody is told.
        SecretReset,
        /// A Suspend without an answer: done, or not.
        MaybeSuspend,
        Start,
        Stop,
        Harvest,
        Lose,
        CardLost,
    }

    const EVENTS: [Event; 10] = [
        Event::Suspend,
        Event::Resume,
        Event::Reset,
        Event::SecretReset,
        Event::MaybeSuspend,
        Event::Start,
        Event::Stop,
        Event::Harvest,
        Event::Lose,
        Event::CardLost,
    ];

    /// Drives the log until it rests, with a card that does as it should, or refuses the Track Send
    /// with number `fails`. Whether all went well.
    fn settle(log: &mut Log, card: &mut Card, fails: Option<usize>) -> bool {
        for number in 0..5 {
            let step = log.next();
            let right = match step {
                Step::Nothing => return true,
                _ if card.suspended => Sent::Suspended,
                Step::Stop if card.tracks => Sent::Done,
                Step::Start if !card.tracks => Sent::Done,
                _ => Sent::WrongTarget,
            };
            let sent = if fails == Some(number) {
                Sent::Failed
            } else {
                right
            };
            let well = if step == Step::Stop {
                card.tracks &= sent != Sent::Done;
                log.stopped(sent)
            } else {
                card.tracks |= sent == Sent::Done;
                let started = log.started(sent);
                if started == Some(true) && sent == Sent::Done {
                    // Everything is dirty, so nothing is unseen.
                    card.unseen = false;
                }
                started.is_some()
            };
            if !well {
                // As whoever drives it does.
                if log.is_promised() {
                    log.lose();
                }
                return false;
            }
        }
        panic!("does not come to rest: {log:?}");
    }

    /// A function that runs writes all the time.
    fn write(log: &Log, card: &mut Card) {
        if !log.is_wanted() || log.is_lost() {
            card.unseen = false;
        } else if !card.suspended && !card.tracks {
            card.unseen = true;
        }
    }

    /// Whoever suspends a function whose log waits marks everything, as it may have run.
    fn suspended_anew(log: &Log, card: &mut Card) {
        card.unseen &= !log.is_promised();
    }

    /// Every order of events, and every Track Send refused once: what a harvest does not show, the
    /// log never saw, and the owner is told so.
    #[test]
    fn no_write_is_lost() {
        let start = Card {
            suspended: false,
            tracks: false,
            unseen: false,
        };
        let mut todo = vec![(Log::new(), start)];
        let mut seen = HashSet::new();
        let outcomes = EVENTS.iter().flat_map(|event| {
            let fails = [None, Some(0), Some(1), Some(2)];
            fails.map(|fails| (*event, fails))
        });
        let outcomes: Vec<_> = outcomes.collect();
        while let Some((log, card)) = todo.pop() {
            if !seen.insert(format!("{log:?}{card:?}")) {
                continue;
            }
            for (event, fails) in &outcomes {
                let (mut log, mut card) = (log, card);
                let mut well = true;
                match event {
                    Event::Suspend => {
                        card.suspended = true;
                        log.suspend();
                        suspended_anew(&log, &mut card);
                    }
                    Event::Resume | Event::Reset => {
                        card.suspended = false;
                        write(&log, &mut card);
                        log.run();
                        well = settle(&mut log, &mut card, *fails);
                    }
                    Event::SecretReset => {
                        card.suspended = false;
                        write(&log, &mut card);
                        todo.push((log, card));
                        continue;
                    }
                    Event::MaybeSuspend => {
                        log.doubt();
                        suspended_anew(&log, &mut card);
                        let mut running = card;
                        write(&log, &mut running);
                        todo.push((log, running));
                        card.suspended = true;
                    }
                    Event::Start => {
                        let had = log.is_wanted() && !log.is_lost();
                        assert_eq!(log.start(), !had);
                        if !had {
                            card.unseen = false;
                            // What is known may be old.
                            if log.is_suspended() {
                                log.doubt();
                            }
                            well = settle(&mut log, &mut card, *fails);
                            if !well {
                                log.stop();
                            }
                        }
                    }
                    Event::Stop => {
                        log.stop();
                        well = settle(&mut log, &mut card, *fails);
                    }
                    Event::Harvest => match log.harvest() {
                        Harvest::NoLog => assert!(!log.is_wanted()),
                        Harvest::Lost => assert!(log.is_lost()),
                        Harvest::Receive => {
                            assert!(card.tracks && !card.unseen, "{log:?} {card:?}");
                            match card.suspended {
                                true => log.suspend(),
                                false => log.run(),
                            }
                        }
                        Harvest::Waits => {
                            log.doubt();
                            well = settle(&mut log, &mut card, *fails);
                            if well && log.is_promised() {
                                // "Nothing was written."
                                assert!(card.suspended && !card.unseen, "{log:?} {card:?}");
                            }
                        }
                    },
                    Event::Lose => log.lose(),
                    Event::CardLost => {
                        card = start;
                        log.card_lost();
                    }
                }
                write(&log, &mut card);
                // While it runs, every write is seen; what was believed wrongly shows at a harvest.
                let told = !matches!(event, Event::MaybeSuspend | Event::Suspend);
                if well && told && !log.may_be_suspended() {
                    assert!(!card.unseen, "{event:?}: {log:?} {card:?}");
                }
                if log.is_tracked() {
                    assert!(card.tracks, "{event:?}: {log:?} {card:?}");
                }
                assert!(!card.tracks || log.holds_descriptors());
                todo.push((log, card));
            }
        }
        assert!(seen.len() > 20, "{}", seen.len());
    }

    #[test]
    fn a_suspension_that_was_not_known_makes_the_log_wait() {
        let mut log = Log::new();
        assert!(log.start());
        assert_eq!(log.next(), Step::Start);
        assert_eq!(log.started(Sent::Suspended), Some(false));
        assert!(log.is_suspended());
        assert_eq!((log.next(), log.harvest()), (Step::Nothing, Harvest::Waits));
        log.run();
        assert_eq!(log.next(), Step::Start);
        assert_eq!(log.started(Sent::Done), Some(true), "everything is dirty");
    }

    #[test]
    fn what_is_tracked_already_is_stopped_once() {
        let mut log = Log::new();
        assert!(log.start());
        assert_eq!(log.started(Sent::WrongTarget), Some(false));
        assert_eq!(log.next(), Step::Stop);
        assert!(log.stopped(Sent::Done));
        assert_eq!(log.next(), Step::Start);
        assert_eq!(log.started(Sent::WrongTarget), None);
        assert!(!log.is_wanted(), "it was never promised");
        assert_eq!(log.next(), Step::Nothing);
    }

    #[test]
    fn a_promised_log_that_cannot_start_is_lost() {
        let mut log = Log::new();
        log.suspend();
        assert!(log.start());
        log.run();
        assert_eq!(log.started(Sent::Failed), None);
        assert_eq!(log.harvest(), Harvest::Lost);
        assert!(log.start(), "start helps");
        assert_eq!(log.started(Sent::Done), Some(false));
        assert!(!log.start());
    }

    /// What the card tracks now nobody wants; it would keep descriptors from others.
    #[test]
    fn a_start_without_an_answer_is_stopped() {
        for waited in [false, true] {
            let mut log = Log::new();
            if waited {
                log.suspend();
            }
            assert!(log.start());
            log.run();
            assert_eq!(log.started(Sent::Unknown), None);
            assert_eq!((log.is_lost(), log.is_wanted()), (waited, waited));
            assert!(log.holds_descriptors());
            assert_eq!(log.next(), Step::Stop);
            assert!(!log.stopped(Sent::Unknown));
            assert_eq!(log.next(), Step::Stop);
            assert!(log.stopped(Sent::WrongTarget));
            assert_eq!(log.next(), Step::Nothing);
            assert!(!log.holds_descriptors());
        }
    }

    #[test]
    fn a_stop_that_fails_is_tried_again() {
        let mut log = Log::new();
        assert!(log.start());
        assert_eq!(log.started(Sent::Done), Some(false));
        log.stop();
        assert_eq!(log.next(), Step::Stop);
        assert!(!log.stopped(Sent::Failed));
        assert!(log.holds_descriptors());
        assert_eq!(log.next(), Step::Stop);
    }
}
