// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All stages of a card, and the rules that were handed out to them.
//!
//! Owned by the card. Rules come and go on the control thread while I/O threads decide; an I/O
//! thread takes its stage's lock only while rules are there, else it pays one load. Lock order:
//! the list of rules, then one stage.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::rule::Rule;
use super::stage::{Counts, Decision, Point, Stage};

/// Most rules at a time: every command passes all of them.
pub(super) const MAX_RULES: usize = 256;

/// There are rules for commands.
const COMMANDS: u8 = 1;
/// There are rules for dirty marks.
const MARKS: u8 = 2;
/// There are rules for writes of registers.
const WRITES: u8 = 4;

/// A stage that I/O threads ask and the control thread changes.
pub(crate) struct SharedStage {
    /// COMMANDS, MARKS and WRITES. Only a hint about when to look: a rule works from the next command on
    /// that sees it, so relaxed accesses do.
    armed: AtomicU8,
    stage: Mutex<Stage>,
}

impl SharedStage {
    fn new(stage: Stage) -> Self {
        Self {
            armed: AtomicU8::new(0),
            stage: Mutex::new(stage),
        }
    }

    /// Whether every command proceeds, every mark counts and every write is in time.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.armed.load(Ordering::Relaxed) == 0
    }

    /// [`Stage::decide`].
    #[inline]
    pub(crate) fn decide(&self, point: &Point) -> Decision {
        if self.armed.load(Ordering::Relaxed) & COMMANDS == 0 {
            return Decision::Proceed;
        }
        self.stage.lock().decide(point)
    }

    /// [`Stage::loses_mark`].
    #[inline]
    pub(crate) fn loses_mark(&self) -> bool {
        self.armed.load(Ordering::Relaxed) & MARKS != 0 && self.stage.lock().loses_mark()
    }

    /// [`Stage::late_write`].
    pub(crate) fn late_write(&self) -> Option<Duration> {
        match self.armed.load(Ordering::Relaxed) & WRITES {
            0 => None,
            _ => self.stage.lock().late_write(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Stage)) {
        let mut stage = self.stage.lock();
        change(&mut stage);
        let commands = if stage.has_commands() { COMMANDS } else { 0 };
        let marks = if stage.has_marks() { MARKS } else { 0 };
        let writes = if stage.has_writes() { WRITES } else { 0 };
        self.armed
            .store(commands | marks | writes, Ordering::Relaxed);
    }
}

/// The fault rules of a card.
pub(crate) struct Faults {
    seed: u64,
    stages: Vec<(String, Arc<SharedStage>)>,
    rules: Mutex<Rules>,
}

#[derive(Default)]
struct Rules {
    /// Id of the newest rule ever; ids are not used again.
    newest: u64,
    /// In the order in which they decide.
    list: Vec<(u64, Rule)>,
}

/// A rule in a list, as in section 8 of `docs/interfaces.md`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Listed {
    /// Id, for removing it.
    pub(crate) fault: u64,
    pub(crate) rule: Rule,
    /// Occurrences that it was for, on all its functions.
    pub(crate) matched: u64,
    /// Of these, the ones that it decided.
    pub(crate) fired: u64,
}

impl Faults {
    /// No rules yet, for functions with these names.
    pub(crate) fn new<'a>(seed: u64, functions: impl IntoIterator<Item = &'a str>) -> Self {
        let stage = |name: &'a str| {
            let stage = SharedStage::new(Stage::new(seed, name));
            (name.to_owned(), Arc::new(stage))
        };
        Self {
            seed,
            stages: functions.into_iter().map(stage).collect(),
            rules: Mutex::default(),
        }
    }

    /// The seed of everything random.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The stage of a function, by its place in the list that [`Faults::new`] was given.
    pub(crate) fn stage(&self, function: usize) -> Option<&Arc<SharedStage>> {
        self.stages.get(function).map(|(_, stage)| stage)
    }

    /// Adds a rule behind all others. Its id, or why it cannot be.
    pub(crate) fn add(&self, rule: Rule) -> Result<u64, String> {
        if let Some(name) = rule.function() {
            if !self.stages.iter().any(|(known, _)| known == name) {
                let names: Vec<&str> = self.stages.iter().map(|(name, _)| &**name).collect();
                return Err(format!(
                    "function: there is no {name:?}; the card has {}",
                    names.join(", ")
                ));
            }
        }
        let mut rules = self.rules.lock();
        if rules.list.len() >= MAX_RULES {
            return Err(format!(
                "there are {MAX_RULES} fault rules already; remove some first"
            ));
        }
        rules.newest += 1;
        let id = rules.newest;
        for stage in self.stages_of(&rule) {
            stage.change(|stage| stage.insert(id, &rule));
        }
        rules.list.push((id, rule));
        Ok(id)
    }

    /// Removes a rule; whether it was there.
    pub(crate) fn remove(&self, id: u64) -> bool {
        let mut rules = self.rules.lock();
        let Some(at) = rules.list.iter().position(|(known, _)| *known == id) else {
            return false;
        };
        let (_, rule) = rules.list.remove(at);
        for stage in self.stages_of(&rule) {
            stage.change(|stage| stage.remove(id));
        }
        true
    }

    /// Removes all rules; how many there were.
    pub(crate) fn clear(&self) -> usize {
        let mut rules = self.rules.lock();
        let list = std::mem::take(&mut rules.list);
        for (id, rule) in &list {
            for stage in self.stages_of(rule) {
                stage.change(|stage| stage.remove(*id));
            }
        }
        list.len()
    }

    /// All rules with their counts.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let rules = self.rules.lock();
        let listed = rules.list.iter().map(|(id, rule)| {
            let mut sum = Counts::default();
            for stage in self.stages_of(rule) {
                let counts = stage.stage.lock().counts(*id).unwrap_or_default();
                sum.matched += counts.matched;
                sum.fired += counts.fired;
            }
            Listed {
                fault: *id,
                rule: rule.clone(),
                matched: sum.matched,
                fired: sum.fired,
            }
        });
        listed.collect()
    }

    fn stages_of<'a>(&'a self, rule: &'a Rule) -> impl Iterator<Item = &'a Arc<SharedStage>> {
        let wanted = rule.function();
        let stages = self.stages.iter();
        stages
            .filter(move |(name, _)| wanted.is_none_or(|wanted| wanted == name))
            .map(|(_, stage)| stage)
    }
}
