// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Two rows of scenarios, one beside the other: most of what a rig does is wait.
//!
//! The first row is shown as it runs. What the row beside it says is held back, and shown in one piece between two
//! scenarios of the first. When the first row is done, its thread takes scenarios from the end of the other one.

use std::collections::VecDeque;
use std::sync::mpsc::channel;
use std::sync::Mutex;

use super::{Ran, Scenario, Sum};
use crate::session::Session;
use crate::ui::{held_back, say, Step};

/// Runs both rows, and shows what came of them.
pub(super) fn run(
    session: &Session,
    first: &[&'static Scenario],
    beside: &[&'static Scenario],
    sum: &mut Sum,
) {
    say(format!(
        "--- {} scenarios run beside the others, and are shown when they end",
        beside.len()
    ));
    let waiting = Waiting::new(beside);
    std::thread::scope(|scope| {
        let (sender, ended) = channel();
        let waiting = &waiting;
        scope.spawn(move || {
            while let Some(scenario) = waiting.first() {
                let (ran, said) = held_back(|| scenario.run(session, None));
                if sender.send((ran, said)).is_err() {
                    return;
                }
            }
        });
        let (mut shown, mut taken) = (0, 0);
        let mut show = |sum: &mut Sum, (ran, said): (Ran, Vec<String>)| {
            sum.show(ran, said);
            shown += 1;
        };
        let more = std::iter::from_fn(|| waiting.last()).inspect(|_| taken += 1);
        for scenario in first.iter().copied().chain(more) {
            say(scenario.title());
            sum.add(scenario.run(session, None));
            ended.try_iter().for_each(|one| show(sum, one));
        }
        // Nothing waits any more; what was not taken from the end has ended, or runs.
        for scenario in beside.iter().take(beside.len() - taken).skip(shown) {
            let step = Step::start(format!("waiting for {}", scenario.full_name()));
            let Ok((ran, said)) = ended.recv() else {
                break;
            };
            step.done();
            sum.show(ran, said);
        }
    });
}

/// Scenarios that nobody has begun.
struct Waiting(Mutex<VecDeque<&'static Scenario>>);

impl Waiting {
    fn new(scenarios: &[&'static Scenario]) -> Self {
        Self(Mutex::new(scenarios.iter().copied().collect()))
    }

    /// Takes the next one. (None as well when a thread died with the lock; the scope then ends with its panic.)
    fn first(&self) -> Option<&'static Scenario> {
        self.0.lock().ok()?.pop_front()
    }

    /// Takes the last one.
    fn last(&self) -> Option<&'static Scenario> {
        self.0.lock().ok()?.pop_back()
    }
}
