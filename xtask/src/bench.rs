// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Benches, in groups. A group's program prints one JSON object per line, first what the machine is, then each
//! figure; this builds it, runs it, and makes a table of it. Groups that cannot be measured yet say so.

use std::process::ExitCode;

use anyhow::{bail, Context as _, Result};
use serde_json::Value;

use crate::session::Session;
use crate::{command, userspace};

/// The group that is built.
const CARD: &str = "card";

/// Groups that are planned, and what has to be built first.
const PLANNED: [(&str, &str); 2] = [
    (
        "migration",
        "the back end's migration commands and the VFIO front end",
    ),
    ("view", "EPT alternate views"),
];

/// Runs a group, or all. The exit code is 2 when something could not be measured; missed goals are for the reader.
pub(crate) fn run(session: &Session, group: Option<&str>, json: bool) -> Result<ExitCode> {
    let known = |name: &str| name == CARD || PLANNED.iter().any(|(g, _)| *g == name);
    if let Some(name) = group.filter(|name| !known(name)) {
        let planned = PLANNED.map(|(g, _)| g).join(", ");
        bail!("no bench group {name}\n=> there are: {CARD}, {planned}");
    }
    let wanted = |name: &str| group.is_none_or(|group| group == name);
    let mut complete = true;
    if wanted(CARD) {
        complete &= card(session, json)?;
    }
    for (name, needs) in PLANNED.iter().filter(|(name, _)| wanted(name)) {
        eprintln!("{name}: not built yet; it measures {needs}");
        complete = false;
    }
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

/// Group `card`. Says whether every figure was measured.
fn card(session: &Session, json: bool) -> Result<bool> {
    let programs = userspace::build(session)?;
    let dir = session.cache.run_dir("bench")?;
    let mut bench = command::command(programs.path("card-bench"));
    bench.arg("--zerocard").arg(programs.path("zerocard"));
    bench.arg("--dir").arg(dir.path());
    bench.env("ZEROCARD_LOG", "warn");
    let output = command::run_and_read(
        "measuring zerocard against raw io_uring",
        &session.cache.log("bench-card"),
        bench,
    )?;
    // Beside them there may be warnings.
    let lines: Vec<Value> = output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let (machine, figures) = lines.split_first().context("the bench printed nothing")?;
    if json {
        for line in &lines {
            println!("{line}");
        }
    } else {
        print!("{}", table(machine, figures));
    }
    Ok(!figures.is_empty() && figures.iter().all(|figure| !figure["value"].is_null()))
}

/// The figures for people.
fn table(machine: &Value, figures: &[Value]) -> String {
    let machine = &machine["machine"];
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut out = format!(
        "{}, {} cores, Linux {}, zerocard {}, {} MiB on {}, in the page cache\n\n",
        text(&machine["cpu"]),
        machine["cores"],
        text(&machine["kernel"]),
        text(&machine["zerocard"]),
        machine["file_bytes"].as_u64().unwrap_or(0) >> 20,
        text(&machine["file_system"]),
    );
    let mut row = |cells: [&str; 5]| {
        let [name, value, spread, goal, met] = cells;
        out += &format!("{name:<26} {value:>8} {spread:>16} {goal:>9}  {met}\n");
    };
    row(["figure", "median", "spread", "goal", "met"]);
    for figure in figures {
        let number = |key: &str| figure[key].as_f64().map(|value| format!("{value:.3}"));
        let name = text(&figure["name"]);
        let side = if figure["better"] == "lower" {
            "<="
        } else {
            ">="
        };
        let goal = format!("{side} {}", figure["goal"]);
        let Some(value) = number("value") else {
            let why = format!("not measured: {}", text(&figure["reason"]));
            row([&name, "-", "-", &goal, &why]);
            continue;
        };
        let [low, high] = ["min", "max"].map(|key| number(key).unwrap_or_default());
        let met = if figure["met"] == true { "yes" } else { "no" };
        row([&name, &value, &format!("{low}..{high}"), &goal, met]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_shows_what_was_measured_and_why_something_was_not() {
        let machine = json!({"machine": {"cpu": "A CPU", "cores": 2, "kernel": "7.2", "zerocard": "0.1.0",
            "file_bytes": 1 << 20, "file_system": "ext4"}});
        let figures = [
            json!({"name": "card.x", "value": 0.6614, "min": 0.5, "max": 0.7, "goal": 0.6, "better": "higher",
                "met": true}),
            json!({"name": "card.y", "value": null, "goal": 0.5, "better": "lower", "met": null,
                "reason": "it rains"}),
        ];
        let table = table(&machine, &figures);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("A CPU, 2 cores, Linux 7.2"));
        let words =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        assert_eq!(
            words(lines[3]),
            ["card.x", "0.661", "0.500..0.700", ">=", "0.6", "yes"]
        );
        assert!(lines[4].ends_with("<= 0.5  not measured: it rains"));
    }
}
