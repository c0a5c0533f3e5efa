// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a person sees while something long runs: one spinner line on a terminal, a start and an end line
//! in a log. Everything goes to standard error; standard output is for results only.
//!
//! What a thread does beside the main one is held back until it can be said in one piece.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

thread_local! {
    /// What this thread would have said, if it has to wait with that.
    static HELD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Says a line, or holds it back.
pub(crate) fn say(line: impl Into<String>) {
    let line = line.into();
    HELD.with_borrow_mut(|held| match held {
        Some(lines) => lines.push(line),
        None => eprintln!("{line}"),
    });
}

/// Does something, and gives back the lines that it would have said.
pub(crate) fn held_back<T>(act: impl FnOnce() -> T) -> (T, Vec<String>) {
    let before = HELD.replace(Some(Vec::new()));
    let done = act();
    (done, HELD.replace(before).unwrap_or_default())
}

/// One step in progress. Dropping it without [`Step::done`] reports it as failed.
pub(crate) struct Step {
    title: String,
    started: Instant,
    bar: Option<ProgressBar>,
    finished: bool,
}

impl Step {
    /// Shows `title` until the step ends.
    pub(crate) fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        let live = HELD.with_borrow(Option::is_none) && std::io::stderr().is_terminal();
        let bar = live.then(|| {
            let bar = ProgressBar::new_spinner().with_message(title.clone());
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg} [{elapsed}] {prefix:.dim}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            say(format!("==> {title}"));
        }
        Self {
            title,
            started: Instant::now(),
            bar,
            finished: false,
        }
    }

    /// Shows the newest line of the step's output, on a terminal only.
    pub(crate) fn detail(&self, line: &str) {
        if let Some(bar) = &self.bar {
            let width = 60;
            let line: String = line.trim().chars().take(width).collect();
            bar.set_prefix(line);
        }
    }

    /// Says a line that stays.
    pub(crate) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("    {line}")),
            None => say(format!("    {line}")),
        }
    }

    /// Ends the step well.
    pub(crate) fn done(mut self) {
        self.finish("done");
    }

    fn finish(&mut self, how: &str) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let took = human(self.started.elapsed());
        match self.bar.take() {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("  {} ({how}, {took})", self.title);
            }
            None => say(format!("    {how}: {} ({took})", self.title)),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.finish("FAILED");
    }
}

/// A duration as people say it: `0.4 s`, `12 s`, `3 min 05 s`.
pub(crate) fn human(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..=9 => format!("{:.1} s", d.as_secs_f64()),
        10..=119 => format!("{s} s"),
        _ => format!("{} min {:02} s", s / 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_is_not_lost() {
        let (inner, lines) = held_back(|| {
            say("one");
            let (_, inner) = held_back(|| say("two"));
            say("three");
            inner
        });
        assert_eq!(
            (lines, inner),
            (vec!["one".into(), "three".into()], vec!["two".into()])
        );
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(440)), "0.4 s");
        assert_eq!(human(Duration::from_secs(61)), "61 s");
        assert_eq!(human(Duration::from_secs(185)), "3 min 05 s");
    }
}
