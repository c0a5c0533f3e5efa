// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The decisions of one function: which fault, if any, a command meets.
//!
//! Every rule counts the commands that it matches and draws its own random numbers, whatever other
//! rules there are; so the decision at a given command depends on the seed, the function and the
//! rules' ids alone, and adding a rule does not move another. The first rule that fires wins the
//! command.

use std::time::Duration;

use zeroshift_nvme::status::Status;

use super::random::{between, Random};
use super::rule::{Action, Death, Field, Filter, Rule, Schedule};

/// A command as the stage sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// Whether it came over the admin queue.
    pub(crate) admin: bool,
    pub(crate) opcode: u8,
    pub(crate) cdw10: u32,
}

/// What happens to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing out of the ordinary.
    Proceed,
    /// The fault first; the command is executed when the fault lets it.
    Before(Fault),
    /// The command is executed; then the fault, in place of or on its completion.
    After(Fault),
}

/// A fault with everything random in it drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Go on after this time.
    Delay(Duration),
    /// Complete with this status.
    Status(Status),
    /// Hold until released or reset.
    Stall,
    /// Never complete.
    Drop,
    /// Close the connection of the function.
    Disconnect,
    /// The function dies.
    Die(Death),
    /// One field of the completion entry is wrong: [`Field::corrupt`].
    CorruptCompletion(Field),
    /// One byte of the controller state is wrong. A random number: modulo the length of the state
    /// it says which byte.
    CorruptState(u64),
}

/// How often a rule matched and fired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Commands (with `forget`, dirty marks; with `late`, writes of registers) that it was for.
    pub(super) matched: u64,
    /// Of these, the ones that it decided.
    pub(super) fired: u64,
}

/// The rules of one function.
#[derive(Debug)]
pub(super) struct Stage {
    seed: u64,
    function: String,
    rules: Vec<Active>,
}

#[derive(Debug)]
struct Active {
    id: u64,
    filter: Filter,
    schedule: Schedule,
    after: bool,
    action: Action,
    random: Random,
    counts: Counts,
    /// Times that the schedule let it fire, whether it won or not.
    due: u64,
}

impl Stage {
    /// A stage without rules.
    pub(super) fn new(seed: u64, function: &str) -> Self {
        Self {
            seed,
            function: function.to_owned(),
            rules: Vec::new(),
        }
    }

    /// Adds a rule behind the others. Whether it is for this function is the caller's business.
    pub(super) fn insert(&mut self, id: u64, rule: &Rule) {
        self.rules.push(Active {
            id,
            filter: rule.filter,
            schedule: rule.schedule,
            after: rule.after,
            action: rule.action,
            random: Random::of(self.seed, &self.function, id),
            counts: Counts::default(),
            due: 0,
        });
    }

    /// Removes a rule if it is there.
    pub(super) fn remove(&mut self, id: u64) {
        self.rules.retain(|rule| rule.id != id);
    }

    /// Counts of a rule that is there.
    pub(super) fn counts(&self, id: u64) -> Option<Counts> {
        let rule = self.rules.iter().find(|rule| rule.id == id)?;
        Some(rule.counts)
    }

    /// Whether any rule is for commands.
    pub(super) fn has_commands(&self) -> bool {
        self.rules.iter().any(|rule| rule.action.is_of_commands())
    }

    /// Whether any rule is for dirty marks.
    pub(super) fn has_marks(&self) -> bool {
        self.rules.iter().any(|rule| rule.action == Action::Forget)
    }

    /// Whether any rule is for writes of registers.
    pub(super) fn has_writes(&self) -> bool {
        let late = |rule: &Active| matches!(rule.action, Action::Late(_));
        self.rules.iter().any(late)
    }

    /// Asked once per command, when it was fetched.
    pub(super) fn decide(&mut self, point: &Point) -> Decision {
        let mut decision = Decision::Proceed;
        for rule in &mut self.rules {
            if !rule.action.is_of_commands() || !rule.filter.matches(point) {
                continue;
            }
            let Some(random) = rule.step() else { continue };
            let Some(fault) = rule.action.fault(random) else {
                continue;
            };
            if decision == Decision::Proceed {
                rule.counts.fired += 1;
                decision = match rule.after {
                    false => Decision::Before(fault),
                    true => Decision::After(fault),
                };
            }
        }
        decision
    }

    /// Asked once per dirty mark: whether it is lost.
    pub(super) fn loses_mark(&mut self) -> bool {
        let mut lost = false;
        for rule in &mut self.rules {
            if rule.action == Action::Forget && rule.step().is_some() && !lost {
                rule.counts.fired += 1;
                lost = true;
            }
        }
        lost
    }

    /// Asked once per write of registers: how much later it arrives.
    pub(super) fn late_write(&mut self) -> Option<Duration> {
        let mut late = None;
        for rule in &mut self.rules {
            let Action::Late(time) = rule.action else {
                continue;
            };
            if rule.step().is_some() && late.is_none() {
                rule.counts.fired += 1;
                late = Some(Duration::from_nanos(time));
            }
        }
        late
    }
}

impl Active {
    /// Counts an occurrence. A random number when the rule fires at it.
    fn step(&mut self) -> Option<u64> {
        let Schedule {
            from,
            every,
            times,
            probability,
        } = self.schedule;
        self.counts.matched += 1;
        let since = self.counts.matched.checked_sub(from)?;
        if since % every != 0 || times.is_some_and(|times| self.due >= times) {
            return None;
        }
        if let Some(probability) = probability {
            // 53 bits, which a double holds exactly.
            let drawn = (self.random.next() >> 11) as f64 / (1u64 << 53) as f64;
            if drawn >= probability {
                return None;
            }
        }
        self.due += 1;
        Some(self.random.next())
    }
}

impl Filter {
    fn matches(&self, point: &Point) -> bool {
        self.admin.is_none_or(|admin| admin == point.admin)
            && self.opcode.is_none_or(|opcode| opcode == point.opcode)
            && self.select.is_none_or(|select| select == point.cdw10 as u8)
            && self.cdw10.is_none_or(|cdw10| cdw10 == point.cdw10)
    }
}

impl Action {
    fn fault(self, random: u64) -> Option<Fault> {
        Some(match self {
            Self::Delay { min, max } => {
                Fault::Delay(Duration::from_nanos(between(random, min, max)))
            }
            Self::Status(status) => Fault::Status(status),
            Self::Stall => Fault::Stall,
            Self::Drop => Fault::Drop,
            Self::Disconnect => Fault::Disconnect,
            Self::Die(death) => Fault::Die(death),
            Self::CorruptCompletion(field) => Fault::CorruptCompletion(field),
            Self::CorruptState => Fault::CorruptState(random),
            Self::Forget | Self::Late(_) => return None,
        })
    }
}
