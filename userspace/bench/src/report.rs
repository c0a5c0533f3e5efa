// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Medians and spread, and the lines that come out: README, "Benches".

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use serde_json::{json, Value};

/// Which side of the goal is good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

/// Middle value and ends of some repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let (count, half) = (sorted.len(), sorted.len() / 2);
        Self {
            median: if count % 2 == 1 {
                at(half)
            } else {
                (at(half.saturating_sub(1)) + at(half)) / 2.0
            },
            min: at(0),
            max: at(count.saturating_sub(1)),
        }
    }
}

/// Three decimals: more than a machine repeats.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// What is known of a figure before it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// What its value counts.
    pub unit: &'static str,
    /// What is hoped for.
    pub goal: Goal,
}

impl Figure {
    /// One line: the figure against its goal.
    pub fn measured(&self, values: &Spread, raw: &Value) -> Value {
        let value = values.median;
        let (limit, met) = match self.goal {
            Goal::AtLeast(limit) => (limit, value >= limit),
            Goal::AtMost(limit) => (limit, value <= limit),
        };
        json!({
            "name": self.name, "value": rounded(value), "unit": self.unit, "goal": limit,
            "better": self.better(), "met": met,
            "min": rounded(values.min), "max": rounded(values.max), "raw": raw,
        })
    }

    /// One line: a figure that there is not, and why.
    pub fn not_measured(&self, why: &str) -> Value {
        let (Goal::AtLeast(limit) | Goal::AtMost(limit)) = self.goal;
        json!({
            "name": self.name, "value": null, "unit": self.unit, "goal": limit,
            "better": self.better(), "met": null, "reason": why,
        })
    }

    /// What `measure` came to: its line, or one that says why there is none.
    pub fn line(&self, measure: impl FnOnce() -> Result<Value>) -> Value {
        measure().unwrap_or_else(|error| self.not_measured(&format!("{error:#}")))
    }

    fn better(&self) -> &'static str {
        match self.goal {
            Goal::AtLeast(_) => "higher",
            Goal::AtMost(_) => "lower",
        }
    }
}

/// The processor's name.
pub fn cpu() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |model| {
        model.trim_start_matches([' ', '\t', ':'])
    });
    Ok(model.to_owned())
}

/// Exit code of a program that printed `lines` of figures: 2 when one could not be measured.
pub fn exit_code<'a>(lines: impl IntoIterator<Item = &'a Value>) -> ExitCode {
    if lines.into_iter().any(|line| line["value"].is_null()) {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    fn figure(goal: Goal) -> Figure {
        Figure {
            name: "x",
            unit: "ratio",
            goal,
        }
    }

    #[test]
    fn the_median_is_the_middle_value() {
        let spread = Spread::of([3.0, 1.0, 10.0]);
        assert_eq!((spread.median, spread.min, spread.max), (3.0, 1.0, 10.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).median, 3.0);
    }

    #[test]
    fn a_goal_has_a_direction() {
        let met = |goal, value| {
            let spread = Spread::of([value]);
            figure(goal).measured(&spread, &Value::Null)["met"] == json!(true)
        };
        assert!(met(Goal::AtLeast(0.6), 0.6) && !met(Goal::AtLeast(0.6), 0.59));
        assert!(met(Goal::AtMost(0.5), 0.5) && !met(Goal::AtMost(0.5), 0.51));
    }

    #[test]
    fn a_figure_that_fails_is_a_line_with_the_reason() {
        let figure = figure(Goal::AtMost(0.5));
        let missing = figure.line(|| Err(anyhow!("it rains").context("outside")));
        assert_eq!(
            missing,
            json!({"name": "x", "value": null, "unit": "ratio", "goal": 0.5, "better": "lower",
                "met": null, "reason": "outside: it rains"})
        );
        let there = figure.line(|| Ok(figure.measured(&Spread::of([0.0]), &Value::Null)));
        assert_eq!(there["value"], 0.0);
        assert_eq!(exit_code([&there]), ExitCode::SUCCESS);
        assert_eq!(exit_code([&there, &missing, &there]), ExitCode::from(2));
    }
}
