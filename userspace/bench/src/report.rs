// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Medians and spread, and the lines that come out: README, "Benches".

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

/// One line: a figure against its goal.
pub fn metric(name: &str, unit: &str, goal: Goal, values: &Spread, raw: &Value) -> Value {
    let value = values.median;
    let (limit, met) = match goal {
        Goal::AtLeast(limit) => (limit, value >= limit),
        Goal::AtMost(limit) => (limit, value <= limit),
    };
    json!({
        "name": name, "value": rounded(value), "unit": unit, "goal": limit,
        "better": better(goal), "met": met,
        "min": rounded(values.min), "max": rounded(values.max), "raw": raw,
    })
}

/// One line: a figure that there is not, and why.
pub fn not_measured(name: &str, unit: &str, goal: Goal, why: &str) -> Value {
    let (Goal::AtLeast(limit) | Goal::AtMost(limit)) = goal;
    json!({
        "name": name, "value": null, "unit": unit, "goal": limit,
        "better": better(goal), "met": null, "reason": why,
    })
}

fn better(goal: Goal) -> &'static str {
    match goal {
        Goal::AtLeast(_) => "higher",
        Goal::AtMost(_) => "lower",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            metric("x", "ratio", goal, &spread, &Value::Null)["met"] == json!(true)
        };
        assert!(met(Goal::AtLeast(0.6), 0.6) && !met(Goal::AtLeast(0.6), 0.59));
        assert!(met(Goal::AtMost(0.5), 0.5) && !met(Goal::AtMost(0.5), 0.51));
        let missing = not_measured("x", "ratio", Goal::AtMost(0.5), "it rains");
        assert_eq!(
            (&missing["met"], &missing["value"]),
            (&Value::Null, &Value::Null)
        );
    }
}
